"""SWD: sliced Wasserstein discrepancy (Lee et al., CVPR 2019, arXiv 1903.04064)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fercli.expressions import NUM_EXPRESSIONS
from fercli.methods.mcd import MCD


def sliced_wasserstein(p1: Tensor, p2: Tensor, directions: Tensor) -> Tensor:
    """Mean squared difference of two batches of probabilities, projected and sorted (Lee et al., CVPR 2019, eq. 7).

    Along one direction, the optimal transport between two sets of B numbers pairs them in sorted order. So only the
    sets of outputs count, not which face has which output.

    Args:
        p1, p2: softmax outputs [B, C] on the same faces.
        directions: [C, M], unit columns.

    Returns:
        A scalar in 0..2, the mean over faces and directions. It is zero, without gradient, if the two batches are equal
        up to the order of the faces. For one face it is the mean of ((p1 - p2) . direction)^2. NaN for an empty batch.
    """
    first, second = ((p @ directions).sort(dim=0).values for p in (p1, p2))
    return (first - second).square().mean()


def random_directions(dimension: int, number: int, like: Tensor) -> Tensor:
    """Draw unit columns [dimension, number], uniform on the sphere, with the type and on the device of `like`.

    They are drawn with torch's global generator of that device.
    """
    drawn = torch.randn(dimension, number, dtype=like.dtype, device=like.device)
    return drawn / drawn.norm(dim=0)


class SWD(MCD):
    """`MCD` with the sliced Wasserstein discrepancy over ``projections`` directions, drawn again each time.

    Steps, batch norm and the two classifiers are as in `MCD`. Step C is taken once per batch, as in the released code
    of SWD (commit 9791e86) and of the CD-FER benchmark (Chen et al., TPAMI 2022, commit 7385d33); MCD takes it four
    times. That code computes A, B and C from one forward pass. Here each step has its own, and so sees the changes of
    the previous one.
    """

    name = "swd"

    class Options(MCD.Options):
        """``adapt.options`` of SWD."""

        generator_steps: Annotated[int, Field(ge=1)] = 1
        """Updates of the layers before the classifiers per batch (step C)."""
        projections: Annotated[int, Field(ge=1)] = 128
        """Number of random directions, drawn again each time."""

    def discrepancy(self, p1: Tensor, p2: Tensor) -> Tensor:
        return sliced_wasserstein(p1, p2, random_directions(NUM_EXPRESSIONS, self.options.projections, p1))
