"""Five landmarks of the face in a picture: MediaPipe's face mesh, and a ladder of retries where it finds none.

mediapipe (0.10.21, whose wheel carries its models) is imported when the first face is looked for, and its graphs are
built once a process: training needs none of it.

The five points are taken from the mesh so that they fit the ArcFace template (see `fercli.faces.align`): an eye is the
mean of its two corners, the mouth corners are 61 and 291, the nose tip is 4. Of the two usual nose tips, 4 lies 0.6 px
above the template's after the least-squares fit and 1 lies 2.4 px below it (980 real faces, 112 px template); iris
centres fit no better than the corners' mean, follow the gaze, and need the slower mesh with attention.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from fercli.datasets.records import Box

#: The retry ladder's steps, in the order in which they are tried.
RETRIES: tuple[str, ...] = ("border", "upscale", "low-confidence", "full-range")

# Mesh vertices (their left and right are the subject's): corners of the image-left and image-right eye, nose tip,
# image-left and image-right mouth corner; then forehead, chin and both cheeks, which only bound the face.
_EYE_LEFT, _EYE_RIGHT, _NOSE, _MOUTH_LEFT, _MOUTH_RIGHT = (33, 133), (263, 362), 4, 61, 291
_VERTICES = (*_EYE_LEFT, *_EYE_RIGHT, _NOSE, _MOUTH_LEFT, _MOUTH_RIGHT, 10, 152, 234, 454)

#: The mesh's own confidence that it lies on a face (MediaPipe's default). Lowering it with the detector's let meshes
#: settle on noses, ears and lettering: it stays.
_PRESENCE = 0.5
#: Least longer side of a mesh in pixels of the picture: on 48 x 48 faces all smaller finds were false, and a smaller
#: face shows no expression.
_MIN_SIDE = 20
#: Faces looked for in one picture; more costs nothing where there is one.
_MAX_FACES = 5
#: The detector sees 128 x 128 pixels and the mesh 192 x 192: a larger picture only costs time.
_MAX_SIDE = 1280
#: "upscale" enlarges pictures whose shorter side is below this.
_UPSCALE_TO = 256
#: "border" replicates the edge by this share of the longer side; a given or detected box is widened by `_WIDEN`.
_BORDER, _WIDEN = 0.25, 0.5


@dataclass(frozen=True)
class Found:
    """A face in a picture.

    Attributes:
        points5: float64 [5, 2] (x, y) in pixels of the picture given, pixel centres at integers: image-left eye,
            image-right eye, nose tip, image-left and image-right mouth corner.
        score: the detector's confidence, 0..1.
        box: (left, top, right, bottom) of the mesh in the same pixels.
        pose: (roll, yaw, pitch) in degrees by the mesh: roll clockwise in the picture, yaw towards its right, pitch
            upwards. Rough (the mesh is fitted to one picture); for histograms, not for measuring heads.
        how: ``found`` in the plain pass, or ``retried:<step>`` with the step of the ladder that found it.
    """

    points5: np.ndarray
    score: float
    box: Box
    pose: tuple[float, float, float]
    how: str


class Landmarker:
    """Finds the face that counts in a picture.

    Args:
        confidence: least detector score in the plain pass (MediaPipe's own default is 0.5).
        low_confidence: the same in the steps from ``low-confidence`` on.
        retries: steps of `RETRIES` to try where the plain pass finds nothing; always tried in the order of `RETRIES`.
    """

    def __init__(self, confidence: float = 0.5, low_confidence: float = 0.2, retries: Sequence[str] = RETRIES):
        unknown = set(retries) - set(RETRIES)
        if unknown:
            raise ValueError(f"unknown retry steps {sorted(unknown)}; known: {', '.join(RETRIES)}")
        self.confidence, self.low_confidence = float(confidence), float(low_confidence)
        self.retries = tuple(step for step in RETRIES if step in retries)

    def find(self, image: np.ndarray, box: Box | None = None) -> Found | None:
        """Find the face in `image`, uint8 [H, W, 3] RGB.

        With a `box` (left, top, right, bottom) the search stays around it, and of several faces whose centre is in it
        the one that overlaps it best counts; without, the largest does. Returns None where no step finds a face.
        """
        view = _View.of(image)
        if box is not None:
            view = view.crop(box, _WIDEN)
        view = view.limit(_MAX_SIDE)
        found = self._mesh(view, self.confidence, box, "found")
        if found is not None:
            return found
        for step, variant, confidence in self._ladder(view, box):
            found = self._mesh(variant, confidence, box, f"retried:{step}")
            if found is not None:
                return found
        return None

    def _ladder(self, view: _View, box: Box | None) -> Iterator[tuple[str, _View, float]]:
        """Yield (step, view, confidence) for each try; the pictures are made only as far as the caller asks."""
        tries = [view]
        if "border" in self.retries:
            tries.append(view.pad(_BORDER))
            yield "border", tries[-1], self.confidence
        if "upscale" in self.retries and tries[-1].short_side < _UPSCALE_TO:
            tries.append(tries[-1].enlarge(_UPSCALE_TO))
            yield "upscale", tries[-1], self.confidence
        if "low-confidence" in self.retries:
            for variant in reversed(tries):
                yield "low-confidence", variant, self.low_confidence
        if "full-range" in self.retries:
            for variant in (tries[-1], view) if len(tries) > 1 else (view,):
                near = self._full_range(variant, box)
                if near is not None:
                    crop = view.crop(near, _WIDEN).pad(_BORDER).enlarge(_UPSCALE_TO)
                    yield "full-range", crop, self.low_confidence

    def _mesh(self, view: _View, confidence: float, box: Box | None, how: str) -> Found | None:
        result = _run("mesh", confidence, view.image)
        faces = []
        for mesh in result.multi_face_landmarks or ():
            vertices = np.array([(v.x, v.y, v.z) for v in map(mesh.landmark.__getitem__, _VERTICES)])
            points = view.to_original(vertices[:, :2])
            (left, top), (right, bottom) = points.min(0), points.max(0)
            if max(right - left, bottom - top) >= _MIN_SIDE:
                # The mesh's depth is in widths of the picture it was given, smaller towards the camera.
                depths = vertices[:, 2] * view.image.shape[1] * view.scale[0]
                faces.append((points, depths, (left, top, right, bottom)))
        chosen = _choose([face_box for *_, face_box in faces], box)
        if chosen is None:
            return None
        p, depths, face_box = faces[chosen]
        points5 = np.stack([(p[0] + p[1]) / 2, (p[2] + p[3]) / 2, p[4], p[5], p[6]])
        boxes, scores = _detections(result.face_detections, view)
        # The meshes carry no score: take it from the detection that overlaps this mesh best.
        overlaps = [_overlap(face_box, detected) for detected in boxes]
        score = scores[int(np.argmax(overlaps))] if scores else 0.0
        return Found(points5, score, tuple(float(v) for v in face_box), _pose(p, depths), how)

    def _full_range(self, view: _View, box: Box | None) -> Box | None:
        """Return the face box that the full-range detector (faces up to 5 m away) gives, in original pixels."""
        result = _run("full-range", self.low_confidence, view.image)
        boxes, _ = _detections(result.detections, view)
        chosen = _choose(boxes, box)
        return None if chosen is None else boxes[chosen]


@dataclass(frozen=True)
class _View:
    """A crop, enlargement or padding of a picture, and the way back: original = view * scale + offset.

    Offsets are in edge coordinates (a pixel's centre lies at +0.5), which scaling leaves alone.
    """

    image: np.ndarray
    scale: tuple[float, float]
    offset: tuple[float, float]

    @classmethod
    def of(cls, image: np.ndarray) -> _View:
        return cls(image, (1.0, 1.0), (0.0, 0.0))

    @property
    def short_side(self) -> int:
        return min(self.image.shape[:2])

    def crop(self, box: Box, widen: float) -> _View:
        """Cut the box (in original pixels), widened on each side by `widen` of its longer side, clipped to the view."""
        grow = widen * max(box[2] - box[0], box[3] - box[1])
        edges = np.array([[box[0] - grow, box[1] - grow], [box[2] + grow, box[3] + grow]])
        size = np.array(self.image.shape[1::-1])
        (x0, y0), (x1, y1) = np.clip(np.round((edges - self.offset) / self.scale), 0, size).astype(int)
        if x1 - x0 < 2 or y1 - y0 < 2:
            return self
        offset = (self.offset[0] + x0 * self.scale[0], self.offset[1] + y0 * self.scale[1])
        return _View(self.image[y0:y1, x0:x1], self.scale, offset)

    def pad(self, share: float) -> _View:
        n = max(1, round(share * max(self.image.shape[:2])))
        padded = cv2.copyMakeBorder(self.image, n, n, n, n, cv2.BORDER_REPLICATE)
        offset = (self.offset[0] - n * self.scale[0], self.offset[1] - n * self.scale[1])
        return _View(padded, self.scale, offset)

    def enlarge(self, short_side: int) -> _View:
        factor = short_side / self.short_side
        return self if factor <= 1 else self._resize(factor, cv2.INTER_CUBIC)

    def limit(self, long_side: int) -> _View:
        factor = long_side / max(self.image.shape[:2])
        return self if factor >= 1 else self._resize(factor, cv2.INTER_AREA)

    def _resize(self, factor: float, interpolation: int) -> _View:
        height, width = self.image.shape[:2]
        # A sliver of a picture would outgrow the memory when its short side is enlarged.
        size = [max(1, min(round(n * factor), 4 * _MAX_SIDE)) for n in (width, height)]
        resized = cv2.resize(self.image, size, interpolation=interpolation)
        scale = (self.scale[0] * width / size[0], self.scale[1] * height / size[1])
        return _View(resized, scale, self.offset)

    def to_original(self, shares: np.ndarray) -> np.ndarray:
        """Map points [n, 2], as shares of this view's width and height, to original pixels (centres at integers)."""
        return shares * self.image.shape[1::-1] * self.scale + self.offset - 0.5


def _pose(points: np.ndarray, depths: np.ndarray) -> tuple[float, float, float]:
    """Return (roll, yaw, pitch) in degrees of the vertices `_VERTICES`: points [11, 2] and depths [11] in pixels."""
    eyes = points[2:4].sum(0) - points[0:2].sum(0)
    across, down = points[10] - points[9], points[8] - points[7]
    angles = (
        math.atan2(eyes[1], eyes[0]),
        math.atan2(depths[10] - depths[9], math.hypot(*across)),
        math.atan2(depths[7] - depths[8], math.hypot(*down)),
    )
    return tuple(math.degrees(angle) for angle in angles)


def _detections(detections: Sequence[Any] | None, view: _View) -> tuple[list[Box], list[float]]:
    boxes, scores = [], []
    for detection in detections or ():
        share = detection.location_data.relative_bounding_box
        corners = [(share.xmin, share.ymin), (share.xmin + share.width, share.ymin + share.height)]
        boxes.append(tuple(float(v) for v in view.to_original(np.array(corners)).ravel()))
        scores.append(float(detection.score[0]))
    return boxes, scores


def _choose(boxes: Sequence[Box], given: Box | None) -> int | None:
    """Return the index of the face that counts: by overlap with the given box, else the largest; None if none does."""
    if given is None:
        return max(range(len(boxes)), key=lambda i: _area(boxes[i]), default=None)
    inside = [
        i
        for i, (left, top, right, bottom) in enumerate(boxes)
        if given[0] <= (left + right) / 2 <= given[2] and given[1] <= (top + bottom) / 2 <= given[3]
    ]
    return max(inside, key=lambda i: _overlap(boxes[i], given), default=None)


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _overlap(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes, 0..1."""
    common = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = _area(a) + _area(b) - common
    return common / union if union > 0 else 0.0


class _Graphs(threading.local):
    """This thread's graphs (MediaPipe's are not safe to share), and which of them have found a face already."""

    def __init__(self) -> None:
        self.built: dict[tuple[str, float], Callable[[np.ndarray], Any]] = {}
        self.spoken: set[tuple[str, float]] = set()


_graphs = _Graphs()
_stderr_lock = threading.Lock()


def _run(kind: str, confidence: float, image: np.ndarray) -> Any:
    """Run one of this thread's graphs, built when first asked for, on uint8 [H, W, 3] RGB.

    MediaPipe's libraries print to stderr, past Python and past their own flags, while a graph is built and when it
    finds its first face: until then stderr is sent to nowhere.
    """
    key = (kind, confidence)
    image = np.ascontiguousarray(image)
    if key in _graphs.spoken:
        return _graphs.built[key](image)
    with _stderr_lock, _mute_stderr():
        if key not in _graphs.built:
            _graphs.built[key] = _build_mesh(confidence) if kind == "mesh" else _build_full_range(confidence)
        result = _graphs.built[key](image)
    if getattr(result, "multi_face_landmarks", None) or getattr(result, "detections", None):
        _graphs.spoken.add(key)
    return result


def _build_mesh(confidence: float) -> Callable[[np.ndarray], Any]:
    # As mediapipe.solutions.face_mesh.FaceMesh(static_image_mode=True) builds it, which hides the detections and with
    # them the scores.
    from mediapipe.python.solution_base import SolutionBase
    from mediapipe.python.solutions import face_mesh

    short_range = "facedetectionshortrangecpu__facedetectionshortrange__facedetection__TensorsToDetectionsCalculator"
    graph = SolutionBase(
        binary_graph_path=face_mesh._BINARYPB_FILE_PATH,
        side_inputs={"num_faces": _MAX_FACES, "with_attention": False, "use_prev_landmarks": False},
        calculator_params={
            f"{short_range}.min_score_thresh": confidence,
            "facelandmarkcpu__ThresholdingCalculator.threshold": _PRESENCE,
        },
        outputs=["multi_face_landmarks", "face_detections"],
    )
    return lambda image: graph.process({"image": image})


def _build_full_range(confidence: float) -> Callable[[np.ndarray], Any]:
    from mediapipe.python.solutions.face_detection import FaceDetection

    return FaceDetection(min_detection_confidence=confidence, model_selection=1).process


@contextmanager
def _mute_stderr() -> Iterator[None]:
    os.environ.setdefault("GLOG_minloglevel", "2")
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
