"""Compiled blocks: the same training, built for what is trained, never by chance.

Some tests trace blocks and run what was traced, which takes seconds; generating code takes longer.
"""

import shutil
from itertools import pairwise

import pytest
import torch

from core.spec import MethodOptions
from core.training.adapters import add_adapters
from core.training.hooks import Control, Hook
from core.training.loop import fit
from core.training.methods import method_named
from core.training.prefix import PrefixReuse
from core.training.recompute import repeated_blocks
from core.training_options import TrainingOptions
from tests.fixtures.compiling import Again, ByTurns, Seen, compiling_job, stand_in, trained
from tests.fixtures.fit_jobs import BFLOAT16, FLOAT32, adapter_prices, fit_job
from tests.fixtures.tiny_models import tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]

_compile = torch.compile


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


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++) on this machine")
def test_generated_code_trains_alike_and_a_resumed_run_gives_the_same_bits(tmp_path):
    plain, _ = trained(compiling_job(choice="off"))
    job = compiling_job()
    before = [vars(block).keys() for block in repeated_blocks(job.model)]
    whole, expected = trained(job)
    assert [vars(block).keys() for block in repeated_blocks(job.model)] == before
    assert whole.losses == pytest.approx(plain.losses, rel=1e-5)
    assert [record.is_kept for record in whole.compilations] == [True]

    polls = iter([Control.CONTINUE] * 3 + [Control.CHECKPOINT_AND_STOP])
    begun, _ = trained(compiling_job(), checkpoints=tmp_path, control=lambda: next(polls))
    resumed, found = trained(compiling_job(seed=1), checkpoints=tmp_path)
    assert begun.losses + resumed.losses == whole.losses
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_other_architectures_train_alike(built, kind):
    plain, _ = trained(compiling_job(kind, "off", n_epochs=1))
    seen, _ = trained(compiling_job(kind, n_epochs=1))
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
    plain, _ = trained(compiling_job("opt", "off", **options))
    seen, _ = trained(compiling_job("opt", **options))
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
        losses.append(trained(job)[0].losses)
    assert built
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_what_is_stored_below_is_computed_without_code(monkeypatch):
    """A run that goes on computes it again before it compiles."""
    modes = []

    def noting(forward):
        block = forward.__self__

        def call(*args, **kwargs):
            modes.append(block.training)
            return forward(*args, **kwargs)

        return call

    stand_in(monkeypatch, noting)
    fields = {"reuse": PrefixReuse(memory_bytes=1 << 20), "feed": Again()}
    losses, spent = [], []
    for choice in ("off", "on"):
        seen = Seen()
        method = method_named("last_k", MethodOptions(k=1))
        result = fit(compiling_job(choice=choice, method=method, fields=fields), hooks=[seen])
        losses.append(seen.losses)
        spent.append(result.flops - result.selection_flops)
    assert losses[0] == losses[1]
    # blocks are priced on a copy of the model, while code is in use
    assert spent[0] == spent[1]
    assert set(modes) == {True}
    # two blocks are skipped in the second epoch, and none of them ran as code in the first
    assert len(modes) == 3 + 2 * Again.batches_per_epoch


def test_a_run_that_goes_on_keeps_what_it_had_stored(monkeypatch, tmp_path):
    stand_in(monkeypatch)

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
        return compiling_job(method=method_named("last_k", MethodOptions(k=1)), fields=fields)

    whole, resumed = Spent(), Spent()
    fit(job(), hooks=[whole])
    polls = iter([Control.CONTINUE] * 4 + [Control.CHECKPOINT_AND_STOP])
    fit(job(), checkpoints=tmp_path, control=lambda: next(polls))
    fit(job(), checkpoints=tmp_path, hooks=[resumed])
    assert resumed.of_steps == pytest.approx(whole.of_steps[-3:])


def test_nothing_is_compiled_after_the_first_batch(built, monkeypatch):
    """One row, or a length that fits nothing: those batches run as they would have without."""
    job = compiling_job()
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


def test_each_selection_is_compiled_for(monkeypatch):
    asked = stand_in(monkeypatch)
    job = compiling_job(method=ByTurns(), selection_interval=1.0)
    seen, _ = trained(job)
    assert len(set(seen.selections)) == len(seen.compilations) == 2
    assert len(asked) == 2 * len(repeated_blocks(job.model))
    assert all(record.is_kept and record.flops > 0 for record in seen.compilations)
