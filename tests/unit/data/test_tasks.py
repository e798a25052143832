"""Templates to the letter, answers alone learned, bad rows by line, the hub by its own library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.formats import Example
from core.data.hub import download, hub_rows
from core.data.tables import Row
from core.data.tasks import TASKS, HubSet, TaskData, render, task_named
from core.data.tokens import IGNORED, tokenize, tokenize_pairs
from core.errors import DataInvalid, InvalidInput, ModelUnsupported
from tests.unit.data.byte_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
EOS = TOKENIZER.eos_token
VALUES = {
    "scitldr": {"source": ["One.", "Two."], "target": ["Gold.", "Other gold."]},
    "dialogsum": {"dialogue": "A: hi\nB: ho", "summary": "They greet."},
    "webquestions": {"question": "who?", "answers": ["Ada", "Ada L."]},
    "piqa": {"goal": "boil", "sol1": "heat", "sol2": "cool", "label": 0},
}


def rendered(name: str, values: dict[str, Any] | None = None, **options: Any) -> Example:
    task = task_named(name)
    row = Row(line=3, values=VALUES[name] if values is None else values)
    return render(task, row, task.named_columns(), **({"eos": EOS, "is_pair": False} | options))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("scitldr", "One. Two. TL;DR: Gold."),
        ("dialogsum", "A: hi\nB: ho TL;DR: They greet."),
        ("webquestions", "question:who?<e>answer:Ada"),
        ("piqa", "goal:boil<e>sol1:heat<e>sol2:cool<e>label:0"),
    ],
)
def test_templates_are_the_papers(name: str, text: str):
    example = rendered(name, eos="<e>")
    assert example.prompt + example.completion == text
    assert example.line == 3


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_is_on_the_answer_and_the_end_token_alone(name: str):
    example = rendered(name)
    sample = tokenize([example], TOKENIZER, context=None)[0]
    learned = sample.labels[sample.labels != IGNORED].tolist()
    assert TOKENIZER.decode(learned) == example.completion + EOS
    # the end token inside the prompt is one token, and the model's own
    n_ends = example.prompt.count(EOS)
    assert sample.input_ids.tolist().count(TOKENIZER.eos_token_id) == n_ends + 1
    assert n_ends == task_named(name).template.removesuffix("</s>").count("</s>")


@pytest.mark.parametrize("name", TASKS)
def test_a_pairs_answer_stands_alone(name: str):
    example = rendered(name, is_pair=True)
    assert example.completion == example.references[0] == example.completion.strip()
    sample = tokenize_pairs([example], TOKENIZER, context=None)[0]
    assert TOKENIZER.decode(sample.input_ids.tolist()) == example.prompt
    assert TOKENIZER.decode(sample.labels.tolist()) == example.completion + EOS


@pytest.mark.parametrize("name", TASKS)
def test_a_cut_prompt_keeps_the_templates_ending(name: str):
    example = rendered(name)
    ending = {
        "webquestions": EOS + "answer:",
        "piqa": EOS + "label:",
    }.get(name, " TL;DR:")
    assert example.prompt_end == ending
    n_kept = len(TOKENIZER(ending)["input_ids"]) + 3
    options = {"context": None, "max_input_tokens": n_kept}
    causal = tokenize([example], TOKENIZER, **options)[0].input_ids.tolist()
    pair = tokenize_pairs([rendered(name, is_pair=True)], TOKENIZER, **options)[0]
    assert ending in TOKENIZER.decode(causal)
    assert TOKENIZER.decode(pair.input_ids.tolist()) == example.prompt[:3] + ending


def test_all_answers_count_and_the_first_is_learned():
    example = rendered("scitldr")
    assert (example.completion, example.references) == (" Gold.", ("Gold.", "Other gold."))


def test_unknown_names_are_answered_with_the_known():
    with pytest.raises(InvalidInput, match="scitldr, dialogsum, webquestions, piqa"):
        task_named("squad")
    with pytest.raises(InvalidInput, match=r"no field 'document'; its fields are: src, summary"):
        task_named("scitldr").named_columns({"document": "src"})


def test_no_end_token_no_question():
    assert rendered("scitldr", eos=None).completion == " Gold."
    with pytest.raises(ModelUnsupported, match="end token"):
        rendered("webquestions", eos=None)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"question": "q"}, "line 3: answers must be .*; got nothing"),
        ({"question": "q", "answers": []}, "line 3: answers must be .*; got an empty list"),
        ({"question": "q", "answers": [1]}, "line 3: answers must be"),
        ({"question": "q", "answers": " "}, "line 3: answers must be"),
        ({"question": None, "answers": "a"}, "line 3: question must be .*; got null"),
        ({"question": True, "answers": "a"}, "line 3: question must be .*; got true"),
        ({"question": 1.5, "answers": "a"}, "line 3: question must be .*; got 1.5"),
        ({"question": "q" + EOS, "answers": "a"}, "line 3: question holds '<.im_end.>'"),
        ({"question": "q", "answers": "a\0"}, "line 3: answers holds the NUL character"),
        ({"question": "q", "answers": ["a", "\0"]}, "line 3: answers holds the NUL character"),
    ],
)
def test_bad_rows_are_refused_by_line_and_column(values: dict[str, Any], complaint: str):
    with pytest.raises(DataInvalid, match=complaint):
        rendered("webquestions", values)


@pytest.mark.parametrize(
    "text",
    [
        str(["Ada"]),
        str(['Ada\'s "best"', "Bob\n"]),
        json.dumps(['Ada "Lovelace"', "B\\d"]),
        "['Ada' 'Bob'\n 'Carl']",  # numpy's, which pandas writes of Parquet's lists
        " [ 'Ada' , ] ",
    ],
)
def test_a_list_written_as_text_is_no_answer(text: str):
    values = {"question": "who?", "answers": text}
    with pytest.raises(DataInvalid, match="line 3: answers holds a list that is written as a text"):
        rendered("webquestions", values)
    assert rendered("webquestions", values | {"answers": [text]}).completion == text.strip()


@pytest.mark.parametrize("text", ["[laughs]", "[1]", "[]", "['a', b]", "x['a']", "['a'] and ['b']"])
def test_other_brackets_are_text(text: str):
    assert rendered("webquestions", {"question": "q", "answers": text}).completion == text


@pytest.mark.parametrize("part", ["'a' ", "'a\\", "'a', ", " ", "'", "\\'"])
def test_no_text_takes_long_to_be_told_from_a_list(part: str):
    text = "['" + part * 200_000 + "x"
    assert rendered("dialogsum", {"dialogue": text, "summary": "s"}).prompt.startswith("['")


def test_an_end_token_in_a_document_changes_no_structure():
    prompt = rendered("dialogsum", {"dialogue": f"a{EOS}b", "summary": "s"}).prompt
    assert prompt == f"a{EOS}b TL;DR:"
    with pytest.raises(DataInvalid, match="summary holds"):
        rendered("dialogsum", {"dialogue": "a", "summary": f"s{EOS}"})


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(
    lambda text: text.strip() and EOS not in text
)


@given(TEXT, TEXT, TEXT, st.integers())
def test_braces_and_all_else_in_the_data_are_data(goal: str, sol1: str, sol2: str, label: int):
    values = {"goal": goal, "sol1": sol1, "sol2": sol2, "label": label}
    example = rendered("piqa", values)
    parts = example.prompt.split(EOS)
    assert parts == [
        f"goal:{goal.strip()}",
        f"sol1:{sol1.strip()}",
        f"sol2:{sol2.strip()}",
        "label:",
    ]
    assert example.completion == str(label)
    reworded = rendered("piqa", values | {"goal": "{sol1}{label}"})
    assert reworded.prompt.startswith("goal:{sol1}{label}" + EOS)


def test_local_rows_with_columns_of_their_own(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text("document,gold\nlong text,short\n")
    task = task_named("dialogsum")
    data = TaskData(task=task, path=path, columns={"src": "document", "summary": "gold"})
    (example,) = data.examples(eos=EOS, is_pair=False)
    assert (example.line, example.prompt, example.completion) == (2, "long text TL;DR:", " short")
    report = data.check()
    assert (report.ok, report.n_examples, report.n_bytes) == (True, 1, path.stat().st_size)


def test_every_bad_row_is_named_before_anything_is_spent(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"dialogue": "d", "summary": "s"},
        {"dialogue": "d"},
        [],
        {"dialogue": 2, "summary": ""},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    data = TaskData(task=task_named("dialogsum"), path=path)
    report = data.check(min_examples=10)
    assert [(p.line, p.path) for p in report.problems] == [
        (2, "summary"),
        (3, ""),
        (4, "summary"),
        (None, ""),
    ]
    assert (report.n_examples, report.n_problems) == (1, 4)
    assert report.problems[-1].message == (
        "Training file has 4 example(s), but must have at least 10 examples"
    )
    with pytest.raises(DataInvalid, match=r"line 2: summary must be .*; got nothing"):
        list(data.examples(eos=EOS, is_pair=False))


def test_a_hub_set_is_read_by_the_datasets_library(tmp_path: Path, monkeypatch: Any):
    """A folder laid out as the hub's repositories are goes the same way as a downloaded one."""
    folder = tmp_path / "set" / "Abstract" / "train"
    folder.mkdir(parents=True)
    (folder / "0000.csv").write_text("question,answers,url\nwho?,Ada,x\nwhere?,Rome,y\n")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = HubSet(name=str(tmp_path / "set"), splits=("train",), files="Abstract/{split}/*.csv")
    rows = list(hub_rows(source, "train", ["answers", "question"]))
    assert [(row.line, dict(row.values)) for row in rows] == [
        (1, {"question": "who?", "answers": "Ada"}),
        (2, {"question": "where?", "answers": "Rome"}),
    ]
    with pytest.raises(
        InvalidInput, match="no column 'a'; its columns are: question, answers, url"
    ):
        list(hub_rows(source, "train", ["a"]))
    with pytest.raises(InvalidInput, match="no split 'test' with answers; there are: train"):
        list(hub_rows(source, "test", ["answers"]))


