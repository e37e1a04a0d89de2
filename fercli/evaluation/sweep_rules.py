"""How well each rule that chooses an epoch without target labels did, over all cells of a sweep.

This looks at target labels (through the oracle) after all is done: it judges the rules, and chooses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fercli.evaluation.statistics import summary


def rank_rules(document: Mapping[str, Any]) -> dict[str, Any]:
    """Rank the rules by how far their epochs fall below the oracle's, on average.

    Cells of adapted methods count alike, whatever their method, target and seed; the reference (nothing was adapted)
    and methods that read target labels do not count.

    Returns:
        {"targets": names, "methods": labels, "cells" (how many were judged), "rows"}; a row: {"rule", "used" (it chose
        the epochs of the sweep), "mean", "worst" (fractions below the oracle, 0 is best; worst = largest), "hits"
        (share of cells in which it names the oracle's own epoch), "gain" (mean accuracy above the rule ``last``),
        "cells" (how many it was judged on), "targets", "methods" (the mean within each, in the order given)}.
        Best first; what is not defined is None and comes last. Degenerate: cells without labels are left out, and
        without any cell there are no rows.
    """
    cells = [
        cell
        for cell in document["cells"]
        if cell["method"] != document["reference"]
        and not cell["oracle_method"]
        and (cell["oracle"] or {}).get("accuracy") is not None
    ]
    targets = [name for name in document["targets"] if any(cell["target"] == name for cell in cells)]
    methods = [name for name in document["methods"] if any(cell["method"] == name for cell in cells)]
    used = {cell["selection"] for cell in cells}
    rows = []
    for rule in dict.fromkeys(rule for cell in cells for rule in cell["rules"]):
        judged = [cell for cell in cells if _accuracy(cell, rule) is not None]
        below = summary(_below(cell, rule) for cell in judged)
        row = {
            "rule": rule,
            "used": rule in used,
            "mean": below.mean,
            "worst": max((_below(cell, rule) for cell in judged), default=None),
            "hits": summary(float(c["rules"][rule]["epoch"] == c["oracle"]["epoch"]) for c in judged).mean,
            "gain": summary(_gain(cell, rule) for cell in judged).mean,
            "cells": len(judged),
        }
        for part, names in (("target", targets), ("method", methods)):
            row[f"{part}s"] = [summary(_below(c, rule) for c in judged if c[part] == name).mean for name in names]
        rows.append(row)
    rows.sort(key=lambda row: (row["mean"] is None, row["mean"], row["worst"]))
    return {"targets": targets, "methods": methods, "cells": len(cells), "rows": rows}


def _accuracy(cell: Mapping[str, Any], rule: str) -> float | None:
    return cell["rules"].get(rule, {}).get("accuracy")


def _below(cell: Mapping[str, Any], rule: str) -> float:
    return cell["oracle"]["accuracy"] - _accuracy(cell, rule)


def _gain(cell: Mapping[str, Any], rule: str) -> float | None:
    last = _accuracy(cell, "last")
    return None if last is None else _accuracy(cell, rule) - last
