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

    This is below 4096, the limit up to which the paper uses the product itself and not a random projection. The loss is
    `fercli.methods.losses.conditional_adversarial`, which follows the authors' code where that departs from the paper:

    - the softmax is a constant in the product; in the paper the gradient passes through it as well;
    - the two domains are averaged; the paper adds them, which doubles the loss.

    AGLRLS's separate adversarial learning applies this loss to each of the seven heads, with entropy conditioning and
    weight 0.5 each. Here it is applied to the fused head only, with weight 1 as in the paper. The discriminator is
    AGLRLS's (hidden 512, LeakyReLU), not CDAN's (hidden 1024, ReLU). The fused head's weight is treated as in `DANN`.
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
    """CDAN+E: confident faces count more, with weight 1 + exp(-H), where H is the entropy of the fused softmax (eq. 8).

    As in the authors' code, but not in the paper, the weights are normalised to sum 1 within each domain, and their
    reversed gradient reaches the network. If all faces have the same entropy, the loss equals CDAN's.
    """

    name = "cdan-e"
    entropy_conditioning = True
