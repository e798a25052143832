"""One forward pass at a time: what is stored, what is skipped, what it costs, what is refused."""

import functools

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from core.training.prefix import PrefixReuse, ReusingStep, loss_step
from core.training.prefix_layout import NOWHERE, find_layout
from core.training.pricing import price_steps
from core.training.step import LossStep
from tests.fixtures.tiny_models import CAUSAL, PAIRS, padded_batch, tiny_model

PLENTY = PrefixReuse(memory_bytes=1 << 24)


def _step(model, reuse=PLENTY, **options):
    return loss_step(
        model,
        **{"keeps_mask": False, "autocast_dtype": None} | options,
        reuse=reuse,
        forward=_prices(model.config.model_type).forward,
    )


@functools.cache
def _prices(kind):
    return price_steps(tiny_model(kind))


def _train_from(model, station):
    """Exactly the parameters first used from ``station`` on; their names."""
    layout = find_layout(model)
    names = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(layout.first_use[name] >= station)
        if parameter.requires_grad:
            names.append(name)
    return names


def _stations(kind):
    """All that something can be trained from and something is spared below."""
    layout = find_layout(tiny_model(kind))
    found = [s for s in range(len(layout.stations)) if layout.cuts(s)]
    return [s for s in found if s <= max(layout.first_use.values())]


def _block_calls(model):
    """Paths of the blocks whose own forward really runs, collected from here on."""
    called = []
    blocks = [block for chain in find_layout(model).chains for block in chain.blocks]
    for block in blocks:
        linear = next(m for m in model.get_submodule(block.path).modules() if type(m) is nn.Linear)
        linear.register_forward_hook(lambda *_, path=block.path: called.append(path))
    return called


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_price_is_what_torch_counts_at_every_boundary(kind):
    model = tiny_model(kind)
    model.set_attn_implementation("eager")
    prices = _prices(kind)
    for station in _stations(kind):
        names = _train_from(model, station)
        step = _step(model)
        # unpadded: the mask that padding brings has no price
        batch = padded_batch(is_pair=kind in PAIRS)
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
        inputs = step.inputs(batch)
        price = prices.of(names)(inputs.shape)
        assert step(inputs).saved_flops == 0
        output = step(inputs)
        assert 0 < output.saved_flops < prices.forward(inputs.shape)
        with FlopCounterMode(display=False) as counter:
            step(inputs).loss_sum.backward()
        assert counter.get_total_flops() == pytest.approx(price - output.saved_flops, rel=1e-3)


@pytest.mark.parametrize("kind", [*CAUSAL, *PAIRS])
def test_every_boundary_gives_the_same_loss_and_gradients(kind):
    for station in _stations(kind):
        model = tiny_model(kind)
        _train_from(model, station)
        step = _step(model)
        assert isinstance(step, ReusingStep)
        inputs = step.inputs(padded_batch(is_pair=kind in PAIRS))
        found = []
        for _ in range(3):
            model.zero_grad()
            output = step(inputs)
            output.loss_sum.backward()
            gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
            found.append((output, gradients))
        plain = LossStep(model, keeps_mask=False)(inputs)
        assert [output.saved_flops > 0 for output, _ in found] == [False, True, True]
        for output, gradients in found:
            assert torch.equal(output.loss_sum, plain.loss_sum)
            assert all(torch.equal(gradients[n], g) for n, g in found[0][1].items())


def test_skipped_blocks_do_not_run():
    model = tiny_model("llama")
    _train_from(model, 2)
    step = _step(model)
    inputs = step.inputs(padded_batch())
    step(inputs)
    step(inputs)
    called = _block_calls(model)
    step(inputs)
    assert called == ["model.layers.2"]


def test_a_frozen_encoder_runs_once():
    model = tiny_model("t5")
    layout = find_layout(model)
    decoder = next(i for i, s in enumerate(layout.stations) if (s.chain, s.place) == (1, 0))
    _train_from(model, decoder)
    step = _step(model)
    inputs = step.inputs(padded_batch(is_pair=True))
    step(inputs)
    step(inputs)
    called = _block_calls(model)
    step(inputs)
    assert {path.split(".")[0] for path in called} == {"decoder"}


def test_only_real_tokens_are_stored_and_rows_serve_other_batches():
    model = tiny_model("opt")
    _train_from(model, 1)
    step = _step(model)
    batch = padded_batch()
    step(step.inputs(batch))
    assert len(step.store) == 3
    width = model.config.hidden_size
    assert step.store.n_memory_bytes == int(batch["attention_mask"].sum()) * width * 4
    part = {key: value[[2, 0]] for key, value in batch.items()}
    assert step(step.inputs(part)).saved_flops > 0
    longer = {
        key: nn.functional.pad(value, (0, 4), value=-100 if key == "labels" else 0)
        for key, value in batch.items()
    }
    torch.testing.assert_close(
        step(step.inputs(longer)).loss_sum, step(step.inputs(batch)).loss_sum
    )


def test_a_batch_with_one_new_row_is_computed_whole():
    model = tiny_model("opt")
    _train_from(model, 1)
    step = _step(model)
    batch, other = padded_batch(), padded_batch(seed=9)
    step(step.inputs(batch))
    mixed = {key: torch.cat([value[:2], other[key][:1]]) for key, value in batch.items()}
    assert step(step.inputs(mixed)).saved_flops == 0
    assert len(step.store) == 4
    assert step(step.inputs(mixed)).saved_flops > 0


