"""Quality on held-out data beside the grams: what a report says of it, and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol


class HeldOut(Protocol):
    """Figures of the base model and of the latest one; None: not evaluated (`core.jobs` stores the
    like). Losses in nats per label token; scores by metric, percent.
    """

    @property
    def first_validation_loss(self) -> float | None: ...
    @property
    def validation_loss(self) -> float | None: ...
    @property
    def first_scores(self) -> Mapping[str, float] | None: ...
    @property
    def scores(self) -> Mapping[str, float] | None: ...


def quality_section(held_out: HeldOut | None) -> dict[str, Any] | None:
    """Plain JSON types, as evaluated: nothing is rounded. None: nothing was evaluated."""
    if held_out is None:
        return None
    losses = (_finite(held_out.first_validation_loss), _finite(held_out.validation_loss))
    scores = (_copy(held_out.first_scores), _copy(held_out.scores))
    if losses == scores == (None, None):
        return None
    return {
        "validation_loss": dict(zip(("before", "after"), losses, strict=True)),
        "scores": dict(zip(("before", "after"), scores, strict=True)),
    }


def quality_words(quality: Mapping[str, Any]) -> str:
    """One line for `quality_section`'s answer."""
    loss, scores = quality["validation_loss"], quality["scores"]
    before, after = scores["before"] or {}, scores["after"] or {}
    lines = [("validation loss", loss["before"], loss["after"], ".4f")]
    lines += [(name, before.get(name), after.get(name), ".2f") for name in before | after]
    return "Held-out data: " + "; ".join(
        f"{name} {_text(first, form)} before training, {_text(last, form)} after"
        for name, first, last, form in lines
        if (first, last) != (None, None)
    )


def _text(value: float | None, form: str) -> str:
    return "not known" if value is None else format(value, form)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _copy(scores: Mapping[str, float] | None) -> dict[str, float] | None:
    return None if scores is None else dict(scores)
