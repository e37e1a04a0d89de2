"""The numbers of a prepared dataset: outcomes of its records, classes, scores, poses and landmarks.

All are read from the store's manifest.csv and meta.json. A column missing in an older manifest counts as empty.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fercli.datasets.protocol import in_order
from fercli.expressions import EXPRESSIONS, UNLABELLED
from fercli.store import Store, count_statuses, read_manifest

#: How many of the faces whose landmarks are furthest from the given ones are named.
WORST = 6

#: (low, high, bins) of the histograms. Values outside are counted in the first or last bin.
SCORES, ANGLES = (0.0, 1.0, 20), (-60.0, 60.0, 24)


def dataset_numbers(store: Store, role: str = "") -> dict[str, Any]:
    """Return the numbers of one store.

    Args:
        store: the store.
        role: ``source``, ``target`` or ''.

    Returns:
        A document for JSON:
        ``role``, ``synthetic``, ``listed`` and ``kept`` records, ``statuses`` {status: n}, ``steps`` {step of the retry
        ladder: n}, ``rejected`` {reason: n}, ``left_out`` {reason: n}, ``subjects`` n, ``adapt_splits``,
        ``score_splits``, ``splits`` {split: {``listed``, ``kept``, ``classes`` {expression: kept}}}, ``classes``
        {expression: {``listed``, ``kept``}}, ``score`` and ``pose`` {``roll``, ``yaw``, ``pitch``} as `histogram`
        gives them, ``given_error`` {``faces``, ``median``, ``p95``, ``worst`` [{``id``, ``error``}]} or None.
    """
    rows = read_manifest(store.path)
    kept = [row for row in rows if row["status"] != "rejected"]
    counts, splits = count_statuses(rows)
    listed = counts.pop("expected")
    unlabelled = any(int(row["label"]) == UNLABELLED for row in rows)
    all_listed, all_kept = _classes(rows, unlabelled), _classes(kept, unlabelled)
    return {
        "role": role,
        "synthetic": store.synthetic,
        "listed": listed,
        "kept": len(kept),
        "statuses": counts,
        "steps": _counted(row["reason"] for row in rows if row["status"] == "retried"),
        "rejected": _counted(row["reason"] for row in rows if row["status"] == "rejected"),
        "left_out": dict(store.meta.get("left_out") or {}),
        "subjects": len({row.get("subject") for row in rows} - {"", None}),
        "adapt_splits": list(store.adapt_splits),
        "score_splits": list(store.score_splits),
        "splits": {
            split: {**splits[split], "classes": _classes((row for row in kept if row["split"] == split), unlabelled)}
            for split in in_order(sorted(splits))
        },
        "classes": {name: {"listed": all_listed[name], "kept": have} for name, have in all_kept.items()},
        "score": histogram(_values(kept, "score"), *SCORES),
        "pose": {angle: histogram(_values(kept, angle), *ANGLES) for angle in ("roll", "yaw", "pitch")},
        "given_error": _given_error(kept),
    }


def histogram(values: Sequence[float], low: float, high: float, bins: int) -> dict[str, Any]:
    """Count values in bins of equal width.

    Returns:
        {``faces`` (number of values), ``low``, ``high``, ``counts`` [bins], ``median``, ``p5``, ``p95``}; the last
        three are None if there are no values.
    """
    clipped = np.clip(values, low, high)
    counts = np.histogram(clipped, bins, (low, high))[0].tolist()
    p5, median, p95 = (round(float(p), 4) for p in np.percentile(values, (5, 50, 95))) if len(values) else [None] * 3
    return {
        "faces": len(values),
        **{"low": low, "high": high, "counts": counts},
        **{"median": median, "p5": p5, "p95": p95},
    }


def _classes(rows: Iterable[Mapping[str, str]], unlabelled: bool) -> dict[str, int]:
    """Count rows by expression, in the project's order, and unlabelled rows if `unlabelled`."""
    counts = Counter(int(row["label"]) for row in rows)
    classes = {name: counts[label] for label, name in enumerate(EXPRESSIONS)}
    return {**classes, "unlabelled": counts[UNLABELLED]} if unlabelled else classes


def _counted(reasons: Iterable[str]) -> dict[str, int]:
    return dict(Counter(reasons).most_common())


def _values(rows: Iterable[Mapping[str, str]], column: str) -> list[float]:
    return [value for value in (_number(row.get(column)) for row in rows) if value is not None]


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _given_error(rows: Sequence[Mapping[str, str]]) -> dict[str, Any] | None:
    """Return how far the detected landmarks are from the given ones; None if no face has both."""
    errors = [(error, row["id"]) for row in rows if (error := _number(row.get("given_error"))) is not None]
    if not errors:
        return None
    median, p95 = np.percentile([error for error, _ in errors], (50, 95))
    worst = sorted(errors, key=lambda one: (-one[0], one[1]))[:WORST]
    return {
        "faces": len(errors),
        "median": round(float(median), 4),
        "p95": round(float(p95), 4),
        "worst": [{"id": name, "error": error} for error, name in worst],
    }
