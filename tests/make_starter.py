"""Makes the packaged starter model from a trained run: file, figures, card, and the predictions that tests check.

    python tests/make_starter.py runs/starter/source -c configs/starter.yaml --target fer2013 --target wild-mini

writes, from the root of a checkout with fercli installed:

- ``fercli/starter/starter.safetensors``, the model as float16 (at most 6 MB);
- ``fercli/starter/facts.json``: its figures on the prepared stores of the targets (and on the source's test part, if
  the source is named), by `fercli.scoring.evaluate.evaluate_model`, and how it was trained;
- ``fercli/starter/CARD.md``, rendered from ``tests/starter-card.md.j2``; no figure in it is written by hand;
- ``tests/fixtures/starter_answers.json``: its predictions for procedural faces.

``--card`` writes the card again after a change of its text; ``--answers`` records the predictions again.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import jinja2
import numpy as np
import torch

from fercli.cli.weights_view import examine
from fercli.engine.data import view_settings
from fercli.engine.trained import Trained, find_trained
from fercli.errors import FercliError
from fercli.export.card import LIMITS, NOT_FOR
from fercli.export.check import drawn
from fercli.export.weights import export, find_checkpoint
from fercli.expressions import EXPRESSIONS
from fercli.loading.augment import plain_view
from fercli.predict.recognizer import Recognizer
from fercli.scoring.evaluate import evaluate_model
from fercli.spec import load
from fercli.starter import CARD, FACTS, FILE, starter_facts, starter_hash
from fercli.synthetic.render import LAB, STUDIO, render

ANSWERS = Path(__file__).parent / "fixtures" / "starter_answers.json"
#: Maximum size of the file in bytes.
MOST = 6_000_000


def facts_of(results: dict[str, Any], trained: Trained, stage: Path) -> dict[str, Any]:
    """The figures of a results document that the card shows, and how the model was trained (`stage` is its folder)."""
    spec, best = trained.spec, trained.state["best"]
    made = json.loads((stage / "environment.json").read_text(encoding="utf-8"))
    kept = ("dataset", "role", "epoch", "folder", "splits", "expected", "found", "scored", "decision")
    entries = [
        {
            **{key: entry[key] for key in kept},
            "heads": {entry["decision"]: entry["heads"][entry["decision"]]},
            **{key: entry[key] for key in ("intervals", "calibration")},
        }
        for entry in results["entries"]
    ]
    for entry in entries:
        found = entry["calibration"]
        if found is not None:  # without the bins, which would fill a page
            parts = {when: {key: found[when][key] for key in ("ece", "nll")} for when in ("before", "after")}
            entry["calibration"] = {**found, **parts}
    return {
        "synthetic": results["synthetic"],
        "sources": spec.data.source,
        "datasets": results["datasets"],
        "trained": {
            "fercli": trained.state["fercli"],
            "command": f"fercli train-source -c {spec.name}",
            "seed": spec.engine.seed,
            "device": made["device"],
            "seconds": seconds_of(stage, made["outcome"]["seconds"]),
            "steps": trained.state["step"],
            "epoch": best["epoch"],
            "selection": best["rule"],
            "score": best["score"],
            "validation": spec.data.validation,
        },
        "entries": entries,
    }


def seconds_of(stage: Path, last: float) -> float:
    """Total training time in seconds. A run that was stopped and resumed has a TensorBoard file for each part. The file
    is named by the part's start and last written at its end. The outcome in the run folder is that of the `last` part.
    """
    parts = [file.stat().st_mtime - int(file.name.split(".")[3]) for file in stage.glob("events.out.tfevents.*")]
    return max(last, sum(parts))


def card_of(facts: dict[str, Any]) -> str:
    """The card of the packaged file, as Markdown."""
    found, trained = examine(str(FILE), None), find_trained(FILE)
    spec = trained.spec
    room = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return room.get_template("starter-card.md.j2").render(
        **facts,
        sha256=starter_hash(),
        bytes=FILE.stat().st_size,
        expressions=EXPRESSIONS,
        architecture=found.description.architecture,
        parameters=found.description.parameters,
        mflop=found.mflop,
        size=spec.prepare.size,
        decision=trained.decision,
        first_weights="random weights" if spec.model.weights is None else spec.model.weights,
        scores=[_score(facts, entry) for entry in facts["entries"]],
        limits=LIMITS,
        not_for=NOT_FOR,
    )


def _score(facts: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    metrics, drawn_too = entry["heads"][entry["decision"]], facts["datasets"][entry["dataset"]]
    per, matrix = metrics["per_expression"], np.array(metrics["confusion"])
    of_listed = np.trace(matrix) / (entry["expected"] - entry["found"] + entry["scored"])
    recalls = {one["expression"]: one["recall"] for one in per if one["recall"] is not None}
    wrong = matrix * (1 - np.eye(len(EXPRESSIONS), dtype=int))
    pairs = [np.unravel_index(place, wrong.shape) for place in wrong.ravel().argsort()[::-1][:3]]
    worst = sorted(recalls, key=recalls.get)[:2]
    misread = f"{' and '.join(worst)} are missed most often" if wrong.any() else ""
    said = [f"{EXPRESSIONS[a]} for {EXPRESSIONS[b]} ({wrong[a, b]})" for a, b in pairs if wrong[a, b]]
    return {
        "dataset": entry["dataset"] + (" †" if drawn_too["synthetic"] else ""),
        "synthetic": drawn_too["synthetic"],
        "part": ", ".join(entry["splits"]),
        "faces": f"{entry['scored']:,} of {entry['expected']:,}",
        **{name: _with_interval(entry, name) for name in ("accuracy", "macro_f1", "mean_recall")},
        "of_listed": _percent(of_listed),
        "ece": _percent(entry["calibration"]["before"]["ece"]),
        "recalls": [_percent(recalls.get(name)) for name in EXPRESSIONS],
        "misread": misread + (f"; it takes {', '.join(said)}" if said else ""),
    }


def _with_interval(entry: dict[str, Any], name: str) -> str:
    ends = (entry["intervals"] or {}).get(name)
    text = _percent(entry["heads"][entry["decision"]][name])
    return text if not ends else f"{text} [{_percent(ends[0])}, {_percent(ends[1])}]"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


@torch.inference_mode()
def answers_of(trained: Trained) -> dict[str, Any]:
    """A model's predictions for fixed procedural faces.

    ``cut``: float [14, 7], the decision's probabilities for faces cut by their true landmarks, independent of any
    detector. ``pictures``: predictions and their probabilities for whole images, two in each domain.
    """
    cpu, settings, given = torch.device("cpu"), view_settings(trained.spec), drawn(trained.spec)
    output = trained.network(cpu)(*plain_view(given.faces, given.landmarks, given.crops, settings).inputs)
    output_transform = trained.output_transform(cpu)
    heads = (output if output_transform is None else output_transform(output)).logits.float().softmax(-1)
    recognizer, pictures = Recognizer.of(trained, "cpu"), []
    for domain in (STUDIO, LAB):
        for number in range(2):
            faces = recognizer(render(domain, 30 + number, 3 * number + 3, 7).image)
            pictures.append([{"expression": f.expression, "probabilities": f.probabilities.tolist()} for f in faces])
    return {"cut": trained.rule(heads).probabilities.tolist(), "pictures": pictures}


@click.command()
@click.argument("run", required=False)
@click.option("-c", "--spec", "spec_file", help="Spec whose paths.prepared holds the targets' stores.")
@click.option("--set", "overrides", multiple=True)
@click.option("--target", "targets", multiple=True, help="Prepared dataset to score on; may be the source.")
@click.option("--card", "card_alone", is_flag=True, help="Only write the card again.")
@click.option("--answers", "answers_alone", is_flag=True, help="Only record the predictions again.")
def main(run, spec_file, overrides, targets, card_alone, answers_alone) -> None:
    """Make the packaged starter model from RUN, a stage folder."""
    if not (card_alone or answers_alone):
        if not (run and targets):
            raise click.UsageError("give RUN (a stage folder) and --target, or --card or --answers")
        checkpoint = find_checkpoint(Path(run))
        with tempfile.TemporaryDirectory() as room:
            made = Path(room) / FILE.name
            export(checkpoint, made, "fercli", half=True)
            if made.stat().st_size > MOST:
                raise FercliError(f"the model has {made.stat().st_size:,} bytes; the package may hold {MOST:,} at most")
            trained, spec = find_trained(made), load(spec_file, (*overrides, f"paths.runs={room}"))
            results, _ = evaluate_model(spec, trained, targets)
            facts = facts_of(results, trained, checkpoint.parent)
            FILE.write_bytes(made.read_bytes())
        FACTS.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if not answers_alone:
        CARD.write_text(card_of(starter_facts()), encoding="utf-8")
    if not card_alone:
        ANSWERS.write_text(json.dumps(answers_of(find_trained(FILE)), indent=1) + "\n", encoding="utf-8")
    click.echo(f"{FILE}: {FILE.stat().st_size:,} bytes, SHA-256 {starter_hash()}; card, figures and answers written")


if __name__ == "__main__":
    main()
