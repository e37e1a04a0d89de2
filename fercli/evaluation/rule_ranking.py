"""How well each rule that chooses an epoch without target labels did, over all entries of a results document.

This looks at target labels (through the oracle) after all is done: it judges the rules, and chooses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fercli.evaluation.statistics import summary


def rank_rules(document: Mapping[str, Any]) -> dict[str, Any]:
    """Rank the rules by how far their epochs fall below the oracle's, on average.

    Entries of adapted methods on targets count alike, whatever their method, target and seed; the reference (nothing
    was adapted) and methods that read target labels do not count.

    Returns:
        {"targets": names, "methods": labels, "cells" (how many entries were judged), "rows"}; a row: {"rule", "used"
        (it chose epochs of this document), "mean", "worst" (fractions below the oracle, 0 is best; worst = largest),
        "hits" (share of entries in which it names the oracle's own epoch), "gain" (mean accuracy above the rule
        ``last``), "cells" (how many it was judged on), "targets", "methods" (the mean within each, in that order)}. Best
        first; what is not defined is None and comes last. Degenerate: entries without labels are left out, and
        without any entry there are no rows.
    """
    entries = [
        entry
        for entry in document["entries"]
        if entry["role"] == "target"
        and entry["method"] != document["reference"]
        and not entry["oracle_method"]
        and (entry["oracle"] or {}).get("accuracy") is not None
    ]
    parts = {"dataset": document["targets"], "method": document["methods"]}
    names = {part: [one for one in order if any(e[part] == one for e in entries)] for part, order in parts.items()}
    used = {entry["selection"] for entry in entries}
    rows = []
    for rule in dict.fromkeys(rule for entry in entries for rule in entry["rules"]):
        judged = [entry for entry in entries if _accuracy(entry, rule) is not None]
        below = summary(_below(entry, rule) for entry in judged)
        within = {
            part: [summary(_below(e, rule) for e in judged if e[part] == name).mean for name in names[part]]
            for part in parts
        }
        rows.append(
            {
                "rule": rule,
                "used": rule in used,
                "mean": below.mean,
                "worst": max((_below(entry, rule) for entry in judged), default=None),
                "hits": summary(float(e["rules"][rule]["epoch"] == e["oracle"]["epoch"]) for e in judged).mean,
                "gain": summary(_gain(entry, rule) for entry in judged).mean,
                "cells": len(judged),
                "targets": within["dataset"],
                "methods": within["method"],
            }
        )
    rows.sort(key=lambda row: (row["mean"] is None, row["mean"] or 0, row["worst"] or 0))
    return {"targets": names["dataset"], "methods": names["method"], "cells": len(entries), "rows": rows}


def _accuracy(entry: Mapping[str, Any], rule: str) -> float | None:
    return entry["rules"].get(rule, {}).get("accuracy")


def _below(entry: Mapping[str, Any], rule: str) -> float:
    return entry["oracle"]["accuracy"] - _accuracy(entry, rule)


def _gain(entry: Mapping[str, Any], rule: str) -> float | None:
    last = _accuracy(entry, "last")
    return None if last is None else _accuracy(entry, rule) - last
