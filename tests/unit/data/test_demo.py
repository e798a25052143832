"""The demo data: sound, apart, the same every time, and made without importing anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from core.data.demo import INSTRUCTION, build
from core.data.oddities import overlap_warning
from core.data.validation import DataLimits, contents, validate
from core.errors import InvalidInput

SIZES = {"n_train": 40, "n_validation": 5, "n_test": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    build(folder, **SIZES)
    return folder


def pairs(path: Path) -> list[tuple[str, str]]:
    examples = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    return [(user["content"], reply["content"]) for user, reply in examples]


def test_the_files_are_valid_and_as_large_as_asked(folder: Path):
    for split, count in zip(("train", "validation", "test"), SIZES.values(), strict=True):
        report = validate(folder / f"{split}.jsonl")
        assert [p.code for p in report.problems] == ([] if count >= 10 else ["invalid_n_examples"])
        assert (report.n_examples, report.warnings) == (count, ())


def test_no_text_stands_in_two_splits(folder: Path):
    lines = (contents(folder / f"{split}.jsonl", DataLimits()) for split in ("train", "test"))
    assert overlap_warning(*lines, max_tracked=1000) is None
    every = [
        p for split in ("train", "validation", "test") for p in pairs(folder / f"{split}.jsonl")
    ]
    assert len({summary.lower() for _, summary in every}) == len(every)
    assert len({body.lower() for body, _ in every}) == len(every)


def test_bodies_and_summaries_are_prose_of_the_lengths_asked(folder: Path):
    for body, summary in pairs(folder / "train.jsonl"):
        assert body.startswith(INSTRUCTION + "\n\n")
        text = body.removeprefix(INSTRUCTION).strip()
        assert 20 <= len(text.split()) <= 90
        assert 4 <= len(summary.split()) <= 16
        assert summary.rstrip(".").lower() not in text.lower()
        assert ">>>" not in text
        assert ":param" not in text


def test_the_same_again(folder: Path, tmp_path: Path):
    build(tmp_path, **SIZES)
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


SOURCE = '''
"""Read and write the settings of a service.

Settings come from the environment; see :class:`Settings` for what there is, and use ``load`` to get
them all at once, which is what most callers want.
"""

def public(x):
    """Give back the value that was put in.

    The value is not touched on its way, so this does nothing at all, which is sometimes just what
    is wanted of a function that must be handed somewhere.

    Parameters
    ----------
    x : object
    """

def _private(x):
    """Hide from everybody who might look.

    This one is not part of the public interface, so that its words, however many there are of them,
    must not be taken into any data set at all.
    """

def short(x):
    """Say too little about itself.

    Only a few words.
    """

def wrapped(x):
    """Have a first line that goes on
    in the next one, which is no summary.

    And a body of more than twenty words that would otherwise be quite all right to be taken into
    the data set that is made here.
    """

def copied(y):
    """Repeat the words of somebody else's body.

    The value is not touched on its way, so this does nothing at all, which is sometimes just what
    is wanted of a function that must be handed somewhere.
    """
'''


def test_what_is_taken_of_a_source_and_what_is_not(tmp_path: Path):
    root = tmp_path / "package"
    root.mkdir()
    (root / "a.py").write_text(SOURCE)
    (root / "broken.py").write_text("def (")
    (root / "binary.py").write_bytes(b"\0\xff")
    found = set()
    for split in ("n_train", "n_validation", "n_test"):  # which split it is, the hash says
        for count in (2, 1):
            sizes = dict.fromkeys(SIZES, 0) | {split: count}
            try:
                files = build(tmp_path / "out", **sizes, roots=[root])
            except InvalidInput:
                continue
            found |= {
                pair for path in (files.train, files.validation, files.test) for pair in pairs(path)
            }
            break
    settings = (
        "Settings come from the environment; see Settings for what there is, and use load to get "
        "them all at once, which is what most callers want."
    )
    public = (
        "The value is not touched on its way, so this does nothing at all, which is sometimes "
        "just what is wanted of a function that must be handed somewhere."
    )
    assert found == {
        (f"{INSTRUCTION}\n\n{settings}", "Read and write the settings of a service."),
        (f"{INSTRUCTION}\n\n{public}", "Give back the value that was put in."),
    }


def test_more_than_there_is_is_refused_with_the_count(tmp_path: Path):
    with pytest.raises(InvalidInput, match="hold 0 pairs for train, fewer than the 3"):
        build(tmp_path, n_train=3, n_validation=0, n_test=0, roots=[tmp_path])


def test_nothing_is_imported_to_read_it(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from core.data.demo import build;"
        "build(Path(sys.argv[1]), n_train=5, n_validation=1, n_test=1);"
        "print({'torch', 'numpy', 'pandas', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_a_package_whose_import_hid_its_spec_is_read_all_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # kombu replaces itself in sys.modules, without a spec
    monkeypatch.setitem(sys.modules, "kombu", ModuleType("kombu"))
    build(tmp_path, **SIZES)
    assert (tmp_path / "train.jsonl").read_bytes() == (folder / "train.jsonl").read_bytes()
