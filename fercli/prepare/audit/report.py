"""The quality report of prepared datasets: quality.json with the numbers, quality.html to read.

Both can be made from prepared stores alone, at any time. The same stores give the same bytes. The page loads nothing,
because styles and images are embedded.

The report counts the classes of targets for the person who owns and prepares the data. ``adapt`` does not use these
counts: it opens targets without labels and reads no file of this report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from fercli import console
from fercli.errors import FercliError
from fercli.expressions import UNLABELLED
from fercli.faces.perceptual_hash import BITS, NEAR
from fercli.files import write_atomically
from fercli.prepare.audit.duplicates import (
    ALIKE,
    KINDS,
    LOOKED_AT,
    SAME,
    Faces,
    Found,
    Pair,
    compare,
    faces_of,
    numbering,
)
from fercli.prepare.audit.numbers import dataset_numbers
from fercli.prepare.audit.view import view
from fercli.store import Store, file_hash
from fercli.version import __version__

#: The most pairs of one comparison that quality.json names. It counts all of them.
NAMED = 1000

#: Schema version of the document. A document with another version is made again.
SCHEMA = 3


def write_quality(stores: Sequence[Store], folder: Path, roles: Mapping[str, str]) -> dict[str, Any]:
    """Write quality.json and quality.html into a folder and return the document.

    Args:
        stores: the prepared datasets, with distinct names.
        folder: where to write, such as the folder of the stores. It is created if it does not exist.
        roles: {dataset: ``source``, ``target`` or ''}. Every source is compared with every target.

    Returns:
        The contents of quality.json:
        ``summary`` (see `_summary`); ``datasets`` {name: `numbers.dataset_numbers`}; ``comparisons`` [{``first``,
        ``second``, ``within``, ``near``, ``unlooked``, ``one_subject``, ``one_subject_across``, ``subjects_across``,
        ``same file``, ``same image``, ``alike``, ``across``, ``leaks``, ``labels_differ``, ``pairs`` [{``first``,
        ``second`` (ids), ``splits``, ``kind``, ``distance``, ``likeness``, ``across``, ``leak``}], at most `NAMED`}];
        ``thresholds``; ``made_from``. Merely alike pairs are not counted in ``across``, ``leaks``, ``labels_differ``.

    Raises:
        FercliError: the disk is full, or there is a folder with the name of a file to write.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data, page = folder / "quality.json", folder / "quality.html"
    for path in (data, page):
        if path.is_dir():
            raise FercliError(f"{path} is a folder, but the quality report must be written there; move the folder away")
    made_from = _made_from(stores, roles)
    there = _read(data)
    if (there.get("schema"), there.get("made_from")) == (SCHEMA, made_from) and page.is_file():
        return there
    seen = numbering()
    faces = {store.name: faces_of(store, seen) for store in stores}
    found = _compare_all(faces, roles)
    document = {**_document(stores, roles, faces, found), "made_from": made_from}
    write_atomically(data, (json.dumps(document, indent=1) + "\n").encode())
    write_atomically(page, render(document, stores, found, folder).encode("utf-8"))
    return document


