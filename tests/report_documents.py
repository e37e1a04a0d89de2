"""Results documents of schema 4, of made-up answers on any number of faces: a run with every section, or a sweep.

A run is a sweep of one seed, with what its epochs and faces tell besides. Accuracies are exact: `FIGURES` in percent of
100 faces are what the tables must show.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fercli.evaluation.calibration import calibration
from fercli.evaluation.intervals import bootstrap
from fercli.evaluation.metrics import confusion, scores
from fercli.evaluation.pseudo_labels import THRESHOLDS, pseudo_label_counts
from fercli.expressions import EXPRESSIONS
from fercli.faces import align
from fercli.store import subsample
from fercli.synthetic.render import LAB, render

HEADS = ("global", "left-eye", "right-eye", "nose", "left-mouth", "right-mouth", "fused")
#: How well a head does beside the whole, in logits.
SKILL = (0.9, 0.45, 0.5, 0.3, 0.5, 0.45, 1.0)
EPOCHS, KEPT = 8, 6

_AGRA = {"method": "AGRA", "backbone": "IR-50", "citation": "Chen et al., TPAMI 2022", "selection": "oracle"}

#: Of a sweep: accuracy in percent by target and seed. The last method trains with target labels.
FIGURES = {
    "source-only": {"near": (60, 62, 64), "far": (40, 44, 42)},
    "aglrls": {"near": (80, 81, 85), "far": (60, 61, 68)},
    "dann": {"near": (70, 72, 77), "far": (50, 52, 51)},
    "gated": {"near": (90, 92, 94), "far": (80, 82, 84)},
}


def document(faces: int = 213, targets: Sequence[str] = ("jaffe",), kind: str = "run") -> dict[str, Any]:
    """A run of source raf-db, adapted to each target, with every section that a page has."""
    home = Answered("raf-db", "source-only", 0.9, 400)
    looked = [home]
    for name in targets:
        looked += [Answered(name, "source-only", 0.4, faces), Answered(name, "aglrls", 0.6, faces)]
    adapted = [one for one in looked if one.method != "source-only"]
    rng = np.random.default_rng(0)
    history = {"source": _history(rng, ("source",), ("source-val",), EPOCHS)}
    for one in adapted:
        history[one.folder] = _history(rng, ("source", "adversarial", "pseudo"), ("source-val", "infomax"), KEPT)
    return {
        **_frame(kind, [one.entry(home) for one in looked], targets),
        "history": history,
        "gaps": [_gap(rng, name, looked[1 + 2 * i], looked[2 + 2 * i]) for i, name in enumerate(targets)],
        "pseudo_labels": {one.folder: one.pseudo(rng) for one in adapted},
        "failure_cases": [case for one in looked[1:] for case in one.failure_cases() if one in adapted],
    }


def sweep(figures: dict[str, dict[str, Sequence[float]]] = FIGURES, faces: int = 100) -> dict[str, Any]:
    """Methods on targets over seeds, {method: {target: accuracies in percent}}, all there."""
    targets = list(next(iter(figures.values())))
    entries = [
        entry(method, target, seed, percent, faces=faces)
        for method, own in figures.items()
        for target in targets
        for seed, percent in enumerate(own[target])
    ]
    empty = {"history": {}, "gaps": [], "pseudo_labels": {}, "failure_cases": []}
    return {**_frame("sweep", entries, targets), **empty}


def entry(
    method: str, target: str, seed: int = 0, percent: float | None = 50, faces: int = 100, **others: Any
) -> dict[str, Any]:
    """One model of a sweep on one target; without an accuracy the target has no labels."""
    found = Answered(target, method, (percent or 50) / 100, faces, seed, f"seed-{seed}/").entry()
    return {**(found if percent is not None else without_labels(found)), **others}


def without_labels(one: dict[str, Any]) -> dict[str, Any]:
    """The same entry on images without labels."""
    stages = one["stages"] and {name: {**stage, "correct": None} for name, stage in one["stages"].items()}
    nothing = dict.fromkeys(("intervals", "calibration", "oracle"))
    rules = {rule: {**found, "accuracy": None, "macro_f1": None} for rule, found in one["rules"].items()}
    return {**one, **nothing, "heads": dict.fromkeys(one["heads"]), "scored": 0, "stages": stages, "rules": rules}


def without(results: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """Take the entries that have these values out, as not run."""
    gone = [one for one in results["entries"] if all(one[key] == value for key, value in parts.items())]
    results["entries"] = [one for one in results["entries"] if one not in gone]
    parts = ("dataset", "method", "seed", "keys")
    results["missing"] += [{**{key: one[key] for key in parts}, "why": "not run"} for one in gone]
    return results


def of_photographs(results: dict[str, Any]) -> dict[str, Any]:
    """The same document as of real faces."""
    for about in (results, *results["datasets"].values()):
        about["synthetic"] = False
    return results


def _frame(kind: str, entries: list[dict[str, Any]], targets: Sequence[str]) -> dict[str, Any]:
    """What documents of all kinds hold."""
    return {
        "schema": 4,
        "kind": kind,
        "title": "a demo of mine",
        "created": "2026-11-23T10:00:00+00:00",
        "synthetic": True,
        "expressions": list(EXPRESSIONS),
        "datasets": {
            name: {"synthetic": True, "role": "target" if name in targets else "source"}
            for name in ("raf-db", *targets)
        },
        "targets": list(targets),
        "methods": list(dict.fromkeys(one["method"] for one in entries)),
        "seeds": list(dict.fromkeys(one["seed"] for one in entries)),
        "reference": "source-only",
        "entries": entries,
        "missing": [],
        "published": [
            {**_AGRA, "target": target, "accuracy": accuracy}
            for target, accuracy in zip(targets, (61.5, 85.27), strict=False)
        ],
        "spec": {"data": {"source": "raf-db"}, "adapt": {"epochs": EPOCHS, "parts": {"adversarial": True}}},
        "environment": {"fercli": "0.1.0", "device": "cpu, 2 threads"}
        | ({} if kind == "sweep" else {"time_s": {one["folder"]: 132.9 for one in entries}}),
    }


def pictures(results: dict[str, Any]) -> dict[tuple[str, str, int], Any]:
    """A picture of every failure case: a procedural face of its label, and heat somewhere."""
    return {
        (one["folder"], one["dataset"], face["position"]): _picture(
            EXPRESSIONS.index(face["label"]), face["position"] % 12
        )
        for one in results["failure_cases"]
        for face in one["faces"]
    }


@cache
def _picture(label: int, person: int) -> SimpleNamespace:
    drawn = render(LAB, person, label, person)
    matrix = align.template_matrix(drawn.landmarks, 112, 0)
    across, down = np.random.default_rng(person).uniform(1, 5, (2, 1))
    heat = np.exp(-((np.arange(7) - across) ** 2 + (np.arange(7)[:, None] - down) ** 2) / 3)
    face, landmarks = align.warp(drawn.image, matrix, 112), align.transform(matrix, drawn.landmarks)
    return SimpleNamespace(face=face, landmarks=landmarks, heat=heat)


class Answered:
    """A model's seven probabilities of each face of a dataset, its fused head right on exactly so many."""

    def __init__(self, dataset: str, method: str, accuracy: float, faces: int, seed: int = 0, run: str = ""):
        rng = np.random.default_rng([zlib.crc32(dataset.encode()), zlib.crc32(method.encode()), seed])
        self.dataset, self.method, self.faces, self.seed = dataset, method, faces, seed
        tag = "" if method == "aglrls" else f"-{method}"
        self.folder = run + ("source" if method == "source-only" else f"adapt-{dataset}{tag}")
        self.labels = rng.choice(7, faces, p=(0.15, 0.1, 0.12, 0.2, 0.15, 0.14, 0.14))
        self.logits = rng.normal(size=(7, faces, 7)) * 1.6
        for head, share in enumerate(SKILL):
            self.logits[head, np.arange(faces), self.labels] += 4.2 * accuracy * share
        sure = self.logits[-1, np.arange(faces), self.labels] - self.logits[-1].max(-1)
        right = np.argsort(np.argsort(-sure)) < round(accuracy * faces)
        best = self.logits[-1].argmax(-1)
        for i in np.flatnonzero((best == self.labels) != right):
            other = self.labels[i] if right[i] else (self.labels[i] + rng.integers(1, 7)) % 7
            self.logits[-1, i, [best[i], other]] = self.logits[-1, i, [other, best[i]]]
        self.probabilities = torch.from_numpy(self.logits).softmax(-1).permute(1, 0, 2)
        self.said = self.probabilities[:, -1]
        self.answers = self.said.argmax(-1).numpy()
        self.stages = np.digitize(self.said.max(-1).values, (0.5, 0.8))  # 0 sum, 1 global, 2 fused

    def metrics(self, answers: np.ndarray) -> dict[str, Any]:
        matrix = confusion(self.labels, answers)
        return {**scores(matrix), "confusion": matrix.tolist()}

    def entry(self, home: Answered | None = None) -> dict[str, Any]:
        adapted, glpc = self.method != "source-only", self.method == "aglrls"
        heads = {head: self.metrics(self.probabilities[:, i].argmax(-1).numpy()) for i, head in enumerate(HEADS)}
        heads["global+fused"] = self.metrics(self.probabilities[:, [0, -1]].log().sum(1).argmax(-1).numpy())
        if glpc:
            heads["glpc"] = self.metrics(self.answers)
        right, labels, stages = self.answers == self.labels, torch.from_numpy(self.labels), {}
        for name, level in (("fused", 2), ("global", 1), ("sum", 0)):
            here = self.stages == level
            stages[name] = {"count": int(here.sum()), "correct": int((right & here).sum())}
        accuracy, macro_f1 = heads["fused"]["accuracy"], heads["fused"]["macro_f1"]

        def at(epoch: int, more: float) -> dict[str, Any]:
            return {"epoch": epoch, "accuracy": min(1.0, accuracy + more), "macro_f1": macro_f1 + more}

        held, people = home or self, [f"person-{i % 10}" for i in range(self.faces)]
        return {
            "dataset": self.dataset,
            "role": "source" if self.dataset == "raf-db" else "target",
            "source": "raf-db",
            "method": self.method,
            "registered": self.method,
            "seed": self.seed,
            "keys": {},
            "oracle_method": self.method == "gated",
            "folder": self.folder,
            "checkpoint": f"runs/demo/{self.folder}/best.ckpt",
            "stage": "adapt" if adapted else "source",
            "epoch": KEPT if adapted else EPOCHS,
            "selection": "infomax" if adapted else "source-val",
            "reads": ["target images"] if adapted else ["source validation labels"],
            "splits": ["test"],
            "expected": self.faces + 1,
            "found": self.faces,
            "scored": self.faces,
            "decision": "glpc" if glpc else "fused",
            "heads": heads,
            "stages": stages if glpc else None,
            "intervals": bootstrap(self.labels, self.answers, people if self.dataset == "jaffe" else None),
            "calibration": calibration(self.said, labels, held.said[::4], torch.from_numpy(held.labels[::4])),
            "oracle": {**at(7, 0.01), "intervals": None} if adapted else None,
            "rules": {"infomax": at(KEPT, 0), "last": at(EPOCHS, -0.02)} if adapted else {},
            "seconds": 30.0 + self.seed,
            "predictions": None if "/" in self.folder else f"predictions/{self.folder}--{self.dataset}.csv",
        }

    def pseudo(self, rng: np.random.Generator) -> dict[str, Any]:
        noise = rng.normal(size=(EPOCHS + 1, self.faces, 7)) * 0.4
        outputs = {
            epoch: torch.from_numpy(self.logits[-1] * (0.6 + 0.25 * epoch) + noise[epoch]).softmax(-1).float()
            for epoch in range(1, EPOCHS + 1)
        }
        epochs = json.loads(json.dumps(pseudo_label_counts(outputs, self.labels, 0.95), default=np.ndarray.tolist))
        about = {"target": self.dataset, "faces": self.faces, "labelled": self.faces}
        return {**about, "thresholds": list(THRESHOLDS), "epochs": epochs}

    def failure_cases(self) -> list[dict[str, Any]]:
        sure = self.said.max(-1).values.numpy()
        wrong = np.flatnonzero(self.answers != self.labels)
        entropy = (-(self.said * self.said.log()).sum(-1) / np.log(7)).numpy()
        chosen = {"mistakes": wrong[np.argsort(-sure[wrong])][:12], "uncertain": np.argsort(-entropy)[:12]}
        about = {"folder": self.folder, "dataset": self.dataset}
        return [
            {**about, "kind": kind, "faces": [self._case(int(i), float(sure[i]), float(entropy[i])) for i in rows]}
            for kind, rows in chosen.items()
        ]

    def _case(self, i: int, sure: float, entropy: float) -> dict[str, Any]:
        tops = self.probabilities[i].max(-1)
        return {
            "position": i,
            "id": f"KA.{EXPRESSIONS[self.labels[i]][:2].upper()}{i}.tiff",
            "label": EXPRESSIONS[self.labels[i]],
            "answer": EXPRESSIONS[self.answers[i]],
            "stage": ("sum", "global", "fused")[self.stages[i]],
            "confidence": sure,
            "entropy": entropy,
            "probabilities": self.said[i].tolist(),
            "votes": [
                {"head": head, "expression": EXPRESSIONS[answer], "probability": value}
                for head, answer, value in zip(HEADS, tops.indices.tolist(), tops.values.tolist(), strict=True)
            ],
        }


