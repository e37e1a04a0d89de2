"""A trained model for use: images in, every face's expression out.

    from fercli import Recognizer

    recognizer = Recognizer.load()  # the starter model in the package; of your own: load("runs/baseline", "jaffe")
    for face in recognizer("party.jpg"):
        print(face.expression, face.confidence, face.box)

Faces are found, aligned and cut as `fercli prepare` does it with the settings that the model was trained with, and the
network runs in float32 as in `fercli evaluate`: an image's face gets the answer that its prepared face gets.

A process that is forked (``multiprocessing`` on Linux, web servers that load the application first) may use a
Recognizer that its parent has loaded, even one in use. On the CPU it runs PyTorch with one thread from then on, as
DataLoader's workers do: the parent's threads are not there, and waiting for them would never end. On a GPU it is an
error, for CUDA does not work in a forked process: start processes by ``spawn`` and load the model in each.
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

#: The process in which PyTorch may have started its threads.
_home = os.getpid()


@dataclass(frozen=True)
class Face:
    """A face of an image and what the model says of it.

    Attributes:
        box: (left, top, right, bottom) of the face mesh, brow to chin, in pixels of the image.
        landmarks: float64 [5, 2] (x, y) in the same pixels: image-left eye, image-right eye, nose tip, image-left and
            image-right mouth corner.
        expression: the answer, one of `fercli.expressions.EXPRESSIONS`.
        confidence: its probability.
        probabilities: float32 [7] in the order of `EXPRESSIONS`, of those heads that decided.
        stage: which stage of GLPC decided: ``fused`` (also under the other rules), ``global`` or ``sum``.
        heads: the own answer of each head that the model has, by name (`fercli.models.HEADS`).
        score: the face detector's, 0..1.
        how: how it was found (`fercli.faces.landmarker.Found`).
        track: number of the person through a video, where faces are tracked.
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
    """Finds every face of an image and names its expression.

    Args:
        network: in eval mode, on `device`.
        spec: that it was trained with: sizes and alignment of faces.
        device: of the network.
        rule: the decision rule.
        output_transform: what the method makes of the network's output.
        heads: those of `fercli.models.HEADS` that the model has.
        adapt, episodic: as `load` takes them; `network` is then adapted in place.

    Attributes:
        adaptation: the test-time adaptation at work (`fercli.predict.test_time.Adaptation`), or None. Its `reset` goes
            back to the model as it was loaded.
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
        """The model of a run, or the starter model.

        Args:
            run: a run folder, a stage folder, a checkpoint or a model file (`fercli.engine.trained.find_trained`).
                Without it, or by the word ``starter``, it is the model that comes with fercli. Without it, a warning of
                the logger ``fercli`` says so once a process: on stderr where the application has not set up logging,
                and where the application wants it otherwise.
            target: of several adaptations the one to this target; ``source`` is the source model.
            device: ``auto``, ``cpu`` or ``cuda``.
            adapt: ``adabn``, ``tent`` or ``t3a``: adapt to the faces that are answered, batch by batch, without labels
                (`fercli.predict.test_time`). A face's answer then depends on the others of its batch, and on all faces
                answered before.
            episodic: with `adapt`: forget what was learnt before every batch.

        Raises:
            FercliError: no such model, several, no checkpoint of fercli, no CUDA device where one is asked for, or a
                model that the method cannot adapt.
        """
        _settle()
        trained = find_trained(NAME if run is None else run, target)
        if run is None:
            _tell_once(starter_line(trained, 'Recognizer.load("starter") asks for it, load(RUN) for another'))
        unused = unused_card(device)
        if unused is not None:
            _tell_once(unused)
        return cls.of(trained, device, adapt, episodic)

    @classmethod
    def of(cls, trained: Trained, device: str = "auto", adapt: str | None = None, episodic: bool = False) -> Recognizer:
        """A model that was found already."""
        where = torch.device(resolve_device(device))
        network, transform = trained.network(where), trained.output_transform(where)
        return cls(network, trained.spec, where, trained.rule, transform, trained.heads, adapt, episodic)

    def __call__(self, image: Source) -> list[Face]:
        """Every face of an image, from left to right.

        Args:
            image: a file's path, the bytes of an image file, a PIL image, or an array: [H, W] or [H, W, C] with 1 to 4
                channels in the order RGB (of OpenCV's arrays: ``image[..., ::-1]``), of bool, integers or floats.
                `fercli.faces.images.decode` says how each is read; all four ways give the same answers. Of a JPEG of
                more than 100 megapixels, boxes and landmarks are in its own pixels, though it is decoded smaller.

        Raises:
            FercliError: the image cannot be read.
            ValueError: an array of another shape or type, or no image at all.
        """
        try:
            cut = see(_as_source(image), self.options, self.with_crops, _name(image))
        except Unreadable as why:
            raise FercliError(f"{_name(image)}: {why}") from None
        return self.answer(cut)

    def many(self, images: Iterable[Source], batch: int = 64, workers: int = 1) -> Iterator[list[Face]]:
        """The faces of each image, in order; the network answers the faces of several images at a time.

        Args:
            images: as for a call; taken as there is room, so that an endless stream does.
            batch: faces that the network answers at a time.
            workers: processes that find faces; 1 is this one, 0 as many as there are cores.

        Raises:
            FercliError: an image cannot be read; those before it have been answered.
            ValueError: as for a call.
        """
        with Workers(workers) as pool:
            for picture, faces in self.stream(_pictures(images), batch, pool):
                if faces is None:
                    raise FercliError(f"{picture.name}: {picture.error}")
                yield faces

    def stream(
        self, pictures: Iterable[Picture], batch: int, workers: Workers, live: bool = False
    ) -> Iterator[tuple[Picture, list[Face] | None]]:
        """`fercli.predict.stream.recognise` by this model."""
        return recognise(pictures, self.answer, self.options, self.with_crops, batch, workers, live)

    @torch.inference_mode()
    def answer(self, faces: Sequence[CutFace]) -> list[Face]:
        """What the model says of faces cut out already, in one batch; none is an empty list."""
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
    """The one line that tells of the starter model where nobody named a model; `other` says how to name one."""
    sources = "+".join(trained.spec.data.source)
    return f"starter model (trained on {sources}; see: fercli weights inspect {NAME}); {other}"


def _settle() -> None:
    """Run PyTorch with one thread in a process that was forked: a pool of several waits for ever for the parent's."""
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
    """Return what can go to a worker: files and bytes as they are, the rest decoded."""
    if isinstance(image, str | os.PathLike):
        return Path(image)
    return bytes(image) if isinstance(image, bytes | bytearray | memoryview) else decode(image, _name(image)).pixels


def _name(image: Source) -> str:
    name = image if isinstance(image, str | os.PathLike) else getattr(image, "filename", None)
    return str(name) if name else "the image"
