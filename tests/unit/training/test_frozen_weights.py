"""Frozen matrices in bfloat16 are not seen by any number, and are float32 again in the end."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from core.errors import StorageUnavailable
from core.spec import ADAPTER_METHODS, MethodOptions
from core.training import frozen_weights
from core.training.adapters import add_adapters
from core.training.frozen_weights import FrozenWeights, lowerable, lowerable_embeddings
from core.training.hooks import Control, Hook
from core.training.loop import fit
from core.training.step import LossStep
from core.training_options import TrainingOptions
from tests.fixtures.fit_jobs import BFLOAT16, FLOAT32, adapter_prices, fit_job
from tests.fixtures.tiny_models import CAUSAL, PAIRS, padded_batch, tiny_model

KINDS = [*CAUSAL, *PAIRS]
CASES = [(kind, method) for method in ("green", "green_lora") for kind in KINDS] + [
    (kind, method) for method in ("last_k", "lora", "prefix", "full") for kind in ("llama", "t5")
]


class Types(Hook):
    """What the model's weights lie in at each step, and the losses."""

    def __init__(self, model):
        self._model = model
        self.seen, self.losses, self.chosen = [], [], []

    def on_selection(self, record):
        self.chosen.append((record.names, record.importance))

    def on_step(self, record):
        self.seen.append({name: p.dtype for name, p in self._model.named_parameters()})
        self.losses.append((record.loss, record.grad_norm))

    def on_validation(self, record):
        self.losses.append((record.loss, None))


def _job(kind, method, *, numerics=BFLOAT16, dropout=0.0, prepare=lambda _model: None, **options):
    model, prices = tiny_model(kind, dropout=dropout), None
    prepare(model)
    if method in ADAPTER_METHODS:
        settings = MethodOptions(target_modules="all-linear") if method == "lora" else None
        model = add_adapters(model, method, settings or MethodOptions(), base_name="tiny", seed=0)
        prices = adapter_prices(model, kind)
    options = {"n_epochs": 2, "gradient_accumulation": 2, "selection_interval": 1.0} | options
    return fit_job(
        kind,
        TrainingOptions(**options),
        model=model,
        method=method,
        rho=0.7,
        prices=prices,
        numerics=numerics,
    )


def _weights(job):
    return {name: p.detach().clone() for name, p in job.model.named_parameters()}


def _run(job, **given):
    types = Types(job.model)
    fit(job, hooks=[types], **given)
    return types


def _round(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())


@pytest.mark.parametrize(("kind", "method"), CASES)
@pytest.mark.parametrize("prepare", [lambda _model: None, _round], ids=["float32", "bfloat16"])
def test_not_a_bit_of_a_run_changes(kind, method, prepare, monkeypatch):
    """``bfloat16``: a checkpoint in it, as most are; embeddings are lowered then."""
    job = _job(kind, method, dropout=0.1, prepare=prepare)
    before = _weights(job)
    found = _run(job)
    with monkeypatch.context() as patched:
        for name in ("lowerable", "lowerable_embeddings"):
            patched.setattr(frozen_weights, name, lambda *_: {})
        plain = _job(kind, method, dropout=0.1, prepare=prepare)
        expected = _run(plain)
    assert {dtype for types in expected.seen for dtype in types.values()} == {torch.float32}
    assert found.losses == expected.losses
    assert [names for names, _ in found.chosen] == [names for names, _ in expected.chosen]
    for (_, importance), (_, wanted) in zip(found.chosen, expected.chosen, strict=True):
        # weight decay, which is part of an update, is that of the rounded weight
        assert importance == (None if wanted is None else pytest.approx(wanted, rel=1e-2))
    after, wanted = _weights(job), _weights(plain)
    ever = {name for names, _ in found.chosen for name in names}
    for name, weight in after.items():
        assert weight.dtype is torch.float32
        assert torch.equal(weight, wanted[name]), name
        assert name in ever or torch.equal(weight, before[name]), name
    embeddings = lowerable_embeddings(_job(kind, method, prepare=prepare).model, torch.bfloat16)
    assert not (embeddings and method == "prefix")
    most = lowerable(job.model).keys() | embeddings.keys()
    candidates = most - ever
    assert candidates or method == "full"
    for types in found.seen:
        lowered = {name for name, dtype in types.items() if dtype is torch.bfloat16}
        assert candidates <= lowered <= most