def test_a_download_is_a_table_that_stays(tmp_path: Path, monkeypatch: Any):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    origin = tmp_path / "origin"
    origin.mkdir()
    origin.joinpath("train.csv").write_text("id,dialogue,summary\n1,long text,größer\n")
    task = replace(task_named("dialogsum"), hub=HubSet(name=str(origin), splits=("train",)))
    path = download(task, "train", tmp_path / "tables")
    assert path.read_text() == '{"dialogue": "long text", "summary": "größer"}\n'
    (example,) = TaskData(task=task, path=path).examples(eos=EOS, is_pair=False)
    assert example.completion == " größer"
    origin.joinpath("train.csv").unlink()
    assert download(task, "train", tmp_path / "tables") == path
    assert [p.name for p in path.parent.iterdir()] == ["dialogsum-train.jsonl"]


def test_offline_the_local_alternative_is_named():
    program = (
        "from pathlib import Path\n"
        "from core.data.hub import download\n"
        "from core.data.tasks import task_named\n"
        "from core.errors import Unavailable\n"
        "try: download(task_named('piqa'), 'train', Path('/nonexistent'), is_offline=True)\n"
        "except Unavailable as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"HF_HOME": "/nonexistent"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "ybisk/piqa cannot be loaded from the hub" in done.stdout
    assert "local .jsonl, .csv or .parquet file" in done.stdout
    assert "goal, sol1, sol2, label" in done.stdout
