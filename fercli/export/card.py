"""The model card: how a model was made, how to use it, and what not to use it for. Markdown, to be edited."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from fercli.datasets import READERS
from fercli.engine.data import open_store
from fercli.engine.trained import Trained
from fercli.errors import FercliError
from fercli.evaluation.decision import STAGES
from fercli.export.snippets import preparing, using
from fercli.expressions import EXPRESSIONS
from fercli.models import HEADS
from fercli.models.backbones import LIGHT
from fercli.spec import Spec
from fercli.spec.registry import RULES
from fercli.starter import NAME, starter_facts
from fercli.version import __version__

_RULES = {
    "fused": "the fused head's most probable expression",
    "global+fused": "the largest sum of the global and the fused head's logits (CGLRL, Xie et al., ICPR 2022)",
    "glpc": "global-local prediction consistency (AGLRLS, Gao et al., IEEE TMM 2024, arXiv 2401.11085), with its class "
    "status included",
}

LIMITS = """\
- **People.** Models of this kind do worse on people unlike those in their training data: other ages, skin tones,
  cultures and sexes (Xu et al., ECCV Workshops 2020). They also do worse on faces with glasses, masks, make-up,
  paralysis or surgery. Fear, disgust and anger, the rarest in most datasets, are missed most often. Faces at rest may
  be predicted as sad or angry. A model adapted to a target fits that target's people and cameras, and may do worse
  elsewhere.
- **Images.** It does worse on turned heads, on small, blurred, dark or partly hidden faces, and on faces aligned in
  another way than described above.
- **An expression is not a feeling.** What a face shows says little about what a person feels or intends (Barrett et
  al., Psychological Science in the Public Interest, 2019). Seven classes leave no room for mixed or other expressions.
  The model always predicts one of them, however low its confidence.
- **Probabilities** are the network's own and not calibrated; they are often too high.
- **Labels** of such datasets are the opinions of a few people, and some are wrong."""

NOT_FOR = """\
Decisions about anyone's job, schooling, credit, insurance, health, liberty or borders; judging honesty, intent or
character; watching people who have not agreed to it. In the European Union, inferring emotions at work and in
education is prohibited, except for medical or safety reasons (Regulation (EU) 2024/1689, article 5 (1) f)."""


class Delivery(NamedTuple):
    """The file that a card describes: its name, format ("onnx", "torch"), opset, bytes, C of the crops that it reads
    (or None), and the result of the check against the model."""

    name: str
    format: str
    opset: int | None
    size: int
    crop_size: int | None
    check: str


def card(trained: Trained, file: Delivery) -> str:
    """Return the model card as Markdown; reads the run's stores and its report if they exist."""
    spec = trained.spec
    about = f"adapted to {trained.target} by {trained.method}" if trained.target else "not adapted"
    parts = [
        f"# Model card: {_plain(spec.name)}, {'+'.join(map(_plain, spec.data.source))}, {_plain(about)}",
        f"Written by fercli {__version__} with `{file.name}`. It may be edited: `fercli export` keeps an existing card "
        "unless --force is given.",
        "## What it is\n\n"
        f"A classifier of seven facial expressions: one aligned face in, one prediction out. {_file(file)} It includes "
        "normalisation, network and decision rule, but does not find or align faces.\n\n"
        f"Compared with the trained model at export: {file.check}.",
        f"## How it was trained\n\n{_training(trained)}",
        f"## Data and its terms\n\n{_data(trained)}",
        "## Labels\n\n" + ", ".join(f"{number} {name}" for number, name in enumerate(EXPRESSIONS)),
        f"## Inputs\n\n{_inputs(spec.prepare.size, file.crop_size)}",
        f"## Outputs\n\n{_outputs(trained)}",
        f"## How to get the aligned face\n\n{_alignment(spec)}\n\n{_code(preparing(spec, file.crop_size))}",
        f"## Use\n\n{_code(using(file.name, file.format, file.crop_size))}",
        f"## Figures\n\n{_figures(trained)}",
        "## Intended use\n\nResearch on facial expressions and on domain adaptation, and tools whose users know of it "
        "and agree to it, where a wrong prediction does no harm. Test it on your own people and cameras first.",
        f"## Limits\n\n{LIMITS}",
        f"## Do not use it for\n\n{NOT_FOR}",
    ]
    return "\n\n".join(parts) + "\n"