def test_only_what_products_alone_use_is_lowered():
    llama, t5 = tiny_model("llama"), tiny_model("t5")
    assert len(lowerable(llama)) == 3 * 7  # the head is the embedding too
    assert not any("norm" in name or "embed" in name for name in lowerable(llama))
    # transformers keeps T5's last projections in float32
    assert not any(".wo." in name for name in lowerable(t5))
    assert any(".wi." in name for name in lowerable(t5))


def test_embeddings_are_lowered_where_rounding_loses_nothing():
    llama, bart = tiny_model("llama"), tiny_model("bart")
    assert not lowerable_embeddings(llama, torch.bfloat16)
    for model in (llama, bart):
        _round(model)
    assert list(lowerable_embeddings(llama, torch.bfloat16)) == ["model.embed_tokens.weight"]
    # looked up by classes of BART's own, which scale and shift
    assert not lowerable_embeddings(bart, torch.bfloat16)
    assert not lowerable_embeddings(tiny_model("llama").to("meta"), torch.bfloat16)


def test_a_model_that_minds_rounded_embeddings_keeps_those_alone(monkeypatch):
    """Its forward pass reads the type of what it looks up."""
    model = tiny_model("llama")
    _round(model)
    monkeypatch.setattr(frozen_weights, "_as_float32", lambda _module, _args, rows: rows)
    with FrozenWeights(model, torch.bfloat16) as frozen:
        frozen.lower_all_but(())
        types = {name: p.dtype for name, p in model.named_parameters()}
        assert types["model.embed_tokens.weight"] is torch.float32
        assert all(types[name] is torch.bfloat16 for name in lowerable(model))


def test_hooks_go_with_the_run():
    model = tiny_model("llama")
    _round(model)
    with FrozenWeights(model, torch.bfloat16) as frozen:
        frozen.lower_all_but(())
        assert model.model.embed_tokens.weight.dtype is torch.bfloat16
        assert model.model.embed_tokens(torch.tensor([1])).dtype is torch.float32
    assert not model.model.embed_tokens._forward_hooks


@pytest.mark.parametrize("method", ["green", "green_lora"])
@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("prepare", [lambda _model: None, _round], ids=["float32", "bfloat16"])
def test_a_run_that_was_stopped_gives_the_same_bits(method, stop, prepare, tmp_path):
    straight = _job("llama", method, prepare=prepare)
    expected = _run(straight)
    polls = iter(range(100))
    paused = _run(
        _job("llama", method, prepare=prepare),
        checkpoints=tmp_path,
        control=lambda: Control.CHECKPOINT_AND_STOP if next(polls) == stop else Control.CONTINUE,
    )
    resumed = _job("llama", method, prepare=prepare)
    found = _run(resumed, checkpoints=tmp_path)
    assert paused.losses + found.losses == expected.losses
    for name, weight in _weights(resumed).items():
        assert torch.equal(weight, _weights(straight)[name]), name


def test_weights_that_are_bfloat16_already_take_no_room_on_the_disk(monkeypatch):
    monkeypatch.setattr(frozen_weights, "RowStore", _NoStore)
    job = _job("llama", "green_lora", prepare=_round)
    before = _weights(job)
    found = _run(job)
    assert torch.bfloat16 in found.seen[0].values()
    assert all(torch.equal(p, before[n]) for n, p in _weights(job).items() if "lora" not in n)


class _NoStore(frozen_weights.RowStore):
    def put(self, key, row):
        raise AssertionError(key)


class _FullStore(frozen_weights.RowStore):
    def put(self, _key, _row):
        return False


