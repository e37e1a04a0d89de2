"""Compares an exported file with its model, on prepared faces if there are any, else on drawn ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fercli.engine.data import open_store
from fercli.engine.trained import Trained
from fercli.errors import FercliError
from fercli.export.formats import Runner
from fercli.export.graph import Deployed
from fercli.expressions import NUM_EXPRESSIONS
from fercli.loading.augment import plain_view
from fercli.loading.face_dataset import FaceDataset
from fercli.spec import Spec

#: Largest difference in a probability that passes.
TOLERANCE = 1e-4

#: Most faces to check on, and how many are drawn if none are prepared.
FACES, DRAWN = 64, 14

#: Sizes of the batches, in turn; the last one repeats to the end.
BATCHES = (1, 3, 8)


class Samples(NamedTuple):
    """The faces to check on.

    Attributes:
        faces, landmarks, crops: as stored (faces with their margin); crops is None if they are not read.
        dataset: the dataset they come from; None for procedural faces.
    """

    faces: Tensor
    landmarks: Tensor
    crops: Tensor | None
    dataset: str | None

    def prepared(self, size: int) -> tuple[Tensor, ...]:
        """Return the inputs of `Deployed`: the middle of the stored faces, landmarks in its pixels, and any crops."""
        offset = (self.faces.shape[1] - size) // 2
        inside = slice(offset, offset + size)
        parts = self.faces[:, inside, inside].contiguous(), self.landmarks - offset
        return parts if self.crops is None else (*parts, self.crops)


class Agreement(NamedTuple):
    """How closely an exported file agrees with its model.

    Attributes:
        faces: number of faces compared; `dataset`: their dataset, None for procedural faces; `batches`: the batch sizes
            that were run.
        probabilities, heads: largest absolute difference in a probability, of the decision and of a head.
        answers: number of faces with a different prediction.
        edge: number of faces for which the rule itself jumps within that difference (GLPC has thresholds). For these,
            the file is compared with the rule applied to its own heads.
    """

    faces: int
    dataset: str | None
    batches: tuple[int, ...]
    probabilities: float
    heads: float
    answers: int
    edge: int

    @property
    def good(self) -> bool:
        """Whether the file can be used in place of the model; False for NaN."""
        return self.probabilities <= TOLERANCE and self.heads <= TOLERANCE and not self.answers

    def __str__(self) -> str:
        on = f"faces of {self.dataset}" if self.dataset else "procedural faces"
        sizes = ", ".join(map(str, self.batches))
        said = "all predictions equal" if not self.answers else f"{self.answers} predictions differ"
        edge = f"; {self.edge} at a threshold of the decision rule" if self.edge else ""
        return (
            f"{self.faces} {on} in batches of {sizes}: largest difference {self.probabilities:.2g} in the decision's "
            f"probabilities, {self.heads:.2g} in the heads'; {said}{edge}"
        )


def samples(trained: Trained) -> Samples:
    """Return up to `FACES` evenly spread prepared faces of the target, else of the source; else drawn faces.

    Labels are not read. A store that is missing, empty, damaged or of another size is skipped.
    """
    spec = trained.spec
    for name in filter(None, (trained.target, *spec.data.source)):
        try:
            store = open_store(spec, name, labels=False, as_aligned=False)
        except FercliError:
            continue
        if not len(store):
            continue
        chosen = FaceDataset([store], [np.arange(len(store))], torch.device("cpu"), spec.model.reads_crops).subsampled(
            FACES
        )
        return Samples(*chosen.gather(np.arange(min(len(chosen), FACES))), name)
    return drawn(spec)


def drawn(spec: Spec) -> Samples:
    """Draw procedural faces, two people with each expression, cut by their own landmarks as the spec prepares faces."""
    from fercli.faces.extract import Extracted, cut
    from fercli.synthetic.render import STUDIO, render

    options, made = spec.prepare, []
    for number in range(DRAWN):
        face = render(STUDIO, number // NUM_EXPRESSIONS, number % NUM_EXPRESSIONS, 0)
        made.append(Extracted("found"))
        frame = (0.0, 0.0, float(face.image.shape[1]), float(face.image.shape[0]))
        cut(made[-1], face.image, face.landmarks, face.box, frame, options)
    crops = torch.from_numpy(np.stack([one.crops for one in made])) if spec.model.reads_crops else None
    faces, landmarks = (torch.from_numpy(np.stack([getattr(one, n) for one in made])) for n in ("face", "landmarks"))
    return Samples(faces, landmarks, crops, None)


@torch.no_grad()
def compare(deployed: Deployed, run: Runner, given: Samples) -> Agreement:
    """Compare an exported file with the model as `fercli evaluate` uses it, starting from the stored faces."""
    sizes = _batch_sizes(len(given.faces))
    got = _together([run(*parts) for parts in _split(given.prepared(deployed.settings.size), sizes)])
    stored = _split((given.faces, given.landmarks, given.crops), sizes)
    expected = _together([_evaluated(deployed, *parts) for parts in stored])
    return judge(deployed, expected, got, given.dataset, tuple(dict.fromkeys(sizes)))


def judge(
    deployed: Deployed,
    expected: Sequence[Tensor],
    got: Sequence[Tensor],
    dataset: str | None,
    batches: tuple[int, ...],
) -> Agreement:
    """Compare outputs (answer, probabilities, stage, heads) with the expected ones."""
    answer, probabilities, stage, heads = got
    apart = float((heads - expected[3]).abs().max())
    again = deployed.rule(heads)
    # A rule with thresholds jumps: heads that differ in the last digit may be on either side of a threshold.
    edge = (
        (again.answers != expected[0])
        | (again.stages != expected[2])
        | ((again.probabilities - expected[1]).abs().amax(-1) > TOLERANCE)
    )
    due = torch.where(edge[:, None], again.probabilities, expected[1])
    differ = (answer != torch.where(edge, again.answers, expected[0])) | (
        stage != torch.where(edge, again.stages, expected[2])
    )
    return Agreement(
        faces=len(answer),
        dataset=dataset,
        batches=batches,
        probabilities=float((probabilities - due).abs().max()),
        heads=apart,
        answers=int(differ.sum()),
        edge=int(edge.sum()),
    )


def _evaluated(deployed: Deployed, faces: Tensor, landmarks: Tensor, crops: Tensor | None) -> tuple[Tensor, ...]:
    """Return the outputs of evaluation for stored faces, without `Deployed.forward`, which is what was traced."""
    view = plain_view(faces, landmarks, crops, deployed.settings)
    output = deployed.network(*view.inputs)
    if deployed.output_transform is not None:
        output = deployed.output_transform(output)
    heads = output.logits.float().softmax(-1)
    decision = deployed.rule(heads)
    return decision.answers, decision.probabilities, decision.stages, heads


def _batch_sizes(count: int) -> list[int]:
    sizes: list[int] = []
    while sum(sizes) < count:
        sizes.append(min(BATCHES[min(len(sizes), len(BATCHES) - 1)], count - sum(sizes)))
    return sizes


def _split(parts: Sequence[Tensor | None], sizes: list[int]) -> Iterator[tuple[Tensor | None, ...]]:
    return zip(*([None] * len(sizes) if part is None else part.split(sizes) for part in parts), strict=True)


def _together(batches: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    return [torch.cat(column) for column in zip(*batches, strict=True)]
