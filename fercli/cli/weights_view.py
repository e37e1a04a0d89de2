"""The examination and the output of `fercli weights inspect`."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text
from torch.utils.flop_counter import FlopCounterMode

from fercli import console
from fercli.errors import FercliError
from fercli.expressions import EXPRESSIONS
from fercli.models import HEADS, GlobalLocal
from fercli.models.kinds import Description
from fercli.models.reading import shown
from fercli.models.weights import Misfit, Weights, empty_network, first_weights, misfits, own_network, read_weights
from fercli.spec import Spec, parse_recorded
from fercli.starter import is_starter, starter_card, starter_facts, starter_hash


@dataclass(frozen=True)
class Found:
    """The findings about a file.

    Attributes:
        description: the file's contents.
        fills: parts of fercli's network that it has tensors for.
        own_misfits: mismatches with the network it appears to be made from; None if fercli builds no such network.
        first_weights: parts of that network (or the spec's, if given) that keep their initial weights.
        spec: the name of the spec, if given.
        spec_misfits: mismatches with the spec's network; None if no spec was given.
        mflop: millions of operations for one face, a multiply-add counted as two; None if fercli builds no such
            network.
        starter: for the model that comes with fercli, its SHA-256 (``sha256``), the card's figures (``facts``) and the
            ``card``; None for any other file.
    """

    description: Description
    fills: list[str]
    own_misfits: list[Misfit] | None
    first_weights: list[str]
    spec: str | None = None
    spec_misfits: list[Misfit] | None = None
    mflop: float | None = None
    starter: dict[str, Any] | None = None


def examine(file: str, spec: Spec | None) -> Found:
    """Read a file and compare it with its own architecture's network and the spec's; raises as `read_weights`.

    Args:
        file: the file, or ``starter``.
        spec: the spec whose network it should fit, or None.
    """
    weights = read_weights(file)
    own = own_network(weights.description.architecture)
    asked = None if spec is None else empty_network(spec.model)
    network = asked if asked is not None else own
    return Found(
        weights.description,
        [part for part in weights.description.parts if any(key.startswith(f"{part}.") for key in weights.state)],
        None if own is None else misfits(weights, own),
        [] if network is None else first_weights(weights.description, network),
        None if spec is None else spec.name,
        None if asked is None else misfits(weights, asked),
        None if own is None else _mflop(weights, own),
        {"sha256": starter_hash(), "facts": starter_facts(), "card": starter_card()} if is_starter(file) else None,
    )


def _mflop(weights: Weights, network: GlobalLocal) -> float:
    """Return the MFLOP per face of the network in the file's own spec, or else of its architecture's network."""
    size, crop = 112, 48
    with suppress(FercliError, KeyError):
        spec = parse_recorded(weights.document["spec"])
        network, size, crop = empty_network(spec.model), spec.prepare.size, spec.prepare.crop_size
    face = torch.empty(1, 3, size, size), torch.empty(1, 5, 2), torch.empty(1, 5, 3, crop, crop)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(*(part.to("meta") for part in face))
    return counter.get_total_flops() / 1e6


def document_of(found: Found) -> dict[str, Any]:
    """Return the findings for ``--json``."""
    it = found.description
    return {
        "file": str(it.path),
        "kind": it.kind,
        "title": it.title,
        "architecture": {**asdict(it.architecture), "title": it.architecture.title, "model": it.architecture.model},
        "tensors": it.tensors,
        "parameters": it.parameters,
        "mflop": found.mflop,
        "epoch": it.epoch,
        "record": dict(it.record or {}),
        "fills": found.fills,
        "first_weights": found.first_weights,
        "left_over": [entry._asdict() for entry in it.left_over],
        "misfits": None if found.own_misfits is None else [entry._asdict() for entry in found.own_misfits],
        "spec": None
        if found.spec_misfits is None
        else {
            "name": found.spec,
            "fits": not found.spec_misfits,
            "misfits": [entry._asdict() for entry in found.spec_misfits],
        },
        "class_status": None if it.class_status is None else it.class_status.tolist(),
        **({} if found.starter is None else {"starter": found.starter}),
    }


def show(found: Found) -> None:
    """Print on stdout, unless silent: a file's table, its learning status b if any, and the starter's card."""
    if console.silent():
        return
    it = found.description
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2), pad_edge=True)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for word, text in _rows(found):
        table.add_row(word, Text(text))
    console.show(Text(str(it.path), "bold").append(f"  {it.title}", "default"), table)
    if it.class_status is not None:
        rows = [[head, *(f"{value:.2f}" for value in row)] for head, row in zip(HEADS, it.class_status, strict=True)]
        console.table("  learning status b", ["head", *EXPRESSIONS], rows)
    console.show("")
    if found.starter is not None:
        # Markdown is rendered only on a terminal: a pipe receives the source text.
        text = found.starter["card"]
        console.show(Markdown(text) if sys.stdout.isatty() else Text(text))


def _rows(found: Found) -> list[tuple[str, str]]:
    """Return the table's rows, each a word and a text."""
    it, record = found.description, found.description.record or {}
    cost = "" if found.mflop is None else f"; {found.mflop:,.1f} MFLOP per face (a multiply-add counts as two)"
    size = f"{it.parameters:,} parameters; {it.tensors} tensors{cost}"
    rows = [("network", str(it.architecture)), ("size", size)]
    if record:
        rows.append(("trained", _trained(record, it.epoch)))
    elif it.epoch is not None:
        rows.append(("epoch", str(it.epoch)))
    rows.append(("fills", ", ".join(found.fills) or "nothing"))
    rows.append(("initial weights", ", ".join(found.first_weights) or "none"))
    if found.own_misfits is None:
        rows.append(("complete", "unknown: fercli cannot build this network"))
    else:
        rows += _misfit_rows("complete", found.own_misfits, "yes", "no")
    for entry in it.left_over:
        count = "" if entry.tensors is None else f" ({entry.tensors} tensor{'s' if entry.tensors > 1 else ''})"
        rows.append(("unused", f"{entry.name}{count}: {entry.why}"))
    if found.spec_misfits is not None:
        rows += _misfit_rows("spec", found.spec_misfits, f"fits {found.spec}", f"does not fit {found.spec}")
    return rows


def _trained(record: dict[str, Any], epoch: int | None) -> str:
    """Return a fercli checkpoint's training record as one line; missing keys are left out."""
    sources = "+".join(record.get("source", []))
    way = f"{sources} -> {record['target']}" if "target" in record else sources
    method = " ".join(dict.fromkeys(str(record[key]) for key in ("method", "tag") if key in record))
    said = [f"run {record['run']}"] if "run" in record else []
    said += [f"{record['stage']} stage"] if "stage" in record else []
    said += [text for text in (f"{method} {way}".strip(),) if text]
    said += [] if epoch is None else [f"epoch {epoch}"]
    if "selection" in record:
        score = record.get("score")
        said.append(f"chosen by {record['selection']}" + ("" if score is None else f" ({score:.4g})"))
    said += [f"decision rule {record['decision']}"] if "decision" in record else []
    said += [f"fercli {record['fercli']}"] if "fercli" in record else []
    return ", ".join(said) or "not recorded in the file"


def _misfit_rows(word: str, found: list[Misfit], yes: str, no: str) -> list[tuple[str, str]]:
    """Return one row, or a row for each mismatch with all its names."""
    if not found:
        return [(word, yes)]
    texts = [f"{len(it.names)} {it.what}: {', '.join(map(shown, it.names))}" if it.names else it.what for it in found]
    return [(word, f"{no}: {texts[0]}"), *(("", text) for text in texts[1:])]
