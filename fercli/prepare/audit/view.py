"""The contents of the quality page, computed from its document and the stores. The template only lays them out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from fercli.prepare.audit.duplicates import Found, Pair
from fercli.prepare.audit.pictures import sheet_uri
from fercli.report.pictures import face_uri, landmark_dots
from fercli.store import STATUSES, Store

#: The most pairs shown per comparison, and in total. The others are counted, and named in quality.json.
SHOWN, SHOWN_IN_ALL = 24, 144

#: How many characters of the page the contact sheets may use.
_SHEETS = 1_300_000

#: How many last letters of a file name stay on one line, and how many letters before them are shown.
_TAIL, _HEAD = 9, 60

#: Counts of a comparison. If all are 0, it has no row of its own.
_COUNTS = ("same file", "same image", "alike", "unlooked", "one_subject", "one_subject_across", "subjects_across")

_WORDS = {
    "found": "found in first pass",
    "retried": "found on a retry",
    "given": "given landmarks",
    "mean-landmarks": "mean landmarks",
    "rejected": "rejected",
}


def view(
    document: Mapping[str, Any], stores: Sequence[Store], found: Mapping[tuple[str, str], Found], folder: Path
) -> dict[str, Any]:
    """Return the contents for quality.html.j2. Names are valid UTF-8 text, not yet escaped."""
    by_name = {store.name: store for store in stores}
    comparisons, left = [], SHOWN_IN_ALL
    quiet = {within: _quiet(document["comparisons"], within) for within in (False, True)}
    for numbers, result in zip(document["comparisons"], found.values(), strict=True):
        first, second = by_name[numbers["first"]], by_name[numbers["second"]]
        shown = result.pairs[: min(SHOWN, left)]
        left -= len(shown)
        sure = numbers["same file"] + numbers["same image"]
        pairs = [_pair(first, second, pair) for pair in shown]
        row = {"sure": sure, "total": len(result.pairs), "folded": numbers in quiet[numbers["within"]]}
        comparisons.append({**numbers, **row, "pairs": pairs})
    return {
        "summary": document["summary"],
        "thresholds": document["thresholds"],
        "version": document["fercli"],
        "synthetic": [name for name, numbers in document["datasets"].items() if numbers["synthetic"]],
        "datasets": [
            _dataset(by_name[name], numbers, folder, _SHEETS // len(by_name))
            for name, numbers in document["datasets"].items()
        ],
        "comparisons": comparisons,
        "folded": [
            (len(found), ("dataset" if within else "pair of datasets", "datasets" if within else "pairs of datasets"))
            for within, found in quiet.items()
            if found
        ],
        "words": _WORDS,
    }


def _quiet(comparisons: Sequence[Mapping[str, Any]], within: bool) -> list[Mapping[str, Any]]:
    """Return the comparisons that found nothing, if there are several."""
    quiet = [c for c in comparisons if c["within"] is within and not any(c[key] for key in _COUNTS)]
    return quiet if len(quiet) > 1 else []


def text(value: str) -> str:
    """Return a name as valid UTF-8 text. Invalid bytes become the replacement character."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def bars(histogram: Mapping[str, Any], title: str) -> Markup:
    """Draw a histogram as inline SVG that stretches to its container. Its labels are HTML around it."""
    counts = histogram["counts"]
    tallest, width = max([*counts, 1]), 100 / len(counts)
    path = "".join(
        f"M{i * width + 0.4:.2f} 60V{60 - max(1, 56 * count / tallest):.2f}h{width - 0.8:.2f}V60z"
        for i, count in enumerate(counts)
        if count
    )
    zero = -histogram["low"] / (histogram["high"] - histogram["low"]) * 100
    middle = f'<path class="axis" d="M{zero:.2f} 0V60"/>' if 0 < zero < 100 else ""
    return Markup(
        '<svg viewBox="0 0 100 60" preserveAspectRatio="none" role="img" class="bars"><title>{title}</title>'
        '{middle}<path class="bar" d="{path}"/><path class="axis" d="M0 60H100"/></svg>'
    ).format(title=title, middle=Markup(middle), path=path)


def dots(store: Store, i: int) -> Markup:
    """Draw a face's landmarks as inline SVG, to be placed over its image."""
    margin = int(store.meta["parameters"]["margin"])
    inner = store.faces.shape[1] - 2 * margin
    return landmark_dots(np.asarray(store.landmarks[i], float) - margin, inner)


