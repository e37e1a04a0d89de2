"""CDAN and CDAN+E: conditional adversarial domain adaptation (Long et al., NeurIPS 2018, arXiv 1705.10667)."""

from __future__ import annotations

import torch
from torch import Tensor

from fercli.expressions import NUM_EXPRESSIONS
from fercli.methods.dann import DANN
from fercli.methods.joint import fused_feature
from fercli.methods.losses import conditional_adversarial
from fercli.models import Output


class CDAN(DANN):
    """DANN on the outer product of the fused head's softmax and the fused feature, 7 x 384 = 2688 numbers.

    That is below 4096, up to which the paper takes the product itself rather than a random projection. The loss is
    `fercli.methods.losses.conditional_adversarial`, which follows the authors' code where it departs from the paper:

    - the softmax is a constant of the product; in the paper gradient passes through it as well;
    - the two domains are averaged; the paper adds them, twice as much.

    AGLRLS's separate adversarial learning is this once for each of the seven heads, with entropy conditioning, at
    weight 0.5 each; here it is once, on the fused head, at weight 1 as in the paper. The discriminator is AGLRLS's
    (hidden 512, LeakyReLU) and not CDAN's own (hidden 1024, ReLU). What `DANN` says of the fused head's weight holds
    here too.
    """

    name = "cdan"
    input_width = NUM_EXPRESSIONS
    entropy_conditioning = False

    def adversarial(self, source: Output, target: Output, coefficient: float) -> Tensor:
        logits = torch.cat([source.logits[:, -1], target.logits[:, -1]])
        is_source = torch.arange(len(logits), device=logits.device) < len(source.logits)
        features = torch.cat([fused_feature(source), fused_feature(target)])
        return conditional_adversarial(
            features, logits, is_source, self.discriminator, coefficient, self.entropy_conditioning
        )


class CDANE(CDAN):
    """CDAN+E: each face weighs 1 + exp(-H), H the entropy of its fused softmax (eq. 8), so that sure ones count more.

    As in the authors' code, and unlike in the paper, the weights are normalised to sum 1 within each domain, and their
    gradient reaches the network, reversed. Faces that are all equally sure give CDAN's loss.
    """

    name = "cdan-e"
    entropy_conditioning = True
