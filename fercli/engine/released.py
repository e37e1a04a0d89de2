"""Checkpoints released by the authors of AGLRLS, CGLRL and AGRA, as trained models of fercli.

Such a file holds weights, and at most an epoch and the learning status b. It does not record its source, its target, or
how its faces were cut. Its classes are assumed to be the benchmark's, in the benchmark's order, which is
`fercli.expressions.EXPRESSIONS`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fercli.errors import FercliError
from fercli.evaluation.decision import FUSED
from fercli.expressions import EXPRESSIONS
from fercli.methods.aglrls import AGLRLS
from fercli.methods.agra_released import from_published
from fercli.models import HEADS
from fercli.models.reading import some
from fercli.models.weights import Weights, misfits, own_network
from fercli.spec import Spec, parse
from fercli.spec.registry import ORACLE, SOURCE_TEST

#: Placeholder for the source, which such a file does not name.
UNKNOWN = "unknown"
#: Entries in which other authors' files list their classes.
_LISTS = ("expressions", "classes", "class_names", "labels")


class Released(NamedTuple):
    """A released checkpoint.

    Attributes:
        title: the model's name: AGLRLS, AGRA, or AGLRLS/CGLRL if the file does not distinguish the two.
        heads: the heads of `fercli.models.HEADS` that it has.
        state: the equivalent of a fercli checkpoint (`fercli.engine.checkpoint.load`).
    """

    title: str
    heads: tuple[str, ...]
    state: dict[str, Any]


class _Kind(NamedTuple):
    """The kind of checkpoint: title, stage, method that makes its predictions, decision rule, b, selection rule."""

    title: str
    stage: str = "adapt"
    method: str | None = None
    decision: str = "fused"
    status: Tensor | None = None
    rule: str = ORACLE


def released(weights: Weights, spec: Spec, sources: Sequence[str] = ()) -> Released:
    """A released checkpoint as a trained model.

    Args:
        weights: the file.
        spec: provides what the file does not record: how faces are prepared and viewed.
        sources: the datasets it was trained on, if the user knows them; empty if not known.

    Raises:
        FercliError: it cannot be scored; one line says why.
    """
    path = weights.description.path
    try:
        kind = _kind(weights)
        _check_classes(weights)
        network = _network(weights)
        state = {
            "kind": "released",
            "stage": kind.stage,
            "method_name": kind.method,
            "decision": kind.decision,
            "status": kind.status,
            "best": {"epoch": weights.description.epoch, "score": None, "rule": kind.rule},
            "network": network,
            "spec": _spec(weights, spec, sources, kind.method),
        }
        if kind.method == "agra":
            state["method"] = from_published(weights.beside)
    except ValueError as problem:
        raise FercliError(f"{path} {problem}") from None
    return Released(kind.title, (HEADS[FUSED],) if kind.method == "agra" else HEADS, state)


def _kind(weights: Weights) -> _Kind:
    description, holder = weights.description, weights.document
    if description.kind == "agra":
        return _Kind("AGRA", method="agra")
    if description.kind != "aglrls" or not any(name.startswith("classifiers.") for name in weights.state):
        raise ValueError(
            f"({description.title}) has no classifiers, so it makes no predictions that could be scored; "
            "train from it: --set model.weights=FILE"
        )
    if holder.get("classwise") is None:
        return _Kind("AGLRLS/CGLRL", method="cglrl")
    status = description.class_status
    if status is None or not bool(((status >= 0) & (status <= 1)).all()):
        raise ValueError("has a classwise (the learning status b) that is not 7 x 7 numbers from 0 to 1")
    # The source stage writes zeros for b, and no discriminators; it predicts with single heads.
    if "ad_nets" in holder and holder["ad_nets"] is None and not status.any():
        return _Kind("AGLRLS, source stage", stage="source", rule=SOURCE_TEST)
    return _Kind("AGLRLS", method="aglrls", decision="glpc", status=status)


def _check_classes(weights: Weights) -> None:
    """Raise ValueError if there are not seven classes, or if they are listed in a different order from fercli's."""
    fused = weights.beside.get("fc.weight")
    count = weights.description.architecture.classes
    if fused is not None and fused.ndim:
        count = fused.shape[0]
    if count is not None and count != len(EXPRESSIONS):
        raise ValueError(f"has {count} classes, but fercli has {len(EXPRESSIONS)} expressions")
    for name in _LISTS:
        listed = weights.document.get(name)
        named = isinstance(listed, list | tuple) and listed and all(isinstance(one, str) for one in listed)
        if named and [one.casefold() for one in listed] != list(EXPRESSIONS):
            raise ValueError(
                f"lists its classes as {some(listed)} ({name}), not in the benchmark's order: {', '.join(EXPRESSIONS)}"
            )


def _network(weights: Weights) -> dict[str, Tensor]:
    """The complete state of fercli's network, in float32.

    Heads that the file does not have are zero: they predict all expressions equally, and their output is never shown.
    """
    architecture = weights.description.architecture
    network = own_network(architecture)
    if network is None:
        raise ValueError(
            f"has {architecture.title}; only IR-50, IR-18 and the released code's own MobileNetV2 can be scored"
        )
    problems = misfits(weights, network)
    if problems:
        raise ValueError(f"is not {weights.description.title.split()[0]} as released: {'; '.join(map(str, problems))}")
    return {
        name: weights.state[name].detach().to(due.dtype)
        if name in weights.state
        else torch.zeros(due.shape).to(due.dtype)
        for name, due in network.state_dict().items()
    }


def _spec(weights: Weights, spec: Spec, sources: Sequence[str], method: str | None) -> dict[str, Any]:
    """The spec of such a model, as data: the file's network, the released decision rule, the user's other settings."""
    tree = json.loads(spec.model_dump_json())
    named = list(sources) or [UNKNOWN]
    targets = [name for name in spec.data.targets if name not in named]
    tree["data"] = {**tree["data"], "source": named, "targets": targets}
    tree["model"] = {**weights.description.architecture.model, "test_flip": spec.model.test_flip}
    tree["adapt"] = {} if method is None else {"method": method}
    if method == "aglrls":  # the prediction where no probability counts: as in the released code
        tree["adapt"]["options"] = {"glpc_empty_sum": AGLRLS.published_options["glpc_empty_sum"]}
    tree["sweep"] = None
    return json.loads(parse(tree).model_dump_json())
