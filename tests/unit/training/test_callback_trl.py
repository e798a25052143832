"""The callback inside TRL's SFTTrainer, with its own forwards, collators and adapters."""

import peft
import pytest

from core.training.callback import GreenTrainerCallback
from tests.fixtures.trainers import Spent, Watch, sft_trainer_of

pytestmark = [
    # transformers and accelerate of the pinned versions, on a machine without an accelerator
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning"),
]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_checkpointing": False},
        {"packing": True, "max_length": 64},
        {"packing": True, "max_length": 64, "packing_strategy": "wrapped"},
    ],
    ids=["as TRL has it", "no checkpointing", "packed", "packed and cut"],
)
def test_trl_sft_trainer(tmp_path, options):
    callback, watch, spent, full = GreenTrainerCallback(rho=0.7, every=3), Watch(), Spent(), Spent()
    sft_trainer_of(tmp_path, callback, watch, spent, **options).train()
    assert [s.step for s in callback.selections] == list(range(0, len(watch.updated), 3))
    for step, updated in enumerate(watch.updated):
        assert updated == set(callback.selections[step // 3].names)
    sft_trainer_of(tmp_path, full, **options).train()
    # its fused head, a third of this model, runs again in its backward pass, which is not priced
    assert sum(spent.flops) <= 0.8 * sum(full.flops)


def _wrapped(model):
    """Forwards on instances, in front of their classes' own."""
    return {n: m.forward for n, m in model.named_modules() if "forward" in vars(m)}


@pytest.mark.parametrize("checkpoints", [True, False])
def test_adapters_that_trl_makes_are_chosen_whole_within_the_budget(tmp_path, checkpoints):
    """TRL wraps the forward of the model inside the adapters, accelerate that of the outer one."""
    config = peft.LoraConfig(r=2, target_modules="all-linear")
    options = {"gradient_checkpointing": checkpoints}
    callback, watch, spent, full = GreenTrainerCallback(rho=0.6, every=3), Watch(), Spent(), Spent()
    trainer = sft_trainer_of(tmp_path, callback, watch, spent, peft_config=config, **options)
    assert any(name for name in _wrapped(trainer.model))
    wrapped = _wrapped(trainer.model)
    trainer.train()
    assert wrapped.items() <= _wrapped(trainer.model).items()
    adapters = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    for step, updated in enumerate(watch.updated):
        selected = callback.selections[step // 3]
        assert updated == set(selected.names) < adapters
        for name in updated:
            assert name.replace("lora_B", "lora_A") in updated
            assert name.replace("lora_A", "lora_B") in updated
        assert selected.rho_planned <= 0.6
    sft_trainer_of(tmp_path, full, **options).train()
    # the fused head, as above
    assert sum(spent.flops) <= 0.7 * sum(full.flops)