def aligned_by(spec: Spec) -> list[list[float]] | None:
    """Return the five template points [x, y] in pixels of the face; None if faces are cut by their box."""
    if spec.prepare.align != "template":
        return None
    from fercli.faces.align import template

    return template(spec.prepare.size, 0).round(4).tolist()


def _file(file: Delivery) -> str:
    size = f"{file.size / 1e6:.1f} MB"
    if file.format == "onnx":
        return f"`{file.name}` is ONNX, opset {file.opset}, {size} in one file, for batches of any size."
    return f"`{file.name}` is a torch.export program for the CPU, {size}, for batches of any size."


def _training(trained: Trained) -> str:
    spec, best = trained.spec, trained.state["best"]
    reads = RULES[best["rule"]].reads if best["rule"] in RULES else ()
    weights = spec.model.weights
    local = "windows of the feature map" if spec.model.local == "feature-map" else "crops of the image"
    width = f", width {spec.model.width}" if spec.model.backbone in LIGHT else ""
    oracle = trained.kind.oracle
    rows = [
        ("source (labelled)", ", ".join(spec.data.source)),
        ("target (unlabelled)", trained.target or "none"),
        (
            "method",
            trained.method + (": it used the target's labels; an upper bound, not a result" * oracle),
        ),
        ("network", f"global-local, backbone {spec.model.backbone}{width}, {local}"),
        (
            "initial weights",
            "random" if weights is None else f"{weights.name}, given as model.weights: see its own terms",
        ),
        ("epoch", f"{best['epoch']}, chosen by {best['rule']} (reads {', '.join(reads) or 'nothing'})"),
        ("decision rule", f"{trained.rule.key}: {_RULES[trained.rule.key]}"),
        ("trained by", f"fercli {trained.state.get('fercli', '?')}"),
    ]
    return _table(("", ""), rows)


def _data(trained: Trained) -> str:
    spec, rows, drawn = trained.spec, [], False
    roles = [(name, "source") for name in spec.data.source]
    for name, role in roles + ([(trained.target, "target")] if trained.target else []):
        given = spec.data.datasets.get(name)
        reader = READERS.get((given.reader if given else None) or name)
        card = reader.card if reader else None
        what, terms = (card.about, card.licence) if card else ("unknown", "check the terms")
        count = "unknown"
        try:
            store = open_store(spec, name, labels=False, as_aligned=False)
            count = f"{len(store.indices(store.adapt_splits)):,}"
            if store.synthetic:
                drawn, what, terms = True, "procedural faces in its layout †", "drawn by fercli: no photographs"
        except FercliError:
            pass  # the card states that the number is unknown
        rows.append((name, role, count, what, terms))
    said = _table(("dataset", "role", "faces trained on", "what", "terms"), rows)
    if drawn:
        said += "\n\n† Synthetic, drawn by fercli: its figures say nothing about photographs."
    return said + (
        "\n\nThe terms are pointers, not legal advice. The signed agreement counts; it may also cover models trained "
        "on the data and their weights. `fercli datasets show NAME` says where to ask."
    )


def _inputs(size: int, crop_size: int | None) -> str:
    rows = [
        ("`faces`", "uint8", f"[batch, {size}, {size}, 3]", "aligned face, RGB, 0 to 255"),
        (
            "`landmarks`",
            "float32",
            "[batch, 5, 2]",
            "(x, y) in pixels of that face, with pixel centres at integers: eye, eye, nose tip, mouth corner, mouth "
            "corner, each pair from left to right as seen in the image",
        ),
    ]
    if crop_size is not None:
        shape = f"[batch, 5, {crop_size}, {crop_size}, 3]"
        rows.append(("`crops`", "uint8", shape, "local crops around the landmarks, RGB, 0 to 255"))
    return _table(("name", "type", "shape", "what"), rows)


