"""Exports a checkpoint to a file that runs without fercli: traces it, checks it against the model, then writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from fercli import console
from fercli.engine.trained import Trained
from fercli.errors import FercliError, SpecError
from fercli.evaluation.decision import STAGES
from fercli.export.card import Delivery, aligned_by, card
from fercli.export.check import TOLERANCE, Agreement, compare, samples
from fercli.export.formats import ENDINGS, onnx_bytes, onnx_runner, require_onnx, torch_bytes, torch_runner
from fercli.export.graph import deploy, require_torch, trace
from fercli.expressions import EXPRESSIONS
from fercli.files import is_stream, write_atomically
from fercli.models import HEADS
from fercli.output_files import Outputs
from fercli.version import __version__


class Exported(NamedTuple):
    """What was written.

    Attributes:
        path: the model file; `size`: its size in bytes.
        format: "onnx" or "torch"; `opset`: that of ONNX, None for torch.
        card: the model card, None beside a device or a FIFO; `card_kept`: whether an existing card was kept unchanged.
        agreement: how closely the file agrees with the model.
    """

    path: Path
    size: int
    format: str
    opset: int | None
    card: Path | None
    card_kept: bool
    agreement: Agreement


def default_name(trained: Trained, kind: str) -> Path:
    """Return RUN-TARGET.onnx (or .pt2) in the working folder; RUN-source for a source model."""
    tag = trained.spec.adapt.tag if trained.stage == "adapt" else ""
    parts = (trained.spec.name, trained.target or "source", tag)
    return Path("-".join(filter(None, parts)) + ENDINGS[kind])


def export(trained: Trained, kind: str, out: Path, opset: int, force: bool = False) -> Exported:
    """Export a trained model and write its card beside it (the file's name with ``.md``).

    Args:
        kind: a key of `fercli.export.formats.ENDINGS`.
        opset: the ONNX opset; ignored for torch.
        force: replace an existing file and card. Without it an existing card is kept, because it may have been edited.

    Raises:
        FercliError: the file exists or cannot be written, a package is missing or too old, the model cannot be
            exported, or the export differs from the model by more than `TOLERANCE`; in each case nothing is written.
        SpecError: the opset cannot be written, or `out` is the name of the card.
    """
    _check_place(out, trained, force)
    require_torch()
    if kind == "onnx":
        require_onnx(opset)
    deployed, given = deploy(trained), samples(trained)
    if given.dataset is None:
        console.say("no prepared faces for this model (paths.prepared): checking on procedural faces instead")
    console.say(f"tracing {trained.path} ...")
    crop_size = None if given.crops is None else given.crops.shape[2]
    program, about = trace(deployed, crop_size), metadata(trained, crop_size)
    if kind == "onnx":
        data = onnx_bytes(program, opset, {**about, "opset": str(opset)})
        run = onnx_runner(data)
    else:
        data = torch_bytes(program, about)
        run = torch_runner(data)
    agreement = compare(deployed, run, given)
    if not agreement.good:
        raise FercliError(
            f"{out} is not written: the export differs from the model by more than {TOLERANCE:g} ({agreement})",
            "try another --opset or --format",
        )
    _write(out, data)
    opset = opset if kind == "onnx" else None
    path = None if is_stream(out) else out.with_suffix(".md")
    kept = path is not None and path.exists() and not force
    if path is not None and not kept:
        delivery = Delivery(out.name, kind, opset, len(data), crop_size, str(agreement))
        _write(path, card(trained, delivery).encode())
    return Exported(out, len(data), kind, opset, path, kept, agreement)


def metadata(trained: Trained, crop_size: int | None) -> dict[str, str]:
    """Return the metadata stored in the file: text by name; lists are JSON."""
    spec, best = trained.spec, trained.state["best"]
    about = {
        "expressions": json.dumps(EXPRESSIONS),
        "heads": json.dumps(HEADS),
        "stages": json.dumps(STAGES),
        "rule": trained.rule.key,
        "size": str(spec.prepare.size),
        "landmarks": "image-left eye, image-right eye, nose tip, image-left and image-right mouth corner",
        "align": spec.prepare.align,
        "template": json.dumps(aligned_by(spec)),
        "source": json.dumps(spec.data.source),
        "target": trained.target or "",
        "method": trained.method,
        "backbone": spec.model.backbone,
        "epoch": str(best["epoch"]),
        "selection": best["rule"],
        "fercli": __version__,
    }
    if crop_size is not None:
        about |= {"crop_size": str(crop_size), "crop_zoom": f"{spec.prepare.crop_zoom:g}"}
    return about


def _check_place(out: Path, trained: Trained, force: bool) -> None:
    """Check before the work whether the file can be written."""
    if out.suffix == ".md":
        raise SpecError(
            f"--out {out} is the name of its model card", f"give another name, such as {out.with_suffix('.onnx').name}"
        )
    outputs = Outputs([trained.path], force)
    outputs.check("--out", out)
    if not is_stream(out):
        outputs.check("the model card", out.with_suffix(".md"), again=True)


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as problem:
        raise FercliError(
            f"cannot write {path}: {problem.strerror or problem}", "name another place with --out"
        ) from None
