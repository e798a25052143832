"""What a job may begin with, and what is refused before any energy is spent, in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from core.data.validation import DataLimits
from core.errors import DataInvalid, InvalidInput, ModelUnavailable, ModelUnsupported
from core.spec import EvalOptions, GreenOptions, JobSpec, MethodOptions
from core.training.adapters import tuned
from core.training_options import TrainingOptions
from tests.fixtures.pair_models import build_pair_models
from worker.prepare import Prepared, export, prepare, train

# PEFT asks transformers 5 for an attribute by its old name
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
METHODS = [
    ("full", {}),
    ("green", {}),
    ("last_k", {"k": 1}),
    ("lora", {"r": 2}),
    ("green_lora", {"r": 2}),
    ("prefix", {"n_virtual_tokens": 3}),
]

Ready = Callable[..., Prepared]


@pytest.fixture
def ready(tmp_path: Path, chat_lines: Callable[[int], bytes]) -> Ready:
    data = tmp_path / "train.jsonl"
    data.write_bytes(chat_lines(12))

    def build(
        model: Path,
        method: str = "green",
        *,
        training: Path = data,
        validation: Path | None = None,
        limits: DataLimits | None = None,
        options: dict[str, Any] | None = None,
        **spec: Any,
    ) -> Prepared:
        green = GreenOptions(method=method, options=MethodOptions(**(options or {})))  # type: ignore[arg-type]
        return prepare(
            JobSpec(
                model="mine",
                training_file=str(training),
                validation_file=None if validation is None else str(validation),
                training=TrainingOptions(n_epochs=1),
                green=green,
                **spec,
            ),
            training_path=training,
            validation_path=validation,
            models={"mine": str(model)},
            cache=tmp_path / "models",
            limits=limits,
        )

    return build


@pytest.fixture(scope="module")
def pair_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_pair_models(tmp_path_factory.mktemp("pairs"))


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def _configure(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_every_method_goes_on_from_an_adapter_folder(
    method: str, options: dict[str, Any], tiny_model: Path, ready: Ready, tmp_path: Path
) -> None:
    first = ready(tiny_model, "lora", options={"r": 2})
    first = _told_its_base(first, tiny_model)
    folder = export(first, tmp_path / "first", train(first, rho=lambda _step: 1.0))
    assert (folder / "adapter_config.json").exists()

    second = ready(folder, method, options=options)
    result = train(second, rho=lambda _step: 0.9)

    assert result.outcome == "finished"
    assert result.flops > 0


def _told_its_base(prepared: Prepared, base: Path) -> Prepared:
    """An adapter's own files name the model that it belongs on: here a folder."""
    prepared.loaded.model.peft_config["default"].base_model_name_or_path = str(base)
    return prepared


def test_what_the_base_holds_frozen_stays_frozen_and_nothing_else(
    tiny_model: Path, ready: Ready, tmp_path: Path
) -> None:
    first = _told_its_base(ready(tiny_model, "lora", options={"r": 2}), tiny_model)
    folder = export(first, tmp_path / "first", train(first, rho=lambda _step: 1.0))
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    base.model.norm.weight.requires_grad_(False)
    frozen = [name for name, p in tuned(base, folder).named_parameters() if not p.requires_grad]
    assert frozen == ["model.norm.weight"]


def test_weights_that_are_not_all_there_are_not_made_up(copy: Path, ready: Ready) -> None:
    _configure(copy, num_hidden_layers=3)
    with pytest.raises(ModelUnsupported, match=r"lack 9 of its tensors, such as model\.layers\.2"):
        ready(copy)


def test_weights_of_another_shape_are_named(copy: Path, ready: Ready) -> None:
    _configure(copy, intermediate_size=48)
    with pytest.raises(ModelUnsupported, match=r"mlp\.down_proj\.weight is \(32, 64\).*\(32, 48\)"):
        ready(copy)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-5000], lambda _raw: b"garbage" * 100])
def test_damaged_weights_are_one_sentence(damage: Any, copy: Path, ready: Ready) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ModelUnavailable, match="'mine' cannot be loaded"):
        ready(copy)


