"""Separate adversarial learning: each of the seven heads is aligned on its own, as in AGLRLS and CGLRL."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fercli.expressions import NUM_EXPRESSIONS
from fercli.methods.base import NUM_HEADS
from fercli.methods.losses import Discriminator, conditional_adversarial, reversal_coefficient
from fercli.models import Output


class HeadDiscriminators(nn.ModuleList):
    """The discriminators of the seven heads, and the adversarial loss summed over them.

    Each receives the outer product of its head's softmax and feature: 7 x D numbers, or 7 x 6 D for the fused head.

    Args:
        feature_dim: D, the width of a global or local feature.
        sharing: ``shared`` means three discriminators (global, one for the five local heads, fused), as in the released
            code of AGLRLS and CGLRL. ``separate`` means one per head, as AGLRLS's paper draws them.
        hidden: the width of the hidden layers.
        reversal_steps: the horizon of `fercli.methods.losses.reversal_coefficient`.
        reversal_counts: what the reversal of a discriminator's input counts. ``steps``: training steps, as the reversal
            of the entropy weights always does. ``forwards``: the forward passes of that discriminator, including the
            current one, as in the released code of AGLRLS and CGLRL. That code runs each discriminator twice per step
            for every head it serves, to train and to log, so the local heads' reversal grows ten times as fast.

    Attributes:
        of_head: [7], the index of the discriminator that serves each head.
    """

    def __init__(
        self,
        feature_dim: int,
        sharing: str = "shared",
        hidden: int = 512,
        reversal_steps: float = 10_000,
        reversal_counts: str = "steps",
    ):
        of_head = [0, 1, 1, 1, 1, 1, 2] if sharing == "shared" else list(range(NUM_HEADS))
        widths = [feature_dim] * (NUM_HEADS - 1) + [feature_dim * (NUM_HEADS - 1)]
        first_head = [of_head.index(d) for d in range(max(of_head) + 1)]
        super().__init__(Discriminator(NUM_EXPRESSIONS * widths[head], hidden) for head in first_head)
        self.of_head = of_head
        self.reversal_steps = reversal_steps
        # What each head's reversal counts: the increase per step, and the count so far within the same step.
        a_step, before = [1.0] * NUM_HEADS, [0.0] * NUM_HEADS
        if reversal_counts == "forwards":
            a_step = [2.0 * of_head.count(one) for one in of_head]
            before = [float(of_head[: head + 1].count(one)) for head, one in enumerate(of_head)]
        for name, counts in (("counts_a_step", a_step), ("counts_before", before)):
            self.register_buffer(name, torch.tensor(counts, dtype=torch.float64), persistent=False)

    def coefficients(self, step: Tensor | int) -> Tensor:
        """Return the strength of each head's gradient reversal at the discriminator input, float64 [7] in 0..1.

        Args:
            step: steps of training before this one.
        """
        return reversal_coefficient(step * self.counts_a_step + self.counts_before, self.reversal_steps)

    def forward(self, source: Output, target: Output, step: Tensor | int, entropy_conditioning: bool = True) -> Tensor:
        """Sum `fercli.methods.losses.conditional_adversarial` over the heads, each with weight 1.

        Args:
            source: logits [B, 7, C] and features [B, 6, D].
            target: the same for M faces.
            step: steps of training before this one.
            entropy_conditioning: False gives all faces of a domain the same weight.

        Returns:
            A scalar >= 0. It is 7 ln 2 if no discriminator can distinguish the domains, for example when all features
            and biases are zero, and NaN if a domain is empty.
        """
        logits = torch.cat([source.logits, target.logits])
        features = torch.cat([source.features, target.features])
        is_source = torch.arange(len(logits), device=logits.device) < len(source.logits)
        coefficients, of_entropy = self.coefficients(step), reversal_coefficient(step, self.reversal_steps)
        loss = logits.new_zeros(())
        for number, discriminator in enumerate(self):
            served = [head for head, one in enumerate(self.of_head) if one == number]
            heads = slice(served[0], served[-1] + 1)  # always adjacent
            seen = features.flatten(1)[:, None] if NUM_HEADS - 1 in served else features[:, heads]
            how = discriminator, coefficients[heads], entropy_conditioning, of_entropy
            loss = loss + conditional_adversarial(seen, logits[:, heads], is_source, *how)
        return loss
