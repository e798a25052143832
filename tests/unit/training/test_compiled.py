"""Compiled blocks: the same training, decided once, built for what is trained, never by chance.

Some tests trace blocks and run what was traced, which takes seconds; generating code takes longer.
Where it is the decision that matters, blocks run as they are.
"""

import shutil
from itertools import cycle, pairwise

import pytest
import torch

from core.errors import InvalidInput, ModelUnsupported, OutOfMemory
from core.spec import MethodOptions
from core.training import compiled
from core.training.adapters import add_adapters
from core.training.checkpoint import newest_checkpoint
from core.training.compiled import CompiledBlocks
from core.training.hooks import Control, Hook
from core.training.interval import NOTHING_SPARED, min_rho
from core.training.loop import fit
from core.training.methods import LastK, method_named
from core.training.prefix import PrefixReuse
from core.training.recompute import repeated_blocks
from core.training_options import TrainingOptions
from tests.fixtures.fit_jobs import BFLOAT16, FLOAT32, adapter_prices, fit_job
from tests.fixtures.tiny_models import padded_batch, tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]

_compile = torch.compile


class Seen(Hook):
    def __init__(self):
        self.losses, self.compilations, self.selections = [], [], []

    def on_step(self, record):
        self.losses.append(record.loss)

    def on_selection(self, record):
        self.selections.append(record.names)

    def on_compilation(self, record):
        self.compilations.append(record)


class ByTurns:
    """Selects the last two blocks, the last one, the last two, ..."""

    name = rate_rule = "green"
    reselects = ranks = True

    def __init__(self):
        self._n_blocks = cycle((2, 1))

    def rho_min(self, profile, spared=NOTHING_SPARED):
        return min_rho(profile, spared)

    def quality(self, _point):
        return ()

    def choose(self, point):
        return LastK(next(self._n_blocks)).choose(point)


class Again:
    """The same batches in every epoch, padded on the right."""

    batches_per_epoch = 4

    def batch(self, _epoch, index):
        return padded_batch(seed=index)


@pytest.fixture(autouse=True)
def _clean():
    yield
    torch.compiler.reset()


@pytest.fixture
def built(monkeypatch):
    """Graphs that were traced, in order; nothing is generated."""
    graphs = []

    def trace(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda f, **kw: _compile(f, **kw, backend=trace))
    return graphs


@pytest.fixture
def code(monkeypatch):
    """What stands in for compiled code, given the forward pass of a block; and how often."""
    asked = []

    def stands_in(make=lambda forward: forward):
        def compile_(forward, **_options):
            asked.append(forward)
            return make(forward)

        monkeypatch.setattr(torch, "compile", compile_)
        return asked

    return stands_in


@pytest.fixture
def auto(monkeypatch):
    """Short jobs of small models are tried too, with this ratio."""

    def finds(ratio):
        monkeypatch.setattr(compiled, "_LEAST_STEPS", 1)
        monkeypatch.setattr(compiled, "_KIND_S", 0.0)
        monkeypatch.setattr(CompiledBlocks, "_compared", lambda _self: (1.0, ratio))

    return finds


def _job(kind="llama", choice="on", *, method="full", dropout=0.0, seed=0, **options):
    fields = options.pop("fields", {})
    torch.manual_seed(seed)
    model = tiny_model(kind, dropout=dropout)
    options = {"n_epochs": 2, "learning_rate": 1e-2} | options
    return fit_job(
        kind,
        TrainingOptions(compile=choice, **options),
        model=model,
        method=method,
        rho=1.0 if method == "full" else 0.6,
        **fields,
    )


def _run(job, **kwargs):
    seen = Seen()
    fit(job, hooks=[seen], **kwargs)
    return seen, {name: p.detach().clone() for name, p in job.model.named_parameters()}


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++) on this machine")
def test_generated_code_trains_alike_and_a_resumed_run_gives_the_same_bits(tmp_path):
    plain, _ = _run(_job(choice="off"))
    job = _job()
    before = [vars(block).keys() for block in repeated_blocks(job.model)]
    whole, expected = _run(job)
    assert [vars(block).keys() for block in repeated_blocks(job.model)] == before
    assert whole.losses == pytest.approx(plain.losses, rel=1e-5)
    assert [record.is_kept for record in whole.compilations] == [True]

    polls = iter([Control.CONTINUE] * 3 + [Control.CHECKPOINT_AND_STOP])
    begun, _ = _run(_job(), checkpoints=tmp_path, control=lambda: next(polls))
    resumed, found = _run(_job(seed=1), checkpoints=tmp_path)
    assert begun.losses + resumed.losses == whole.losses
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_other_architectures_train_alike(built, kind):
    plain, _ = _run(_job(kind, "off", n_epochs=1))
    seen, _ = _run(_job(kind, n_epochs=1))
    assert built
    assert seen.losses == pytest.approx(plain.losses, rel=1e-4)


