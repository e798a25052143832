"""How a job ends, as one write under its fence: from what stopped the training to the job's row."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from sqlalchemy.orm import Session

from core.errors import GreentuneError, InvalidInput, NotFound, TrainingFailed, Unavailable
from core.jobs import service
from core.jobs.lifecycle import Release
from core.jobs.records import Claim, JobRecord
from worker.hooks import Interrupted, Steering
from worker.unforeseen import may_pass, sentence_of

logger = logging.getLogger(__name__)

#: the last write of a training process
Ending = Callable[[Session, datetime], JobRecord]


class SetAside(Interrupted):
    """The job's own plan ended this attempt."""

    def __init__(self, ending: Ending) -> None:
        super().__init__()
        self.ending = ending


def ending_of(
    error: Exception,
    claim: Claim,
    steering: Steering,
    *,
    max_attempts: int,
) -> Ending:
    """What ``error`` means for the job.

    The caller's mistakes and a training that cannot work fail the job at once, with the error's own
    sentence. What another attempt may overcome gives the job back. What nobody foresaw does so too,
    until it comes again (`service.raised`).
    """
    if isinstance(error, SetAside):
        return error.ending
    if isinstance(error, Interrupted):
        return _interrupted(claim, steering, max_attempts)
    if isinstance(error, (InvalidInput, NotFound, TrainingFailed)):
        return _failed(claim, error)
    if not isinstance(error, (Unavailable, OSError)):
        logger.error("job %s: training failed", claim.job_id, exc_info=error)
        return _raised(claim, error, max_attempts)
    # neither paths of this host nor a server's words are for the caller's eyes
    logger.warning("job %s: given back: %s", claim.job_id, error, exc_info=error)
    return _released(claim, Release.TRANSIENT, max_attempts)


def _interrupted(claim: Claim, steering: Steering, max_attempts: int) -> Ending:
    job_id, fence = claim.job_id, claim.fence
    if steering.is_cancelled:
        return lambda session, now: service.cancelled(session, job_id, fence, now=now)
    if steering.is_paused:
        return lambda session, now: service.paused(session, job_id, fence, now=now)
    return _released(claim, Release.SHUTDOWN, max_attempts)


def _failed(claim: Claim, error: GreentuneError) -> Ending:
    return lambda session, now: service.fail(
        session,
        claim.job_id,
        claim.fence,
        code=error.code,
        message=error.message,
        param=error.param,
        now=now,
    )


def _released(claim: Claim, reason: Release, max_attempts: int) -> Ending:
    return lambda session, now: service.release(
        session, claim.job_id, claim.fence, reason=reason, max_attempts=max_attempts, now=now
    )


def _raised(claim: Claim, error: Exception, max_attempts: int) -> Ending:
    # said now: an ending that waits for the database must not keep the model of the traceback
    failure, may_be_gone = sentence_of(error), may_pass(error)
    return lambda session, now: service.raised(
        session,
        claim.job_id,
        claim.fence,
        failure=failure,
        may_pass=may_be_gone,
        max_attempts=max_attempts,
        now=now,
    )
