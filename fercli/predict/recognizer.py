"""A trained model, ready for use: images in, every face's expression out.

    from fercli import Recognizer

    recognizer = Recognizer.load()  # the starter model; for your own: load("runs/baseline", "jaffe")
    for face in recognizer("party.jpg"):
        print(face.expression, face.confidence, face.box)

Faces are found, aligned and cut as `fercli prepare` does, with the settings that the model was trained with. The
network runs in float32, as in `fercli evaluate`. A face in an image therefore gets the same prediction as its prepared
face.

A forked process (``multiprocessing`` on Linux, web servers that load the application first) may use a Recognizer that
its parent has loaded, even one in use. On the CPU it then runs PyTorch with one thread, as DataLoader's workers do: the
parent's threads do not exist in it, and waiting for them would never end. On a GPU this is an error, because CUDA does
not work in a forked process: start processes with ``spawn`` and load the model in each.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from fercli.engine.data import view_settings
from fercli.engine.fabric import resolve_device, unused_card
from fercli.engine.predict import float32_products
from fercli.engine.trained import Trained, find_trained
from fercli.errors import FercliError
from fercli.evaluation.decision import STAGES, DecisionRule
from fercli.expressions import EXPRESSIONS
from fercli.faces.images import Source, Unreadable, decode
from fercli.loading.augment import View, plain_view
from fercli.models import HEADS, GlobalLocal, Output
from fercli.parallel import Workers
from fercli.predict.faces import CutFace, see
from fercli.predict.faces import Source as Prepared
from fercli.predict.stream import Picture, recognise
from fercli.predict.test_time import adaptation
from fercli.spec import Spec
from fercli.starter import NAME

_logger = logging.getLogger("fercli")

#: The process in which PyTorch may already have started its threads.
_home = os.getpid()


@dataclass(frozen=True)
class Face:
    """A face in an image and the model's prediction for it.

    Attributes:
        box: (left, top, right, bottom) of the face mesh, brow to chin, in pixels of the image.
        landmarks: float64 [5, 2] (x, y) in the same pixels: image-left eye, image-right eye, nose tip, image-left and
            image-right mouth corner.
        expression: the prediction, one of `fercli.expressions.EXPRESSIONS`.
        confidence: its probability.
        probabilities: float32 [7] in the order of `EXPRESSIONS`, from the heads that decided.
        stage: which stage of GLPC decided: ``fused`` (also under the other rules), ``global`` or ``sum``.
        heads: the prediction of each head that the model has, by name (`fercli.models.HEADS`).
        score: the face detector's score, 0..1.
        how: how the face was found (`fercli.faces.landmarker.Found`).
        track: the person's number throughout a video, where faces are tracked.
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray
    expression: str
    confidence: float
    probabilities: np.ndarray
    stage: str
    heads: dict[str, str]
    score: float
    how: str
    track: int | None = None


