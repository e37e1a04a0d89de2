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

    Along one direction the optimal transport between two sets of B numbers pairs them in order: what counts is which
    outputs the two classifiers give to the batch, not which face gets which.

    Args:
        p1, p2: softmax outputs [B, C] on the same faces.
        directions: [C, M], unit columns.

    Returns:
        A scalar in 0..2, the mean over faces and directions. Zero, with no gradient, where the two batches are equal up
        to the order of the faces. For one face it is the mean of ((p1 - p2) . direction)^2. NaN for an empty batch.
    """
    first, second = ((p @ directions).sort(dim=0).values for p in (p1, p2))
    return (first - second).square().mean()


def random_directions(dimension: int, number: int, like: Tensor) -> Tensor:
    """Unit columns [dimension, number], uniform on the sphere, of the type and on the device of `like`.

    They are drawn there too, from torch's global generator of that device.
    """
    drawn = torch.randn(dimension, number, dtype=like.dtype, device=like.device)
    return drawn / drawn.norm(dim=0)


class SWD(MCD):
    """`MCD` with the sliced Wasserstein discrepancy over ``projections`` directions, drawn again each time.

    All that `MCD` says of its steps, of batch norm and of its two classifiers holds here too. Step C is taken once a
    batch, as in the released codes of SWD (commit 9791e86) and of the CD-FER benchmark (Chen et al., TPAMI 2022, commit
    7385d33), where MCD takes it four times. Those compute A, B and C from one forward pass; here each has its own, and
    so sees what the one before has changed.
    """

    name = "swd"

    class Options(MCD.Options):
        """``adapt.options`` of SWD."""

        generator_steps: Annotated[int, Field(ge=1)] = 1
        projections: Annotated[int, Field(ge=1)] = 128

    def discrepancy(self, p1: Tensor, p2: Tensor) -> Tensor:
        return sliced_wasserstein(p1, p2, random_directions(NUM_EXPRESSIONS, self.options.projections, p1))
