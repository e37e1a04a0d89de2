"""Losses that align the features of two domains, each a pure function. B images, D numbers per feature."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fercli.methods.losses import reverse_gradient


def domain_adversarial(source: Tensor, target: Tensor, discriminator: nn.Module, coefficient: Tensor | float) -> Tensor:
    """Binary cross-entropy of a discriminator of source (1) and target (0) after a gradient reversal.

    The domain loss of Ganin et al., *Domain-Adversarial Training of Neural Networks*, JMLR 2016. The paper adds the
    means of the two domains; this function averages them, which halves the loss, as in
    `fercli.methods.losses.conditional_adversarial`.

    Args:
        source: features [B, D].
        target: features [M, D].
        discriminator: maps [B + M, D] to logits [B + M] (before the sigmoid).
        coefficient: strength of the reversal, 0..1; the discriminator's own gradient does not depend on it.

    Returns:
        A scalar >= 0. It is ln 2 if the discriminator cannot distinguish the domains, for example when all features are
        zero, and NaN if a domain is empty.
    """
    features = torch.cat([source, target]).float()
    verdict = discriminator(reverse_gradient(features, coefficient)).float()
    of_source, of_target = verdict.split([len(source), len(target)])
    return (F.softplus(-of_source).mean() + F.softplus(of_target).mean()) / 2


def stepwise_feature_norm(features: Tensor, step: float = 1.0) -> Tensor:
    """Push the norm of every feature up by `step` (SAFN).

    Xu et al., *Larger Norm More Transferable*, ICCV 2019: the mean of (|f| - (|f| + step))^2, where the norm in the
    inner parentheses is a constant. The value is therefore step^2 for any features; only the gradient matters, which is
    -2 step / B along f / |f|.

    Args:
        features: [B, D].
        step: the increase of the norm, in the units of the features.

    Returns:
        A scalar, step^2 up to rounding. A zero feature has no direction, so its gradient is zero and it does not
        change. NaN without features.
    """
    norm = features.float().norm(dim=1)
    return (norm - (norm.detach() + step)).square().mean()


def hard_feature_norm(features: Tensor, radius: float = 25.0) -> Tensor:
    """Pull the mean norm of the features to `radius` (HAFN): (mean |f| - radius)^2.

    Xu et al., *Larger Norm More Transferable*, ICCV 2019, the term of one domain. Only the mean counts: norms of 24 and
    26 have no loss at a radius of 25.

    Args:
        features: [B, D].
        radius: >= 0, in the units of the features.

    Returns:
        A scalar >= 0; radius^2 if all features are zero. Their gradient is then zero, since they have no direction. NaN
        without features.
    """
    return (features.float().norm(dim=1).mean() - radius).square()
