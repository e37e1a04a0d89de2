"""Released AGRA checkpoints: their tensors as the state of our `fercli.methods.agra.AGRA`.

Facts are those of the authors' code (github.com/HCPLab-SYSU/CD-FER-Benchmark): AGRA/Model.py, VGG.py and
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

#: Beginnings of names, of the released code and ours.
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
#: The released mask of edges across the domains, which is `fercli.methods.graph.inter_edges` > 0.
_MASK = "GCN.InterMaskMatrix"
_COUNT = "num_batches_tracked"
#: What else the means keep: counters, and a covariance that is read in training alone.
_OF_TRAINING = tuple(f"{domain}Mean.{name}" for domain in ("Source", "Target") for name in (_COUNT, "running_cov"))


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of an `AGRA` that answers as a released checkpoint does.

    In use the released code takes a target face's nodes of the source from ``SourceMean``: its one mean, or of seven
    the nearest to the face's features as they are. ``fc`` answers from the face's refined features. So here the moments
    stay 0 and 1 in both domains, which leaves the nearest mean the nearest, and one mean stands seven times. What a
    checkpoint lacks and no answer depends on (the discriminator, what the means have gathered) is zero.

    Args:
        state: the tensors that a checkpoint has beside the network's, by its names; checked here.

    Raises:
        ValueError: what is wrong with them, to be put behind the file's name.
    """
    with torch.device("meta"):
        due = AGRA(Adapt(method="agra"), AGRA.Options(), FEATURE_SIZE, target_size=0).state_dict()
    names = {_published(name): name for name in due if _published(name) is not None}
    if not any(name.startswith("GCN.") for name in state):
        raise ValueError("has AGRA's classifiers but no graph networks: a baseline of the CD-FER benchmark")
    given = {name: value for name, value in state.items() if name not in (*_OF_TRAINING, _MASK)}
    for name in ("SourceMean.running_mean", "TargetMean.running_mean"):
        if name in given and given[name].ndim == 1:
            given[name] = given[name].expand(NUM_EXPRESSIONS, -1)
    problems = unfit(given, {theirs: due[ours] for theirs, ours in names.items()})
    if problems:
        raise ValueError(f"is not AGRA as released: {'; '.join(map(str, problems))}")
    found = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in due.items()}
    found.update({names[name]: value.detach().to(due[names[name]].dtype).clone() for name, value in given.items()})
    for domain in (SOURCE, TARGET):
        found[f"means.{domain}.variance"].fill_(1)
    found["fitted"].fill_(True)
    _check_trained(state, found)
    return found


def _published(name: str) -> str | None:
    """The released name of a tensor of ours; None where the released code has none."""
    for theirs, ours in _PUBLISHED:
        if name == ours or (ours.endswith(".") and name.startswith(ours)):
            return theirs + name.removeprefix(ours)
    return None


def _check_trained(state: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise ValueError where the released code would not have answered through what was `found`.

    Whether it uses its graphs is a switch of its command line. A graph that is switched off gets no gradient, and its
    edges stay at what training starts from.
    """
    across = (inter_edges() > 0).float()
    mask = state.get(_MASK, across)
    if mask.shape != across.shape or not torch.equal(mask.float(), across):
        raise ValueError(f"is not AGRA as released: {_MASK} has other edges than those across the domains")
    for what, start, permitted in (("intra", intra_edges(), torch.ones(6, 6)), ("inter", inter_edges(), across)):
        first, now = (row_normalised(edges, permitted) for edges in (start, found[f"graphs.{what}"]))
        if torch.allclose(now, first, rtol=0, atol=1e-5):
            raise ValueError(
                f"has an {what}-domain graph that was never trained: a baseline of the CD-FER benchmark, or AGRA "
                "without that graph"
            )
    counter = state.get(f"TargetMean.{_COUNT}")
    if counter is not None and counter.numel() == 1 and not counter.any():
        raise ValueError("is of AGRA's source stage, whose target means have not met a face yet")
