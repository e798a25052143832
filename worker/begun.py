"""What a job's first attempt made of the options that were left open, for the attempts after it.

A release that was installed in between may have other rules. Epochs, batch size and interval are
kept in the spec (`core.jobs.records.Hyperparameters.kept_in`). The rule of rates is a function of
the share that a selection trains, so one stored rate is not the whole of it: the rule as it is now
is scaled until it gives what is stored. Where nothing has changed the factor is exactly 1.
"""

from __future__ import annotations

import dataclasses

from core.jobs.records import Hyperparameters
from worker.prepare import Prepared


def hyperparameters_of(
    began: Hyperparameters | None, prepared: Prepared, rho: float
) -> Hyperparameters:
    """What the first attempt came to.

    Args:
        began: what the first attempt came to; None: this is the first.
        rho: share of full fine-tuning's cost that the attempt begins with.
    """
    training = prepared.training
    assert training.n_epochs is not None
    assert training.batch_size is not None
    return began or Hyperparameters(
        n_epochs=training.n_epochs,
        batch_size=training.batch_size,
        learning_rate=prepared.peak_learning_rate(rho),
        learning_rate_multiplier=training.learning_rate_multiplier,
        selection_interval=training.selection_interval,
        rho=rho,
    )


def at_its_rate(began: Hyperparameters | None, prepared: Prepared, rho: float) -> Prepared:
    """With the peak rates that the job began with. Of a job that began before its row knew the
    share that the rate belongs to, and that has a plan, the share is not known: it takes the rule.

    Args:
        began, rho: as `hyperparameters_of`.
    """
    if began is None:
        return prepared
    share = began.rho
    if share is None:
        if prepared.spec.green.is_planned:
            return prepared
        share = rho  # decided once per job
    training = prepared.training
    factor = began.learning_rate / prepared.peak_learning_rate(share)
    multiplier = (training.learning_rate_multiplier or 1.0) * factor
    scaled = dataclasses.replace(training, learning_rate_multiplier=multiplier)
    return dataclasses.replace(prepared, training=scaled)
