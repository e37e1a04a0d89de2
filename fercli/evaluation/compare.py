"""Compare two models face by face: which predicts better, whether chance alone explains it, and which faces changed.

Models come in pairs, a reference and another (`fercli.evaluation.runs`). Two faces are the same where dataset, split
and id are equal.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from fercli.evaluation.metrics import confusion, scores
from fercli.evaluation.runs import Answer, Pair
from fercli.evaluation.significance import compare_right
from fercli.evaluation.statistics import holm
from fercli.expressions import EXPRESSIONS

#: How a changed prediction is classified. The last: wrong both times, or without a label.
CHANGES = ("fixed", "broken", "otherwise")


def compare(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Compare pairs face by face.

    Returns:
        A document for each pair. ``dataset``. ``reference`` and ``other``: ``run``, ``folder``, ``model``, ``oracle``,
        and the accuracy and macro F1 on the faces that both scored, None without labels. ``faces``: the counts
        ``both``, ``labelled``, ``only_reference``, ``only_other`` and ``relabelled`` (faces whose labels differ; they
        are left out). ``points``: the differences other - reference times 100. ``test``: the test of the correct
        predictions on the labelled faces (`fercli.evaluation.significance.compare_right`), with ``p_holm`` over all
        pairs (Holm 1979). ``changed``: the list of faces whose prediction differs; ``fixed``, ``broken`` and
        ``otherwise`` are its counts.

    Raises:
        FercliError: a predictions file is missing or is not one.
    """
    read: dict[Path, dict[tuple[str, str], Answer]] = {}
    documents = []
    for pair in pairs:
        for model in pair:
            if model.predictions not in read:
                read[model.predictions] = model.answers()
        documents.append(_compare(pair, *(read[model.predictions] for model in pair)))
    for document, p in zip(documents, holm([one["test"]["p"] for one in documents]), strict=True):
        document["test"]["p_holm"] = p
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
    right = [[answers[key].answer == answers[key].label for key in known] for answers in (a, b)]
    subjects = [a[key].subject or b[key].subject for key in known]
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
        "test": compare_right(*right, subjects),
        **counts,
        "changed": changed,
    }


def _change(key: tuple[str, str], a: Answer, b: Answer) -> dict[str, str]:
    kind = {a.answer: "broken", b.answer: "fixed"}.get(a.label, "otherwise")
    about = {"id": key[1], "split": key[0], "subject": a.subject, "label": a.label}
    return {**about, "reference": a.answer, "other": b.answer, "change": kind}


def spec_differences(a: Any, b: Any, path: str = "", free: Container[str] = ()) -> dict[str, tuple[Any, Any]]:
    """Key path (below `path`) -> both values, for keys that differ and are not in `free`; None for a missing key."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return {path: (a, b)} if a != b else {}
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys((*a, *b)):
        if key not in free:
            found |= spec_differences(a.get(key), b.get(key), f"{path}.{key}" if path else str(key), free)
    return found