def _history(rng: np.random.Generator, losses: tuple[str, ...], rules: tuple[str, ...], kept: int) -> list[Any]:
    return [
        {
            "epoch": epoch,
            "losses": {name: float(2 / epoch**0.6 + 0.1 * rng.random()) for name in losses},
            "scores": {name: float(1 - 0.6 / epoch + 0.05 * rng.random()) for name in rules},
            "chosen": epoch == kept,
        }
        for epoch in range(1, EPOCHS + 1)
    ]


def _gap(rng: np.random.Generator, target: str, before: Answered, after: Answered) -> dict[str, Any]:
    """Both models' gap on at most 400 faces of a domain; distances and maps are made up."""
    models = []
    for one, shift, distance in ((before, 0.28, 1.4), (after, 0.05, 0.5)):
        labels = [rng.integers(0, 7, 400), one.labels[subsample(one.faces, 400)]]
        centres = 0.5 + 0.36 * np.stack([np.cos(np.arange(7) * 0.9), np.sin(np.arange(7) * 0.9)], 1)
        places = np.concatenate([centres[labels[0]], centres[labels[1]] * (1 - shift) + shift * 0.4])
        x, y = np.clip(places + rng.normal(size=places.shape) * 0.045, 0, 1).round(4).T.tolist()
        domain = [side for side, own in enumerate(labels) for _ in own]
        embedding = {"x": x, "y": y, "domain": domain, "label": np.concatenate(labels).tolist(), "perplexity": 30.0}
        found = {"a_distance": distance, "error": (2 - distance) / 4, "faces": [len(own) for own in labels]}
        models.append({"folder": one.folder, "method": one.method, **found, "embedding": embedding})
    return {"target": target, "source": "raf-db", "models": models}