def _made_from(stores: Sequence[Store], roles: Mapping[str, str]) -> dict[str, list[str]]:
    """Return what the report depends on. If it is unchanged, nothing is computed again."""
    return {
        store.name: [file_hash(store.path / "meta.json"), roles.get(store.name, ""), __version__] for store in stores
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def render(
    document: Mapping[str, Any], stores: Sequence[Store], found: Mapping[tuple[str, str], Found], folder: Path
) -> str:
    """Return the report as one HTML page, with images from the stores."""
    environment = Environment(
        # All pages share the styles of the run report.
        loader=ChoiceLoader([PackageLoader("fercli.prepare.audit"), PackageLoader("fercli.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("quality.html.j2").render(view(document, stores, found, folder))


def _compare_all(faces: Mapping[str, Faces], roles: Mapping[str, str]) -> dict[tuple[str, str], Found]:
    """Compare every source with every target, and then every dataset with itself."""
    sources, targets = ([name for name in faces if roles.get(name) == role] for role in ("source", "target"))
    pairs = [*product(sources, targets), *((name, name) for name in faces)]
    found = {}
    for first, second in pairs:
        title = f"duplicates: {first}" if first == second else f"leaks: {first}, {second}"
        with console.progress(title, len(faces[first])) as bar:
            other = None if first == second else faces[second]
            found[first, second] = compare(faces[first], other, LOOKED_AT, bar.advance)
    return found


def _document(
    stores: Sequence[Store],
    roles: Mapping[str, str],
    faces: Mapping[str, Faces],
    found: Mapping[tuple[str, str], Found],
) -> dict[str, Any]:
    comparisons = [_comparison(faces[a], faces[b], result) for (a, b), result in found.items()]
    return {
        "schema": SCHEMA,
        "fercli": __version__,
        "summary": _summary(comparisons),
        "datasets": {store.name: dataset_numbers(store, roles.get(store.name, "")) for store in stores},
        "comparisons": comparisons,
        "thresholds": {"bits": BITS, "near": NEAR, "same": SAME, "alike": ALIKE, "looked_at": LOOKED_AT},
    }


def _summary(comparisons: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the most important counts.

    Returns:
        {``leaks``: pairs with one face trained on in a source and the other scored in a target,
        ``shared``: all pairs between a source and a target, including leaks,
        ``leaks_within``: pairs within a dataset with one face trained on (or adapted to) and the other scored,
        ``across_splits``: all pairs in two splits of one dataset, including those leaks,
        ``duplicates``: all pairs within datasets, including those across splits,
        ``alike``: pairs that are merely alike, within and between datasets,
        ``subjects_across``: subjects who are in several splits of a dataset,
        ``unlooked``: pairs with similar hashes that were not examined}.
    """
    within, between = ([c for c in comparisons if c["within"] is here] for here in (True, False))
    return {
        "leaks": sum(c["leaks"] for c in between),
        "shared": sum(_sure(c) for c in between),
        "leaks_within": sum(c["leaks"] for c in within),
        "across_splits": sum(c["across"] for c in within),
        "duplicates": sum(_sure(c) for c in within),
        "alike": sum(c["alike"] for c in comparisons),
        "subjects_across": sum(c["subjects_across"] for c in within),
        "unlooked": sum(c["unlooked"] for c in comparisons),
    }


def _sure(comparison: Mapping[str, Any]) -> int:
    return comparison["same file"] + comparison["same image"]


def _comparison(first: Faces, second: Faces, found: Found) -> dict[str, Any]:
    sure = [pair for pair in found.pairs if pair.kind != "alike"]
    return {
        "first": first.store.name,
        "second": second.store.name,
        "within": first is second,
        "near": found.near,
        "unlooked": found.unlooked,
        "one_subject": found.one_subject,
        "one_subject_across": found.one_subject_across,
        "subjects_across": first.subjects_across if first is second else 0,
        **{kind: found.count(kind) for kind in KINDS},
        "across": sum(pair.across for pair in sure),
        "leaks": sum(pair.leak for pair in sure),
        "labels_differ": sum(_labels_differ(first, second, pair) for pair in sure),
        "pairs": [_named(first, second, pair) for pair in found.pairs[:NAMED]],
    }


def _labels_differ(first: Faces, second: Faces, pair: Pair) -> bool:
    one, other = first.labels[pair.first], second.labels[pair.second]
    return bool(one != other and UNLABELLED not in (one, other))


def _named(first: Faces, second: Faces, pair: Pair) -> dict[str, Any]:
    sides = ((first.store, pair.first), (second.store, pair.second))
    ids, splits = ([str(getattr(store, name)[i]) for store, i in sides] for name in ("ids", "splits"))
    return {
        "first": ids[0],
        "second": ids[1],
        "splits": splits,
        "kind": pair.kind,
        "distance": pair.distance,
        "likeness": pair.likeness,
        "across": pair.across,
        "leak": pair.leak,
    }
