"""Adapters on mixtures of experts, whose experts are one tensor and no linear layers."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from core.errors import ModelUnsupported
from core.spec import GreenOptions, JobSpec, MethodOptions
from core.training.adapters import add_adapters, tuned
from core.training.models import LoadedModel
from core.training.pricing import price_steps
from core.training.step import LossStep
from tests.fixtures.tiny_models import VOCABULARY, padded_batch
from worker.adapted import adapted

# PEFT asks transformers 5 for an attribute by its old name
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
}
#: Phimoe's router is a subclass of a linear layer; DeepSeek's first layer is dense
_CONFIGS = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 8, "head_dim": 4},
    "Phimoe": {"num_local_experts": 4},
    "DeepseekV3": {
        **_LATENT,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 8,
        "first_k_dense_replace": 1,
    },
}
_ATTENTION = {
    "DeepseekV3": {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
}
_PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj"}


def mixture(kind: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(_SIZES | _CONFIGS[kind]))
    return getattr(transformers, f"{kind}ForCausalLM")(config).train()


@pytest.mark.parametrize(
    ("method", "targets"), [("lora", "default"), ("lora", "all-linear"), ("green_lora", "default")]
)
@pytest.mark.parametrize("kind", _CONFIGS)
def test_adapters_are_priced_trained_and_read_back(
    kind: str, method: str, targets: str, tmp_path: Path
) -> None:
    plain = price_steps(mixture(kind))
    options = MethodOptions(r=2, target_modules=targets)
    model = add_adapters(mixture(kind), method, options, base_name="tiny", seed=5)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    around = {name.partition(".lora_")[0].rpartition(".")[2] for name in names}
    by_table = kind == "Mixtral" and (method, targets) == ("lora", "default")
    assert around == ({"q_proj", "v_proj"} if by_table else _ATTENTION.get(kind, _PROJECTIONS))
    prices = price_steps(model).against(plain, names)
    assert set(prices.mean_profile([(2, 12, 0, 6)]).trainable) == set(names)

    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first: an adapter of no effect would read back as well
            torch.nn.init.normal_(parameter, std=0.1)
    step = LossStep(model)
    step(step.inputs(padded_batch())).loss_sum.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    ids = padded_batch()["input_ids"]
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        found = tuned(mixture(kind), tmp_path).eval()(input_ids=ids).logits
        assert (expected - mixture(kind).eval()(input_ids=ids).logits).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_an_adapter_cannot_do_is_said_with_what_can() -> None:
    """DeepSeek's keys and values, which a prefix stands in front of, are of different widths."""
    spec = JobSpec(
        model="deep",
        training_file="a.jsonl",
        green=GreenOptions(method="prefix", options=MethodOptions(n_virtual_tokens=2)),
    )
    loaded = LoadedModel(
        model_id="deep",
        model=mixture("DeepseekV3"),
        tokenizer=SimpleNamespace(model_max_length=64),
        source="folder",
        fingerprint="",
        weight_scale=1.0,
    )
    with pytest.raises(ModelUnsupported, match=r"^deep cannot be tuned by prefix: ") as caught:
        adapted(spec, loaded)
    assert caught.value.message.endswith("own tensors can do it: full, green, last_k.")
    assert caught.value.param == "green.method"
