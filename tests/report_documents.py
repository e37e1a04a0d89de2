"""Results documents with every section, as `fercli evaluate` writes them, of made-up answers on any number of faces."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fercli.evaluation.calibration import calibration
from fercli.evaluation.domain_gap import a_distance
from fercli.evaluation.intervals import bootstrap
from fercli.evaluation.metrics import confusion, scores
from fercli.evaluation.pseudo_labels import THRESHOLDS, pseudo_label_counts
from fercli.expressions import EXPRESSIONS
from fercli.faces import align
from fercli.report.headline_view import headline_row
from fercli.store import subsample
from fercli.synthetic.render import LAB, render

HEADS = ("global", "left-eye", "right-eye", "nose", "left-mouth", "right-mouth", "fused")

#: How well a head does beside the whole, in logits.
SKILL = (0.9, 0.45, 0.5, 0.3, 0.5, 0.45, 1.0)

EPOCHS, KEPT = 8, 6

PEOPLE = ("KA", "KL", "KM", "KR", "MK", "NA", "NM", "TM", "UY", "YM")

#: What an epoch of pseudo labels counts.
COUNTED = ("counts", "known", "correct")


def document(faces: int = 213, targets: tuple[str, ...] = ("jaffe",), seed: int = 0) -> dict[str, Any]:
    """A run of source raf-db, adapted to each target, with every section that a report has."""
    rng = np.random.default_rng(seed)
    home = Looked(rng, "raf-db", "source", 400, 3.6)
    looked = [home]
    for name in targets:
        looked += [Looked(rng, name, "source", faces, 1.5), Looked(rng, name, f"adapt-{name}", faces, 2.6)]
    entries = [one.entry(home) for one in looked]
    rows = [headline_row(entry) for entry in entries[1:]]
    bound = [{**row, "selection": "oracle", "oracle": True, "epoch": 7, "accuracy": min(1.0, row["accuracy"] + 0.02)}
             for row in rows if row["method"] != "source-only"]  # fmt: skip
    for row in bound:
        row["intervals"] = None
    return {
        "schema": 3,
        "title": "a demo of mine",
        "created": "2026-11-23T10:00:00+00:00",
        "synthetic": True,
        "expressions": list(EXPRESSIONS),
        "datasets": {
            "raf-db": {"synthetic": True, "role": "source"},
            **{name: {"synthetic": True, "role": "target"} for name in targets},
        },
        "table": sorted([*rows, *bound], key=lambda row: targets.index(row["target"])),
        "entries": entries,
        "history": {
            "source": _history(rng, ("source",), ("source-val",), 8),
            **{
                f"adapt-{name}": _history(rng, ("source", "adversarial", "pseudo"), ("source-val", "infomax"), KEPT)
                for name in targets
            },
        },
        "gaps": [_gap(rng, name, looked[1 + 2 * i], looked[2 + 2 * i]) for i, name in enumerate(targets)],
        "pseudo_labels": {one.folder: one.pseudo(rng) for one in looked if one.folder != "source"},
        "failure_cases": [case for one in looked if one.folder != "source" for case in one.failure_cases()],
        "published": [
            {
                "method": "AGRA",
                "backbone": "IR-50",
                "target": targets[0],
                "accuracy": 61.5,
                "citation": "Chen et al., TPAMI 2022",
                "selection": "oracle",
            }
        ],
        "spec": {"data": {"source": "raf-db"}, "adapt": {"epochs": EPOCHS, "parts": {"adversarial": True}}},
        "environment": {
            "fercli": "0.1.0",
            "python": "3.11.9",
            "torch": "2.15.0",
            "device": "cpu, 2 threads",
            "time_s": {"source": 88.1, **{f"adapt-{name}": 132.9 for name in targets}},
        },
    }


def of_photographs(results: dict[str, Any]) -> dict[str, Any]:
    """The same document as of real faces."""
    for about in (results, *results["datasets"].values()):
        about["synthetic"] = False
    return results


def pictures(results: dict[str, Any]) -> dict[tuple[str, str, int], Any]:
    """A picture of every failure case: a procedural face of its label, and heat at a place of its own."""
    shown = {}
    for one in results["failure_cases"]:
        for face in one["faces"]:
            label = EXPRESSIONS.index(face["label"]) if face["label"] else 6
            picture = _face(label, face["position"] % 12)
            heat = _heat(face["position"])
            shown[one["folder"], one["dataset"], face["position"]] = SimpleNamespace(**picture, heat=heat)
    return shown


@cache
def _face(label: int, person: int) -> dict[str, np.ndarray]:
    drawn = render(LAB, person, label, person)
    matrix = align.template_matrix(drawn.landmarks, 112, 0)
    return {"face": align.warp(drawn.image, matrix, 112), "landmarks": align.transform(matrix, drawn.landmarks)}


def _heat(seed: int) -> np.ndarray:
    x, y = np.random.default_rng(seed).uniform(1, 5, 2)
    across, down = np.meshgrid(np.arange(7), np.arange(7))
    heat = np.exp(-((across - x) ** 2 + (down - y) ** 2) / 3)
    return (heat / heat.max()).astype(np.float32)


class Looked:
    """A model's seven probabilities of each face of a dataset."""

    def __init__(self, rng: np.random.Generator, dataset: str, folder: str, faces: int, skill: float):
        self.dataset, self.folder, self.faces = dataset, folder, faces
        self.labels = rng.choice(7, faces, p=(0.15, 0.1, 0.12, 0.2, 0.15, 0.14, 0.14))
        self.logits = rng.normal(size=(7, faces, 7)) * 1.6
        for head, share in enumerate(SKILL):
            self.logits[head, np.arange(faces), self.labels] += skill * share
        self.probabilities = torch.from_numpy(self.logits).softmax(-1).permute(1, 0, 2)
        self.said = self.probabilities[:, -1]
        self.answers = self.said.argmax(-1).numpy()
        self.stages = np.digitize(self.said.max(-1).values, (0.5, 0.8))  # 0 sum, 1 global, 2 fused

    def metrics(self, answers: np.ndarray) -> dict[str, Any]:
        matrix = confusion(self.labels, answers)
        return {**scores(matrix), "confusion": matrix.tolist()}

    def entry(self, home: Looked) -> dict[str, Any]:
        adapted = self.folder != "source"
        subjects = [f"person-{i % 10}" for i in range(self.faces)] if self.dataset == "jaffe" else None
        stages = {
            name: {
                "count": int((self.stages == level).sum()),
                "correct": int(((self.answers == self.labels) & (self.stages == level)).sum()),
            }
            for name, level in (("fused", 2), ("global", 1), ("sum", 0))
        }
        return {
            "dataset": self.dataset,
            "role": "source" if self.dataset == home.dataset else "target",
            "source": home.dataset,
            "model": "aglrls" if adapted else "source-only",
            "stage": "adapt" if adapted else "source",
            "folder": self.folder,
            "checkpoint": f"runs/demo/{self.folder}/best.ckpt",
            "predictions": f"predictions/{self.folder}--{self.dataset}.csv",
            "epoch": KEPT if adapted else 8,
            "selection": {
                "rule": "infomax" if adapted else "source-val",
                "reads": ["target images"] if adapted else ["source validation labels"],
            },
            "oracle": False,
            "splits": ["test"],
            "counts": {"expected": self.faces + 1, "found": self.faces, "scored": self.faces},
            "heads": {head: self.metrics(self.probabilities[:, i].argmax(-1).numpy()) for i, head in enumerate(HEADS)},
            "decision": {
                "rule": "glpc" if adapted else "fused",
                "metrics": self.metrics(self.answers),
                "stages": stages if adapted else None,
            },
            "intervals": bootstrap(self.labels, self.answers, subjects),
            "calibration": calibration(
                self.said, torch.from_numpy(self.labels), home.said[::4], torch.from_numpy(home.labels[::4])
            ),
        }

    def pseudo(self, rng: np.random.Generator) -> dict[str, Any]:
        outputs = {
            epoch: torch.from_numpy(self.logits[-1] * (0.6 + 0.25 * epoch) + rng.normal(size=(self.faces, 7)) * 0.4)
            .softmax(-1)
            .float()
            for epoch in range(1, EPOCHS + 1)
        }
        return {
            "target": self.dataset,
            "faces": self.faces,
            "thresholds": list(THRESHOLDS),
            "labelled": self.faces,
            "epochs": [
                {
                    "epoch": epoch["epoch"],
                    **{key: {name: [int(n) for n in row] for name, row in epoch[key].items()} for key in COUNTED},
                }
                for epoch in pseudo_label_counts(outputs, self.labels, 0.95)
            ],
        }

    def failure_cases(self) -> list[dict[str, Any]]:
        sure = self.said.max(-1).values.numpy()
        wrong = np.flatnonzero(self.answers != self.labels)
        entropy = (-(self.said * self.said.log()).sum(-1) / np.log(7)).numpy()
        chosen = {"mistakes": wrong[np.argsort(-sure[wrong])][:12], "uncertain": np.argsort(-entropy)[:12]}
        return [
            {
                "folder": self.folder,
                "dataset": self.dataset,
                "kind": kind,
                "faces": [self._case(int(i), float(sure[i]), float(entropy[i])) for i in rows],
            }
            for kind, rows in chosen.items()
        ]

    def _case(self, i: int, sure: float, entropy: float) -> dict[str, Any]:
        tops = self.probabilities[i].max(-1)
        return {
            "position": i,
            "id": f"{PEOPLE[i % 10]}.{EXPRESSIONS[self.labels[i]][:2].upper()}{i}.tiff",
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


def _gap(rng: np.random.Generator, target: str, before: Looked, after: Looked) -> dict[str, Any]:
    """Both models' gap on at most 400 faces of a domain; the maps are clusters drawn by hand."""
    models = []
    for looked, shift in ((before, 0.28), (after, 0.05)):
        theirs = looked.labels[subsample(looked.faces, 400)]
        ours = rng.integers(0, 7, 400)
        centres = 0.5 + 0.36 * np.stack([np.cos(np.arange(7) * 0.9), np.sin(np.arange(7) * 0.9)], 1)
        places = np.concatenate([centres[ours], centres[theirs] * (1 - shift) + shift * 0.4])
        places = np.clip(places + rng.normal(size=places.shape) * 0.045, 0, 1).round(4)
        domain = [0] * len(ours) + [1] * len(theirs)
        features = np.concatenate([places * 6, rng.normal(size=(len(places), 4))], 1)
        features[:, 2] += 9 * shift * np.array(domain)
        found = a_distance(features[: len(ours)], features[len(ours) :])
        embedding = {"x": places[:, 0].tolist(), "y": places[:, 1].tolist(), "domain": domain, "perplexity": 30.0}
        embedding["label"] = [*ours.tolist(), *theirs.tolist()]
        model = "source-only" if looked is before else "aglrls"
        models.append({"folder": looked.folder, "model": model, **found, "embedding": embedding})
    return {"target": target, "source": "raf-db", "models": models}
