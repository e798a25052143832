"""Architectures that costs are measured on: published sizes, and sizes for unit tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import peft
import torch
import transformers
from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A configuration class with the published sizes, and sizes for unit tests.

    ``needs_weights``: what it computes depends on them, so it cannot be measured on meta.
    """

    config: str
    published: Mapping[str, Any]
    tiny: Mapping[str, Any]
    is_untied: bool = False
    needs_weights: bool = False
    adapt: Callable[[nn.Module], nn.Module] = lambda model: model

    def build(self, sizes: Mapping[str, Any]) -> Any:
        config = getattr(transformers, self.config)(**sizes)
        pairs = transformers.AutoModelForSeq2SeqLM
        kind = pairs if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        model = kind.from_config(config)
        if self.is_untied:
            # transformers 5 ties T5's head whatever the configuration says
            head = model.get_output_embeddings()
            head.weight = nn.Parameter(torch.empty_like(head.weight).normal_(std=0.02))
            model.config.tie_word_embeddings = False
        return self.adapt(model)


def _lora(model: Any) -> nn.Module:
    settings = peft.LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"])
    return peft.get_peft_model(model, settings)


def _prefix(model: Any) -> nn.Module:
    settings = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)
    return peft.get_peft_model(model, settings)


def _decoder(hidden: int, inner: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **more,
    }


def _t5(width: int, inner: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "d_model": width,
        "d_kv": 64,
        "d_ff": inner,
        "num_layers": layers,
        "num_heads": heads,
        "decoder_start_token_id": 0,
        **more,
    }


def _opt(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "ffn_dim": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "word_embed_proj_dim": width,
        **more,
    }


