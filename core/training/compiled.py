"""Blocks as compiled code (``torch.compile``), for a run that is long enough to earn it back.

Each block is compiled alone, for all lengths at once; blocks in which the same tensors are trained
share their code. So `full`, adapters and last blocks need one or two kinds of code, a selection of
single tensors nearly as many as it has blocks, and every new selection its own.

What is compiled rounds otherwise than what is not, and whether it pays is for a stopwatch to say;
a job gives the same bits again only where nobody asks one, so nothing is compiled unless asked for.
A run decides once and its state remembers. It compiles on the first batch of the job and never on
another, so that one that goes on from a checkpoint computes with the same code: batches that this
code does not fit (a single row where there were several) run as they would have without.

Attention on a CPU keeps the route and type of `core.training.cpu_attention`: the code breaks there.
"""

from __future__ import annotations

import statistics
import time
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch._dynamo
import torch._inductor.config
import torch.fx.experimental._config as symbolic_shapes

from core.errors import ModelUnsupported
from core.training.checkpoint import TrainState
from core.training.hooks import CompilationRecord
from core.training.importance import freeing_gradients
from core.training.job import FitJob
from core.training.measuring import batches_across, left_as_it_was, plain_step, wait_for
from core.training.recompute import repeated_blocks
from core.training.step import Batch, LossStep

#: torch gives its settings' modules their methods at run time, unseen by type checkers
_SYMBOLIC_SHAPES: Any = symbolic_shapes

PARAM: Final = "green.training.compile"
#: pairs of passes, compiled and not, that the decision rests on
_ROUNDS: Final = 5
#: of a job for which these dozen passes, which rho does not pay for, are about a hundredth
_LEAST_STEPS: Final = 1000
#: the most that was gained (docs/training-step.md), and the least seconds that a kind of block took
_MOST_GAIN, _KIND_S = 0.3, 15.0
#: relative difference of a loss up to which it is the same computation
_TOLERANCES: Final[Mapping[torch.dtype | None, float]] = {None: 1e-4, torch.bfloat16: 2e-2}
#: code of one block: before and after attention, with and without a gradient
_PARTS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    loss: float
    duration_s: float


