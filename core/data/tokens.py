"""From examples to token samples: ids, and labels that say where the loss is taken.

A causal sample has ``labels`` as long as ``input_ids``, -100 where no loss is taken; an
encoder-decoder sample has the reply alone as labels. Nothing is cut silently: what is cut was
asked for and is counted, what is too long otherwise is refused with its line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from core.data.cutting import Ids, bos_id, input_endings, kept_of_input, kept_of_prompt
from core.data.formats import Example, Message
from core.data.templates import (
    RenderedChat,
    Tokenizer,
    apply_template,
    end_tokens,
    has_generation_marks,
    render_chat,
)
from core.data.tools import require_no_tools, require_tools_written
from core.errors import DataInvalid, ModelUnsupported

#: no loss is taken where a label is this (torch's cross_entropy ignores it)
IGNORED = -100
_BLOCK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """``input_ids``: int32 (tokens,); ``labels``: int32, same shape if causal, else the reply's."""

    input_ids: Ids
    labels: Ids


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenReport:
    """Counts over a whole data set. Lengths are tokens of a sample as it will be trained;
    ``histogram`` pairs an upper bound (a power of two, included) with a number of samples.
    """

    n_examples: int
    n_tokens: int
    n_label_tokens: int
    n_truncated: int
    length_min: int
    length_p50: int
    length_p90: int
    length_p99: int
    length_max: int
    histogram: tuple[tuple[int, int], ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class TokenDataset:
    """Samples in file order, 8 bytes a token. ``lengths``: int64 (samples,), what a batch plan
    groups by: input tokens, plus reply tokens where they are apart.
    """

    def __init__(
        self, inputs: list[Ids], labels: list[Ids], *, is_causal: bool, n_truncated: int
    ) -> None:
        self._inputs, self._input_ends = _concatenate(inputs)
        self._labels, self._label_ends = _concatenate(labels)
        input_lengths = np.diff(self._input_ends, prepend=0)
        label_lengths = np.diff(self._label_ends, prepend=0)
        self.lengths = input_lengths if is_causal else input_lengths + label_lengths
        self.report = _report(self.lengths, self._labels, n_truncated)

    @property
    def largest_id(self) -> int:
        """Of all inputs and labels."""
        return int(max(self._inputs.max(), self._labels.max()))

    def __len__(self) -> int:
        return len(self._input_ends)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return Sample(
            input_ids=_piece(self._inputs, self._input_ends, index),
            labels=_piece(self._labels, self._label_ends, index),
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def tokenize(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    *,
    context: int | None,
    max_input_tokens: int | None = None,
    max_output_tokens: int | None = None,
    loss_on: Literal["assistant", "all"] = "assistant",
) -> TokenDataset:
    """Samples for a causal model.

    Chat: the model's template; loss on assistant messages whose weight is not 0, end-of-turn token
    included. Completion: prompt and completion tokenised apart, so that the boundary is where it
    will be at generation; loss on the completion and the end token. ``loss_on="all"``: on every
    token. The input is what precedes the first trained token: of it the last ``max_input_tokens``
    are kept (and the beginning-of-text token), of the rest the first ``max_output_tokens``.

    Raises:
        DataInvalid: context_length_exceeded where a sample is longer than ``context`` tokens;
            invalid_file_format where the template refuses a conversation, or leaves out its tools,
            or nothing is to learn.
        ModelUnsupported: no chat template, an unusable one, or not a fast tokenizer.
    """
    collector = _Collector(context, max_input_tokens, max_output_tokens)
    bos = bos_id(tokenizer)
    marked = has_generation_marks(tokenizer)
    endings = end_tokens(tokenizer)
    for block in _blocks(examples):
        encoded = _encode_block(block, tokenizer, endings, marked=marked, bos=bos)
        for example, (ids, trained) in zip(block, encoded, strict=True):
            n_input = int(np.argmax(trained)) if trained.any() else len(ids)
            kept, labels = _label(ids, trained, loss_on)
            collector.add_causal(example.line, kept, labels, n_input, bos)
    return collector.finish()


def tokenize_pairs(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    *,
    context: int | None,
    max_input_tokens: int | None = None,
    max_output_tokens: int | None = None,
) -> TokenDataset:
    """Samples for an encoder-decoder model: the prompt as input, the reply as labels.

    A conversation gives one sample for each trained assistant message, its input being all turns
    before it: the text alone where that is one turn, else lines of ``role: text``.

    Of an input the first ``max_input_tokens`` are kept, unlike a causal model's prompt: an encoder
    reads documents, and what matters in them mostly stands first. The tokenizer's special tokens
    and the example's ``prompt_end`` stay. Of a reply the first ``max_output_tokens`` are kept,
    without end token where it was cut: it does not end there.

    Raises:
        DataInvalid: context_length_exceeded where input or reply is longer than ``context``;
            invalid_file_format where an input has no token, or an example has tools.
    """
    collector = _Collector(context, max_input_tokens, max_output_tokens, is_causal=False)
    eos = tokenizer.eos_token_id
    for block in _blocks(examples):
        pairs = [(example, *pair) for example in block for pair in pairs_of(example)]
        inputs = tokenizer([source for _, source, _ in pairs])["input_ids"]
        targets = tokenizer(text_target=[target for _, _, target in pairs])["input_ids"]
        endings = input_endings([example for example, _, _ in pairs], tokenizer)
        for (example, _, _), ids, ending, reply in zip(
            pairs, inputs, endings, targets, strict=True
        ):
            is_ended = eos is None or reply[-1:] == [eos]
            labels = reply if is_ended else [*reply, eos]
            collector.add_pair(
                example.line, np.array(ids, np.int32), np.array(labels, np.int32), ending
            )
    return collector.finish()


def _label(ids: Ids, trained: npt.NDArray[np.bool_], loss_on: str) -> tuple[Ids, Ids]:
    """Ids and labels; what follows the last trained token costs and teaches nothing, so it goes."""
    if loss_on == "all":
        return ids, ids.copy()
    n_kept = len(trained) - int(np.argmax(trained[::-1])) if trained.any() else len(trained)
    return ids[:n_kept], np.where(trained, ids, np.int32(IGNORED))[:n_kept]


@dataclass(slots=True)
class _Collector:
    """Cuts what was asked to be cut, refuses the rest, keeps the samples."""

    context: int | None
    max_input: int | None
    max_output: int | None
    is_causal: bool = True
    inputs: list[Ids] = field(default_factory=list)
    labels: list[Ids] = field(default_factory=list)
    n_truncated: int = 0
    n_too_long: int = 0
    first_too_long: str = ""

    def add_causal(self, line: int, ids: Ids, labels: Ids, n_input: int, bos: int | None) -> None:
        n_tokens = len(ids)
        if self.max_input is not None and n_input > self.max_input:
            kept = kept_of_prompt(ids[:n_input], self.max_input, bos)
            kept = np.concatenate([kept, np.arange(n_input, n_tokens)])
            ids, labels = ids[kept], labels[kept]
            n_input = self.max_input
        if self.max_output is not None:
            end = n_input + self.max_output
            ids, labels = ids[:end], labels[:end]
        self.n_truncated += len(ids) < n_tokens
        labels[:1] = IGNORED  # a causal model predicts no first token
        self._require_context(line, len(ids), "the example")
        self._keep(line, ids, labels)

    def add_pair(self, line: int, ids: Ids, labels: Ids, n_ending: int) -> None:
        n_tokens = len(ids) + len(labels)
        if self.max_input is not None:
            ids = ids[kept_of_input(len(ids), self.max_input, n_ending)]
        if self.max_output is not None:
            labels = labels[: self.max_output]
        self.n_truncated += len(ids) + len(labels) < n_tokens
        if not len(ids):
            raise DataInvalid(
                f"line {line}: the prompt is empty; this model has an encoder, which needs "
                "something to read: give it a prompt."
            )
        self._require_context(line, len(ids), "the prompt")
        self._require_context(line, len(labels), "the reply")
        self._keep(line, ids, labels)

    def _keep(self, line: int, ids: Ids, labels: Ids) -> None:
        if not (labels != IGNORED).any():
            raise DataInvalid(f"line {line}: the example has no token to learn; give it a reply.")
        self.inputs.append(ids)
        self.labels.append(labels)

    def _require_context(self, line: int, n_tokens: int, what: str) -> None:
        if self.context is None or n_tokens <= self.context:
            return
        self.n_too_long += 1
        self.first_too_long = self.first_too_long or (
            f"line {line}: {what} has {n_tokens} tokens, but the model's context is {self.context}"
        )

    def finish(self) -> TokenDataset:
        if self.n_too_long:
            others = f" ({self.n_too_long - 1} more are too long)" if self.n_too_long > 1 else ""
            raise DataInvalid(
                f"{self.first_too_long}{others}; shorten it, or allow cutting with "
                "green.training.max_input_tokens and green.training.max_output_tokens.",
                code="context_length_exceeded",
            )
        if not self.inputs:
            raise DataInvalid("The data set has no example.", code="invalid_n_examples")
        return TokenDataset(
            self.inputs, self.labels, is_causal=self.is_causal, n_truncated=self.n_truncated
        )


_Encoded = tuple[Ids, npt.NDArray[np.bool_]]


def _encode_block(
    block: list[Example],
    tokenizer: Tokenizer,
    endings: tuple[str, ...],
    *,
    marked: bool,
    bos: int | None,
) -> list[_Encoded]:
    """Ids and trained mask of each example of ``block``, in order, by few tokenizer calls."""
    found: dict[int, _Encoded] = {}
    chats = [index for index, example in enumerate(block) if example.is_chat]
    for index in chats:
        require_tools_written(block[index], tokenizer)
    if marked:
        found.update((index, _encode_marked(block[index], tokenizer)) for index in chats)
    elif chats:
        rendered = [render_chat(block[index], tokenizer, endings) for index in chats]
        found.update(zip(chats, _encode_chats(rendered, tokenizer), strict=True))
    rest = [index for index, example in enumerate(block) if not example.is_chat]
    if rest:
        plain = [block[index] for index in rest]
        found.update(zip(rest, _encode_completions(plain, tokenizer, bos), strict=True))
    return [found[index] for index in range(len(block))]


def _encode_chats(chats: list[RenderedChat], tokenizer: Tokenizer) -> Iterator[_Encoded]:
    batch = tokenizer([chat.text for chat in chats], add_special_tokens=False)
    encodings = getattr(batch, "encodings", None)
    if encodings is None:
        raise ModelUnsupported(
            "This model has no fast tokenizer, so the assistant's tokens cannot be told apart; "
            "use the prompt/completion format."
        )
    for chat, encoding in zip(chats, encodings, strict=True):
        ids = np.array(encoding.ids, np.int32)
        trained = np.zeros(len(ids), np.bool_)
        for start, end in chat.spans:
            first = _token_at(encoding, range(start, end))
            last = _token_at(encoding, range(end - 1, start - 1, -1))
            if first is not None and last is not None:
                # a token that began before the span belongs to what the model is given
                begins_before = encoding.token_to_chars(first)[0] < start
                trained[first + begins_before : last + 1] = True
        yield ids, trained


def _token_at(encoding: Any, positions: range) -> int | None:
    """The token over the first of ``positions`` that has one (some tokenizers skip spaces)."""
    tokens = (encoding.char_to_token(position) for position in positions)
    return next((token for token in tokens if token is not None), None)


def _encode_marked(example: Example, tokenizer: Tokenizer) -> _Encoded:
    """By the template's own ``{% generation %}`` marks; the k-th run is the k-th assistant's."""
    turns = [message.to_template() for message in example.messages]
    batch = apply_template(
        example,
        tokenizer,
        turns,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    trained = np.array(batch["assistant_masks"], np.bool_)
    replies = [message for message in example.messages if message.role == "assistant"]
    if not all(reply.is_trained for reply in replies):
        starts = trained & ~np.concatenate([[False], trained[:-1]])
        if int(starts.sum()) != len(replies):
            raise ModelUnsupported(
                f"line {example.line}: this model's chat template does not mark each assistant "
                "message apart, so weight 0 cannot be honoured; remove it."
            )
        number = np.maximum(np.cumsum(starts) - 1, 0)
        trained &= np.array([reply.is_trained for reply in replies])[number]
    return np.array(batch["input_ids"], np.int32), trained


def _encode_completions(
    examples: list[Example], tokenizer: Tokenizer, bos: int | None
) -> Iterator[_Encoded]:
    prompts = tokenizer([example.prompt for example in examples], add_special_tokens=False)
    replies = tokenizer([example.completion for example in examples], add_special_tokens=False)
    head = [] if bos is None else [bos]
    tail = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for prompt, reply in zip(prompts["input_ids"], replies["input_ids"], strict=True):
        ids = np.array([*head, *prompt, *reply, *tail], np.int32)
        yield ids, np.arange(len(ids)) >= len(head) + len(prompt)


def pairs_of(example: Example) -> Iterator[tuple[str, str]]:
    """What an encoder-decoder model reads and should say: for each trained assistant message."""
    require_no_tools(example)
    if not example.is_chat:
        yield example.prompt, example.completion
        return
    for index, message in enumerate(example.messages):
        if message.is_trained:
            yield _plain_text(example.messages[:index]), message.content


def _plain_text(messages: tuple[Message, ...]) -> str:
    if len(messages) == 1:
        return messages[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in messages)


def _blocks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    remaining = iter(examples)
    while block := list(islice(remaining, _BLOCK)):
        yield block


def _concatenate(pieces: list[Ids]) -> tuple[Ids, npt.NDArray[np.int64]]:
    return np.concatenate(pieces), np.cumsum([len(piece) for piece in pieces], dtype=np.int64)


def _piece(values: Ids, ends: npt.NDArray[np.int64], index: int) -> Ids:
    return values[int(ends[index - 1]) if index else 0 : int(ends[index])]


def _report(lengths: npt.NDArray[np.int64], labels: Ids, n_truncated: int) -> TokenReport:
    quantiles = np.quantile(lengths, [0, 0.5, 0.9, 0.99, 1], method="inverted_cdf")
    bins = np.ceil(np.log2(lengths)).astype(np.int64)
    counts = np.bincount(bins)
    low, p50, p90, p99, high = (int(value) for value in quantiles)
    return TokenReport(
        n_examples=len(lengths),
        n_tokens=int(lengths.sum()),
        n_label_tokens=int((labels != IGNORED).sum()),
        n_truncated=n_truncated,
        length_min=low,
        length_p50=p50,
        length_p90=p90,
        length_p99=p99,
        length_max=high,
        histogram=tuple((1 << power, int(n)) for power, n in enumerate(counts) if n),
    )