@pytest.mark.parametrize(("numerics", "recomputes"), [(FLOAT32, True), (BFLOAT16, False)])
def test_dropout_draws_and_blocks_that_run_again_are_as_before(built, numerics, recomputes):
    options = {
        "dropout": 0.2,
        "gradient_checkpointing": recomputes,
        "n_epochs": 1,
        "fields": {"numerics": numerics},
    }
    plain, _ = _run(_job("opt", "off", **options))
    seen, _ = _run(_job("opt", **options))
    assert built
    assert seen.losses == pytest.approx(plain.losses, rel=1e-4 if numerics is FLOAT32 else 2e-2)


def test_adapters_train_alike(built):
    losses = []
    for choice in ("off", "on"):
        torch.manual_seed(0)
        model = add_adapters(tiny_model("llama"), "lora", MethodOptions(), base_name="tiny", seed=0)
        training = TrainingOptions(n_epochs=2, learning_rate=1e-2, compile=choice)
        prices = adapter_prices(model, "llama")
        job = fit_job("llama", training, model=model, method="lora", rho=1.0, prices=prices)
        losses.append(_run(job)[0].losses)
    assert built
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_what_is_stored_below_is_computed_without_code(code):
    """A run that goes on computes it again before it compiles."""
    modes = []

    def noting(forward):
        block = forward.__self__

        def call(*args, **kwargs):
            modes.append(block.training)
            return forward(*args, **kwargs)

        return call

    code(noting)
    fields = {"reuse": PrefixReuse(memory_bytes=1 << 20), "feed": Again()}
    losses, spent = [], []
    for choice in ("off", "on"):
        seen = Seen()
        method = method_named("last_k", MethodOptions(k=1))
        result = fit(_job(choice=choice, method=method, fields=fields), hooks=[seen])
        losses.append(seen.losses)
        spent.append(result.flops - result.selection_flops)
    assert losses[0] == losses[1]
    # blocks are priced on a copy of the model, while code is in use
    assert spent[0] == spent[1]
    assert set(modes) == {True}
    # two blocks are skipped in the second epoch, and none of them ran as code in the first
    assert len(modes) == 3 + 2 * Again.batches_per_epoch


def test_a_run_that_goes_on_keeps_what_it_had_stored(code, tmp_path):
    code()

    class Spent(Hook):
        def __init__(self):
            self.flops = []

        def on_step(self, record):
            self.flops.append(record.flops)

        @property
        def of_steps(self):
            return [after - before for before, after in pairwise(self.flops)]

    def job():
        fields = {"reuse": PrefixReuse(memory_bytes=1 << 20), "feed": Again()}
        return _job(method=method_named("last_k", MethodOptions(k=1)), fields=fields)

    whole, resumed = Spent(), Spent()
    fit(job(), hooks=[whole])
    polls = iter([Control.CONTINUE] * 4 + [Control.CHECKPOINT_AND_STOP])
    fit(job(), checkpoints=tmp_path, control=lambda: next(polls))
    fit(job(), checkpoints=tmp_path, hooks=[resumed])
    assert resumed.of_steps == pytest.approx(whole.of_steps[-3:])


def test_nothing_is_compiled_after_the_first_batch(built, monkeypatch):
    """One row, or a length that fits nothing: those batches run as they would have without."""
    job = _job()
    at_decision = []

    draw = job.feed.batch

    def shrunk(_feed, epoch, index):
        batch = draw(epoch, index)
        return {name: tensor[:1] for name, tensor in batch.items()} if index % 2 else batch

    monkeypatch.setattr(type(job.feed), "batch", shrunk)

    class Count(Hook):
        def on_compilation(self, _record):
            at_decision.append(len(built))

    fit(job, hooks=[Count()])
    assert at_decision == [len(built)] != [0]


def test_each_selection_is_compiled_for(code):
    asked = code()
    job = _job(method=ByTurns(), selection_interval=1.0)
    seen, _ = _run(job)
    assert len(set(seen.selections)) == len(seen.compilations) == 2
    assert len(asked) == 2 * len(repeated_blocks(job.model))
    assert all(record.is_kept and record.flops > 0 for record in seen.compilations)


@pytest.mark.parametrize("choice", ["off", "on", "auto"])
def test_flops_of_finding_out_are_spent(code, auto, choice):
    auto(0.8)
    code()
    job, seen = _job(choice=choice), Seen()
    result = fit(job, hooks=[seen])
    extra = sum(record.flops for record in seen.compilations)
    assert (extra > 0) is (choice != "off")
    assert result.selection_flops == extra
    assert result.flops - extra == pytest.approx(result.full_flops)


