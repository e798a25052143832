"""Hugging Face's Trainer on a prepared job, with the settings that its guides recommend.

Batches grouped by length (greentune's own, so that both engines see the same samples in the same
order), bf16 autocast where the processor computes in it, fused AdamW, the same schedule and clip.
Loss, masks and logits are Trainer's business: it makes logits for every position.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners import lora
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from benchmarks.measure import Gauge
from core.training.low_rank import LowRankLinear
from core.training.numerics import computes_in_bfloat16
from core.training.pricing import Shape
from core.training.step import Batch
from worker.prepare import Prepared


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerRun:
    """``flops``: what its steps cost, by greentune's prices for their padded shapes with logits at
    every position; ``full_flops``: greentune's full fine-tuning of the same batches.
    """

    flops: float
    full_flops: float
    precision: str


class _Planned(Dataset[Batch]):
    """Item ``n`` is the whole batch of step ``n``."""

    def __init__(self, prepared: Prepared) -> None:
        self._feed = prepared.feed()
        self._n_steps = prepared.total_steps

    def __len__(self) -> int:
        return self._n_steps

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < self._n_steps:
            raise IndexError(step)
        return self._feed.batch(*divmod(step, self._feed.batches_per_epoch))


class _Watch(TrainerCallback):
    def __init__(self, gauge: Gauge, after_step: Callable[[int], None]) -> None:
        self._gauge = gauge
        self._after_step = after_step

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._gauge.resume()

    def on_step_end(self, _arguments: Any, state: Any, *_: Any, **__: Any) -> None:
        self._after_step(state.global_step)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._gauge.pause()


def train_with_trainer(
    prepared: Prepared, gauge: Gauge, after_step: Callable[[int], None], *, rate: float
) -> TrainerRun:
    """Train ``prepared``'s model in place, adapters alone where it has some.

    Args:
        after_step: called with the number of steps done.
        rate: peak learning rate.
    """
    model = prepared.loaded.model
    put_back_pefts_layers(model)
    planned = _Planned(prepared)
    options = prepared.training
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=len(planned),
            per_device_train_batch_size=1,
            train_sampling_strategy="sequential",
            learning_rate=rate,
            lr_scheduler_type="linear",
            warmup_steps=round(options.warmup_ratio * len(planned)),
            weight_decay=options.weight_decay,
            max_grad_norm=options.max_grad_norm,
            optim="adamw_torch_fused",
            bf16=_is_bfloat16(),
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            remove_unused_columns=False,
            seed=prepared.spec.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=planned,
            data_collator=lambda batches: batches[0],
            callbacks=[_Watch(gauge, after_step)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        # its autocast stays around the forward pass otherwise
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return _costs(prepared, planned)


def put_back_pefts_layers(model: Any) -> None:
    """What PEFT itself would have put around projections, in place of ours; the tensors stay."""
    for module in model.modules():
        if isinstance(module, LowRankLinear):
            module.__class__ = lora.Linear


def _is_bfloat16() -> bool:
    return computes_in_bfloat16(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _costs(prepared: Prepared, planned: _Planned) -> TrainerRun:
    model = prepared.loaded.model
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    price = prepared.prices.of(names)
    flops = full_flops = 0.0
    for step in range(len(planned)):
        batch = planned[step]
        rows, columns = batch["input_ids"].shape
        n_labels = int((batch["labels"][:, 1:] != -100).sum())
        with_labels: Shape = (rows, columns, 0, n_labels)
        everywhere: Shape = (rows, columns, 0, rows * columns)
        flops += price(everywhere)
        full_flops += prepared.prices.full(with_labels)
    precision = "bfloat16 autocast" if _is_bfloat16() else "float32"
    return TrainerRun(flops=flops, full_flops=full_flops, precision=precision)
