"""MediaPipe's face networks, run without its graph: BlazeFace finds faces, the face mesh fits 468 points to each.

The networks are those of mediapipe's wheel (`fercli.faces.network_files`) and run in LiteRT, its runtime. This module
does what the graph does around them, with the graph's constants, and agrees with ``FaceMesh`` to a fraction of a pixel
(tests/test_networks.py). On the same images it takes 0.6 of the time, because no packets, threads or messages are
involved. A process starts in a fraction of the time and needs half the memory.

Bazarevsky et al., "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs", CVPR workshop 2019;
Kartynnik et al., "Real-time Facial Surface Geometry from Monocular Video on Mobile GPUs", CVPR workshop 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from fercli.errors import FercliError
from fercli.faces.failures import may_pass, memory_left
from fercli.faces.network_files import read_network
from fercli.faces.quiet import mute_stderr

#: Detections whose overlap (intersection over union) is above this are one face.
_OVERLAP = 0.3
#: The mesh receives a square of this many times the longer side of the detection.
_ROI = 1.5
#: Points of the mesh.
MESH_POINTS = 468
#: Memory in bytes that is enough to load any of the networks.
_NEEDED = 64 << 20


@dataclass(frozen=True)
class Detection:
    """A face found by a detector.

    Attributes:
        box: float64 [4], (left, top, right, bottom) in pixels of the image (edges, not centres).
        eyes: float64 [2, 2], the centres of the image-left and the image-right eye of an upright face.
        score: 0..1.
    """

    box: np.ndarray
    eyes: np.ndarray
    score: float


class Detector:
    """BlazeFace in one of its two forms.

    Args:
        full_range: whether to find faces up to five metres away, rather than two.
    """

    def __init__(self, full_range: bool = False):
        name = "face_detection_full_range_sparse" if full_range else "face_detection_short_range"
        self._network = _Network(f"{name}.tflite")
        self._side = self._network.side
        # (Cells per side, boxes per cell). An anchor is only a centre, because the network gives everything else.
        grids = ((48, 1),) if full_range else ((16, 2), (8, 6))
        self._anchors = np.concatenate([_centres(cells, boxes) for cells, boxes in grids])

    def find(self, image: np.ndarray, confidence: float) -> list[Detection]:
        """Return the faces in uint8 [H, W, 3] RGB that score at least `confidence`, best first."""
        height, width = image.shape[:2]
        # The image is fitted into the square, with black around it.
        scale = self._side / max(height, width)
        shift = (self._side - scale * np.array([width, height])) / 2
        matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        square = _sampled(image, matrix, self._side, cv2.BORDER_CONSTANT)
        numbers, logits = self._network(square, low=-1)
        logits = logits.reshape(-1)
        likely = np.flatnonzero(logits >= _logit(confidence))
        if not len(likely):
            return []
        scores = 1 / (1 + np.exp(-np.clip(logits[likely], -100, 100).astype(np.float64)))
        # x, y, width, height of the box, then x, y of six points: the eyes come first.
        numbers = numbers.reshape(len(logits), -1)[likely, :8].astype(np.float64) / self._side
        centres = numbers[:, :2] + self._anchors[likely]
        boxes = np.hstack([centres - numbers[:, 2:4] / 2, centres + numbers[:, 2:4] / 2])
        eyes = numbers[:, 4:8].reshape(-1, 2, 2) + self._anchors[likely][:, None]
        merged = _merge(np.hstack([boxes, eyes.reshape(-1, 4)]), scores)
        found = []
        for values, score in merged:
            points = (values.reshape(4, 2) * self._side - shift) / scale
            found.append(Detection(points[:2].ravel(), points[2:], score))
        return found


class Mesh:
    """The face mesh without attention: 468 points with depth."""

    def __init__(self) -> None:
        self._network = _Network("face_landmark.tflite")
        self._side = self._network.side

    def fit(self, image: np.ndarray, detection: Detection) -> tuple[np.ndarray, float]:
        """Fit the mesh to a detected face.

        Args:
            image: uint8 [H, W, 3] RGB.
            detection: where the face is.

        Returns:
            Points float64 [468, 3]: x and y in pixels of the image (edges, not centres), and depth on the same scale,
            smaller towards the camera. Then the network's confidence, 0..1, that the mesh is on a face.
        """
        (left, top), (right, bottom) = detection.box.reshape(2, 2)
        across = detection.eyes[1] - detection.eyes[0]
        angle = math.atan2(across[1], across[0])
        side = _ROI * max(right - left, bottom - top)
        turn = side / self._side * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        # Maps edge coordinates of the square to edge coordinates of the image.
        origin = np.array([(left + right) / 2, (top + bottom) / 2]) - turn @ np.full(2, self._side / 2)
        matrix = cv2.invertAffineTransform(np.hstack([turn, origin[:, None]]))
        square = _sampled(image, matrix, self._side, cv2.BORDER_REPLICATE)
        points, sure = self._network(square, low=0)
        points = points.reshape(MESH_POINTS, 3).astype(np.float64)
        points[:, :2] = points[:, :2] @ turn.T + origin
        points[:, 2] *= side / self._side
        return points, 1 / (1 + math.exp(-float(np.clip(sure.reshape(-1)[0], -100, 100))))


class _Network:
    """A network of mediapipe's wheel, for one thread."""

    def __init__(self, name: str):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except (ImportError, OSError) as failure:
            if may_pass(failure):
                raise MemoryError(str(failure)) from failure
            raise
        content = read_network(name)
        # LiteRT prints to stderr which instructions of the processor it uses.
        with mute_stderr():
            try:
                self._interpreter = Interpreter(model_content=content, num_threads=1)
                self._interpreter.allocate_tensors()
            except RuntimeError as failure:
                if may_pass(failure) or not memory_left(_NEEDED):
                    raise MemoryError(str(failure)) from failure
                raise FercliError(f"LiteRT cannot run the face network {name}: {failure}") from failure
        given = self._interpreter.get_input_details()[0]
        self._input, self.side = given["index"], int(given["shape"][1])
        outputs = self._interpreter.get_output_details()
        # The longer output first: boxes before their scores, points before the presence of a face.
        outputs.sort(key=lambda output: -math.prod(output["shape"]))
        self._outputs = [output["index"] for output in outputs]

    def __call__(self, square: np.ndarray, low: float) -> list[np.ndarray]:
        """Run on uint8 [side, side, 3], whose 0..255 becomes `low`..1."""
        # Written directly into the network's memory. No view of that memory may exist while the network runs.
        place = self._interpreter.tensor(self._input)()[0]
        np.multiply(square, np.float32((1 - low) / 255), out=place)
        if low:
            place += np.float32(low)
        del place
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._outputs]


