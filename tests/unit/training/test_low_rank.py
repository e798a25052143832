"""Our layer of a low-rank adapter against PEFT's own, and what it costs."""

import random

import pytest
import torch
from peft.tuners import lora
from torch.utils.flop_counter import FlopCounterMode

from core.spec import MethodOptions
from core.training.adapters import add_adapters
from core.training.low_rank import LowRankLinear
from core.training.pricing import price_steps
from core.training.step import LossStep
from tests.fixtures.tiny_models import PAIRS, padded_batch, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
#: without biases, with them, with weights the other way round, with two stacks, changing what
#: comes out in place
KINDS = ("llama", "opt", "gpt2", "t5", "falcon")


def _adapted(kind, *, recomputes=False, seed=1, **options):
    options = MethodOptions(**({"r": 2, "target_modules": "all-linear"} | options))
    model = tiny_model(kind)
    model = add_adapters(
        model, "lora", options, base_name="tiny", seed=5, recomputes=recomputes
    ).eval()
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first: nothing would come of the first factor
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def _learnt(model, kind, dtype=None):
    """Loss and the adapters' gradients."""
    step = LossStep(model, keeps_mask=kind in PAIRS, autocast_dtype=dtype)
    output = step(step.inputs(padded_batch(is_pair=kind in PAIRS)))
    model.zero_grad()
    output.loss_sum.backward()
    return output.loss_sum.detach(), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad
    }


@pytest.fixture
def by_peft(monkeypatch):
    """What ``_learnt`` finds with PEFT's own layers."""

    def learnt(*arguments):
        with monkeypatch.context() as patched:
            patched.setattr(LowRankLinear, "forward", lora.Linear.forward)
            return _learnt(*arguments)

    return learnt


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_pefts_layer_does(kind, is_fused, by_peft):
    model = _adapted(kind, recomputes=not is_fused)
    assert any(isinstance(module, LowRankLinear) for module in model.modules())
    expected_loss, expected = by_peft(model, kind)
    loss, found = _learnt(model, kind)
    torch.testing.assert_close(loss, expected_loss)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert (gradient - expected[name]).norm() <= 1e-4 * expected[name].norm(), name


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_as_near_to_float32_as_pefts_layer_under_bfloat16(kind, by_peft):
    ours = theirs = 0.0
    for seed in range(8):
        model = _adapted(kind, seed=seed)
        _, exact = by_peft(model, kind)
        _, found = _learnt(model, kind, torch.bfloat16)
        assert all(gradient.dtype == torch.float32 for gradient in found.values())
        ours += _distance(found, exact)
        theirs += _distance(by_peft(model, kind, torch.bfloat16)[1], exact)
    assert ours <= 1.3 * theirs


def _distance(found, exact):
    squares = sum(float((found[name] - exact[name]).norm() ** 2) for name in exact)
    return (squares / sum(float(each.norm() ** 2) for each in exact.values())) ** 0.5


@pytest.mark.parametrize("is_fused", [True, False])
def test_factors_may_be_float32_beside_a_projection_of_less(is_fused):
    model = tiny_model("llama").to(torch.bfloat16)
    options = MethodOptions(r=2, target_modules="all-linear")
    model = add_adapters(
        model, "lora", options, base_name="tiny", seed=5, recomputes=not is_fused
    ).eval()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    _, found = _learnt(model, "llama")
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    assert any(gradient.any() for gradient in found.values())


@pytest.mark.parametrize("kind", KINDS)
def test_any_set_of_adapters_costs_what_was_predicted(kind):
    model, is_pair = _adapted(kind), kind in PAIRS
    plain = price_steps(tiny_model(kind))
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    prices = price_steps(model).against(plain, trainable)
    model.set_attn_implementation("eager")
    step = LossStep(model, keeps_mask=is_pair)
    inputs = step.inputs(padded_batch(is_pair=is_pair))
    draw = random.Random(0)
    for _ in range(10):
        names = draw.sample(trainable, draw.randint(1, len(trainable)))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        with FlopCounterMode(display=False) as counter:
            step(inputs).loss_sum.backward()
        assert prices.of(names)(inputs.shape) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_with_gradient_checkpointing_it_costs_what_was_predicted():
    model = _adapted("llama", recomputes=True)
    plain = price_steps(tiny_model("llama"), recomputes=True)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    prices = price_steps(model, recomputes=True).against(plain, names)
    model.set_attn_implementation("eager")
    step = LossStep(model)
    step.recomputes = True
    inputs = step.inputs(padded_batch())
    with FlopCounterMode(display=False) as counter:
        step(inputs).loss_sum.backward()
    assert prices.of(names)(inputs.shape) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_dropout_is_drawn_and_a_layer_switched_off_is_the_base_alone():
    model = _adapted("llama", dropout=0.5)
    ids = padded_batch()["input_ids"]
    still = model(input_ids=ids).logits
    assert torch.equal(model(input_ids=ids).logits, still)
    model.train()
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    model.eval()
    with model.disable_adapter():
        torch.testing.assert_close(model(input_ids=ids).logits, _base_logits(ids))


def _base_logits(ids):
    return tiny_model("llama").eval()(input_ids=ids).logits
