"""Two models face by face: whose answers are better, whether chance alone would do it, and which faces changed.

Models come in pairs, a reference and another (`fercli.evaluation.runs`); faces are the same where dataset, split and id
are.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fercli.evaluation.metrics import confusion, scores
from fercli.evaluation.runs import Answer, Pair
from fercli.evaluation.statistics import holm
from fercli.expressions import EXPRESSIONS

#: Below this many discordant faces McNemar's test is exact.
EXACT_BELOW = 25
#: What became of a face that is answered otherwise; the last: wrong both times, or without a label.
CHANGES = ("fixed", "broken", "otherwise")


class McNemar(NamedTuple):
    """The test's p (None without a face), and which form it took: ``exact`` or ``chi-square``."""

    p: float | None
    form: str


def mcnemar(fixed: int, broken: int) -> McNemar:
    """Two-sided p that two classifiers with one error rate differ so much on the same faces.

    Of the n = fixed + broken faces that only one of the two gets right, either wins with probability 1/2 (McNemar,
    Psychometrika 1947). Below `EXACT_BELOW` of them p is that of the binomial test, else P(X > (|fixed - broken| -
    1)^2 / n), X chi-square with one degree of freedom (continuity correction of Edwards, Psychometrika 1948; a
    difference of less than 1 counts as none). It speaks of other faces of this kind, not of other seeds.

    Args:
        fixed, broken: faces that only the other, and only the reference, gets right; >= 0.

    Returns:
        p in [0, 1]; 1 where both are 0 or equal.
    """
    from scipy.stats import binomtest, chi2

    n = fixed + broken
    if n < EXACT_BELOW:
        return McNemar(float(binomtest(fixed, n, 0.5).pvalue) if n else 1.0, "exact")
    return McNemar(float(chi2.sf(max(abs(fixed - broken) - 1, 0) ** 2 / n, 1)), "chi-square")


def compare(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Compare pairs face by face.

    Returns:
        For each pair a document: ``dataset``; ``reference`` and ``other`` (``run``, ``folder``, ``model``, ``oracle``,
        and accuracy and macro F1 of the faces both scored, None without labels); ``faces``: ``both``, ``labelled``,
        ``only_reference``, ``only_other``, ``relabelled`` (whose label is not the same: left out); ``points``, the
        differences other - reference times 100; ``mcnemar``: p, its form, ``p_holm`` over all pairs (Holm 1979);
        ``fixed``, ``broken``, ``otherwise``, counts of ``changed``, the list of faces answered otherwise.

    Raises:
        FercliError: a file of predictions is missing or none.
    """
    read: dict[Path, dict[tuple[str, str], Answer]] = {}
    documents = []
    for pair in pairs:
        for model in pair:
            if model.predictions not in read:
                read[model.predictions] = model.answers()
        documents.append(_compare(pair, *(read[model.predictions] for model in pair)))
    for document, p in zip(documents, holm([one["mcnemar"]["p"] for one in documents]), strict=True):
        document["mcnemar"]["p_holm"] = p
    return documents


def _compare(pair: Pair, a: dict[Any, Answer], b: dict[Any, Answer]) -> dict[str, Any]:
    both = [key for key in a if key in b]
    same = [key for key in both if a[key].label == b[key].label]
    known = [key for key in same if a[key].label]
    changed = [_change(key, a[key], b[key]) for key in same if a[key].answer != b[key].answer]
    counts = {kind: sum(face["change"] == kind for face in changed) for kind in CHANGES}
    labels = [EXPRESSIONS.index(a[key].label) for key in known]
    sides = []
    for model, answers in zip(pair, (a, b), strict=True):
        figures = scores(confusion(labels, [EXPRESSIONS.index(answers[key].answer) for key in known]))
        about = {"run": model.run, "folder": model.folder, "model": model.entry["method"]}
        sides.append(
            {**about, "oracle": model.entry["oracle_method"], **{k: figures[k] for k in ("accuracy", "macro_f1")}}
        )
    test = mcnemar(counts["fixed"], counts["broken"]) if known else McNemar(None, "exact")
    return {
        "dataset": pair.reference.dataset,
        "reference": sides[0],
        "other": sides[1],
        "faces": {
            "both": len(both),
            "labelled": len(known),
            "only_reference": len(a) - len(both),
            "only_other": len(b) - len(both),
            "relabelled": len(both) - len(same),
        },
        "points": {k: 100 * (sides[1][k] - sides[0][k]) if known else None for k in ("accuracy", "macro_f1")},
        "mcnemar": {"p": test.p, "form": test.form},
        **counts,
        "changed": changed,
    }


def _change(key: tuple[str, str], a: Answer, b: Answer) -> dict[str, str]:
    kind = {a.answer: "broken", b.answer: "fixed"}.get(a.label, "otherwise")
    about = {"id": key[1], "split": key[0], "subject": a.subject, "label": a.label}
    return {**about, "reference": a.answer, "other": b.answer, "change": kind}


def spec_differences(a: Any, b: Any, path: str = "", free: Container[str] = ()) -> dict[str, tuple[Any, Any]]:
    """Key path (below `path`) -> both values of the keys that differ and are not `free`; None where one lacks it."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return {path: (a, b)} if a != b else {}
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys((*a, *b)):
        if key not in free:
            found |= spec_differences(a.get(key), b.get(key), f"{path}.{key}" if path else str(key), free)
    return found
