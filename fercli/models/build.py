"""Builds the network of a run spec's ``model`` section, with its initial weights."""

from __future__ import annotations

from fercli.models.backbones import build_backbone
from fercli.models.global_local import GlobalLocal
from fercli.models.weights import load_weights
from fercli.spec import Model


def build_network(spec: Model) -> GlobalLocal:
    """Build the network that the run spec's ``model`` section describes, and load the weights it names, if any.

    Raises:
        FercliError: the weights cannot be read or do not fit (see `fercli.models.weights.load_weights`).
    """
    backbone = build_backbone(spec.backbone, spec.width)
    network = GlobalLocal(backbone, spec.local, spec.classifiers, spec.input, spec.test_flip, spec.first_weights)
    if spec.weights is not None:
        load_weights(network, spec.weights)
    return network
