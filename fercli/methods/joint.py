"""The forward pass that most methods share: source and target in one pass through the network, and the source loss."""

from __future__ import annotations

from torch import Tensor, nn

from fercli.loading.augment import View, cat
from fercli.methods.losses import head_cross_entropy
from fercli.models import Output


def joint_pass(
    network: nn.Module, source: View, target: View, labels: Tensor, head_weights: Tensor
) -> tuple[Output, Output, dict[str, Tensor], dict[str, Tensor]]:
    """Run both domains in one forward pass, so that batch norms see them together, and compute the source loss.

    Args:
        network: returns an `Output` of H heads and C expressions.
        source: B faces.
        target: any number of faces M; several views of them may be concatenated (`fercli.loading.augment.cat`).
        labels: int64 [B], 0..C-1, of the source.
        head_weights: [H].

    Returns:
        The source's output (logits [B, H, C], features [B, 6, 64]), the target's output (the same for M faces),
        `losses` with "source" (`head_cross_entropy`, a scalar >= 0) and `logs` with "source-accuracy" (0..1, of the
        fused head). The caller may add to both dicts. The outputs carry gradients.

    Raises:
        FercliError: one of the two views has local crops and the other has none.
    """
    output = network(*cat([source, target]).inputs)
    count = len(labels)
    of_source = Output(output.logits[:count], output.features[:count])
    of_target = Output(output.logits[count:], output.features[count:])
    losses = {"source": head_cross_entropy(of_source.logits, labels, head_weights)}
    accuracy = (of_source.logits[:, -1].argmax(-1) == labels).float().mean()
    return of_source, of_target, losses, {"source-accuracy": accuracy}


def fused_feature(output: Output) -> Tensor:
    """Return the fused head's input: all features [B, 6, 64] as one [B, 384], in float32 even under autocast."""
    return output.features.flatten(1).float()
