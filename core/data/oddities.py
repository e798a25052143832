"""What is odd in training data and not refused: warnings that name the first line of each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Final

from core.data.lines import Problem

_DIGEST_BYTES: Final = 16
#: of C0 and C1 those that are no tab or line end, and DEL
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
#: JSON in UTF-8 that holds any has one of these; other characters have them too
_ESCAPED = re.compile(rb"\\(?:[bf]|u00[01789])")
_DEL, _LEADS_C1 = b"\x7f", b"\xc2"


class Oddities:
    """Examples that repeat an earlier one, and texts with control characters.

    ``max_tracked``: examples among which repeats are looked for; about 100 bytes each.
    """

    def __init__(self, max_tracked: int) -> None:
        self._max_tracked = max_tracked
        self._digests: set[bytes] = set()
        self._is_untracked = False
        self._n_repeats = self._first_repeat = 0
        self._n_controlled = self._first_controlled = 0
        self._first_control = ""

    def take(self, line: int, content: bytes, texts: Iterable[str]) -> None:
        """``content``: equal where two examples are; ``texts``: what of it is trained on."""
        digest = digest_of(content)
        if digest in self._digests:
            self._n_repeats += 1
            self._first_repeat = self._first_repeat or line
        elif len(self._digests) < self._max_tracked:
            self._digests.add(digest)
        else:
            self._is_untracked = True
        found = next(filter(None, map(_CONTROL.search, texts)), None)
        if found is not None:
            self._n_controlled += 1
            self._first_controlled = self._first_controlled or line
            self._first_control = self._first_control or found[0]

    def warnings(self) -> list[Problem]:
        found = []
        if self._n_repeats:
            scope = f" among the first {self._max_tracked}" if self._is_untracked else ""
            message = (
                f"{self._n_repeats} example(s) repeat an earlier one{scope}; "
                f"the first repeat is line {self._first_repeat}."
            )
            found.append(_warning(self._first_repeat, "duplicate_example", message))
        if self._n_controlled:
            message = (
                f"{self._n_controlled} example(s) hold control characters, which are learned too; "
                f"the first is U+{ord(self._first_control):04X} in line {self._first_controlled}."
            )
            found.append(_warning(self._first_controlled, "control_character", message))
        return found


def texts_of(raw: bytes, value: object) -> Iterable[str]:
    """The texts in ``value``, which is the JSON of ``raw``, for `Oddities.take`: none where the
    line has nothing that could be a control character.
    """
    if not (_DEL in raw or _LEADS_C1 in raw or _ESCAPED.search(raw)):
        return
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            left += item
        elif isinstance(item, dict):
            left += item.values()


def digest_of(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def overlap_warning(
    training: Iterable[tuple[int, bytes]],
    validation: Iterable[tuple[int, bytes]],
    *,
    max_tracked: int,
) -> Problem | None:
    """A warning where validation examples are training examples too, else None.

    Args:
        training, validation: line and content of each example; equal contents count.
        max_tracked: validation examples that are looked for; bounds the memory.
    """
    digests: dict[bytes, int] = {}
    for line, content in validation:
        if len(digests) == max_tracked:
            break
        digests.setdefault(digest_of(content), line)
    found = {
        number for _, content in training if (number := digests.get(digest_of(content))) is not None
    }
    if not found:
        return None
    first = min(found)
    message = (
        f"{len(found)} validation example(s) also stand in the training file, so the validation "
        f"loss will look too good; the first is line {first} of the validation file."
    )
    return _warning(first, "train_validation_overlap", message)


def _warning(line: int, code: str, message: str) -> Problem:
    return Problem(line=line, path="", code=code, message=message)