def _bloom(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {"hidden_size": width, "n_layer": layers, "n_head": heads, **more}


_SMOL = _decoder(
    576, 1536, 30, 9, num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True
)
_TINY = _decoder(32, 48, 3, 4, num_key_value_heads=2, vocab_size=64, tie_word_embeddings=True)
_TINY_UNTIED = {**_TINY, "tie_word_embeddings": False}
_TINY_HEAD = {**_TINY, "head_dim": 8}
_TINY_NEOX = _decoder(32, 48, 3, 4, vocab_size=64)
_TINY_OPT = _opt(32, 3, 4, vocab_size=64)
_TINY_T5 = _t5(32, 48, 2, 4, num_decoder_layers=3, vocab_size=64)
_GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_FLAN_XL = _t5(2048, 5120, 24, 32, vocab_size=32128, **_GATED)


def _pair(width: int, inner: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "d_model": width,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": inner,
        "decoder_ffn_dim": inner,
        **more,
    }


_TINY_BART = _pair(32, 48, 2, 4, vocab_size=64)
_TINY_PAIR = _TINY_BART | {
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
# 0 to 2 are special in most configurations, whatever the vocabulary's size
_TINY_SPECIAL = _TINY_UNTIED | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TINY_GPTJ = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "rotary_dim": 4,
    "n_positions": 512,
}
_TINY_MOE = _TINY_SPECIAL | {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_SMALL_MOE = _TINY_MOE | {"hidden_size": 64, "vocab_size": 512}

ARCHITECTURES: dict[str, Architecture] = {
    "SmolLM2-135M": Architecture(config="LlamaConfig", published=_SMOL, tiny=_TINY),
    "SmolLM2-135M + LoRA": Architecture(
        config="LlamaConfig", published=_SMOL, tiny=_TINY, adapt=_lora
    ),
    "SmolLM2-135M + prefix": Architecture(
        config="LlamaConfig", published=_SMOL, tiny=_TINY, adapt=_prefix
    ),
    "Qwen2.5-0.5B": Architecture(
        config="Qwen2Config",
        published=_decoder(
            896, 4864, 24, 14, num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True
        ),
        tiny=_TINY,
    ),
    "Mistral-7B": Architecture(
        config="MistralConfig",
        published=_decoder(4096, 14336, 32, 32, num_key_value_heads=8, vocab_size=32000),
        tiny=_TINY_UNTIED,
    ),
    "Gemma-2B": Architecture(
        config="GemmaConfig",
        published=_decoder(
            2048, 16384, 18, 8, num_key_value_heads=1, head_dim=256, vocab_size=256000
        ),
        tiny=_TINY_HEAD,
    ),
    "Gemma-3-270M": Architecture(
        config="Gemma3TextConfig",
        published=_decoder(
            640, 2048, 18, 4, num_key_value_heads=1, head_dim=256, vocab_size=262144
        ),
        tiny=_TINY_HEAD,
    ),
    "OPT-125M": Architecture(config="OPTConfig", published=_opt(768, 12, 12), tiny=_TINY_OPT),
    "OPT-350M": Architecture(
        config="OPTConfig",
        published=_opt(1024, 24, 16) | {"word_embed_proj_dim": 512, "do_layer_norm_before": False},
        tiny={**_TINY_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "OPT-2.7B": Architecture(config="OPTConfig", published=_opt(2560, 32, 32), tiny=_TINY_OPT),
    "BLOOMZ-560M": Architecture(
        config="BloomConfig",
        published=_bloom(1024, 24, 16, vocab_size=250880),
        tiny=_bloom(32, 3, 4, vocab_size=64),
    ),
    "BLOOMZ-3B": Architecture(
        config="BloomConfig",
        published=_bloom(2560, 30, 32, vocab_size=250880),
        tiny=_bloom(32, 2, 4, vocab_size=64),
    ),
    "GPT-2": Architecture(
        config="GPT2Config",
        published={},
        tiny={"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4},
    ),
    "Pythia-160M": Architecture(
        config="GPTNeoXConfig",
        published=_decoder(768, 3072, 12, 12, vocab_size=50304),
        tiny=_TINY_NEOX,
    ),
    "T5-small": Architecture(
        config="T5Config", published=_t5(512, 2048, 6, 8, vocab_size=32128), tiny=_TINY_T5
    ),
    "FLAN-T5-small": Architecture(
        config="T5Config",
        published=_t5(512, 1024, 8, 6, vocab_size=32128, **_GATED),
        tiny={**_TINY_T5, **_GATED},
        is_untied=True,
    ),
    "FLAN-T5-XL": Architecture(
        config="T5Config", published=_FLAN_XL, tiny={**_TINY_T5, **_GATED}, is_untied=True
    ),
    "mT5-small": Architecture(
        config="MT5Config",
        published=_t5(512, 1024, 8, 6, vocab_size=250112, **_GATED),
        tiny={**_TINY_T5, **_GATED},
        is_untied=True,
    ),
    "BART-base": Architecture(
        config="BartConfig",
        published=_pair(768, 3072, 6, 12, vocab_size=50265),
        tiny=_TINY_BART,
    ),
    "Qwen3-0.6B": Architecture(
        config="Qwen3Config",
        published=_decoder(
            1024,
            3072,
            28,
            16,
            num_key_value_heads=8,
            head_dim=128,
            vocab_size=151936,
            tie_word_embeddings=True,
        ),
        tiny=_TINY_HEAD,
    ),
    "Phi-3-mini": Architecture(
        config="Phi3Config",
        published=_decoder(3072, 8192, 32, 32, num_key_value_heads=32, vocab_size=32064),
        tiny=_TINY_SPECIAL,
    ),
    "Gemma-2-2B": Architecture(
        config="Gemma2Config",
        published=_decoder(
            2304, 9216, 26, 8, num_key_value_heads=4, head_dim=256, vocab_size=256000
        ),
        tiny=_TINY_HEAD | {"sliding_window": 8},
    ),
    "Falcon-7B": Architecture(
        config="FalconConfig",
        published={},
        tiny={
            "vocab_size": 64,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        },
    ),
    "GPT-J-6B": Architecture(config="GPTJConfig", published={}, tiny=_TINY_GPTJ),
    "StableLM-3B": Architecture(config="StableLmConfig", published={}, tiny=_TINY_SPECIAL),
    "OLMo-2-1B": Architecture(
        config="Olmo2Config",
        published=_decoder(2048, 8192, 16, 16, num_key_value_heads=16, vocab_size=100352),
        tiny=_TINY_SPECIAL,
    ),
    "Granite-3-2B": Architecture(
        config="GraniteConfig",
        published=_decoder(
            2048, 8192, 40, 32, num_key_value_heads=8, vocab_size=49155, tie_word_embeddings=True
        ),
        tiny=_TINY_SPECIAL,
    ),
    "Cohere, 4 blocks of Command R": Architecture(
        config="CohereConfig",
        published=_decoder(8192, 22528, 4, 64, num_key_value_heads=64, vocab_size=256000),
        tiny=_TINY_SPECIAL,
    ),
    "StarCoder2-3B": Architecture(
        config="Starcoder2Config",
        published=_decoder(3072, 12288, 30, 24, num_key_value_heads=2, vocab_size=49152),
        tiny=_TINY_SPECIAL,
    ),
    "MPT-7B": Architecture(
        config="MptConfig",
        published={"d_model": 4096, "n_layers": 32, "n_heads": 32, "vocab_size": 50432},
        tiny={"vocab_size": 64, "d_model": 32, "n_layers": 3, "n_heads": 4},
    ),
    "PEGASUS-large": Architecture(
        config="PegasusConfig",
        published=_pair(1024, 4096, 16, 16, vocab_size=96103),
        tiny=_TINY_PAIR,
    ),
    "Marian": Architecture(
        config="MarianConfig",
        published=_pair(512, 2048, 6, 8, vocab_size=58101, pad_token_id=58100),
        tiny=_TINY_PAIR,
    ),
    "mBART-large": Architecture(
        config="MBartConfig",
        published=_pair(1024, 4096, 12, 16, vocab_size=250027),
        tiny=_TINY_PAIR,
    ),
    "Mixtral, small": Architecture(
        config="MixtralConfig",
        published=_SMALL_MOE | {"num_local_experts": 4},
        tiny=_TINY_MOE | {"num_local_experts": 4},
        needs_weights=True,
    ),
    "Qwen3-MoE, small": Architecture(
        config="Qwen3MoeConfig",
        published=_SMALL_MOE | {"num_experts": 8},
        tiny=_TINY_MOE | {"num_experts": 4},
        needs_weights=True,
    ),
    "gpt-oss, small": Architecture(
        config="GptOssConfig",
        published=_SMALL_MOE | {"num_local_experts": 8, "head_dim": 16},
        tiny=_TINY_MOE | {"num_local_experts": 4, "head_dim": 8},
        needs_weights=True,
    ),
}

#: what has no price: configuration class and sizes
REFUSED: dict[str, tuple[str, Mapping[str, Any]]] = {
    "Mamba": (
        "MambaConfig",
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    ),
    "RecurrentGemma": (
        "RecurrentGemmaConfig",
        _TINY_SPECIAL | {"lru_width": 32, "attention_window_size": 8},
    ),
    "RWKV": (
        "RwkvConfig",
        {
            "vocab_size": 64,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "attention_hidden_size": 32,
            "intermediate_size": 48,
        },
    ),
    "LED": ("LEDConfig", _TINY_PAIR | {"attention_window": 8}),
    "LongT5": ("LongT5Config", _TINY_T5),
}