class CompiledBlocks:
    """Those of ``job.model``; nothing where ``job.training.compile`` is off.

    Args:
        step: the run's own; what it stores stays.
        parameters: all that may ever be trained.
    """

    def __init__(
        self, job: FitJob, step: LossStep, parameters: Mapping[str, torch.nn.Parameter]
    ) -> None:
        self._job = job
        self._step = step
        self._parameters = parameters
        self._blocks: list[Any] = list(repeated_blocks(job.model))
        #: what they were compiled for, by name; None: they were not
        self._names: tuple[str, ...] | None = None
        self._forwards: list[Any] = []
        self._flops = 0.0

    def is_due(self, state: TrainState) -> bool:
        """Whether `renew` has something to do before the next step."""
        if self._job.training.compile == "off" or state.compiled is False:
            return False
        return self._names != state.names

    def renew(self, state: TrainState) -> CompilationRecord:
        """Compile for what is trained now; the first time decide whether to, in ``state``.

        Raises:
            ModelUnsupported: it was asked for without conditions, and cannot be done.
        """
        started_s = time.perf_counter()
        self._flops, self._names = 0.0, None
        with left_as_it_was(self._job, self._parameters):
            if state.compiled is None and self._job.training.compile == "auto":
                found = self._decided(state)
            else:
                found = self._built(state)
        state.compiled = found.is_kept
        self._names = state.names if found.is_kept else None
        return found.after(time.perf_counter() - started_s, flops=self._flops)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, forward passes take compiled code where it fits; none is made here."""
        if self._names is None:
            yield
        else:
            with self._compiled():
                yield

    def _built(self, state: TrainState) -> CompilationRecord:
        try:
            build_s, _ = self._build()
        except _NotPossible as error:
            if self._job.training.compile == "auto":
                # another selection than the one that was decided on, or another machine
                return self._record(state, why=str(error))
            raise ModelUnsupported(
                f"{type(self._job.model).__name__} cannot be compiled here: {error}; leave "
                f"{PARAM} out.",
                param=PARAM,
            ) from error
        return self._record(state, is_kept=True, build_s=build_s)

    def _decided(self, state: TrainState) -> CompilationRecord:
        job = self._job
        steps_left = job.total_steps - state.step
        if steps_left < _LEAST_STEPS:
            why = f"{steps_left} steps are fewer than the {_LEAST_STEPS} that measuring it takes"
            return self._record(state, why=why)
        expected = self._pass(self._first_batch())  # warms up, too
        n_left = job.training.gradient_accumulation * steps_left
        [draw] = batches_across(job, 1)
        left_s = self._pass(draw()).duration_s * n_left
        n_selections = _selections_left(state, steps_left)
        if _MOST_GAIN * left_s < _KIND_S * self._n_kinds * n_selections:
            why = (
                f"{left_s:.0f} s of training cannot earn back compiling {self._n_kinds} kinds of "
                f"blocks for {n_selections} selections"
            )
            return self._record(state, why=why)
        try:
            build_s, compiled = self._build()
        except _NotPossible as error:
            return self._record(state, why=str(error))
        tolerance = _TOLERANCES[job.numerics.autocast_dtype]
        if abs(compiled.loss - expected.loss) > tolerance * abs(expected.loss):
            why = f"the loss is {compiled.loss:.6g} with and {expected.loss:.6g} without"
            return self._record(state, why=why, build_s=build_s)
        plain_s, ratio = self._compared()
        is_kept = (1 - ratio) * plain_s * n_left > build_s * (n_selections - 1)
        spared_s = (1 - ratio) * plain_s * job.training.gradient_accumulation
        return self._record(
            state,
            is_kept=is_kept,
            build_s=build_s,
            ratio=ratio,
            earned_back_in=build_s / spared_s if spared_s > 0 else None,
        )

    def _record(
        self,
        state: TrainState,
        *,
        is_kept: bool = False,
        why: str = "",
        build_s: float = 0.0,
        ratio: float | None = None,
        earned_back_in: float | None = None,
    ) -> CompilationRecord:
        return CompilationRecord(
            step=state.step,
            is_kept=is_kept,
            why=why,
            n_kinds=self._n_kinds,
            build_s=build_s,
            ratio=ratio,
            earned_back_in=earned_back_in,
        )

    def _build(self) -> tuple[float, _Pass]:
        """Seconds, and the pass that compiled.

        Raises _NotPossible.
        """
        if not self._blocks:
            raise _NotPossible("it has no blocks of the kind that transformers repeats")
        torch.compiler.reset()
        self._forwards = [_in_training(block) for block in self._blocks]
        limit = _PARTS * len(self._blocks)
        with ExitStack() as settings:
            for context in (
                torch._dynamo.config.patch(  # noqa: SLF001
                    recompile_limit=limit, accumulated_recompile_limit=_PARTS * limit
                ),
                # dropout draws what it would have drawn
                torch._inductor.config.patch(fallback_random=True),  # noqa: SLF001
                # sizes that happen to be equal in the first batch are not in the others
                _SYMBOLIC_SHAPES.patch(use_duck_shape=False),
                self._replaced(),
            ):
                settings.enter_context(context)
            try:
                found = self._pass(self._first_batch())
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise _NotPossible(_reason(error)) from error
        return found.duration_s, found

    def _compared(self) -> tuple[float, float]:
        """Mean seconds of a pass without compiled code, and its time with as a part of that, a
        median.
        """
        plain_s, ratios = [], []
        for draw in batches_across(self._job, _ROUNDS):
            batch = draw()
            plain = self._pass(batch)
            with self._compiled():
                compiled = self._pass(batch)
            plain_s.append(plain.duration_s)
            ratios.append(compiled.duration_s / plain.duration_s)
        return statistics.mean(plain_s), statistics.median(ratios)

    def _pass(self, batch: Batch) -> _Pass:
        """Forward and backward, of what is trained now; gradients are freed."""
        step, job = plain_step(self._job, self._step), self._job
        step.is_compiled = self._step.is_compiled
        trained = [p for p in self._parameters.values() if p.requires_grad]
        names = [name for name, p in self._parameters.items() if p.requires_grad]
        inputs = step.inputs(batch)
        device = job.model.device
        wait_for(device)
        started_s = time.perf_counter()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            with freeing_gradients(trained):
                output = step(inputs)
                torch.autograd.backward(output.loss_sum / inputs.n_labels)
            wait_for(device)
        self._flops += job.prices.of(names)(inputs.shape)
        return _Pass(
            loss=float(output.loss_sum.detach()) / inputs.n_labels,
            duration_s=time.perf_counter() - started_s,
        )

    def _first_batch(self) -> Batch:
        return next(self._job.batches(0))

    @property
    def _n_kinds(self) -> int:
        """Blocks that differ in what is trained in them need code of their own."""
        return len(
            {
                (type(block), tuple((p.dtype, p.requires_grad) for p in block.parameters()))
                for block in self._blocks
            }
        )

    @contextmanager
    def _compiled(self) -> Iterator[None]:
        """As `in_use`, of what was built."""
        with torch.compiler.set_stance("eager_on_recompile"), self._replaced():
            yield

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        own = [vars(block).get("forward") for block in self._blocks]
        try:
            self._step.is_compiled = True
            for block, forward in zip(self._blocks, self._forwards, strict=True):
                block.forward = forward
            yield
        finally:
            self._step.is_compiled = False
            for block, forward in zip(self._blocks, own, strict=True):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward


class _NotPossible(Exception):
    """Says why, in words for the user."""


def _in_training(block: Any) -> Callable[..., Any]:
    """Compiled code where ``block`` trains. What is stored below the trained part is computed in
    evaluation mode, and again by a run that goes on before it compiles anything. Copies of the
    model, which costs are counted on, run as they are.
    """
    code: Callable[..., Any] = torch.compile(block.forward, dynamic=True)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is block and self.training:
            return code(*args, **kwargs)
        return type(self).forward(self, *args, **kwargs)

    # a method: in a copy of the model it is the copy's
    return types.MethodType(forward, block)


def _reason(error: RuntimeError) -> str:
    """The first line of what was raised inside, if it was."""
    inner = getattr(error, "inner_exception", None) or error
    return (str(inner).strip() or type(inner).__name__).splitlines()[0]


def _selections_left(state: TrainState, steps_left: int) -> int:
    """This one and those like it up to the end."""
    if state.select_at is None or state.selected_at is None:
        return 1
    return max(1, -(-steps_left // max(1, state.select_at - state.selected_at)))