def test_what_has_no_room_on_the_disk_stays_float32(monkeypatch):
    monkeypatch.setattr(frozen_weights, "RowStore", _FullStore)
    found = _run(_job("llama", "green_lora"))
    assert {dtype for types in found.seen for dtype in types.values()} == {torch.float32}


def test_originals_that_cannot_be_read_are_no_weights(monkeypatch):
    monkeypatch.setattr(frozen_weights.RowStore, "get", lambda _self, _key: None)
    with pytest.raises(StorageUnavailable, match=r"float32 weights of model\.layers"):
        _run(_job("llama", "green"))


class _Forgetful(frozen_weights.RowStore):
    """As with rows that do not fit their digest."""

    def get(self, key):
        if key.endswith(b"q_proj.weight"):
            self._places.pop(key, None)
        return super().get(key)


def test_an_original_that_was_lost_costs_no_other(monkeypatch):
    monkeypatch.setattr(frozen_weights, "RowStore", _Forgetful)
    model = tiny_model("llama")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    lost = [name for name in before if name.endswith("q_proj.weight")]
    frozen = FrozenWeights(model, torch.bfloat16)
    frozen.lower_all_but(())
    # whoever asks again is not given rounded weights for the original
    for _ in range(2):
        with pytest.raises(StorageUnavailable, match="q_proj"):
            frozen.lower_all_but(lost[:1])
    with pytest.raises(StorageUnavailable, match="q_proj"), frozen:
        pass
    for name, parameter in model.named_parameters():
        assert (parameter.dtype is torch.bfloat16) == (name in lost)
        assert name in lost or torch.equal(parameter, before[name])


def test_where_all_is_trained_nothing_is_tried():
    model, passes = tiny_model("llama"), []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    with FrozenWeights(model, torch.bfloat16) as frozen:
        frozen.lower_all_but(dict(model.named_parameters()))
    assert not passes


def test_originals_leave_half_of_the_disk_to_others(monkeypatch, tmp_path):
    model = tiny_model("llama")
    n_bytes = sum(p.nbytes for p in lowerable(model).values())
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: SimpleNamespace(free=n_bytes))
    with FrozenWeights(model, torch.bfloat16, folder=tmp_path / "new") as frozen:
        frozen.lower_all_but(())
        kept = sum(p.nbytes for p in lowerable(model).values() if p.dtype is torch.float32)
        assert n_bytes / 2 <= kept < n_bytes


def test_in_float32_nothing_is_lowered():
    found = _run(_job("llama", "green_lora", numerics=FLOAT32))
    assert {dtype for types in found.seen for dtype in types.values()} == {torch.float32}


def test_a_run_that_fails_gives_the_weights_back():
    class Failing(Hook):
        def on_step(self, record):
            raise ValueError(record.step)

    job = _job("llama", "green_lora")
    before = _weights(job)
    with pytest.raises(ValueError, match="1"):
        fit(job, hooks=[Failing()])
    for name, weight in _weights(job).items():
        assert weight.dtype is torch.float32
        assert "lora" in name or torch.equal(weight, before[name])


class _Curious(nn.Module):
    """Computes in the type that its projection is stored in."""

    def __init__(self, inner, *, breaks):
        super().__init__()
        self.inner = inner
        self._breaks = breaks

    def forward(self, x):
        if self._breaks:
            assert self.inner.weight.dtype is torch.float32 or _raise()
        is_full = self.inner.weight.dtype is torch.float32
        return self.inner(x if is_full else x * 1.5)


def _raise():
    raise RuntimeError("expected both to be of one type")


@pytest.mark.parametrize("breaks", [False, True])
def test_a_model_that_looks_at_the_type_keeps_its_weights(breaks):
    model = tiny_model("llama")
    attention = model.model.layers[1].self_attn
    attention.o_proj = _Curious(attention.o_proj, breaks=breaks)
    with FrozenWeights(model, torch.bfloat16) as frozen:
        frozen.lower_all_but(())
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        LossStep(model, autocast_dtype=torch.bfloat16).logits(
            LossStep(model).inputs(padded_batch())
        )
