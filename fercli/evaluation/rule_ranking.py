"""How well each label-free selection rule did, over all entries of a results document.

This module uses target labels (through the oracle) after the run: it judges the rules and selects nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fercli.evaluation.statistics import summary


def rank_rules(document: Mapping[str, Any]) -> dict[str, Any]:
    """Rank the rules by how far their epochs fall below the oracle's, on average.

    Entries of adapted methods on targets all have the same weight, whatever their method, target and seed. The
    reference (not adapted) and methods that read target labels do not count.

    Returns:
        {"targets": names, "methods": labels, "cells" (number of entries judged), "rows"}. A row: {"rule", "used" (it
        chose epochs in this document), "mean", "worst" (fractions below the oracle; 0 is best, "worst" is the largest),
        "hits" (share of entries in which it chose the oracle's epoch), "gain" (mean accuracy above the rule ``last``),
        "cells" (number of entries it was judged on), "targets", "methods" (the mean within each)}. Rows are sorted,
        best first. An undefined value is None; rows without a mean come last. Entries without labels are left out.
    """
    entries = [
        entry
        for entry in document["entries"]
        if entry["role"] == "target"
        and entry["method"] != document["reference"]
        and not entry["oracle_method"]
        and (entry["oracle"] or {}).get("accuracy") is not None
    ]
    used = {entry["selection"] for entry in entries}
    parts = {"dataset": document["targets"], "method": document["methods"]}
    names = {part: [one for one in order if any(e[part] == one for e in entries)] for part, order in parts.items()}
    rows = []
    for rule in dict.fromkeys(rule for entry in entries for rule in entry["rules"]):
        judged = [(e, _below(e, rule), e["rules"][rule]["epoch"]) for e in entries if _below(e, rule) is not None]
        over_last = [(_below(entry, "last"), below) for entry, below, _ in judged]
        within = {
            part: [summary(below for e, below, _ in judged if e[part] == name).mean for name in own]
            for part, own in names.items()
        }
        rows.append(
            {
                "rule": rule,
                "used": rule in used,
                "mean": summary(below for _, below, _ in judged).mean,
                "worst": max((below for _, below, _ in judged), default=None),
                "hits": summary(float(epoch == e["oracle"]["epoch"]) for e, _, epoch in judged).mean,
                "gain": summary(None if last is None else last - below for last, below in over_last).mean,
                "cells": len(judged),
                "targets": within["dataset"],
                "methods": within["method"],
            }
        )
    rows.sort(key=lambda row: (row["mean"] is None, row["mean"] or 0, row["worst"] or 0))
    return {"targets": names["dataset"], "methods": names["method"], "cells": len(entries), "rows": rows}


def _below(entry: Mapping[str, Any], rule: str) -> float | None:
    """How far the accuracy at a rule's epoch is below the oracle's; None where it is not known."""
    accuracy = entry["rules"].get(rule, {}).get("accuracy")
    return None if accuracy is None else entry["oracle"]["accuracy"] - accuracy
