"""Predicted against measured FLOPs of random trained sets, and the selector's time.

    python benchmarks/costs.py [--seed 0] [--sets 50] [--only NAME ...] [--out docs/costs.md]

Predicted: ``core.training.flops.profile``, once per model. Measured: torch's ``FlopCounterMode``
around a real forward and backward pass of the model on the meta device (no weights), eager
attention, with exactly the set's tensors trainable. Models have their published sizes. Exits with 1
if any set is off by more than 0.1 %, or if a selection measures more than its budget.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.training.flops import FlopsProfile, profile
from core.training.selector import select, selection_curve

TOLERANCE = 1e-3
RHOS = (0.4, 0.5, 0.7, 0.9)
BATCH, TOKENS, DECODER_TOKENS = 4, 128, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A configuration class with the published sizes, and sizes for unit tests."""

    config: str
    published: Mapping[str, Any]
    tiny: Mapping[str, Any]
    is_untied: bool = False
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
_TINY_BART = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}

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
        published={
            "vocab_size": 50265,
            "d_model": 768,
            "encoder_layers": 6,
            "decoder_layers": 6,
            "encoder_attention_heads": 12,
            "decoder_attention_heads": 12,
            "encoder_ffn_dim": 3072,
            "decoder_ffn_dim": 3072,
        },
        tiny=_TINY_BART,
    ),
}


def batch_for(model: Any, rows: int, tokens: int, decoder_tokens: int) -> dict[str, torch.Tensor]:
    ids_BT = torch.ones(rows, tokens, dtype=torch.long)
    is_pair = model.config.is_encoder_decoder
    labels = torch.ones(rows, decoder_tokens, dtype=torch.long) if is_pair else ids_BT
    return {"input_ids": ids_BT, "labels": labels}


def measured_flops(
    model: Any, batch: Mapping[str, torch.Tensor], names: Collection[str]
) -> tuple[int, int]:
    """(forward, backward) FLOPs of one real step that trains ``names``; eager attention."""
    model.set_attn_implementation("eager")
    model.eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        parameter.grad = None
    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as forward:
        loss = model(**{key: tensor.to(device) for key, tensor in batch.items()}).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def random_set(costs: FlopsProfile, rng: random.Random) -> list[str]:
    """A set of any size: one tensor, a few, any number, all."""
    n = len(costs.trainable)
    size = rng.choice((1, min(n, 3), rng.randint(1, n), rng.randint(1, n), n))
    return rng.sample(costs.trainable, size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    name: str
    n_tensors: int
    profile_s: float
    forward_error: float
    backward_error: float
    select_ms: float
    curve_ms: float
    worst_budget_use: float

    @property
    def is_good(self) -> bool:
        worst = max(self.forward_error, self.backward_error)
        return worst <= TOLERANCE and self.worst_budget_use <= 1

    def __str__(self) -> str:
        return (
            f"| {self.name} | {self.n_tensors} | {self.profile_s:.2f} "
            f"| {100 * self.forward_error:.4f} | {100 * self.backward_error:.4f} "
            f"| {self.select_ms:.0f} | {self.curve_ms:.0f} | {self.worst_budget_use:.4f} |"
        )


HEAD = (
    "| model | tensors | profile, s | forward error, % | backward error, % "
    "| select, ms | all budgets, ms | measured / budget |\n|---|---|---|---|---|---|---|---|"
)


def row_for(name: str, n_sets: int, seed: int) -> Row:
    """Worst relative errors over ``n_sets`` random sets, and over selections at ``RHOS``."""
    rng = random.Random(f"{seed} {name}")
    with torch.device("meta"):
        model = ARCHITECTURES[name].build(ARCHITECTURES[name].published)
    batch = batch_for(model, BATCH, TOKENS, DECODER_TOKENS)
    start = time.perf_counter()
    costs = profile(model, batch)
    profile_s = time.perf_counter() - start
    forward_error = backward_error = 0.0
    for _ in range(n_sets):
        names = random_set(costs, rng)
        forward, backward = measured_flops(model, batch, set(names))
        forward_error = max(forward_error, abs(costs.forward_flops - forward) / forward)
        backward_error = max(backward_error, abs(costs.backward_flops(names) - backward) / backward)
    importance = {each: rng.gauss(0.5, 1) for each in costs.trainable}
    times_ms, worst_use = [], 0.0
    for rho in (rho for rho in RHOS if rho > costs.min_rho):
        start = time.perf_counter()
        selection = select(costs, importance, rho * costs.full_flops)
        times_ms.append(1e3 * (time.perf_counter() - start))
        spent = sum(measured_flops(model, batch, set(selection.names)))
        worst_use = max(worst_use, spent / (rho * costs.full_flops))
    start = time.perf_counter()
    selection_curve(costs, importance)
    return Row(
        name=name,
        n_tensors=len(costs.names),
        profile_s=profile_s,
        forward_error=forward_error,
        backward_error=backward_error,
        select_ms=statistics.median(times_ms),
        curve_ms=1e3 * (time.perf_counter() - start),
        worst_budget_use=worst_use,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sets", type=int, default=50, help="random sets for each model")
    parser.add_argument("--only", nargs="+", choices=list(ARCHITECTURES), metavar="NAME")
    parser.add_argument("--out", type=Path, help="write the table to this file as well")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    title = (
        f"Seed {arguments.seed}, {arguments.sets} random sets a model, batch {BATCH}, {TOKENS} "
        f"tokens, {DECODER_TOKENS} decoder tokens, published sizes, meta device.\n\n{HEAD}"
    )
    print(title)
    rows = []
    for name in arguments.only or ARCHITECTURES:
        rows.append(row_for(name, arguments.sets, arguments.seed))
        print(rows[-1], flush=True)
    if arguments.out:
        table = "\n".join(map(str, rows))
        arguments.out.write_text(f"# Predicted and measured costs\n\n{title}\n{table}\n")
    bad = [row.name for row in rows if not row.is_good]
    print(
        f"{len(rows) - len(bad)} of {len(rows)} within {TOLERANCE:.1%}"
        + "".join(f"; off: {b}" for b in bad)
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
