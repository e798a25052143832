"""The demo data set: one-line summaries of docstrings that are on this machine anyway.

A docstring's first line sums up the paragraphs below it, by convention (PEP 257), so the body and
its first line make a summarisation pair. Sources are parsed, never imported. The choice of pairs
and their split depend on hashes of their texts alone: the same installed packages always give the
same files, and one summary never stands in two splits.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

from core.errors import InvalidInput

INSTRUCTION: Final = "Sum up this description of a Python object in one line."
SPLITS: Final = ("train", "validation", "test")

#: besides the standard library; those that are not installed are passed over
_PACKAGES: Final = (
    "alembic", "celery", "click", "fastapi", "httpx", "hypothesis", "jinja2", "kombu", "mpmath",
    "networkx", "numpy", "packaging", "pandas", "pip", "pydantic", "pytest", "redis", "requests",
    "rich", "scipy", "sqlalchemy", "starlette", "sympy", "torch", "urllib3",
)  # fmt: skip
_SKIPPED_FOLDERS: Final = frozenset(
    {
        "test",
        "tests",
        "testing",
        "site-packages",
        "dist-packages",
        "_vendor",
        "idlelib",
        "turtledemo",
    }
)
# of 256: a tenth each for validation and test
_HELD_OUT_BUCKETS: Final = 26
# where prose ends: numpydoc and Google headings, Sphinx fields and directives, doctests, lists
_STOP: Final = re.compile(
    r"^\s*(:\w+|\.\. |>>>|[-=~^*+]{3,}\s*$|[*+-] |\d+[.)] |@\w+|\|"
    r"|(args|arguments|parameters|returns?|raises?|yields?|examples?|notes?|usage|attributes"
    r"|see also|references?|keyword arguments|warnings?|inputs?|outputs?|shape|params)\s*:?\s*$)",
    re.IGNORECASE,
)
_MARKUP: Final = re.compile(r":[\w:]+:`~?([^`<]*?)(?:\s*<[^>]*>)?`|``([^`]*)``|`([^`]*)`_?")
_SUMMARY: Final = re.compile(r"[A-Z][^\n]*[a-z)'\"]\.")
_MAX_FILE_BYTES: Final = 400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoFiles:
    """The files written, and how many examples each holds."""

    train: Path
    validation: Path
    test: Path
    n_train: int
    n_validation: int
    n_test: int


@dataclass(frozen=True, slots=True)
class _Pair:
    body: str
    summary: str

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.summary.lower().encode()).digest()

    @property
    def split(self) -> str:
        bucket = self.digest[0]
        if bucket < _HELD_OUT_BUCKETS:
            return "validation"
        return "test" if bucket < 2 * _HELD_OUT_BUCKETS else "train"


def build(
    folder: Path | str,
    *,
    n_train: int = 600,
    n_validation: int = 60,
    n_test: int = 60,
    min_words: int = 20,
    max_words: int = 90,
    roots: Sequence[Path] | None = None,
) -> DemoFiles:
    """Write ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``, OpenAI chat format.

    ``min_words`` and ``max_words`` bound the body of a docstring, which is the user's message.
    ``roots``: folders of Python sources; None: the standard library and what is installed.

    Raises:
        InvalidInput: the sources do not hold that many pairs.
    """
    wanted = dict(zip(SPLITS, (n_train, n_validation, n_test), strict=True))
    found: dict[str, dict[bytes, _Pair]] = {split: {} for split in SPLITS}
    bodies: set[bytes] = set()
    for path in _source_files(_installed() if roots is None else roots):
        if all(len(found[split]) >= count for split, count in wanted.items()):
            break
        for pair in _pairs(path, min_words, max_words):
            body = hashlib.sha256(pair.body.lower().encode()).digest()
            if body not in bodies and pair.digest not in found[pair.split]:
                bodies.add(body)
                found[pair.split][pair.digest] = pair
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in wanted.items():
        if len(found[split]) < count:
            raise InvalidInput(
                f"The sources hold {len(found[split])} pairs for {split}, fewer than "
                f"the {count} asked for; ask for fewer.",
                param=f"n_{split}",
            )
        chosen = [found[split][digest] for digest in sorted(found[split])[:count]]
        _write(folder / f"{split}.jsonl", chosen)
    return DemoFiles(
        train=folder / "train.jsonl",
        validation=folder / "validation.jsonl",
        test=folder / "test.jsonl",
        n_train=n_train,
        n_validation=n_validation,
        n_test=n_test,
    )


def _write(path: Path, pairs: list[_Pair]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for pair in pairs:
            messages = [
                {"role": "user", "content": f"{INSTRUCTION}\n\n{pair.body}"},
                {"role": "assistant", "content": pair.summary},
            ]
            out.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def _installed() -> list[Path]:
    roots = [Path(sysconfig.get_path("stdlib"))]
    for name in _PACKAGES:
        # asks the folders, not what happens to be imported (kombu hides its spec)
        spec = PathFinder.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            roots.append(Path(spec.submodule_search_locations[0]))
    return roots


def _source_files(roots: Sequence[Path]) -> Iterator[Path]:
    """Every source file, in an order given by the hash of its place inside its package."""
    keyed = []
    for root in roots:
        for path in root.rglob("*.py"):
            inside = path.relative_to(root)
            if not _SKIPPED_FOLDERS.intersection(inside.parts) and not inside.name.startswith("_"):
                place = f"{root.name}/{inside.as_posix()}"
                keyed.append((hashlib.sha256(place.encode()).digest(), path))
    return (path for _, path in sorted(keyed))


def _pairs(path: Path, min_words: int, max_words: int) -> Iterator[_Pair]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            return
        source = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's sources
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for docstring in _docstrings(tree):
        pair = _split(docstring)
        if pair is not None and min_words <= len(pair.body.split()) <= max_words:
            yield pair


def _docstrings(node: ast.Module | ast.ClassDef) -> Iterator[str]:
    """Docstrings of the module's public classes, functions and methods, and its own."""
    own = ast.get_docstring(node)
    if own:
        yield own
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from _docstrings(child)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            text = None if child.name.startswith("_") else ast.get_docstring(child)
            if text:
                yield text


def _split(docstring: str) -> _Pair | None:
    """First line and the prose below it, or None where either is not plain prose."""
    first, _, rest = docstring.strip().partition("\n")
    summary = _plain(first)
    if rest[:1] not in ("\n", "") or not _SUMMARY.fullmatch(summary):
        return None
    if not 4 <= len(summary.split()) <= 16:
        return None
    body = _plain(_prose(rest))
    if summary.lower().rstrip(".") in body.lower() or not body.isascii() or "::" in body:
        return None
    return _Pair(body, summary)


def _prose(text: str) -> str:
    """The paragraphs before the first heading, list, directive or doctest."""
    kept: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        lines = paragraph.splitlines()
        is_prose = not any(_STOP.match(line) for line in lines) and not paragraph[:1].isspace()
        if not is_prose or not paragraph.rstrip().endswith((".", "!", "?", ".)")):
            break
        kept.extend(" ".join(lines).split())
    return " ".join(kept)


def _plain(text: str) -> str:
    """Without Sphinx roles and code quotes: their text stays."""
    return _MARKUP.sub(lambda match: next(filter(None, match.groups()), ""), text).strip()
