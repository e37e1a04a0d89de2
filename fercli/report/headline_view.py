"""The headline of a run's report: every row with its interval, before beside after, methods against targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fercli.evaluation.metrics import accuracy_interval, number
from fercli.report.frame import plain
from fercli.report.plots import lanes, stage_folder

#: How many images the list names, how many have a face, how many have a score.
COUNTS = ("expected", "found", "scored")


def all_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of `table`, and after them those of the source's own test images, which it does not hold.

    Each has ``correct``, ``interval`` (low, high or None), ``by`` (what the interval is of) and ``variant`` (the tag of
    the stage folder, such as ``no-glpc``) besides.
    """
    return [_with_interval(row) for row in [*(results.get("table") or []), *_source_rows(results)]]


def headline(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put every adapted row beside its source-only row: same target and source, chosen without target labels.

    Oracle rows are compared with that same row, so that all differences of a target have one reference, and come after
    the others. A target that was not adapted, or has no source-only row, has None on that side.

    Returns:
        A list of {"target", "source", "before": row or None, "after": row or None, "difference": fraction or None,
        "plot": SVG}.
    """
    pairs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        pairs.setdefault((row["target"], plain(row.get("source"))), []).append(row)
    lines = []
    for (target, source), group in pairs.items():
        reference = next((r for r in group if _is_reference(r)), None)
        adapted = [row for row in group if row["method"] != "source-only"]
        for row in sorted(adapted, key=lambda r: bool(r.get("oracle"))) or [None]:
            if row is None and reference is None:
                continue
            before, after = (number(side["accuracy"]) if side else None for side in (reference, row))
            lines.append(
                {
                    "target": target,
                    "source": source,
                    "before": reference,
                    "after": row,
                    "difference": None if before is None or after is None else after - before,
                    "plot": lanes(reference, row, f"source-only {_plain_pct(before)}, adapted {_plain_pct(after)}"),
                }
            )
    return lines


def intervals(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Say what the intervals are of: (what, which rows), such as ("bootstrap over 10 subjects", "jaffe")."""
    found: dict[str, dict[str, None]] = {}
    for row in sorted((row for row in rows if row["interval"]), key=lambda row: bool(row.get("oracle"))):
        names = found.setdefault(row["by"], {})
        if row["target"] not in names:
            names["oracle rows" if row.get("oracle") else row["target"]] = None
    return [(by, ", ".join(names)) for by, names in found.items()]


def benchmark(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], published: Sequence[Mapping[str, Any]]):
    """Lay methods against targets, with their mean, and published figures beneath.

    Args:
        rows: from `all_rows`.
        published: rows as printed by their authors, of these targets, accuracy in percent.

    Returns:
        {"targets", "mean" (whether there is such a column), "lines", "published"}, lines with "cells" (fractions, or
        percent for the published, None where there is no figure); None where the headline says as much: one target,
        one adapted model, nothing published.
    """
    about = results.get("datasets") or {}
    own = [row for row in rows if (about.get(row["target"]) or {}).get("role") != "source"]
    targets = list(dict.fromkeys(row["target"] for row in own))
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in own:
        key = (row["method"], row["variant"], row["source"], row["decision"], bool(row.get("oracle")))
        line = lines.setdefault(key, {**dict(zip(_KEYS, key, strict=True)), "selection": row["selection"], "own": {}})
        line["own"].setdefault(row["target"], number(row["accuracy"]))
    printed: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in published:
        key = (row["method"], row.get("backbone"), row.get("citation"), row.get("selection"))
        line = printed.setdefault(key, {"method": key[0], "backbone": key[1], "citation": key[2], "selection": key[3]})
        line.setdefault("own", {})[row["target"]] = number(row["accuracy"])
    adapted = [line for line in lines.values() if line["method"] != "source-only" and not line["oracle"]]
    if not targets or (len(targets) < 2 and len(adapted) < 2 and not printed):
        return None
    for line in (*lines.values(), *printed.values()):
        line["cells"] = [line["own"].get(name) for name in targets]
        if len(targets) > 1:
            whole = None not in line["cells"]
            line["cells"].append(sum(line["cells"]) / len(targets) if whole else None)
    order = sorted(lines.values(), key=lambda line: (line["oracle"], line["method"] != "source-only"))
    return {"targets": targets, "mean": len(targets) > 1, "lines": order, "published": list(printed.values())}


_KEYS = ("method", "variant", "source", "decision", "oracle")


def variant(folder: str, target: str) -> str:
    """Return the tag of a stage folder: ``no-glpc`` of ``adapt-jaffe-no-glpc``; '' where it has none."""
    own = f"adapt-{target}"
    return folder[len(own) :].lstrip("-") if folder.startswith(own) else ""


def _is_reference(row: Mapping[str, Any]) -> bool:
    return row["method"] == "source-only" and not row.get("oracle")


def _source_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows for the source's own test images: what the source model is worth at home."""
    listed = {row["target"] for row in results.get("table") or []}
    rows = []
    for entry in results.get("entries") or []:
        decision, selection = entry.get("decision") or {}, entry.get("selection") or {}
        metrics, counts = decision.get("metrics"), entry.get("counts") or {}
        if entry.get("role") != "source" or entry["dataset"] in listed or not metrics:
            continue
        rows.append(
            {
                "target": entry["dataset"],
                "source": plain(entry.get("source")),
                "method": entry.get("model"),
                "folder": stage_folder(entry),
                "decision": decision["rule"],
                "accuracy": metrics["accuracy"],
                "macro_f1": metrics["macro_f1"],
                **{what: counts.get(what) for what in COUNTS},
                "selection": selection.get("rule"),
                "epoch": entry.get("epoch"),
                "oracle": bool(entry.get("oracle")) or selection.get("rule") == "oracle",
                "intervals": entry.get("intervals"),
            }
        )
    return rows


def _with_interval(row: Mapping[str, Any]) -> dict[str, Any]:
    accuracy, scored = number(row.get("accuracy")), row.get("scored") or 0
    correct = None if accuracy is None else round(accuracy * scored)
    drawn = row.get("intervals") or {}
    interval = _ends(drawn.get("accuracy"))
    if interval is not None and accuracy is not None:
        by = f"bootstrap over {drawn.get('units') or 'all'} {drawn.get('by') or 'images'}"
    else:
        interval, by = (
            None if correct is None else accuracy_interval(correct, scored),
            "Wilson’s",
        )
    row = {**dict.fromkeys(("decision", "selection", "epoch", "macro_f1", *COUNTS)), **row}
    return {
        **row,
        "source": plain(row.get("source")),
        "variant": variant(str(row.get("folder") or ""), str(row["target"])),
        "correct": correct,
        "interval": interval,
        "by": by,
        "f1_interval": _ends(drawn.get("macro_f1")),
    }


def _ends(interval: Any) -> tuple[float, float] | None:
    """Return (low, high); None where there are none, or where they are one: resampling has then seen nothing."""
    low, high = (number(end) for end in interval) if interval else (None, None)
    return None if low is None or high is None or high <= low else (low, high)


def _plain_pct(value: float | None) -> str:
    return "not defined" if value is None else f"{100 * value:.1f}%"
