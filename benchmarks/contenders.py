"""Who is compared: methods with what they are asked to spend, and their learning rates by rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from core.spec import MethodOptions, TargetModules
from core.training.efficient import LEAST_SHARE
from core.training.methods import method_named
from core.training.schedule import peak_learning_rate

#: of a contender's rate by rule, tried at one budget; where the best is the lowest or the highest
#: of them the sweep goes on in that direction
RATE_FACTORS: Final = (0.5, 1.0, 2.0)

Engine = Literal["greentune", "trainer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """``rho`` None: the method costs what it costs."""

    method: str
    rho: float | str | None = None
    engine: Engine = "greentune"
    #: of last_k: so many blocks; None: as many as rho pays for
    k: int | None = None
    #: of lora
    target_modules: TargetModules = "default"

    @property
    def label(self) -> str:
        if self.k is not None:
            return f"last {self.k} blocks"
        shown = f"{self.rho:g}" if isinstance(self.rho, float) else self.rho or ""
        if self.target_modules != "default":
            shown = self.target_modules
        engine = "" if self.engine == "greentune" else self.engine
        return " ".join(filter(None, (engine, self.method, shown)))

    @property
    def options(self) -> MethodOptions:
        return MethodOptions(k=self.k, target_modules=self.target_modules)

    @property
    def rule(self) -> float:
        """Greentune's peak learning rate where the model's `LoadedModel.weight_scale` is 1."""
        found = 1.0 if self.rho is None else LEAST_SHARE
        share = self.rho if isinstance(self.rho, float) else found
        rule = method_named(self.method, self.options).rate_rule
        return peak_learning_rate(share, method=rule)

    def rates(self, weight_scale: float = 1.0) -> tuple[float, ...]:
        """Peak learning rates that its sweep begins with."""
        return tuple(float(f"{self.rule * weight_scale * by:.3g}") for by in RATE_FACTORS)


FULL: Final = Contender(method="full")
#: what a user would choose among
MAIN: Final = (
    FULL,
    Contender(method="green", rho=0.7),
    Contender(method="green_lora", rho=0.7),
    Contender(method="green_lora", rho=0.6),
    Contender(method="lora", target_modules="all-linear"),
    Contender(method="lora"),
    Contender(method="last_k", rho=0.5),
)
#: finds its rho for itself
EFFICIENT: Final = Contender(method="green", rho="efficient")
SIDE: Final = (
    Contender(method="green", rho=0.5),
    Contender(method="green", rho=0.4),
    Contender(method="green_lora", rho=0.5),
    Contender(method="prefix"),
    Contender(method="full", engine="trainer"),
    Contender(method="lora", engine="trainer"),
    Contender(method="lora", engine="trainer", target_modules="all-linear"),
)