def _outputs(trained: Trained) -> str:
    stages = ", ".join(f"{number} {name}" for number, name in enumerate(STAGES))
    stage = f"which stage of GLPC decided: {stages}" if trained.rule.key == "glpc" else "0: this rule has one stage"
    rows = [
        ("`answer`", "int64", "[batch]", "0 to 6, the expression (Labels)"),
        (
            "`probabilities`",
            "float32",
            "[batch, 7]",
            "0 to 1, of the decision; they sum to one, and that of `answer` is the largest",
        ),
        ("`stage`", "int64", "[batch]", stage),
        ("`heads`", "float32", "[batch, 7, 7]", f"0 to 1, each head's probabilities; heads: {', '.join(HEADS)}"),
    ]
    return _table(("name", "type", "shape", "what"), rows)


def _alignment(spec: Spec) -> str:
    size = spec.prepare.size
    points = aligned_by(spec)
    if points is None:
        return (
            "The face's box is widened by a tenth of its width and height at each end and clipped to the image. It is "
            f"resized to {size} x {size} pixels with Pillow's bilinear filter, without rotation and regardless of its "
            "aspect ratio. If the data have no box, one around five landmarks is used; for images that are cut-out "
            "faces, it is the whole image."
        )
    shown = ", ".join(f"({x:g}, {y:g})" for x, y in points)
    return (
        "Five landmarks are found in the image. The similarity transform (rotation, scale, translation) with the least "
        f"squared error maps them to {shown} in the {size} x {size} pixels; bilinear, with the border replicated. The "
        "`landmarks` input of the model is their transformed positions, not these template points."
    )


def _figures(trained: Trained) -> str:
    path = trained.folder.parent / "report" / "results.json"
    try:
        results = starter_facts() if trained.is_starter else json.loads(path.read_text(encoding="utf-8"))
        rows = [_figure(results, entry) for entry in results["entries"] if _is_of(entry, trained)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        rows = []
    if not rows:
        return "This model has not been evaluated. Run `fercli evaluate --report`, then export again with --force."
    said = _table(("tested on", "faces", "accuracy %", "macro F1 %"), rows)
    if trained.is_starter:
        said += f"\n\nThe starter model has its own, more detailed card: `fercli weights inspect {NAME}`."
    said += "\n\nComputed by `fercli evaluate`. Brackets: 95% intervals, where computed."
    return said + ("\n\n† Synthetic: procedural faces." if any("†" in row[0] for row in rows) else "")


def _is_of(entry: dict[str, Any], trained: Trained) -> bool:
    """Return whether a result belongs to this model: to its folder and its epoch."""
    if entry["epoch"] != trained.state["best"]["epoch"]:
        return False
    if "folder" in entry:
        return entry["folder"] == trained.folder.name
    return (
        entry["stage"] == trained.stage
        and entry["method"] == trained.method
        and (trained.target in (None, entry["dataset"]))
    )


def _figure(results: dict[str, Any], entry: dict[str, Any]) -> tuple[str, ...]:
    metrics, intervals = entry["heads"][entry["decision"]], entry.get("intervals")
    mark = " †" if results["datasets"][entry["dataset"]]["synthetic"] else ""
    shown = []
    for name in ("accuracy", "macro_f1"):
        value = metrics and metrics[name]
        text = "not defined" if value is None else f"{100 * value:.2f}"
        if value is not None and intervals and intervals.get(name):
            low, high = intervals[name]
            text += f" [{100 * low:.2f}, {100 * high:.2f}]"
        shown.append(text)
    return entry["dataset"] + mark, f"{entry['scored']} of {entry['expected']}", *shown


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_plain(str(cell)) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Escape a name, which may contain anything, so that it neither ends a table cell nor acts as markup."""
    text = " ".join(text.split()).replace("|", "\\|")
    return text.replace("<", "&lt;")


def _code(text: str) -> str:
    return f"```python\n{text}```"
