"""Scores against values worked out by hand and against a second implementation."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidInput
from core.training.metrics import METRICS, normalised, score

REFERENCE = "the cat sat on the mat"
ANSWER = "The cat lay on a mat."


def one(metric: str, answer: str, *references: str) -> float:
    return score([metric], [answer], [references])[metric]


@pytest.mark.parametrize(
    ("metric", "answer", "expected"),
    [
        # shared words: the, cat, on, mat; 4 of 6 on both sides
        ("rouge1", ANSWER, 100 * 4 / 6),
        # shared pairs: the-cat; 1 of 5 on both sides
        ("rouge2", ANSWER, 100 * 1 / 5),
        # longest common subsequence: the cat on mat
        ("rougeL", ANSWER, 100 * 4 / 6),
        # precision 1, recall 2/6
        ("rouge1", "cat mat", 100 * 2 * (1 * 2 / 6) / (1 + 2 / 6)),
        # words out of order: one in sequence at most of two; P 1/2, R 1/6
        ("rougeL", "mat cat", 100 * 2 * (1 / 2 * 1 / 6) / (1 / 2 + 1 / 6)),
        # Porter's stems: cats -> cat, sitting -> sit (not sat)
        ("rouge1", "cats sitting", 100 * 2 * (1 / 2 * 1 / 6) / (1 / 2 + 1 / 6)),
        ("rouge2", "cat", 0.0),
        ("rougeL", "", 0.0),
    ],
)
def test_rouge_by_hand(metric: str, answer: str, expected: float):
    assert one(metric, answer, REFERENCE) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "references", "exact", "f1"),
    [
        ("The Eiffel tower!", ["eiffel  Tower"], 100, 100),
        ("Ada Lovelace", ["Ada King Lovelace"], 0, 100 * 2 * 2 / (2 + 3)),
        ("Ada Ada", ["Ada"], 0, 100 * 2 * 1 / (2 + 1)),
        ("Rome", ["Paris", "rome, Italy", "in Rome"], 0, 100 * 2 / 3),
        ("Rome", ["Paris", "ROME"], 100, 100),
        ("", ["Rome"], 0, 0),
        # nothing is left of either but articles and punctuation
        ("the!", ["A."], 100, 100),
        ("1,000", ["1000"], 100, 100),
    ],
)
def test_squad_by_hand(answer: str, references: list[str], exact: float, f1: float):
    assert one("exact_match", answer, *references) == exact
    assert one("f1", answer, *references) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        # words over line ends are one sequence (not rougeLsum, which would give 100)
        ("the cat ran.\nthe dog sat.", "the dog sat.\nthe cat ran.", {"rougeL": 50}),
        ("the\ncat", "the cat", {"rougeL": 100, "exact_match": 100, "f1": 100}),
        # ROUGE sees no letter here and half a word there
        ("日本語", "日本語", {"rouge1": 0, "rougeL": 0, "exact_match": 100, "accuracy": 100}),
        ("été", "t", {"rouge1": 100, "f1": 0}),
        # of punctuation SQuAD strips ASCII's alone
        ("“Rome”", "Rome", {"rouge1": 100, "exact_match": 0, "f1": 0}),
        ("?!", "...", {"rouge1": 0, "exact_match": 100, "f1": 100, "accuracy": 0}),
        ("", "", {"rouge1": 0, "exact_match": 100, "f1": 100, "accuracy": 100}),
        ("", "the", {"rouge1": 0, "exact_match": 100, "f1": 100, "accuracy": 0}),
        ("STRASSE", "straße", {"exact_match": 0, "accuracy": 100}),
    ],
)
def test_odd_texts_by_hand(answer: str, reference: str, expected: dict[str, float]):
    assert score(expected, [answer], [[reference]]) == pytest.approx(expected)


def test_accuracy_is_the_whole_label():
    answers, labels = ["1", " 0 ", "Yes", "10", "the 1"], [["1"], ["0"], ["yes"], ["1"], ["1"]]
    assert score(["accuracy"], answers, labels) == {"accuracy": 60.0}


def test_the_best_reference_counts_and_the_mean_is_over_questions():
    scores = score(["rouge1", "exact_match"], ["a b", "c"], [["x y", "a b"], ["d"]])
    assert scores == {"rouge1": 50.0, "exact_match": 50.0}


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(InvalidInput, match="no metric 'bleu'; there are: rouge1, rouge2, rougeL"):
        score(["bleu"], ["a"], [["a"]])
    for answers, references in ([], []), (["a"], []), (["a"], [[]]), (["a"], [["a"], ["b"]]):
        with pytest.raises(InvalidInput, match="at least one"):
            score(["f1"], answers, references)


WORDS = st.lists(st.sampled_from(["ab", "cd", "ef", "gh"]), max_size=8)


@given(WORDS, WORDS)
def test_rouge_against_a_second_implementation(answer: list[str], reference: list[str]):
    @cache
    def common(i: int, j: int) -> int:
        if i == len(answer) or j == len(reference):
            return 0
        if answer[i] == reference[j]:
            return 1 + common(i + 1, j + 1)
        return max(common(i + 1, j), common(i, j + 1))

    def f1(shared: int, n_answer: int, n_reference: int) -> float:
        return 200 * shared / (n_answer + n_reference) if shared else 0.0

    def n_grams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
        return Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))

    expected = {"rougeL": f1(common(0, 0), len(answer), len(reference))}
    for n in (1, 2):
        ours, theirs = n_grams(answer, n), n_grams(reference, n)
        expected[f"rouge{n}"] = f1((ours & theirs).total(), ours.total(), theirs.total())
    found = score(["rougeL", "rouge1", "rouge2"], [" ".join(answer)], [[" ".join(reference)]])
    assert found == pytest.approx(expected)


@given(st.text(), st.text())
def test_any_texts_score_between_0_and_100_and_the_same_text_best(answer: str, reference: str):
    for metric, found in score(METRICS, [answer], [[reference]]).items():
        assert 0 <= found <= 100
        assert one(metric, reference, reference) >= found - 1e-9
    assert normalised(normalised(answer)) == normalised(answer)
