"""Released AGRA checkpoints: converts their tensors to the state of our `fercli.methods.agra.AGRA`.

All facts are from the authors' code (github.com/HCPLab-SYSU/CD-FER-Benchmark): AGRA/Model.py, VGG.py and
GraphConvolutionNetwork.py at commit 7385d33, CADA/TransferToTargetDomain.py at d825cb8.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fercli.expressions import NUM_EXPRESSIONS
from fercli.methods.agra import AGRA, SOURCE, TARGET
from fercli.methods.graph import inter_edges, intra_edges, row_normalised
from fercli.models import FEATURE_SIZE
from fercli.models.weights import unfit
from fercli.spec import Adapt

#: Name prefixes of the released code and ours.
_PUBLISHED = (
    ("SourceBN.", f"norms.{SOURCE}."),
    ("TargetBN.", f"norms.{TARGET}."),
    ("GCN.IntraAdjMatrix", "graphs.intra"),
    ("GCN.InterAdjMatrix", "graphs.inter"),
    ("GCN.IntraGCN_1.FC.", "graphs.intra_layers.0.linear."),
    ("GCN.IntraGCN_2.FC.", "graphs.intra_layers.1.linear."),
    ("GCN.InterGCN.FC.", "graphs.inter_layer.linear."),
    ("SourceMean.running_mean", f"means.{SOURCE}.means"),
    ("TargetMean.running_mean", f"means.{TARGET}.means"),
    ("fc.", "classifier."),
    ("loc_fc.", "local_classifier."),
)
#: The released mask of the edges across the domains; it equals `fercli.methods.graph.inter_edges` > 0.
_MASK = "GCN.InterMaskMatrix"
_COUNT = "num_batches_tracked"
#: The other tensors of the means: counters, and a covariance that is only read in training.
_OF_TRAINING = tuple(f"{domain}Mean.{name}" for domain in ("Source", "Target") for name in (_COUNT, "running_cov"))


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of an `AGRA` that predicts as a released checkpoint does.

    For a prediction, the released code takes a target face's source nodes from ``SourceMean``: its single mean, or the
    one of seven that is nearest to the face's features without standardisation. ``fc`` then predicts from the face's
    refined features. So here the moments stay 0 and 1 in both domains, which keeps the nearest mean the same, and a
    single mean is repeated seven times. State that the checkpoint lacks and no prediction depends on (the
    discriminator, the features gathered for the means) is zero.

    Args:
        state: the checkpoint's tensors besides the network's, under its names; they are checked here.

    Raises:
        ValueError: the tensors cannot be used. The message says why and is meant to follow the file's name.
    """
    with torch.device("meta"):
        due = AGRA(Adapt(method="agra"), AGRA.Options(), FEATURE_SIZE, target_size=0).state_dict()
    names = {_published(name): name for name in due if _published(name) is not None}
    if not any(name.startswith("GCN.") for name in state):
        raise ValueError("has AGRA's classifiers but no graph networks: it is a baseline of the CD-FER benchmark")
    given = {name: value for name, value in state.items() if name not in (*_OF_TRAINING, _MASK)}
    for name in ("SourceMean.running_mean", "TargetMean.running_mean"):
        if name in given and given[name].ndim == 1:
            given[name] = given[name].expand(NUM_EXPRESSIONS, -1)
    problems = unfit(given, {theirs: due[ours] for theirs, ours in names.items()})
    if problems:
        raise ValueError(f"does not match AGRA as released: {'; '.join(map(str, problems))}")
    found = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in due.items()}
    found.update({names[name]: value.detach().to(due[names[name]].dtype).clone() for name, value in given.items()})
    for domain in (SOURCE, TARGET):
        found[f"means.{domain}.variance"].fill_(1)
    found["fitted"].fill_(True)
    _check_trained(state, found)
    return found


def _published(name: str) -> str | None:
    """Return the released name of one of our tensors, or None if the released code does not have it."""
    for theirs, ours in _PUBLISHED:
        if name == ours or (ours.endswith(".") and name.startswith(ours)):
            return theirs + name.removeprefix(ours)
    return None


def _check_trained(state: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise ValueError if the released code would not have used the graphs in `found` for its predictions.

    Its command line has a switch for each graph. A graph that is switched off gets no gradient, so its edges keep their
    initial weights.
    """
    across = (inter_edges() > 0).float()
    mask = state.get(_MASK, across)
    if mask.shape != across.shape or not torch.equal(mask.float(), across):
        raise ValueError(f"does not match AGRA as released: {_MASK} is not the mask of the edges across the domains")
    for what, start, permitted in (("intra", intra_edges(), torch.ones(6, 6)), ("inter", inter_edges(), across)):
        first, now = (row_normalised(edges, permitted) for edges in (start, found[f"graphs.{what}"]))
        if torch.allclose(now, first, rtol=0, atol=1e-5):
            raise ValueError(
                f"has an {what}-domain graph that was never trained: it is a baseline of the CD-FER benchmark, "
                "or AGRA without that graph"
            )
    counter = state.get(f"TargetMean.{_COUNT}")
    if counter is not None and counter.numel() == 1 and not counter.any():
        raise ValueError("is from AGRA's source stage, before the target means were computed")
