"""Checkpoints that the makers of AGLRLS, CGLRL and AGRA released, as trained models of ours.

Such a file holds weights, and at most an epoch and the learning status b. It does not say on which source it was
trained, to which target it was adapted, or how its faces were cut; and its classes are taken to be the benchmark's, in
its order, which is `fercli.expressions.EXPRESSIONS`.
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

#: What stands for the source that a file does not name.
UNKNOWN = "unknown"
#: Entries in which other people's files list their classes.
_LISTS = ("expressions", "classes", "class_names", "labels")


class Released(NamedTuple):
    """A released checkpoint.

    Attributes:
        title: whose it is: AGLRLS, AGLRLS/CGLRL where the file does not tell them apart, or AGRA.
        heads: those of `fercli.models.HEADS` that it has.
        state: what a checkpoint of ours would say of it (`fercli.engine.checkpoint.load`).
    """

    title: str
    heads: tuple[str, ...]
    state: dict[str, Any]


class _Kind(NamedTuple):
    """What kind of checkpoint it is: title, stage, the method whose answer it gives, decision, b, and who chose."""

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
        spec: says what the file does not: how faces are prepared and viewed.
        sources: what it was trained on, as the user knows it; none: not known.

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
            f"({description.title}) has no classifiers, so that there are no answers of it to score; "
            "train from it: --set model.weights=FILE"
        )
    if holder.get("classwise") is None:
        return _Kind("AGLRLS/CGLRL", method="cglrl")
    status = description.class_status
    if status is None or not bool(((status >= 0) & (status <= 1)).all()):
        raise ValueError("has a classwise (the learning status b) that is not 7 x 7 numbers from 0 to 1")
    # The source stage writes zeros for b, and no discriminators; it answers by single heads.
    if "ad_nets" in holder and holder["ad_nets"] is None and not status.any():
        return _Kind("AGLRLS, source stage", stage="source", rule=SOURCE_TEST)
    return _Kind("AGLRLS", method="aglrls", decision="glpc", status=status)


def _check_classes(weights: Weights) -> None:
    """Raise ValueError where the classes are not seven, or are listed in another order than ours."""
    fused = weights.beside.get("fc.weight")
    count = weights.description.architecture.classes
    if fused is not None and fused.ndim:
        count = fused.shape[0]
    if count is not None and count != len(EXPRESSIONS):
        raise ValueError(f"tells {count} classes apart, fercli's expressions are {len(EXPRESSIONS)}")
    for name in _LISTS:
        listed = weights.document.get(name)
        named = isinstance(listed, list | tuple) and listed and all(isinstance(one, str) for one in listed)
        if named and [one.casefold() for one in listed] != list(EXPRESSIONS):
            raise ValueError(
                f"lists its classes as {some(listed)} ({name}), not in the benchmark's order: {', '.join(EXPRESSIONS)}"
            )


def _network(weights: Weights) -> dict[str, Tensor]:
    """The state of our network, whole and in float32.

    Heads that the file does not have are zero: they answer all expressions alike, and nobody is shown what they say.
    """
    architecture = weights.description.architecture
    network = own_network(architecture)
    if network is None:
        raise ValueError(f"has {architecture.title}; scored are IR-50, IR-18 and the released code's own MobileNetV2")
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
    """The spec of such a model, as data: the network is the file's, it decides as released, the rest is the user's."""
    tree = json.loads(spec.model_dump_json())
    named = list(sources) or [UNKNOWN]
    targets = [name for name in spec.data.targets if name not in named]
    tree["data"] = {**tree["data"], "source": named, "targets": targets}
    tree["model"] = {**weights.description.architecture.model, "test_flip": spec.model.test_flip}
    tree["adapt"] = {} if method is None else {"method": method}
    if method == "aglrls":  # what answers where no probability counts: here the code that released it
        tree["adapt"]["options"] = {"glpc_empty_sum": AGLRLS.published_options["glpc_empty_sum"]}
    tree["sweep"] = None
    return json.loads(parse(tree).model_dump_json())
