"""The error tree: what can go wrong, named once, with no notion of HTTP.

::

    GreentuneError
    ├── InvalidInput                 the caller must change the request
    │   ├── UnknownParameter         a key nobody knows (typos must not cost carbon)
    │   ├── MissingParameter
    │   ├── UnsupportedMethod
    │   ├── RhoInfeasible            carries the lowest feasible rho
    │   └── DataInvalid              a data set broke the rules; carries the problems
    ├── NotFound                     also: another tenant's object
    │   └── ModelNotFound
    ├── Conflict                     the object's state forbids it
    │   ├── InvalidTransition
    │   ├── FileInUse
    │   ├── ModelInUse
    │   └── IdempotencyInProgress
    ├── AuthenticationFailed         no key, or not a valid one
    ├── PermissionRefused            a valid key that may not do this
    ├── TooLarge                     refused before the body is read
    ├── LimitExceeded                rate or quota
    ├── Unavailable                  a dependency is down; trying again may help
    │   ├── StorageUnavailable
    │   ├── QueueUnavailable
    │   └── SignalUnavailable        no usable carbon intensity
    ├── StartRefused                 `serve` or `worker` cannot start (port, home, disk)
    ├── TrainingFailed               the job ends as failed; never retried
    │   ├── ModelUnavailable         the model cannot be loaded
    │   ├── ModelUnsupported         it can be loaded but not profiled or trained
    │   ├── NanLoss
    │   └── OutOfMemory
    └── LeaseLost                    another worker owns the job now; stop writing

Every error survives pickling, because errors cross process borders. ``code`` is the stable
machine-readable word of the wire contract, ``param`` the dotted path of the offending field.
"""

from __future__ import annotations

from typing import Any


class GreentuneError(Exception):
    """Base of all errors that we raise on purpose.

    Args:
        message: one sentence that says what is wrong, where, and what to do.
        param: dotted path of the request field at fault, if one is.
        code: overrides the class's code where one class covers several codes.
    """

    code: str = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__.copy()))


def _rebuild(
    kind: type[GreentuneError], args: tuple[Any, ...], state: dict[str, Any]
) -> GreentuneError:
    error = kind.__new__(kind)
    Exception.__init__(error, *args)
    error.__dict__.update(state)
    return error


class InvalidInput(GreentuneError):
    code = "invalid_value"


class UnknownParameter(InvalidInput):
    code = "unknown_parameter"


class MissingParameter(InvalidInput):
    code = "missing_required_parameter"


class UnsupportedMethod(InvalidInput):
    code = "unsupported_method"


class RhoInfeasible(InvalidInput):
    """``rho_min`` is the lowest feasible share (0..1) for that model and data."""

    code = "rho_infeasible"

    def __init__(self, message: str, *, rho_min: float, param: str | None = "green.rho") -> None:
        super().__init__(message, param=param)
        self.rho_min = rho_min


class DataInvalid(InvalidInput):
    """A data set broke the rules. ``code`` is one of invalid_file_format,
    invalid_training_file, invalid_validation_file, invalid_n_examples,
    context_length_exceeded. ``problems`` are sentences, each with its line, the first one included;
    empty where the message says it all.
    """

    code = "invalid_file_format"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        problems: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.problems = problems


class NotFound(GreentuneError):
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class Conflict(GreentuneError):
    code = "invalid_state_transition"


class InvalidTransition(Conflict):
    code = "invalid_state_transition"


class FileInUse(Conflict):
    code = "file_in_use"


class ModelInUse(Conflict):
    code = "model_in_use"


class IdempotencyInProgress(Conflict):
    code = "idempotency_in_progress"


class AuthenticationFailed(GreentuneError):
    """``code`` is invalid_api_key or missing_api_key."""

    code = "invalid_api_key"


class PermissionRefused(GreentuneError):
    """``code`` is insufficient_scope or model_not_allowed."""

    code = "insufficient_scope"


class TooLarge(GreentuneError):
    code = "file_too_large"


class LimitExceeded(GreentuneError):
    """``code`` is rate_limit_exceeded, insufficient_quota or carbon_budget_exhausted."""

    code = "rate_limit_exceeded"


class Unavailable(GreentuneError):
    code = "internal_error"


class StorageUnavailable(Unavailable):
    code = "storage_unavailable"


class QueueUnavailable(Unavailable):
    code = "queue_unavailable"


class SignalUnavailable(Unavailable):
    code = "signal_unavailable"


class StartRefused(GreentuneError):
    code = "start_refused"


class TrainingFailed(GreentuneError):
    code = "training_failed"


class ModelUnavailable(TrainingFailed):
    code = "model_unavailable"


class ModelUnsupported(TrainingFailed):
    code = "model_unsupported"


class NanLoss(TrainingFailed):
    code = "nan_loss"


class OutOfMemory(TrainingFailed):
    code = "out_of_memory"


class LeaseLost(GreentuneError):
    code = "worker_lost"