def inner_uri(store: Store, i: int) -> str:
    """Return face `i` of a store, without its margin, as a data: URI."""
    margin = int(store.meta["parameters"]["margin"])
    return face_uri(store.faces[i][margin : -margin or None, margin : -margin or None], side=84, quality=72)


def _dataset(store: Store, numbers: Mapping[str, Any], folder: Path, limit: int) -> dict[str, Any]:
    total = numbers["listed"]
    reasons = [("rejected", numbers["rejected"]), ("retried", numbers["steps"]), ("left out", numbers["left_out"])]
    error = numbers["given_error"]
    if error is not None:
        at = {name: i for i, name in enumerate(store.ids.tolist())}
        worst = [
            {**one, **_name(one["id"]), "face": inner_uri(store, i), "dots": dots(store, i)}
            for one, i in ((one, at[one["id"]]) for one in error["worst"])
        ]
        error = {**error, "worst": worst}
    sheet = store.path / "contact-sheet.jpg"
    return {
        **numbers,
        "name": text(store.name),
        "statuses": [
            (status, numbers["statuses"][status], _share(numbers["statuses"][status], total)) for status in STATUSES
        ],
        "reasons": [
            (kind, sum(counts.values()), [(text(reason), count) for reason, count in counts.items()])
            for kind, counts in reasons
            if counts
        ],
        "splits": _splits(numbers),
        "classes": _class_rows(numbers),
        "plots": _plots(numbers),
        "given_error": error,
        "sheet": sheet_uri(sheet, limit),
        "sheet_link": quote(os.fsencode(os.path.relpath(sheet, folder)).replace(os.sep.encode(), b"/")),
    }


def _splits(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the columns of the class table: each split, and their total if there are several."""
    roles = {"adapt_splits": "train/adapt", "score_splits": "score"}
    columns = []
    for split, part in numbers["splits"].items():
        use = [word for key, word in roles.items() if split in numbers[key]]
        columns.append({"name": text(split), "use": ", ".join(use), "listed": part["listed"], "kept": part["kept"]})
    if len(columns) > 1:
        columns.append({"name": "all", "use": "", "listed": numbers["listed"], "kept": numbers["kept"]})
    return columns


def _class_rows(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    parts = [part["classes"] for part in numbers["splits"].values()]
    if len(parts) > 1:
        parts.append({name: count["kept"] for name, count in numbers["classes"].items()})
    rows = []
    for name in numbers["classes"]:
        # A bar's length is the size of its class relative to the largest class in the split.
        cells = [(p[name], _share(p[name], sum(p.values())), _share(p[name], max(p.values()))) for p in parts]
        rows.append({"name": name, "cells": cells})
    return rows


def _plots(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    named = [("detector score", "", numbers["score"])]
    named += [(angle, "°", numbers["pose"][angle]) for angle in ("roll", "yaw", "pitch")]
    return [
        {
            **one,
            "name": name,
            "unit": unit,
            "svg": bars(one, f"{name} of {one['faces']} faces"),
            "range": _range(one, unit),
        }
        for name, unit, one in named
        if one["faces"]
    ]


def _range(histogram: Mapping[str, Any], unit: str) -> dict[str, str]:
    """Return median, p5 and p95 as text: integer degrees with a true minus sign, scores with two decimals."""
    texts = {key: f"{histogram[key]:.{0 if unit else 2}f}" for key in ("median", "p5", "p95")}
    return {
        key: ("0" if value == "-0" else value).replace("-", "\N{MINUS SIGN}") + unit for key, value in texts.items()
    }


def _pair(first: Store, second: Store, pair: Pair) -> dict[str, Any]:
    sides = []
    for store, i in ((first, pair.first), (second, pair.second)):
        sides.append(
            {
                "dataset": "" if first is second else text(store.name),
                "split": text(str(store.splits[i])),
                **_name(str(store.ids[i])),
                "face": inner_uri(store, i),
            }
        )
    return {**vars(pair), "sides": sides}


def _name(name: str) -> dict[str, str]:
    """Return a file name and the two parts that the page shows. The end of a name tells more than its beginning."""
    name = text(name)
    head = name[:-_TAIL]
    return {"id": name, "head": head if len(head) <= _HEAD else f"…{head[-_HEAD:]}", "tail": name[-_TAIL:]}


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0
