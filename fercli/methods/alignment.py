"""Losses that pull the features of two domains together, each a pure function. B images, D numbers a feature."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fercli.methods.losses import reverse_gradient


def domain_adversarial(source: Tensor, target: Tensor, discriminator: nn.Module, coefficient: Tensor | float) -> Tensor:
    """Binary cross-entropy of telling source (1) from target (0) behind a gradient reversal.

    The domain loss of Ganin et al., *Domain-Adversarial Training of Neural Networks*, JMLR 2016. The paper adds the
    means of the two domains; this is their average, half of that, as in
    `fercli.methods.losses.conditional_adversarial`.

    Args:
        source: features [B, D].
        target: features [M, D].
        discriminator: maps [B + M, D] to logits [B + M] (before the sigmoid).
        coefficient: strength of the reversal, 0..1; the discriminator's own gradient does not depend on it.

    Returns:
        A scalar >= 0; ln 2 where the discriminator cannot tell, as for features that are all zero. NaN where a domain
        is empty, as a mean over nothing.
    """
    features = torch.cat([source, target]).float()
    verdict = discriminator(reverse_gradient(features, coefficient)).float()
    of_source, of_target = verdict.split([len(source), len(target)])
    return (F.softplus(-of_source).mean() + F.softplus(of_target).mean()) / 2


def stepwise_feature_norm(features: Tensor, step: float = 1.0) -> Tensor:
    """Ask of every feature a norm that is larger by `step` than the one it has: SAFN.

    Xu et al., *Larger Norm More Transferable*, ICCV 2019: the mean of (|f| - (|f| + step))^2, the norm inside
    the parentheses being a constant. So its value is step^2 whatever the features; its gradient, -2 step / B along
    f / |f|, is what matters.

    Args:
        features: [B, D].
        step: how much longer, in the units of the features.

    Returns:
        A scalar, step^2 up to rounding. A zero feature has no direction: its gradient is zero and it stays. NaN for no
        features.
    """
    norm = features.float().norm(dim=1)
    return (norm - (norm.detach() + step)).square().mean()


def hard_feature_norm(features: Tensor, radius: float = 25.0) -> Tensor:
    """Ask of the features' mean norm that it be `radius`: HAFN, (mean |f| - radius)^2.

    Xu et al., *Larger Norm More Transferable*, ICCV 2019, one domain's term. It is the mean that counts: norms of
    24 and 26 cost nothing at 25.

    Args:
        features: [B, D].
        radius: >= 0, in the units of the features.

    Returns:
        A scalar >= 0; radius^2 for features that are all zero, whose gradient is zero as they have no direction. NaN
        for no features.
    """
    return (features.float().norm(dim=1).mean() - radius).square()
