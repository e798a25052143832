"""The callback inside transformers' Trainer, with its own optimisers."""

import copy
import functools

import peft
import pytest
import torch
import transformers
from transformers import Trainer, TrainerCallback

from core.errors import InvalidInput, RhoInfeasible, UnsupportedMethod
from core.training.callback import GreenTrainerCallback
from core.training.flops import profile
from tests.fixtures.tiny_models import tiny_model
from tests.fixtures.trainers import N_SAMPLES, ROWS, Spent, Watch, arguments, data, trainer_of

pytestmark = [
    # transformers and accelerate of the pinned versions, on a machine without an accelerator
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning"),
]


@functools.cache
def _costs():
    ids = torch.ones(ROWS, 10, dtype=torch.long)
    return profile(tiny_model("llama"), {"input_ids": ids, "labels": ids})


def test_only_what_fits_the_budget_is_updated_each_epoch(tmp_path):
    callback, watch = GreenTrainerCallback(rho=0.6), Watch()
    trainer = trainer_of(tmp_path, callback, watch=watch)
    trainer.train()
    assert [s.step for s in callback.selections] == [0, 8]
    assert len(watch.updated) == 16
    for step, updated in enumerate(watch.updated):
        assert updated == set(callback.selections[step // 8].names)
    full = _costs().full_flops
    for selected in callback.selections:
        assert _costs().step_flops(selected.names) == pytest.approx(selected.rho_planned * full)
        assert 0.5 < selected.rho_planned <= 0.6
    # flags are given back
    assert all(p.requires_grad for p in trainer.model.parameters())


def test_selection_every_few_steps_at_the_start_of_an_accumulation(tmp_path):
    callback, watch = GreenTrainerCallback(rho=0.5, every=3), Watch()
    trainer_of(tmp_path, callback, watch=watch, gradient_accumulation_steps=2).train()
    assert [s.step for s in callback.selections] == [0, 3, 6]
    for step, flags in enumerate(watch.flags):
        assert flags == watch.updated[step] == set(callback.selections[step // 3].names)


class Snapshot(TrainerCallback):
    """Everything that a step begins with."""

    def __init__(self):
        self.taken = []

    def on_step_begin(self, _args, _state, _control, model=None, optimizer=None, **_):
        moments = copy.deepcopy(optimizer.state_dict()["state"])
        weights = {n: p.detach().clone() for n, p in model.named_parameters()}
        no_gradients = all(p.grad is None for p in model.parameters())
        self.taken.append((weights, moments, torch.get_rng_state(), model.training, no_gradients))


def test_probing_leaves_no_trace(tmp_path):
    before, after = Snapshot(), Snapshot()
    callback = GreenTrainerCallback(rho=0.7, every=3, n_probes=2)
    trainer = trainer_of(tmp_path, before, model=tiny_model("opt", dropout=0.2))
    trainer.add_callback(callback)
    trainer.add_callback(after)
    trainer.train()
    assert len(callback.selections) > 1
    for then, now in zip(before.taken, after.taken, strict=True):
        for name, weight in then[0].items():
            assert torch.equal(weight, now[0][name])
        assert then[1].keys() == now[1].keys()
        for key, moments in then[1].items():
            assert all(torch.equal(moments[m], now[1][key][m]) for m in moments)
        assert torch.equal(then[2], now[2])
        assert (then[3:], now[3:]) == ((True, True), (True, True))


class Interrupted(Trainer):
    """Stops in the middle of its third step, as Ctrl-C does."""

    n_steps = 0

    def training_step(self, *args, **options):
        self.n_steps += 1
        if self.n_steps == 3:
            raise KeyboardInterrupt
        return super().training_step(*args, **options)


def test_after_an_interruption_everything_can_be_chosen_again(tmp_path):
    model, callback = tiny_model("llama"), GreenTrainerCallback(rho=0.6)
    options = {
        "model": model,
        "args": arguments(tmp_path),
        "train_dataset": data(),
        "data_collator": transformers.default_data_collator,
    }
    interrupted = Interrupted(**options, callbacks=[callback])
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    chosen = set(callback.selections[0].names)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == chosen

    # a new trainer's optimiser has only what was left trainable: it would train that and no more
    with pytest.raises(InvalidInput, match="make a new trainer"):
        Trainer(**options, callbacks=[GreenTrainerCallback(rho=0.6)]).train()
    fresh = GreenTrainerCallback(rho=1.0)
    Trainer(**options, callbacks=[fresh]).train()
    assert set(fresh.selections[0].names) - chosen
    assert all(p.requires_grad for p in model.parameters())

    # the interrupted trainer itself has them all
    again = Interrupted(**options, callbacks=[callback])
    with pytest.raises(KeyboardInterrupt):
        again.train()
    again.train()
    assert all(p.requires_grad for p in model.parameters())


def test_only_what_the_optimiser_holds_is_chosen(tmp_path):
    model, callback, watch = tiny_model("llama"), GreenTrainerCallback(rho=0.9), Watch()
    held = [p for n, p in model.named_parameters() if "mlp" in n]
    Trainer(
        model=model,
        args=arguments(tmp_path),
        train_dataset=data(),
        data_collator=transformers.default_data_collator,
        callbacks=[callback, watch],
        optimizers=(torch.optim.AdamW(held, lr=1e-3), None),
    ).train()
    assert all("mlp" in name for one in callback.selections for name in one.names)
    # what nobody updates has no gradient either, which would have to be paid for
    assert watch.updated[0] == set(callback.selections[0].names)
    assert all(p.requires_grad for p in model.parameters())


def test_an_adapter_is_chosen_as_a_whole(tmp_path):
    """Its second factor is zero at first, so that the first has no gradient yet."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"])
    model = peft.get_peft_model(tiny_model("llama"), config)
    callback, watch = GreenTrainerCallback(rho=0.6), Watch()
    trainer_of(tmp_path, callback, watch=watch, model=model).train()
    names = set(callback.selections[0].names)
    assert names
    for name in names:
        assert name.replace("lora_B", "lora_A") in names
        assert name.replace("lora_A", "lora_B") in names
    assert watch.updated[0] == names


@pytest.mark.parametrize(
    "wrong",
    [
        *({"rho": "0.5"}, {"rho": True}, {"rho": 0}),
        *({"every": "step"}, {"every": 2.5}, {"every": 0}),
        *({"n_probes": 1.5}, {"n_probes": 0}),
    ],
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        GreenTrainerCallback(**wrong)


def test_bf16_autocast(tmp_path):
    callback, watch = GreenTrainerCallback(rho=0.6), Watch()
    trainer_of(tmp_path, callback, watch=watch, bf16=True, max_steps=3).train()
    assert watch.updated == [set(callback.selections[0].names)] * 3


def test_what_cannot_work_is_refused_before_training(tmp_path):
    with pytest.raises(RhoInfeasible, match="lowest feasible"):
        trainer_of(tmp_path, GreenTrainerCallback(rho=0.1)).train()
    with pytest.raises(UnsupportedMethod, match="adamw_torch"):
        trainer_of(tmp_path, GreenTrainerCallback(), optim="sgd").train()
    for wrong in ({"rho": 0}, {"every": 0}, {"n_probes": 0}):
        with pytest.raises(InvalidInput):
            GreenTrainerCallback(**wrong)


@pytest.mark.parametrize("is_adapted", [False, True])
def test_gradient_checkpointing_counts_and_keeps_the_budget(tmp_path, is_adapted):
    """transformers makes embeddings' outputs require gradients for it, which would run the whole
    backward pass whatever is trained.
    """
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    if is_adapted:
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2))
    callback, spent = GreenTrainerCallback(rho=0.62), Spent()
    trainer_of(
        tmp_path,
        callback,
        watch=spent,
        model=model,
        gradient_checkpointing=True,
        num_train_epochs=1,
    ).train()
    batch = {name: torch.tensor([row[name] for row in data()[:ROWS]]) for name in data()[0]}
    costs = profile(model, batch, recomputes=True)
    (selected,) = callback.selections
    assert selected.rho_planned <= 0.62
    # transformers' own hook alone is left
    assert len(model.get_input_embeddings()._forward_hooks) == 1
    planned = costs.step_flops(selected.names)
    assert selected.rho_planned == pytest.approx(planned / costs.full_flops)
    assert spent.flops == pytest.approx([planned] * len(spent.flops), rel=1e-3)


def test_reentrant_checkpointing_is_refused(tmp_path):
    with pytest.raises(UnsupportedMethod, match="'use_reentrant': False"):
        trainer_of(
            tmp_path,
            GreenTrainerCallback(),
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": True},
        ).train()


class Probed(TrainerCallback):
    """Labels that the model sees in evaluation mode, once it has been profiled."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, _args, _state, _control, model=None, **_):
        model.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, model, _args, given):
        if not model.training:
            self.seen.append(given["labels"][:, 1:])


@pytest.mark.parametrize("labelled", [range(0, N_SAMPLES, 4), [5]], ids=["some", "one"])
def test_probes_are_samples_with_labels(tmp_path, labelled):
    """Where an answer was cut away there is no gradient, so that all would be worth nothing."""
    callback, probed = GreenTrainerCallback(rho=0.6, every=1, n_probes=2), Probed()
    rows = data(set(range(N_SAMPLES)) - set(labelled))
    # a lone label at a row's start is nobody's to predict
    rows[1]["labels"] = [7, *[-100] * 9]
    trainer_of(tmp_path, callback, watch=probed, rows=rows, num_train_epochs=1).train()
    assert len(probed.seen) == 4 * len(callback.selections) == 4 * N_SAMPLES // ROWS
    assert all((row_T != -100).any() for labels_BT in probed.seen for row_T in labels_BT)


def test_data_without_any_label_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="None of the 16 training samples has a label"):
        trainer_of(tmp_path, GreenTrainerCallback(rho=0.6), rows=data(range(N_SAMPLES))).train()
