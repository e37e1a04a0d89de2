"""Results documents with made-up predictions on any number of faces: a run with every section, or a sweep.

Probabilities are random; the same code as for trained models computes everything from them. A run is a sweep of one
seed, with additional data from its epochs and faces. Accuracies are exact: the tables must show `FIGURES`, in % of 100
faces.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from conftest import TINY, merge
from trained_runs import record

from fercli.evaluation.calibration import apply_temperature
from fercli.evaluation.decision import FUSED
from fercli.evaluation.pseudo_labels import THRESHOLDS, pseudo_label_counts
from fercli.expressions import EXPRESSIONS
from fercli.faces import align
from fercli.report.pictures import Picture
from fercli.scoring import results_files
from fercli.scoring.failure_cases import failure_cases
from fercli.scoring.results import Part, Results, with_reference
from fercli.spec import parse
from fercli.store import subsample
from fercli.synthetic.render import LAB, render

EPOCHS, KEPT = 8, 6

_AGRA = {"method": "AGRA", "backbone": "IR-50", "citation": "Chen et al., TPAMI 2022", "selection": "oracle"}

#: For a sweep: accuracy in % by target and seed. The last method trains with target labels.
FIGURES = {
    "source-only": {"near": (60, 62, 64), "far": (40, 44, 42)},
    "aglrls": {"near": (80, 81, 85), "far": (60, 61, 68)},
    "dann": {"near": (70, 72, 77), "far": (50, 52, 51)},
    "gated": {"near": (90, 92, 94), "far": (80, 82, 84)},
}


def document(
    faces: int = 213, targets: Sequence[str] = ("jaffe",), kind: str = "run", labelled: bool = True
) -> dict[str, Any]:
    """A run with source raf-db, adapted to each target, with every section that a page can have."""
    home = answered("raf-db", "source-only", 90, 400)
    before, after = (
        [answered(name, method, percent if labelled else None, faces, home=home) for name in targets]
        for method, percent in (("source-only", 40), ("aglrls", 60))
    )
    after = [replace(one, start=its.probabilities) for one, its in zip(after, before, strict=True)]
    rng = np.random.default_rng(0)
    return _document(
        kind,
        _entries([home, *before, *after]),
        targets,
        history={one.record.name: _history(rng, one.record.epoch) for one in (home, *after)},
        gaps=[_gap(rng, *pair) for pair in zip(before, after, strict=True)],
        pseudo_labels={one.record.name: _pseudo_labels(one) for one in after},
        failure_cases=[case for one in after for case in failure_cases(one)],
    )


def sweep(figures: dict[str, dict[str, Sequence[float | None]]] = FIGURES) -> dict[str, Any]:
    """Methods on targets over seeds, {method: {target: accuracies in %}}, without missing cells."""
    targets = list(next(iter(figures.values())))
    results, starts = [], {}
    for method, own in figures.items():
        for target in targets:
            for seed, percent in enumerate(own[target]):
                one = answered(target, method, percent, 100, seed)
                if method == "source-only":
                    starts[target, seed] = one.probabilities
                results.append(replace(one, start=None if method == "source-only" else starts.get((target, seed))))
    return _document("sweep", _entries(results), targets)


def unlabelled(*targets: str) -> dict[str, dict[str, Sequence[float | None]]]:
    """`FIGURES`, except that images of these targets have no labels."""
    return {method: {**own, **dict.fromkeys(targets, (None,) * 3)} for method, own in FIGURES.items()}


def entry(method: str, target: str, seed: int = 0, percent: float | None = 50, **others: Any) -> dict[str, Any]:
    """One model of a sweep on 100 faces of a target, without a reference."""
    (found,) = _entries([answered(target, method, percent, 100, seed)])
    return {**found, **others}


def _entries(results: Sequence[Results]) -> list[dict[str, Any]]:
    return with_reference([one.entry() for one in results], [one.right for one in results])


def without(results: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """Remove the entries with these values, as if they had not been run."""
    gone = [one for one in results["entries"] if all(one[key] == value for key, value in parts.items())]
    results["entries"] = [one for one in results["entries"] if one not in gone]
    parts = ("dataset", "method", "seed", "keys")
    results["missing"] += [{**{key: one[key] for key in parts}, "why": "not run"} for one in gone]
    return results


def of_photographs(results: dict[str, Any]) -> dict[str, Any]:
    """The same document, as if its faces were real."""
    for about in (results, *results["datasets"].values()):
        about["synthetic"] = False
    return results


def answered(
    dataset: str, method: str, percent: float | None, faces: int, seed: int | None = None, home: Results | None = None
) -> Results:
    """A model's results on a dataset, with `percent` of its faces correct; None: no labels.

    With a seed it belongs to a sweep. The epoch after the kept one has one more correct face, the last one two fewer.
    """
    run, tag = ("", "") if seed is None else (f"seed-{seed}/", f"-{method}")
    seed = seed or 0
    rng = np.random.default_rng([zlib.crc32(dataset.encode()), zlib.crc32(method.encode()), seed])
    status = torch.full((7, 7), 0.4) if method == "aglrls" else None
    about = {"method": method, "registered": method, "seed": seed, "seconds": 30.0 + seed}
    if method == "source-only":
        folder = f"{run}source"
        about |= {"epoch": EPOCHS, "selection": "source-val"}
    else:
        folder = f"{run}adapt-{dataset}{tag}"
        about |= {"stage": "adapt", "epoch": KEPT, "selection": "infomax", "oracle_method": method == "gated"}
    model = record(Path("runs/demo") / folder, "fused" if status is None else "glpc", status, name=folder, **about)

    labels, place = rng.integers(0, 7, faces), rng.permutation(faces)
    right, wrong = round((percent or 50) / 100 * faces), (labels + rng.integers(1, 7, faces)) % 7
    more = {KEPT: 0, KEPT + 1: 1, EPOCHS: -2}
    answers = {epoch: np.where(place < right + more[epoch], labels, wrong) for epoch in more}

    logits = 1.6 * rng.normal(size=(faces, 7, 7))
    logits[:, :, 0] += rng.uniform(0, 6, (faces, 7))
    probabilities = torch.from_numpy(logits).softmax(-1).float()
    # In all heads, swap the expression that the rule predicts with the one that it should predict.
    rows, said = np.arange(faces), model.rule(probabilities).answers.numpy()
    order = np.tile(np.arange(7), (faces, 1))
    order[rows, said], order[rows, answers[KEPT]] = answers[KEPT], said
    probabilities = torch.take_along_dim(probabilities, torch.from_numpy(order)[:, None], -1)

    store = SimpleNamespace(
        name=dataset,
        labels=labels if percent is not None else np.full_like(labels, -1),
        subjects=np.array([f"person-{i % 10}" if dataset == "jaffe" else "" for i in range(faces)]),
        copies=lambda chosen: 0,
        ids=np.array([f"KA.{EXPRESSIONS[label][:2].upper()}{i}.tiff" for i, label in enumerate(labels)]),
    )
    epochs = SimpleNamespace(answers=answers, chosen={"infomax": KEPT, "last": EPOCHS})
    return Results(
        model,
        store,
        dataset == "raf-db",
        Part(["test"], rows, faces + 1),
        probabilities,
        (probabilities if home is None else home.probabilities)[::4],
        torch.from_numpy(labels if home is None else home.labels)[::4],
        None if method == "source-only" else epochs,
    )


def _document(kind: str, entries: list[dict[str, Any]], targets: Sequence[str], **more: Any) -> dict[str, Any]:
    spec = parse(merge(TINY, {"evaluate.title": "a demo of mine", "adapt.options": {"adversarial": True}}))
    stores = {name: SimpleNamespace(synthetic=True) for name in ("raf-db", *targets)}
    figures = zip(targets, (61.5, 85.27), strict=False)
    published = [{**_AGRA, "target": target, "accuracy": accuracy} for target, accuracy in figures]
    return results_files.document(kind, spec, stores, entries, published=published, **more)


def pictures(results: dict[str, Any]) -> dict[tuple[str, str, int], Picture]:
    """An image of every failure case: a procedural face of its prediction, and random heat."""
    return {
        (one["folder"], one["dataset"], face["position"]): _picture(face["answer"], face["position"] % 12)
        for one in results["failure_cases"]
        for face in one["faces"]
    }


@cache
def _picture(expression: str, person: int) -> Picture:
    drawn = render(LAB, person, EXPRESSIONS.index(expression), person)
    matrix = align.template_matrix(drawn.landmarks, 112, 0)
    heat = np.random.default_rng(person).random((7, 7))
    return Picture(align.warp(drawn.image, matrix, 112), align.transform(matrix, drawn.landmarks), heat)


def _pseudo_labels(one: Results) -> dict[str, Any]:
    """Pseudo labels of a model that becomes more confident with each epoch."""
    outputs = {epoch: apply_temperature(one.probabilities[:, FUSED], 4 / epoch) for epoch in range(1, EPOCHS + 1)}
    about = {"target": one.store.name, "faces": len(one.labels), "labelled": int(one.known.sum())}
    return {**about, "thresholds": list(THRESHOLDS), "epochs": pseudo_label_counts(outputs, one.labels, 0.95)}


def _history(rng: np.random.Generator, kept: int) -> list[Any]:
    def of(*names: str) -> dict[str, float]:
        return {name: float(rng.random()) for name in names}

    parts = ({"losses": of("source", "adversarial"), "scores": of("source-val", "infomax")} for _ in range(EPOCHS))
    return [{"epoch": epoch, **own, "chosen": epoch == kept} for epoch, own in enumerate(parts, 1)]


def _gap(rng: np.random.Generator, *models: Results) -> dict[str, Any]:
    """The gap of two models on at most 400 faces per domain, all made up."""
    found = []
    for one, distance in zip(models, (0.162, 0.058), strict=True):
        labels = [rng.integers(0, 7, 400), one.labels[subsample(len(one.labels), 400)]]
        faces = [len(own) for own in labels]
        x, y = rng.random((2, sum(faces))).round(4).tolist()
        domain = np.repeat([0, 1], faces).tolist()
        embedding = {"x": x, "y": y, "domain": domain, "label": np.concatenate(labels).tolist(), "perplexity": 30.0}
        about = {"folder": one.record.name, "method": one.record.method, "faces": faces, "embedding": embedding}
        found.append({**about, "energy_distance": distance, "no_gap": 0.004})
    return {"target": models[0].store.name, "source": "raf-db", "source_splits": ["test"], "models": found}
