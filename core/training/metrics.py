"""How good answers are, given the right ones. Pure functions of texts; all scores in percent.

``rouge1``, ``rouge2``, ``rougeL``  ROUGE F1 (Lin 2004) by google-research's ``rouge_score`` with
    stemming, as in the GreenTrainer paper's tables. It knows words of a-z and 0-9 only: for other
    scripts it sees nothing.
``exact_match``, ``f1``             of the SQuAD evaluation (Rajpurkar et al. 2016): lower case,
    without punctuation and English articles; ``f1`` over the bags of words.
``accuracy``                        the answer is the reference, but for case and outer blanks.

A score is the mean over questions; with several references a question counts with its best.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from core.errors import InvalidInput

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
#: one answer and its references -> 0..1
_Scorer = Callable[[str, Sequence[str]], float]


def score(
    metric_names: Iterable[str],
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
) -> dict[str, float]:
    """Metric -> mean over the pairs, 0..100, in the order asked for.

    Args:
        references: for each prediction, every answer that counts as right (at least one).

    Raises:
        InvalidInput: an unknown metric, no prediction, or not as many references.
    """
    scorers = {name: _scorer(name) for name in metric_names}
    if not predictions or len(predictions) != len(references) or not all(references):
        raise InvalidInput(
            "Scores need at least one answer, and at least one reference for each; got "
            f"{len(predictions)} answers and {len(references)} lists of references."
        )
    return {
        name: 100 * sum(map(scorer, predictions, references)) / len(predictions)
        for name, scorer in scorers.items()
    }


def normalised(text: str) -> str:
    """SQuAD's: lower case, no punctuation, no articles, single blanks."""
    bare = text.lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def _scorer(name: str) -> _Scorer:
    if name not in METRICS:
        raise InvalidInput(
            f"There is no metric {name!r}; there are: {', '.join(METRICS)}.",
            param="green.eval.metrics",
        )
    return METRICS[name](name)


def _rouge(kind: str) -> _Scorer:
    # loads all of nltk for its stemmer: half a second and 37 MB of every training's start
    from rouge_score.rouge_scorer import RougeScorer  # noqa: PLC0415

    scorer = RougeScorer([kind], use_stemmer=True)

    def best(prediction: str, references: Sequence[str]) -> float:
        return max(float(scorer.score(r, prediction)[kind].fmeasure) for r in references)

    return best


def _best_of(compare: Callable[[str, str], float]) -> Callable[[str], _Scorer]:
    return lambda _name: lambda answer, references: max(compare(answer, r) for r in references)


def _exact_match(prediction: str, reference: str) -> float:
    return float(normalised(prediction) == normalised(reference))


def _f1(prediction: str, reference: str) -> float:
    found, wanted = normalised(prediction).split(), normalised(reference).split()
    if not found or not wanted:
        return float(found == wanted)
    n_shared = (Counter(found) & Counter(wanted)).total()
    return 2 * n_shared / (len(found) + len(wanted))


def _accuracy(prediction: str, reference: str) -> float:
    return float(prediction.strip().casefold() == reference.strip().casefold())


METRICS: Final[Mapping[str, Callable[[str], _Scorer]]] = {
    "rouge1": _rouge,
    "rouge2": _rouge,
    "rougeL": _rouge,
    "exact_match": _best_of(_exact_match),
    "f1": _best_of(_f1),
    "accuracy": _best_of(_accuracy),
}
