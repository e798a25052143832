"""Loss only where labels are: against Hugging Face's own loss, masks and all."""

import pytest
import torch

from core.errors import ModelUnsupported
from core.training.step import LossStep, first_samples, looks_ahead, needs_mask
from tests.fixtures.tiny_models import CAUSAL, PAIRS, padded_batch, tiny_model


def _reference_loss(model, batch):
    """Transformers' loss with its mask, computed on all positions."""
    return model(**batch).loss


@pytest.mark.parametrize("kind", [*CAUSAL, *PAIRS, "m2m100"])
def test_loss_and_gradients_equal_hugging_faces(kind):
    model = tiny_model(kind)
    batch = padded_batch(is_pair=model.config.is_encoder_decoder)
    model.zero_grad()
    reference = _reference_loss(model, batch)
    reference.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    step = LossStep(model, keeps_mask=needs_mask(model))
    inputs = step.inputs(batch)
    loss = step(inputs).loss_sum / inputs.n_labels
    loss.backward()

    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=1e-6)
    for name, gradient in expected.items():
        found = dict(model.named_parameters())[name].grad
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_decoder_without_a_start_token_is_refused_by_name():
    model = tiny_model("m2m100")
    model.config.decoder_start_token_id = None
    with pytest.raises(ModelUnsupported, match="decoder_start_token_id"):
        LossStep(model).inputs(padded_batch(is_pair=True))


def test_a_head_that_predicts_several_tokens_ahead_is_refused_by_name():
    step = LossStep(tiny_model("prophetnet"))
    with pytest.raises(ModelUnsupported, match=r"ProphetNet.* 42 rows for 21 tokens"):
        step(step.inputs(padded_batch(is_pair=True)))


@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_models_need_no_mask_on_the_right(kind):
    model = tiny_model(kind)
    assert needs_mask(model) is False
    assert "attention_mask" not in LossStep(model).inputs(padded_batch()).model_inputs
    assert model.training


def test_a_model_that_looks_ahead_keeps_its_mask():
    model = tiny_model("gpt2")
    attention = model.transformer.h[0].attn.forward

    def both_ways(hidden, *args, **kwargs):
        out, *rest = attention(hidden, *args, **kwargs)
        seen = kwargs.get("attention_mask")
        real = torch.ones(hidden.shape[:2]) if seen is None else (seen[:, 0, -1] >= 0).float()
        mean = (hidden * real[..., None]).sum(1, keepdim=True) / real.sum(1)[:, None, None]
        return (out + mean, *rest)

    model.transformer.h[0].attn.forward = both_ways
    model.set_attn_implementation("eager")
    assert needs_mask(model) is True


@pytest.mark.parametrize("kind", [*CAUSAL, "falcon", *PAIRS, "m2m100"])
def test_models_that_may_be_trained_do_not_see_their_labels(kind):
    assert looks_ahead(tiny_model(kind)) is False


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_head_sees_only_label_positions(kind):
    model = tiny_model(kind)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda _m, a, _o: seen.append(a[0].shape))
    step = LossStep(model)
    inputs = step.inputs(padded_batch(is_pair=kind in PAIRS))
    step(inputs)
    assert seen == [(1, inputs.n_labels, 16)]


def test_the_hook_is_gone_afterwards():
    model = tiny_model("llama")
    step, batch = LossStep(model), padded_batch()
    step(step.inputs(batch))
    assert model(input_ids=batch["input_ids"]).logits.shape[:2] == batch["input_ids"].shape


def test_correct_predictions_and_tokens_are_counted():
    model = tiny_model("llama")
    batch = padded_batch()
    logits = model(**batch).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    expected = int(((logits.argmax(-1) == labels) & (labels != -100)).sum())
    # labels equal to the model's own guesses are all right
    guessed = batch["labels"].clone()
    guessed[:, 1:] = torch.where(labels != -100, logits.argmax(-1), -100)
    step = LossStep(model)
    assert int(step(step.inputs(batch)).n_correct) == expected
    inputs = step.inputs(batch | {"labels": guessed})
    assert int(step(inputs).n_correct) == inputs.n_labels == int((labels != -100).sum())
    assert inputs.n_tokens == int(batch["attention_mask"].sum())
    assert inputs.shape == (3, 12, 0, inputs.n_labels)


def test_first_samples_keep_at_least_two_and_never_more_than_there_are() -> None:
    batch = {"input_ids": torch.arange(40).reshape(8, 5), "labels": torch.zeros(8, 5)}
    assert [len(first_samples(batch, share)["labels"]) for share in (0.0, 0.3, 0.5, 1.0, 9.0)] == [
        2,
        2,
        4,
        8,
        8,
    ]
    assert torch.equal(first_samples(batch, 0.5)["input_ids"], batch["input_ids"][:4])
    single = {name: tensor[:1] for name, tensor in batch.items()}
    assert len(first_samples(single, 1.0)["labels"]) == 1
