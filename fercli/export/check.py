"""An exported file against the model it was made of, on prepared faces where there are any, else on drawn ones."""

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

#: Largest difference of a probability that passes.
TOLERANCE = 1e-4

#: Faces checked on, at most, and how many are drawn where none are prepared.
FACES, DRAWN = 64, 14

#: Sizes of the batches, in turn; the last goes on to the end.
BATCHES = (1, 3, 8)


class Samples(NamedTuple):
    """What is checked on.

    Attributes:
        faces, landmarks, crops: as stored (faces with their margin), crops None where they are not read.
        dataset: whose they are; None for procedural faces.
    """

    faces: Tensor
    landmarks: Tensor
    crops: Tensor | None
    dataset: str | None

    def prepared(self, size: int) -> tuple[Tensor, ...]:
        """What `Deployed` takes: the middle of the stored faces, landmarks in its pixels, and the crops if any."""
        offset = (self.faces.shape[1] - size) // 2
        inside = slice(offset, offset + size)
        parts = self.faces[:, inside, inside].contiguous(), self.landmarks - offset
        return parts if self.crops is None else (*parts, self.crops)


class Agreement(NamedTuple):
    """How far an exported file agrees with its model.

    Attributes:
        faces: how many were compared; `dataset`: whose, None for procedural faces; `batches`: the sizes of batches that
            were run.
        probabilities, heads: largest absolute difference of a probability, of the decision and of a head.
        answers: faces that are answered otherwise.
        edge: faces on which the rule itself jumps within that difference (GLPC has thresholds); there the file is
            compared with the rule applied to its own heads.
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
        """Whether the file may be used in place of the model; NaN is not good."""
        return self.probabilities <= TOLERANCE and self.heads <= TOLERANCE and not self.answers

    def __str__(self) -> str:
        on = f"faces of {self.dataset}" if self.dataset else "procedural faces"
        sizes = ", ".join(map(str, self.batches))
        said = "all answers equal" if not self.answers else f"{self.answers} answers differ"
        edge = f"; on {self.edge} the rule stands at one of its thresholds" if self.edge else ""
        return (
            f"{self.faces} {on} in batches of {sizes}: largest difference {self.probabilities:.2g} in the decision's "
            f"probabilities, {self.heads:.2g} in the heads'; {said}{edge}"
        )


def samples(trained: Trained) -> Samples:
    """Up to `FACES` prepared faces of the target, else of the source, spread evenly; else drawn ones. Labels are not
    read.

    A store that is missing, empty, damaged or of another size is passed over.
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
    """Procedural faces, two people with each expression, cut by their own landmarks as the spec prepares faces."""
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
    """Compare an exported file with the model as `fercli evaluate` uses it, from the stored faces on."""
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
    """Compare outputs (answer, probabilities, stage, heads) with those expected."""
    answer, probabilities, stage, heads = got
    apart = float((heads - expected[3]).abs().max())
    again = deployed.rule(heads)
    # A rule with thresholds jumps: heads that differ in the last digit may fall on either side of one.
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
    """What evaluation makes of stored faces; not by `Deployed.forward`, which is what was traced."""
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
