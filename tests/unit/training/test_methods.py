"""Methods beside green and full: what they train, its cost, how it is resumed and delivered."""

import dataclasses
import functools

import peft
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from core.errors import (
    InvalidInput,
    ModelUnavailable,
    ModelUnsupported,
    RhoInfeasible,
    UnsupportedMethod,
)
from core.spec import (
    METHODS,
    RANKING_METHODS,
    STORING_METHODS,
    GreenOptions,
    JobSpec,
    MethodOptions,
)
from core.training.adapters import add_adapters, merged, tuned
from core.training.blocks import blocks_from_the_loss
from core.training.export import save_model
from core.training.hooks import Control, Hook
from core.training.importance import needs_probes, rank_tensors
from core.training.loop import fit
from core.training.methods import SelectionPoint, adapters_of, method_named
from core.training.models import fingerprint_of
from core.training.optimiser import SelectiveAdamW
from core.training.pricing import price_steps, profile_shape
from core.training.schedule import peak_learning_rate
from core.training.step import LossStep
from core.training_options import TrainingOptions
from tests.fixtures.fit_jobs import adapter_prices, fit_job, prices_of
from tests.fixtures.specs import stored_and_read
from tests.fixtures.tiny_models import PAIRS, padded_batch, tiny_model

# PEFT asks transformers 5 for an attribute by its old name, inside its own forward passes too
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
OPTIONS = MethodOptions(r=2, n_virtual_tokens=3)
ADAPTERS = ("lora", "prefix", "green_lora")


def _adapted(kind, method, **options):
    return add_adapters(tiny_model(kind, **options), method, OPTIONS, base_name="tiny", seed=5)


@functools.cache
def _prices(kind, method):
    return adapter_prices(_adapted(kind, method), kind) if method in ADAPTERS else prices_of(kind)


def _job(kind, method, *, rho=0.7, options=OPTIONS, importance="importance", **training):
    model = tiny_model(kind, dropout=0.1)
    fingerprint = fingerprint_of(model)
    if method in ADAPTERS:
        model = add_adapters(model, method, options, base_name="tiny", seed=5)
    return fit_job(
        kind,
        TrainingOptions(**({"n_epochs": 2} | training)),
        model=model,
        method=method_named(method, options),
        rho=rho,
        prices=_prices(kind, method),
        validation=[],
        fingerprint=fingerprint,
        importance=importance,
    )


class Selections(Hook):
    def __init__(self):
        self.records = []

    def on_selection(self, record):
        self.records.append(record)