@pytest.mark.parametrize(
    "config",
    [
        [],
        {"peft_type": "NOPE"},
        {"peft_type": "LORA", "target_modules": ["q_proj"]},
    ],
)
def test_damaged_adapters_are_one_sentence(
    config: Any, tiny_model: Path, ready: Ready, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    if isinstance(config, dict):
        config["base_model_name_or_path"] = str(tiny_model)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 30)
    with pytest.raises(ModelUnavailable, match="adapter"):
        ready(folder)


def test_a_tokenizer_of_another_model_is_told_by_its_ids(copy: Path, ready: Ready) -> None:
    config = transformers.AutoConfig.from_pretrained(copy)
    config.vocab_size = 100
    transformers.LlamaForCausalLM(config).save_pretrained(copy)
    with pytest.raises(ModelUnsupported, match=r"gives token id \d{3}, but .* 100 embeddings"):
        ready(copy)


@pytest.mark.parametrize("kind", ["bert", "xlnet"])
def test_a_model_that_sees_its_labels_is_refused(kind: str, copy: Path, ready: Ready) -> None:
    plain = transformers.AutoConfig.from_pretrained(copy)
    ends = {"bos_token_id": plain.bos_token_id, "eos_token_id": plain.eos_token_id}
    if kind == "bert":
        config = transformers.BertConfig(
            vocab_size=plain.vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            **ends,
        )
        model = transformers.BertForMaskedLM(config)
    else:
        config = transformers.XLNetConfig(
            vocab_size=plain.vocab_size, d_model=32, n_layer=2, n_head=4, d_inner=48, **ends
        )
        model = transformers.XLNetLMHeadModel(config)
    model.save_pretrained(copy)
    with pytest.raises(ModelUnsupported, match="reads ahead"):
        ready(copy)


def test_a_prefix_must_leave_room_for_text(tiny_model: Path, ready: Ready) -> None:
    with pytest.raises(InvalidInput, match="no room for text") as caught:
        ready(tiny_model, "prefix", options={"n_virtual_tokens": 128})
    assert caught.value.param == "green.options.n_virtual_tokens"


@pytest.mark.parametrize("kind", ["tied T5", "BART"])
def test_an_encoder_needs_something_to_read(
    kind: str, pair_models: dict[str, Path], ready: Ready, tmp_path: Path
) -> None:
    data = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": "add", "completion": "x"}] * 12 + [{"prompt": "", "completion": "x"}]
    data.write_text("\n".join(map(json.dumps, pairs)))
    with pytest.raises(DataInvalid, match="line 13: the prompt is empty") as caught:
        ready(pair_models[kind], training=data)
    assert caught.value.param == "training_file"


def test_a_decoder_without_a_start_is_refused_by_name(
    pair_models: dict[str, Path], ready: Ready, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pair_models["tied T5"], tmp_path / "t5"))
    _configure(folder, decoder_start_token_id=None)
    for generation in folder.glob("generation_config.json"):
        generation.unlink()
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join([json.dumps({"prompt": "add", "completion": "x"})] * 12))
    with pytest.raises(ModelUnsupported, match="no decoder_start_token_id"):
        ready(folder, training=data)


@pytest.mark.parametrize(
    "asked", [None, EvalOptions(max_examples=2, max_new_tokens=4)], ids=["loss", "answers"]
)
def test_data_errors_name_the_file_that_they_are_in(
    asked: EvalOptions | None, tiny_model: Path, ready: Ready, tmp_path: Path
) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps({"prompt": "a" * 400, "completion": "x"}) + "\n")
    with pytest.raises(DataInvalid, match="line 1: the example has") as caught:
        ready(tiny_model, validation=held_out, eval=asked)
    assert caught.value.param == "validation_file"


def test_the_limit_of_a_line_is_the_one_that_was_set(
    tiny_model: Path, ready: Ready, chat_lines: Callable[[int], bytes], tmp_path: Path
) -> None:
    data = tmp_path / "wide.jsonl"
    data.write_bytes(chat_lines(13).rstrip() + b" " * (1 << 20) + b"\n")
    prepared = ready(tiny_model, training=data, limits=DataLimits(max_line_bytes=1 << 22))
    assert len(prepared.train_data) == 13