def test_rows_survive_a_rising_boundary_and_a_pass_that_trains_everything():
    model = tiny_model("llama")
    step = _step(model)
    inputs = step.inputs(padded_batch())
    _train_from(model, 1)
    step(inputs)
    for parameter in model.parameters():  # as measuring importance does
        parameter.requires_grad_(True)
    assert step(inputs).saved_flops == 0
    _train_from(model, 2)
    output = step(inputs)
    assert output.saved_flops > 0
    assert torch.equal(output.loss_sum, LossStep(model)(inputs).loss_sum)


def test_rows_are_dropped_when_weights_below_were_trained():
    model = tiny_model("llama")
    step = _step(model)
    inputs = step.inputs(padded_batch())
    _train_from(model, 2)
    step(inputs)
    _train_from(model, 1)
    output = step(inputs)
    assert output.saved_flops == 0  # the boundary sank: other rows
    output.loss_sum.backward()
    before = float(output.loss_sum.detach())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)
    _train_from(model, 2)
    after = step(inputs)
    assert after.saved_flops > 0  # what is below station 1 is as it was
    assert torch.equal(after.loss_sum, LossStep(model)(inputs).loss_sum)
    assert float(after.loss_sum.detach()) != before

    # weights below the rows change while they may be trained
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    step(inputs)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight += 0.1
    _train_from(model, 2)
    again = step(inputs)
    assert again.saved_flops == 0
    assert torch.equal(again.loss_sum, LossStep(model)(inputs).loss_sum)


def test_nothing_is_stored_where_the_first_block_or_the_embedding_is_trained():
    model = tiny_model("gpt2")
    step = _step(model)
    inputs = step.inputs(padded_batch())
    for station in (NOWHERE, 0):
        _train_from(model, station)
        assert step(inputs).saved_flops == step(inputs).saved_flops == 0
        assert len(step.store) == 0


def test_the_frozen_part_has_no_dropout_and_the_rest_keeps_its_own():
    model = tiny_model("gpt2", dropout=0.3)
    _train_from(model, 1)
    step = _step(model)
    inputs = step.inputs(padded_batch())
    seen = []
    for place in (0, 1):
        model.transformer.h[place].mlp.dropout.register_forward_hook(
            lambda module, *_, place=place: seen.append((place, module.training))
        )
    losses = []
    for _ in range(2):
        torch.manual_seed(4)
        losses.append(step(inputs).loss_sum)
    assert (0, False) in seen
    assert (0, True) not in seen
    assert (1, True) in seen
    assert torch.equal(*losses)  # filled and reused draw the same numbers
    assert all(module.training for module in model.modules())
    torch.manual_seed(5)
    assert not torch.equal(step(inputs).loss_sum, losses[0])


def test_a_model_that_looks_at_lower_blocks_again_is_not_cut():
    model = tiny_model("llama")
    kept = []
    model.model.layers[0].register_forward_hook(lambda _m, _a, out: kept.append(out))
    model.model.norm.register_forward_pre_hook(lambda _m, args: (args[0] + kept[-1],))
    _train_from(model, 2)
    step = _step(model)
    inputs = step.inputs(padded_batch())
    losses = [step(inputs) for _ in range(2)]
    assert [output.saved_flops for output in losses] == [0, 0]
    assert torch.equal(losses[0].loss_sum, losses[1].loss_sum)


def test_models_that_mix_rows_or_have_no_blocks_take_the_plain_step():
    assert type(_step(tiny_model("llama"), keeps_mask=True)) is LossStep
    assert type(_step(tiny_model("llama"), reuse=None)) is LossStep
    model = tiny_model("opt")
    order = model.model.decoder.layers
    blocks = nn.ModuleDict({str(i): block for i, block in enumerate(order)})
    model.model.decoder.layers = _Values(blocks)
    assert find_layout(model) is None


class _Values(nn.Module):
    """Blocks that are no list."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks

    def __iter__(self):
        return iter(self.blocks.values())


def test_left_padding_is_computed_as_it_is():
    model = tiny_model("opt")
    _train_from(model, 1)
    step = _step(model)
    batch = {key: value.flip(1) for key, value in padded_batch().items()}
    step(step.inputs(batch))
    assert len(step.store) == 0


def test_bfloat16_rows_take_half_the_room_and_are_close():
    model = tiny_model("llama")
    _train_from(model, 2)
    halves = PrefixReuse(memory_bytes=1 << 24, dtype=torch.bfloat16)
    exact, rounded = _step(model), _step(model, halves)
    inputs = exact.inputs(padded_batch())
    losses = [
        [float(step(inputs).loss_sum.detach()) for _ in range(2)] for step in (exact, rounded)
    ]
    assert rounded.store.n_memory_bytes * 2 == exact.store.n_memory_bytes
    assert losses[0][0] == losses[0][1] == losses[1][0] != losses[1][1]
    assert losses[1][1] == pytest.approx(losses[0][0], rel=1e-3)


def test_autocast_is_reproduced():
    model = tiny_model("llama")
    _train_from(model, 2)
    step = _step(model, autocast_dtype=torch.bfloat16)
    inputs = step.inputs(padded_batch())
    first, second = step(inputs), step(inputs)
    assert second.saved_flops > 0
    assert torch.equal(first.loss_sum, second.loss_sum)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_what_selections_may_count_on_is_what_a_pass_is_spared(kind):
    model = tiny_model(kind)
    inputs = _step(model).inputs(padded_batch(is_pair=kind in PAIRS))
    spared = _step(model).spared([inputs.shape])
    assert list(spared.flops) == sorted(spared.flops)
    for station in _stations(kind):
        names = _train_from(model, station)
        step = _step(model)
        step(inputs)
        assert spared.of(names) == pytest.approx(step(inputs).saved_flops)
    assert spared.of([n for n, _ in model.named_parameters()]) == 0