@pytest.mark.parametrize(
    ("kind", "method"),
    [*((k, m) for k in ("llama", "gpt2") for m in ADAPTERS), ("t5", "green_lora"),
     ("t5", "prefix"), ("deep_t5", "prefix"), ("bart", "prefix"), ("falcon", "prefix"),
     ("bloom", "lora")],
)  # fmt: skip
def test_an_adapted_model_costs_what_torch_counts(kind, method):
    """Real tensors, eager attention, exactly the adapters trained."""
    model = _adapted(kind, method)
    is_pair = model.config.is_encoder_decoder
    model.set_attn_implementation("eager")
    model.eval()
    step = LossStep(model, keeps_mask=is_pair)
    inputs = step.inputs(padded_batch(is_pair=is_pair))
    with FlopCounterMode(display=False) as counter:
        step(inputs).loss_sum.backward()
    prices = _prices(kind, method)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert prices.of(names)(inputs.shape) == pytest.approx(counter.get_total_flops(), rel=1e-3)
    # shares are of the model without its adapter
    assert prices.full(inputs.shape) == pytest.approx(
        price_steps(tiny_model(kind)).full(inputs.shape)
    )


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("llama", "last_k"),
        ("bart", "last_k"),
        ("gpt2", "lora"),
        ("opt", "prefix"),
        ("t5", "green_lora"),
    ],
)
def test_stopped_and_resumed_gives_the_same_bits(kind, method, tmp_path):
    straight = _job(kind, method)
    expected = fit(straight)
    polls = iter(range(100))
    stop = lambda: Control.CHECKPOINT_AND_STOP if next(polls) == 5 else Control.CONTINUE
    first = fit(_job(kind, method), checkpoints=tmp_path, control=stop)
    assert first.outcome == "paused"
    again = _job(kind, method)
    result = fit(again, checkpoints=tmp_path)
    for (name, one), other in zip(
        straight.model.named_parameters(), again.model.parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    same = {"train_duration_s": 0.0}
    assert dataclasses.replace(result, **same) == dataclasses.replace(expected, **same)


@pytest.mark.parametrize("method", ADAPTERS)
def test_only_adapters_are_trained(method):
    job = _job("llama", method)
    before = {n: p.detach().clone() for n, p in job.model.named_parameters()}
    result = fit(job)
    changed = {n for n, p in job.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert changed <= set(result.trained_names) <= set(job.profile.trainable)
    assert all("lora_" in n or "prompt_encoder" in n for n in changed)
    assert result.flops_share < 1


def test_green_lora_takes_whole_adapters_within_rho():
    seen, job = Selections(), _job("t5", "green_lora", rho=0.55)
    fit(job, hooks=[seen])
    adapters = adapters_of(job.profile)
    for record in seen.records:
        taken = [m for m, names in adapters.items() if set(names) <= set(record.names)]
        assert {n for m in taken for n in adapters[m]} == set(record.names)
        assert 0 < len(taken) < len(adapters)
        spent = job.profile.step_flops(record.names) / job.profile.full_flops
        assert spent == pytest.approx(record.rho_planned)
        assert spent <= 0.55
    with pytest.raises(RhoInfeasible) as caught:
        fit(_job("t5", "green_lora", rho=0.34))
    assert caught.value.rho_min == pytest.approx(job.method.rho_min(job.profile))


@pytest.mark.parametrize(("method", "same_as"), [("green_lora", "lora"), ("green", "full")])
def test_where_rho_pays_for_everything_nothing_is_measured(method, same_as):
    """There is nothing to choose, so all of rho goes into steps."""
    rate = {"learning_rate": 1e-2}
    whole = dataclasses.replace(_job("llama", method, **rate), method=method_named(same_as))
    fit(whole)
    costs = _prices("llama", method).mean_profile([(3, 12, 0, 12)])
    share = costs.step_flops(costs.trainable) / costs.full_flops
    seen, job = Selections(), _job("llama", method, rho=min(share * (1 + 1e-9), 1.0), **rate)
    result = fit(job, hooks=[seen])
    assert result.selection_flops == 0
    assert result.flops_share == pytest.approx(share, rel=1e-2)  # other lengths
    for (name, one), other in zip(
        whole.model.named_parameters(), job.model.parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    for record in seen.records:
        assert set(record.names) == set(job.profile.trainable)
        assert (record.importance, record.quality_curve, record.unpaid_share) == (None, (), 0)
    assert len(seen.records) == 2  # a share that falls is to be noticed
    less = _job("llama", method, rho=share * 0.999, **rate)
    assert fit(less).selection_flops > 0


@pytest.mark.parametrize("method", ["green", "green_lora"])
def test_a_plan_is_told_the_curve_where_rho_pays_for_everything(method):
    seen = Selections()
    job = dataclasses.replace(_job("llama", method, rho=1.0), wants_curve=True)
    assert fit(job, hooks=[seen]).selection_flops > 0
    assert all(record.quality_curve for record in seen.records)


@pytest.mark.parametrize("name", METHODS)
def test_what_the_spec_says_of_a_method_is_what_it_does(name):
    method = method_named(name, OPTIONS)
    profile = _prices("llama", name).mean_profile([(3, 12, 0, 12)])
    alike = dict.fromkeys(profile.trainable, 1.0)
    point = SelectionPoint(profile=profile, rho=0.6, measure_importance=lambda: alike)
    leaves_some = set(method.choose(point).names) < set(profile.trainable)
    assert leaves_some == (name in STORING_METHODS)
    assert method.ranks == (name in RANKING_METHODS)
    assert method.reselects == GreenOptions(method=name).follows_rho


def test_efficient_whole_tensors_are_no_small_part_of_the_model():
    """Whatever is predicted: adapters alone may be as few as predictions say."""
    rhos = {}
    for name in ("green", "green_lora"):
        profile = _prices("llama", name).mean_profile([(3, 12, 0, 12)])
        # most of the drop is near the loss
        near = {tensor: 0.5**at for at, tensor in enumerate(reversed(profile.trainable))}
        point = SelectionPoint(profile=profile, rho=1.0, measure_importance=lambda near=near: near)
        method = method_named(name, OPTIONS, is_efficient=True)
        rhos[name] = method.choose(point).rho_planned
    assert rhos["green_lora"] < 0.5
    # of sets of a few tensors no one costs just that
    assert 0.8 < rhos["green"] < 0.9


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bart"])
def test_last_blocks_are_counted_from_the_loss(kind):
    costs = _prices(kind, "last_k").mean_profile([(3, 12, 7 * (kind in PAIRS), 12)])
    blocks = blocks_from_the_loss(costs)
    expected = {
        "llama": [f"model.layers.{i}." for i in (2, 1, 0)],
        "gpt2": [f"transformer.h.{i}." for i in (1, 0)],
        "t5": ["decoder.block.1.", "decoder.block.0.", "encoder.block.1.", "encoder.block.0."],
        "bart": ["model.decoder.layers.1.", "model.decoder.layers.0."],
    }[kind]
    for block, prefix in zip(blocks, expected, strict=False):
        assert set(block) == {n for n in costs.trainable if n.startswith(prefix)}
    # the largest number that rho pays for
    method = method_named("last_k", MethodOptions())
    shares = [method_named("last_k", MethodOptions(k=k)).rho_min(costs) for k in (1, 2)]
    assert shares[0] < shares[1]
    for rho, k in ((shares[0], 1), ((shares[0] + shares[1]) / 2, 1), (shares[1], 2)):
        choice = method.choose(SelectionPoint(profile=costs, rho=rho, measure_importance=dict))
        assert set(choice.names) == {n for block in blocks[:k] for n in block}
        assert choice.rho_planned <= rho
    with pytest.raises(RhoInfeasible):
        method.choose(SelectionPoint(profile=costs, rho=0.34, measure_importance=dict))
    with pytest.raises(InvalidInput, match="the model has"):
        method_named("last_k", MethodOptions(k=99)).rho_min(costs)


@pytest.mark.parametrize(
    ("kind", "method"),
    [("llama", "lora"), ("t5", "green_lora"), ("opt", "prefix"), ("falcon", "prefix")],
)
def test_an_adapter_is_delivered_and_loaded_by_peft(kind, method, tmp_path):
    job = _job(kind, method, learning_rate=1e-2)
    fit(job)
    save_model(job.model, tmp_path)
    assert not (tmp_path / "config.json").exists()
    is_pair = kind in PAIRS
    batch = padded_batch(is_pair=is_pair)

    def logits(model):
        model.eval()
        step = LossStep(model, keeps_mask=is_pair)
        return step.logits(step.inputs(batch)).detach()

    expected = logits(job.model)
    loaded = peft.PeftModel.from_pretrained(tiny_model(kind), str(tmp_path))
    assert torch.equal(logits(loaded), expected)
    assert (logits(tiny_model(kind)) - expected).abs().max() > 1e-3
    if method == "prefix":
        with pytest.raises(InvalidInput, match="prefix"):
            merged(loaded)
    else:
        plain = tuned(tiny_model(kind), tmp_path)
        assert not isinstance(plain, peft.PeftModel)
        torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-5)
        with pytest.raises(ModelUnavailable, match="does not fit"):
            tuned(tiny_model("bloom"), tmp_path)


def test_a_prefix_wants_the_same_keys_in_every_layer():
    model = tiny_model("llama")
    odd = model.model.layers[1].self_attn
    odd.k_proj, odd.v_proj = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)
    odd.num_key_value_groups = 1
    with pytest.raises(ModelUnsupported, match=r"prefix: .* are: \(2, 4\), \(4, 4\)"):
        add_adapters(model, "prefix", OPTIONS, base_name="tiny", seed=5)


def test_rankings_for_comparison():
    model = tiny_model("opt")
    parameters = dict(model.named_parameters())
    step = LossStep(model)
    probes = [step.inputs(padded_batch(seed=i)) for i in (1, 2)]
    optimiser = SelectiveAdamW(parameters, weight_decay=0.0)

    def rank(kind, seed=0):
        return rank_tensors(
            kind, step, probes if needs_probes(kind) else [], parameters, optimiser,
            learning_rate=1e-3, clip=1.0, seed=seed,
        )  # fmt: skip

    found = rank("fisher")
    expected = dict.fromkeys(parameters, 0.0)
    for inputs in probes:
        model.zero_grad()
        model.eval()
        (step(inputs).loss_sum / inputs.n_labels).backward()
        for name, p in parameters.items():
            expected[name] += float(p.grad.double().square().sum()) / 2
    model.zero_grad()
    for name in parameters:
        assert found[name] == pytest.approx(expected[name], rel=1e-4)
    sizes = rank("magnitude")
    name = max(parameters, key=lambda n: parameters[n].numel())
    assert sizes[name] == pytest.approx(float(parameters[name].detach().double().abs().sum()))
    assert rank("random") == rank("random") != rank("random", seed=1)
    assert all(0 <= value < 1 for value in rank("random").values())
    assert rank("importance").keys() == sizes.keys() == found.keys()


@pytest.mark.parametrize(
    ("kind", "is_free"), [("random", True), ("magnitude", True), ("fisher", False)]
)
def test_a_ranking_costs_what_it_takes(kind, is_free):
    seen = Selections()
    result = fit(_job("llama", "green", importance=kind), hooks=[seen])
    assert (result.selection_flops == 0) is is_free
    sets = [record.names for record in seen.records]
    assert len(sets) == 2
    again = Selections()
    fit(_job("llama", "green", importance=kind), hooks=[again])
    assert [record.names for record in again.records] == sets


def test_options_are_checked_and_cross_json():
    green = GreenOptions(method="lora", options=MethodOptions(r=4, merge=True))
    spec = JobSpec(model="m", training_file="t", green=green)
    assert stored_and_read(spec) == spec
    for wrong in (
        {"k": 0}, {"r": 1.5}, {"r": True}, {"alpha": 0}, {"dropout": 1}, {"n_virtual_tokens": 0},
        {"merge": 1},
    ):  # fmt: skip
        with pytest.raises(InvalidInput, match=f"green.options.{next(iter(wrong))} must be"):
            MethodOptions(**wrong)
    with pytest.raises(UnsupportedMethod, match="full, green, last_k, lora, prefix, green_lora"):
        GreenOptions(method="bitfit")
    with pytest.raises(InvalidInput, match="importance, taylor, random, magnitude, fisher"):
        GreenOptions(importance="best")
    with pytest.raises(InvalidInput, match="cannot be merged"):
        GreenOptions(method="prefix", options=MethodOptions(merge=True))
    follows = {m: GreenOptions(method=m).follows_rho for m in ("full", "green", "last_k", "lora")}
    assert follows == {"full": False, "green": True, "last_k": True, "lora": False}
    assert not GreenOptions(method="last_k", options=MethodOptions(k=2)).follows_rho


def test_the_profile_of_an_adapter_alone():
    whole = profile_shape(tiny_model("llama"), (1, 16, 0, 8))
    kept = whole.trainable[:3]
    part = whole.limited(kept, full_flops=whole.full_flops)
    assert part.trainable == kept
    assert part.full_flops == whole.full_flops
    assert part.step_flops(kept) == whole.step_flops(kept)
    groups = {"a": whole.trainable[:2], "b": whole.trainable[2:5]}
    both = whole.grouped(groups)
    assert both.step_flops(["a"]) == whole.step_flops(groups["a"])
    assert both.step_flops(["a", "b"]) == pytest.approx(whole.step_flops(whole.trainable[:5]))
    assert both.full_flops == whole.full_flops
    assert type(part).from_dict(part.to_dict()) == part


def test_lora_on_every_projection_covers_them_and_takes_the_rates_of_such_adapters():
    everywhere = MethodOptions(r=2, target_modules="all-linear")
    model = add_adapters(tiny_model("llama"), "lora", everywhere, base_name="tiny", seed=5)
    covered = {
        name.partition(".lora_")[0] for name, p in model.named_parameters() if "lora_" in name
    }
    linear = {n for n, m in tiny_model("llama").named_modules() if isinstance(m, torch.nn.Linear)}
    assert {name.removeprefix("base_model.model.") for name in covered} == linear - {"lm_head"}
    rule = method_named("lora", everywhere).rate_rule
    assert peak_learning_rate(0.7, method=rule) < peak_learning_rate(0.7, method="lora")
    assert method_named("lora").rate_rule == "lora"


def test_target_modules_nobody_knows_are_refused_by_name():
    with pytest.raises(InvalidInput, match="default or all-linear") as caught:
        MethodOptions(target_modules="attention")
    assert caught.value.param == "green.options.target_modules"
