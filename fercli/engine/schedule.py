"""Learning rates over a stage: by epoch or along a cosine, after a warm-up."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from fercli.spec import Optimisation
from fercli.spec.schema import Rates


def rate_in(rates: Rates, epoch: int) -> float:
    """The rate of `epoch` (from 1): that of the latest entry at or before it, or else the first entry's."""
    begun = [first for first in rates if first <= epoch]
    return rates[max(begun) if begun else min(rates)]


def set_rates(plan: Optimisation, groups: list[dict[str, Any]], step: int, steps_per_epoch: int) -> None:
    """Set the learning rates and weight decay of an optimizer's groups for the step that follows `step` steps.

    A rate that is a tensor is filled in place. With ``late_rates`` each step uses the values of the step before. The
    first step then uses the backbone's rate and half the weight decay in all groups (AGLRLS's code sets them after each
    step, and starts with neither factor applied).
    """
    late = getattr(plan, "late_rates", False)
    first = late and step == 0
    for group in groups:
        rate = rate_at(plan, group["rates"], max(0, step - late), steps_per_epoch)
        rate = rate if first else group["scale"] * rate
        if isinstance(group.get("lr"), Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
        group["weight_decay"] = plan.weight_decay / 2 if first else plan.weight_decay


def rate_at(plan: Optimisation, rates: Rates, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step.

    With ``cosine`` the rate falls from the first epoch's value, at the end of the warm-up, to 0 at the end of the last
    epoch (Loshchilov and Hutter, ICLR 2017, eq. 5, without restarts). During the warm-up it rises linearly from step to
    step, and reaches its full value at the last warm-up step (Goyal et al., 2017, section 2.2).

    Args:
        rates: of the group: the plan's ``lr`` or ``discriminator_lr``.
        step: steps done before this one.
    """
    epoch = step // steps_per_epoch + 1
    warmup, total = round(plan.warmup_epochs * steps_per_epoch), plan.epochs * steps_per_epoch
    if step < warmup:
        return rate_in(rates, 1 if plan.schedule == "cosine" else epoch) * (step + 1) / warmup
    if plan.schedule == "steps":
        return rate_in(rates, epoch)
    done = (step - warmup) / max(1, total - warmup)
    return rate_in(rates, 1) * (1 + math.cos(math.pi * done)) / 2