def _centres(cells: int, boxes: int) -> np.ndarray:
    """Return the centres float64 [cells * cells * boxes, 2] (x, y) of a grid's cells, as fractions of the square."""
    row = (np.arange(cells) + 0.5) / cells
    x, y = np.meshgrid(row, row)
    return np.repeat(np.stack([x.ravel(), y.ravel()], 1), boxes, axis=0)


def _sampled(image: np.ndarray, matrix: np.ndarray, side: int, border: int) -> np.ndarray:
    """Return uint8 [side, side, 3]: the image warped by a matrix [2, 3], bilinear.

    MediaPipe's graph treats edges as pixel centres here, and the networks were trained with it. So does this function.
    """
    return cv2.warpAffine(image, matrix, (side, side), borderMode=border)


def _merge(values: np.ndarray, scores: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Merge the proposals for one face into their mean, weighted by score (BlazeFace's blending, which avoids jitter).

    Args:
        values: float64 [n, 8]: box, then eyes.
        scores: float64 [n].

    Returns:
        (values [8], best score) of each face, best first.
    """
    order = np.argsort(-scores, kind="stable")
    merged = []
    while len(order):
        best = order[0]
        near = overlaps(values[best, :4], values[order, :4]) > _OVERLAP
        near[0] = True
        own = order[near]
        weights = scores[own] / scores[own].sum()
        merged.append((weights @ values[own], float(scores[best])))
        order = order[~near]
    return merged


def overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the intersection over union of a box [4] with others [n, 4]."""
    common = np.clip(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0, None).prod(1)
    areas = np.clip(others[:, 2:] - others[:, :2], 0, None).prod(1)
    union = np.clip(box[2:] - box[:2], 0, None).prod() + areas - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def _logit(share: float) -> float:
    return math.log(share / (1 - share)) if 0 < share < 1 else math.copysign(math.inf, share - 0.5)