def test_auto_leaves_short_jobs_alone(code):
    asked = code()
    seen, _ = _run(_job(choice="auto"))
    [record] = seen.compilations
    assert not record.is_kept
    assert record.text == "Not compiled: 8 steps are fewer than the 1000 that measuring it takes"
    assert record.flops == 0
    assert asked == []


def test_auto_does_not_try_what_cannot_pay(code, auto, monkeypatch):
    auto(0.5)
    asked = code()
    monkeypatch.setattr(compiled, "_KIND_S", 1e6)
    seen, _ = _run(_job(choice="auto"))
    assert "cannot earn back" in seen.compilations[0].text
    assert asked == []


@pytest.mark.parametrize(
    ("ratio", "is_kept", "words"),
    [(0.8, True, "which pays for it in"), (1.1, False, "which does not pay for compiling")],
)
def test_auto_keeps_what_is_faster_and_remembers(code, auto, tmp_path, ratio, is_kept, words):
    code()
    auto(ratio)
    polls = iter([Control.CONTINUE] * 3 + [Control.CHECKPOINT_AND_STOP])
    seen, _ = _run(_job(choice="auto"), checkpoints=tmp_path, control=lambda: next(polls))
    [record] = seen.compilations
    assert record.is_kept is is_kept
    assert words in record.text
    assert newest_checkpoint(tmp_path).state.compiled is is_kept
    # another process would measure otherwise, and does not ask
    auto(0.8 if ratio > 1 else 1.1)
    resumed, _ = _run(_job(choice="auto"), checkpoints=tmp_path)
    assert [each.is_kept for each in resumed.compilations] == [True] * is_kept
    assert all(each.ratio is None for each in resumed.compilations)


def test_the_ratio_is_measured_on_the_jobs_batches(code, auto, monkeypatch):
    """Whatever it is for code that is no other: FLOPs tell the passes that it took."""
    compared = CompiledBlocks._compared
    auto(0.5)
    monkeypatch.setattr(CompiledBlocks, "_compared", compared)
    code()
    job, seen = _job(choice="auto"), Seen()
    fit(job, hooks=[seen])
    [record] = seen.compilations
    assert 0 < record.ratio < 10
    # a pass to warm up and one to time, one that compiles, five pairs
    assert record.flops == pytest.approx(13 * job.profile.full_flops, rel=0.3)


def test_compiling_again_and_again_must_pay_too(code, auto):
    """Every selection needs its own code: what is spared must be more than the next ones take."""
    code()
    auto(0.9999)
    seen, _ = _run(_job(choice="auto", method="green", selection_interval=0.25))
    assert [record.is_kept for record in seen.compilations] == [False]


def test_auto_goes_on_where_nothing_can_be_compiled(code, auto):
    auto(0.5)
    code(lambda _forward: _broken)
    plain, _ = _run(_job(choice="off"))
    seen, _ = _run(_job(choice="auto"))
    [record] = seen.compilations
    assert record.text == "Not compiled: no compiler here"
    assert seen.losses == plain.losses


def test_on_refuses_what_cannot_be_compiled(code):
    code(lambda _forward: _broken)
    with pytest.raises(ModelUnsupported) as caught:
        _run(_job())
    assert caught.value.param == "green.training.compile"
    assert "no compiler here; leave green.training.compile out" in caught.value.message


def test_auto_goes_on_where_a_later_selection_cannot_be_compiled(code, auto):
    auto(0.01)
    code()
    n_blocks = len(repeated_blocks(tiny_model("llama")))
    made = []

    def make(forward):
        made.append(forward)
        return forward if len(made) <= n_blocks else _broken

    code(make)
    seen, _ = _run(_job(choice="auto", method=ByTurns(), selection_interval=0.5))
    assert [record.is_kept for record in seen.compilations] == [True, False]
    assert seen.compilations[1].text == "Not compiled: no compiler here"
    assert len(seen.losses) == 8


def test_memory_that_runs_out_is_no_reason_to_go_on(code, auto):
    auto(0.5)
    code(lambda _forward: _exhausted)
    with pytest.raises(OutOfMemory):
        _run(_job(choice="auto"))


def test_auto_refuses_code_that_computes_something_else(code, auto):
    auto(0.5)
    code(lambda forward: lambda *args, **kwargs: 1.5 * forward(*args, **kwargs))
    plain, _ = _run(_job(choice="off"))
    seen, _ = _run(_job(choice="auto"))
    assert "the loss is" in seen.compilations[0].why
    assert seen.losses == plain.losses


def test_the_choice_is_one_of_three():
    with pytest.raises(InvalidInput) as caught:
        TrainingOptions(compile="fast")
    assert caught.value.param == "green.training.compile"
    assert "off, auto, on" in caught.value.message


def _broken(*_args, **_kwargs):
    raise RuntimeError("no compiler here\nand more")


def _exhausted(*_args, **_kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory")