class Recognizer:
    """Finds every face in an image and predicts its expression.

    Args:
        network: in eval mode, on `device`.
        spec: the spec that it was trained with: sizes and alignment of faces.
        device: the network's device.
        rule: the decision rule.
        output_transform: what the method applies to the network's output.
        heads: those of `fercli.models.HEADS` that the model has.
        adapt, episodic: as in `load`; `network` is then adapted in place.

    Attributes:
        adaptation: the test-time adaptation in use (`fercli.predict.test_time.Adaptation`), or None. Its `reset`
            restores the model as it was loaded.
    """

    def __init__(
        self,
        network: GlobalLocal,
        spec: Spec,
        device: torch.device,
        rule: DecisionRule = DecisionRule("fused"),  # noqa: B008 (a tuple)
        output_transform: Callable[[Output], Output] | None = None,
        heads: Sequence[str] = HEADS,
        adapt: str | None = None,
        episodic: bool = False,
    ):
        self.network, self.spec, self.device = network, spec, device
        self.rule, self.heads, self._output_transform = rule, heads, output_transform
        self.options = spec.prepare
        self.with_crops = spec.model.reads_crops
        self._settings = view_settings(spec)
        self._process = os.getpid()
        self.adaptation = adaptation(adapt, episodic, network, output_transform, heads)

    @classmethod
    def load(
        cls,
        run: str | Path | None = None,
        target: str | None = None,
        device: str = "auto",
        adapt: str | None = None,
        episodic: bool = False,
    ) -> Recognizer:
        """Load the model of a run, or the starter model.

        Args:
            run: a run folder, a stage folder, a checkpoint or a model file (`fercli.engine.trained.find_trained`).
                If it is omitted or ``starter``, the model that comes with fercli is loaded. If it is omitted, the
                logger ``fercli`` also warns of this once per process, on stderr unless the application has set up
                logging.
            target: if there are several adaptations, the one to this target; ``source`` is the source model.
            device: ``auto``, ``cpu`` or ``cuda``.
            adapt: ``adabn``, ``tent`` or ``t3a``: adapt to the faces that are predicted, batch by batch, without labels
                (`fercli.predict.test_time`). A face's prediction then depends on the other faces of its batch and on
                all faces predicted before.
            episodic: with `adapt`: before every batch, forget what was learnt.

        Raises:
            FercliError: there is no such model, there are several, the file is not a fercli checkpoint, there is no
                CUDA device although one was requested, or the method cannot adapt the model.
        """
        _settle()
        trained = find_trained(NAME if run is None else run, target)
        if run is None:
            _tell_once(starter_line(trained, 'Recognizer.load("starter") selects it by name, load(RUN) another'))
        unused = unused_card(device)
        if unused is not None:
            _tell_once(unused)
        return cls.of(trained, device, adapt, episodic)

    @classmethod
    def of(cls, trained: Trained, device: str = "auto", adapt: str | None = None, episodic: bool = False) -> Recognizer:
        """Load a model that has already been found."""
        where = torch.device(resolve_device(device))
        network, transform = trained.network(where), trained.output_transform(where)
        return cls(network, trained.spec, where, trained.rule, transform, trained.heads, adapt, episodic)

    def __call__(self, image: Source) -> list[Face]:
        """Return every face of an image, from left to right.

        Args:
            image: a file's path, the bytes of an image file, a PIL image, or an array: [H, W] or [H, W, C] with 1 to 4
                channels in RGB order (for OpenCV's arrays: ``image[..., ::-1]``), of bool, integers or floats.
                `fercli.faces.images.decode` documents how each is read; all four give the same predictions. A JPEG of
                more than 100 megapixels is decoded smaller, but boxes and landmarks are in its original pixels.

        Raises:
            FercliError: the image cannot be read.
            ValueError: the array has another shape or type, or the argument is not an image.
        """
        try:
            cut = see(_as_source(image), self.options, self.with_crops, _name(image))
        except Unreadable as why:
            raise FercliError(f"{_name(image)}: {why}") from None
        return self.answer(cut)

    def many(self, images: Iterable[Source], batch: int = 64, workers: int = 1) -> Iterator[list[Face]]:
        """Yield the faces of each image, in order; the network processes the faces of several images at a time.

        Args:
            images: as for `__call__`; read only as needed, so an endless stream works too.
            batch: number of faces that the network processes at a time.
            workers: processes that find faces; 1 is this process alone, 0 is one per core.

        Raises:
            FercliError: an image cannot be read; the faces of those before it have been yielded.
            ValueError: as for `__call__`.
        """
        with Workers(workers) as pool:
            for picture, faces in self.stream(_pictures(images), batch, pool):
                if faces is None:
                    raise FercliError(f"{picture.name}: {picture.error}")
                yield faces

    def stream(
        self, pictures: Iterable[Picture], batch: int, workers: Workers, live: bool = False
    ) -> Iterator[tuple[Picture, list[Face] | None]]:
        """Run `fercli.predict.stream.recognise` with this model."""
        return recognise(pictures, self.answer, self.options, self.with_crops, batch, workers, live)

    @torch.inference_mode()
    def answer(self, faces: Sequence[CutFace]) -> list[Face]:
        """Predict faces that are already cut out, in one batch; without faces, return an empty list."""
        _settle()
        if self.device.type == "cuda" and self._process != os.getpid():
            raise FercliError(
                "this Recognizer was loaded on a GPU before the process was forked, and CUDA does not work in a forked "
                "process: start processes with multiprocessing.get_context('spawn') and load it in each, or load it "
                "with device='cpu'"
            )
        if not faces:
            return []
        crops = self._stack([face.crops for face in faces if face.crops is not None]) if self.with_crops else None
        pictures, landmarks = self._stack([face.face for face in faces]), self._stack([f.landmarks for f in faces])
        view = plain_view(pictures, landmarks, crops, self._settings)
        with float32_products(self.device):
            output = self._answers(view)
        probabilities = output.logits.float().softmax(-1).cpu()
        decision = self.rule(probabilities)
        votes = probabilities.argmax(-1).tolist()
        made = []
        for i, face in enumerate(faces):
            answer, said = int(decision.answers[i]), decision.probabilities[i].numpy()
            made.append(
                Face(
                    box=face.found.box,
                    landmarks=face.found.points5,
                    expression=EXPRESSIONS[answer],
                    confidence=float(said[answer]),
                    probabilities=said,
                    stage=STAGES[int(decision.stages[i])],
                    heads={
                        name: EXPRESSIONS[vote]
                        for name, vote in zip(HEADS, votes[i], strict=True)
                        if name in self.heads
                    },
                    score=face.found.score,
                    how=face.found.how,
                )
            )
        return made

    def _answers(self, view: View) -> Output:
        if self.adaptation is not None:
            return self.adaptation(view)
        output = self.network(*view.inputs)
        return output if self._output_transform is None else self._output_transform(output)

    def _stack(self, arrays: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(arrays)).to(self.device)


@lru_cache
def _tell_once(line: str) -> None:
    _logger.warning("%s", line)


def starter_line(trained: Trained, other: str) -> str:
    """Return the line that names the starter model if no model was given; `other` says how to name one."""
    sources = "+".join(trained.spec.data.source)
    return f"starter model (trained on {sources}; see: fercli weights inspect {NAME}); {other}"


def _settle() -> None:
    """Use one PyTorch thread in a forked process: a pool of several would wait forever for the parent's threads."""
    global _home
    if _home != os.getpid():
        torch.set_num_threads(1)
        _home = os.getpid()


def _pictures(images: Iterable[Source]) -> Iterator[Picture]:
    for image in images:
        try:
            yield Picture(_name(image), _as_source(image))
        except Unreadable as why:
            yield Picture(_name(image), error=str(why))


def _as_source(image: Source) -> Prepared:
    """Return what can be sent to a worker: files and bytes as they are, everything else decoded."""
    if isinstance(image, str | os.PathLike):
        return Path(image)
    return bytes(image) if isinstance(image, bytes | bytearray | memoryview) else decode(image, _name(image)).pixels


def _name(image: Source) -> str:
    name = image if isinstance(image, str | os.PathLike) else getattr(image, "filename", None)
    return str(name) if name else "the image"
