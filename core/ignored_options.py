"""Options that a job's method or plan ignores are refused by name, at every door alike.

Not by `core.spec.GreenOptions` itself: it has a value for every option, and cannot tell those that
somebody chose from defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from core.errors import InvalidInput
from core.spec import RANKING_METHODS, STORING_METHODS, GreenOptions

_ADAPTERS = ("lora", "green_lora")
#: option -> the methods that heed it
_HEEDED_BY: Mapping[str, tuple[str, ...]] = {
    "green.options.k": ("last_k",),
    "green.options.r": _ADAPTERS,
    "green.options.alpha": _ADAPTERS,
    "green.options.dropout": _ADAPTERS,
    "green.options.target_modules": ("lora",),
    "green.options.n_virtual_tokens": ("prefix",),
    "green.options.merge": _ADAPTERS,
    "green.importance": RANKING_METHODS,
    "green.training.prefix_reuse": STORING_METHODS,
}
#: option -> values that say what happens anyway, where it is ignored
_HAPPENS_ANYWAY: Mapping[str, tuple[object, ...]] = {
    "green.options.merge": (False,),
    "green.training.prefix_reuse": ("auto", "off"),
}
#: heeded by the methods that follow rho: they select again
_INTERVAL = "green.training.selection_interval"


def refuse_ignored(green: GreenOptions, said: Mapping[str, Any]) -> None:
    """
    Args:
        green: what came of ``said``.
        said: the request's ``green``, nested as there. None is not said, nor is what happens
            anyway: a ``merge`` of false, a ``prefix_reuse`` other than on or, of a method that
            costs what it costs, a ``rho`` of 1.

    Raises:
        InvalidInput: ``param`` is the first option that ``green.method`` or the plan ignores.
    """
    _refuse_idle_wishes(green, said)
    if not green.follows_rho and said.get("rho") not in (None, 1):
        raise InvalidInput(
            f"{_chosen(green)} costs what it costs: leave green.rho out or at 1; "
            f"got {said['rho']}.",
            param="green.rho",
        )
    for path, value in _paths("green", said):
        if value in _HAPPENS_ANYWAY.get(path, ()):
            continue
        methods = _HEEDED_BY.get(path, (green.method,))
        if green.method in methods and (path != _INTERVAL or green.follows_rho):
            continue
        words = " or ".join(methods)
        if path == _INTERVAL:
            words = "green, green_lora, or last_k without green.options.k"
        raise InvalidInput(
            f"{path} is for {words}; {_chosen(green)} ignores it: leave it out, or choose such a "
            "method.",
            param=path,
        )


def _refuse_idle_wishes(green: GreenOptions, said: Mapping[str, Any]) -> None:
    """Those about a budget or a wait that was not asked for: whoever gives one counts on it."""
    if said.get("on_budget") is not None and not green.has_budget:
        raise InvalidInput(
            "green.on_budget says what happens once a budget is spent, and this job has none: give "
            "green.carbon_budget_g or green.energy_budget_wh, or leave it out.",
            param="green.on_budget",
        )
    if said.get("max_hold_s") is not None and green.schedule != "green":
        raise InvalidInput(
            "green.max_hold_s ends the wait for greener hours, and green.schedule "
            f'{green.schedule} waits for none: ask for green.schedule "green", or leave it out.',
            param="green.max_hold_s",
        )


def _chosen(green: GreenOptions) -> str:
    """The method, and the option that makes another of it."""
    fixed = " with green.options.k" if green.options.k and green.method == "last_k" else ""
    return f"green.method {green.method}{fixed}"


def _paths(at: str, said: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Dotted, with its value, of all that has one."""
    for name, value in said.items():
        if isinstance(value, Mapping):
            yield from _paths(f"{at}.{name}", value)
        elif value is not None:
            yield f"{at}.{name}", value
