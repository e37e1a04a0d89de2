"""Find five landmarks of the face in an image: MediaPipe's face mesh, and a ladder of retries if it finds none.

The five points are taken from the mesh so that they fit the ArcFace template (see `fercli.faces.align`). An eye is the
mean of its two corners, the mouth corners are vertices 61 and 291, and the nose tip is vertex 4. Of the two usual nose
tips, 4 is 0.6 px above the template's after the least-squares fit, and 1 is 2.4 px below it (980 real faces, 112 px
template). Iris centres fit no better than the mean of the corners, follow the gaze, and need the slower mesh with
attention.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fercli.datasets.reader import Box
from fercli.faces.networks import Detection, Detector, Mesh
from fercli.faces.search import SAME, SearchRegion, choose, is_new, overlap, starts
from fercli.spec import Prepare

#: The retry ladder's steps, in the order in which they are tried.
RETRIES: tuple[str, ...] = tuple(Prepare().retries)

# Mesh vertices (their left and right are the subject's): corners of the image-left and image-right eye, nose tip,
# image-left and image-right mouth corner; then forehead, chin and both cheeks, which only delimit the face.
_EYE_LEFT, _EYE_RIGHT, _NOSE, _MOUTH_LEFT, _MOUTH_RIGHT = (33, 133), (263, 362), 4, 61, 291
_VERTICES = [*_EYE_LEFT, *_EYE_RIGHT, _NOSE, _MOUTH_LEFT, _MOUTH_RIGHT, 10, 152, 234, 454]

#: The mesh's minimum confidence that it is on a face (MediaPipe's default). It is fixed: when it was lowered along
#: with the detector's, meshes settled on noses, ears and lettering.
_PRESENCE = 0.5
#: Minimum score of the full-range detector (MediaPipe's default).
_FAR_CONFIDENCE = 0.6
#: Minimum length of a mesh's longer side in pixels of the image. On 48 x 48 faces all smaller detections were false,
#: and a smaller face shows no expression.
_MIN_SIDE = 20
#: Maximum number of faces to look for in one image (the second: in `find_all`). More cost nothing if there is one face.
_MAX_FACES, _MAX_ALL = 5, 300
#: The detector sees 128 x 128 pixels and the mesh 192 x 192. A larger image only costs time.
_MAX_SIDE = 1280
#: "upscale" enlarges images whose shorter side is below this.
_UPSCALE_TO = 256
#: "border" replicates the edge by this fraction of the longer side. A given or detected box is widened by `_WIDEN`.
_BORDER, _WIDEN = 0.25, 0.5
#: Clockwise degrees by which "rotate" turns the image, and how far from upright a face may then still be.
_TURNS, _FAR_FROM_UPRIGHT = (30.0, -30.0, 60.0, -60.0), 60.0
#: A face rolled by more degrees is searched for again in an image turned so that the face is upright. At 45 degrees
#: this halves the error of the landmarks.
_ROLLED = 25.0
#: If an image's longer side is above `_NEAR`, `find_all` also looks for small faces. It uses tiles of a half, a quarter
#: and an eighth of that side, but none smaller than `_TILE`. The tiles overlap by `_TILE_OVERLAP`, so that a face cut
#: by a tile's edge is whole in the next tile, or is found in a larger one. Because there are many tiles, a face in a
#: tile needs a higher confidence than a face in the whole image.
_NEAR, _TILE, _TILE_OVERLAP, _TILE_CONFIDENCE = 320, 160, 1 / 3, 0.6


@dataclass(frozen=True)
class Found:
    """A face in an image.

    Attributes:
        points5: float64 [5, 2] (x, y) in pixels of the image given, pixel centres at integers: image-left eye,
            image-right eye, nose tip, image-left and image-right mouth corner.
        score: the detector's confidence, 0..1.
        box: (left, top, right, bottom) of the mesh in the same pixels.
        pose: (roll, yaw, pitch) in degrees from the mesh: roll clockwise in the image, yaw towards its right, pitch
            upwards. The pose is rough (the mesh is fitted to one image): good for histograms, not for measurements.
        how: ``found`` in the plain pass, or ``retried:<step>`` with the step of the ladder that found it; ``far`` or
            ``tile`` for small faces of `Landmarker.find_all`.
    """

    points5: np.ndarray
    score: float
    box: Box
    pose: tuple[float, float, float]
    how: str


class Landmarker:
    """Finds the most relevant face in an image, or all faces.

    Args:
        confidence: minimum detector score in the plain pass (MediaPipe's own default is 0.5).
        low_confidence: the same for the steps from ``low-confidence`` on.
        retries: steps of `RETRIES` to try if the plain pass finds nothing; always tried in the order of `RETRIES`.
    """

    def __init__(self, confidence: float = 0.5, low_confidence: float = 0.2, retries: Sequence[str] = RETRIES):
        unknown = set(retries) - set(RETRIES)
        if unknown:
            raise ValueError(f"unknown retry steps {sorted(unknown)}; known: {', '.join(RETRIES)}")
        self.confidence, self.low_confidence = float(confidence), float(low_confidence)
        self.retries = tuple(step for step in RETRIES if step in retries)

    def find(self, image: np.ndarray, box: Box | None = None) -> Found | None:
        """Find the face in `image`, uint8 [H, W, 3] RGB.

        With a `box` (left, top, right, bottom) the search is limited to its surroundings. Of the faces whose centre is
        in the box, the one that overlaps it best is returned. Without a box, the largest face is returned. Returns None
        if no step finds a face.
        """
        view = SearchRegion(image)
        if box is not None:
            view = view.crop(box, _WIDEN)
        view = view.limit(_MAX_SIDE)
        found = self._mesh(view, self.confidence, box, "found")
        if found is not None:
            return self._set_upright(found, view)
        for step, variant, confidence in self._ladder(view, box):
            found = self._mesh(variant, confidence, box, f"retried:{step}")
            if found is not None:
                return self._set_upright(found, variant)
        return self._turned(view, box) if "rotate" in self.retries else None

    def find_all(self, image: np.ndarray) -> list[Found]:
        """Find every face in `image`, uint8 [H, W, 3] RGB, from left to right (by the middles of their boxes).

        First comes the plain pass of `find`, with all faces that it detects. In images with a longer side above 320
        pixels, the full-range detector and the short-range detector in overlapping tiles follow (`how` is ``far`` and
        ``tile``). The retry ladder follows only if nothing is found. A detection that overlaps a face found before
        counts as that face. At most 300 faces are returned; an image without a face gives [].

        The face that `find` returns without a box is among them, bit for bit, if the plain pass found it or if the
        image is not larger than 320 pixels. In a large image, the ladder would search more coarsely than the tiles do.

        Recall on procedural faces side by side (STUDIO and the tests' STREET, 960 to 1600 pixels wide; brow to chin
        in pixels): all of 3 x 4 (120), 6 x 8 (85) and 10 x 14 (55); 479 of 480 of 12 x 20 (45); none twice. On the
        whole image alone, the two detectors find 12 of 12, 11 of 48 and none. On 44 images of 640 x 480 without a face
        (text, bricks, clouds, ...) none is found. tests/test_landmarker.py repeats some of these measurements.
        """
        view = SearchRegion(image).limit(_MAX_SIDE)
        faces = [self._set_upright(found, view) for found in self._meshes(view, self.confidence, "found")]
        if max(image.shape[:2]) > _NEAR:
            for found in self._small(image, view, faces):
                if is_new(found.box, [face.box for face in faces]):
                    faces.append(found)
        kept: list[Found] = []
        for found in faces or self._retried(view):
            if is_new(found.box, [face.box for face in kept]):
                kept.append(found)
        return sorted(kept[:_MAX_ALL], key=lambda found: (found.box[0] + found.box[2], found.box[1]))

    def _retried(self, view: SearchRegion) -> list[Found]:
        """Return the faces from the first successful step of the ladder; for "rotate", those of all turned images."""
        for step, variant, confidence in self._ladder(view, None):
            faces = [self._set_upright(f, variant) for f in self._meshes(variant, confidence, f"retried:{step}")]
            if faces:
                return faces
        if "rotate" not in self.retries:
            return []
        turned = []
        for angle, variant in self._turns(view):
            faces = self._meshes(variant, self.confidence, "retried:rotate")
            turned += [(f, angle) for f in faces if abs(f.pose[0] + angle) <= _FAR_FROM_UPRIGHT]
        turned.sort(key=lambda one: -one[0].score)
        return [self._set_upright(found, view, angle) for found, angle in turned]

    def _small(self, image: np.ndarray, view: SearchRegion, known: Sequence[Found]) -> Iterator[Found]:
        """Yield faces that are small in the image; the caller adds the new ones to `known` in the meantime."""
        whole = SearchRegion(image)
        for how, near in self._small_boxes(whole, view):
            if not is_new(near, [face.box for face in known]):
                continue
            # Search again with some room around the box: a tile may have cut the face, and the mesh would be askew.
            crop = whole.crop(near, 2 * _WIDEN).limit(_MAX_SIDE)
            found = self._mesh(crop.pad(_BORDER).enlarge(_UPSCALE_TO), self.low_confidence, near, how)
            if found is not None:
                yield self._set_upright(found, view)

    def _small_boxes(self, whole: SearchRegion, view: SearchRegion) -> Iterator[tuple[str, Box]]:
        """Yield (how, box in pixels of the image) for the detections of small faces."""
        for near in self._far_boxes(view):
            yield "far", near
        height, width = whole.image.shape[:2]
        confidence = max(self.confidence, _TILE_CONFIDENCE)
        for part in (2, 4, 8):
            side = max(height, width) / part
            if side < _TILE:
                return
            for top in starts(height, side, _TILE_OVERLAP):
                for left in starts(width, side, _TILE_OVERLAP):
                    tile = whole.crop((left, top, left + side, top + side), 0)
                    for detection in _networks("detector").find(tile.image, confidence):
                        yield "tile", _box_of(detection, tile)

    def _turned(self, view: SearchRegion, box: Box | None) -> Found | None:
        """Return the best-scoring face of the view turned by `_TURNS`: at a wrong angle the mesh may be mirrored."""
        upright = [
            (found, angle)
            for angle, turned in self._turns(view)
            if (found := self._mesh(turned, self.confidence, box, "retried:rotate"))
            and abs(found.pose[0] + angle) <= _FAR_FROM_UPRIGHT
        ]
        best = max(upright, key=lambda one: one[0].score, default=None)
        return None if best is None else self._set_upright(best[0], view, best[1])

    def _turns(self, view: SearchRegion) -> Iterator[tuple[float, SearchRegion]]:
        large = view.enlarge(_UPSCALE_TO)
        for angle in _TURNS:
            yield angle, large.turn(angle)

    def _set_upright(self, found: Found, view: SearchRegion, angle: float = 0.0) -> Found:
        """Find the face again in the view turned so that the face is upright, and return it.

        The given face, found in the view turned by `angle`, is returned unchanged if it was close enough to upright.
        """
        if abs(found.pose[0] + angle) < _ROLLED:
            return found
        upright = view.crop(found.box, 1.0).turn(-found.pose[0])
        again = self._mesh(upright, self.low_confidence, found.box, found.how)
        if again is None or overlap(again.box, found.box) < SAME:
            return found
        return replace(again, score=found.score)

    def _ladder(self, view: SearchRegion, box: Box | None) -> Iterator[tuple[str, SearchRegion, float]]:
        """Yield (step, view, confidence) for each try; each view is made only when the caller asks for it."""
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

    def _mesh(self, view: SearchRegion, confidence: float, box: Box | None, how: str) -> Found | None:
        faces = self._meshes(view, confidence, how, _MAX_FACES)
        return choose(faces, box, lambda found: found.box)

    def _meshes(self, view: SearchRegion, confidence: float, how: str, most: int = _MAX_ALL) -> list[Found]:
        """Return the meshes fitted to the short-range detector's boxes, if they are on a face of sufficient size."""
        faces, mesh = [], _networks("mesh")
        for detection in _networks("detector").find(view.image, confidence)[:most]:
            points, sure = mesh.fit(view.image, detection)
            if sure < _PRESENCE:
                continue
            p = view.to_original(points[_VERTICES, :2])
            if np.ptp(p, 0).max() >= _MIN_SIDE:
                points5 = np.stack([(p[0] + p[1]) / 2, (p[2] + p[3]) / 2, p[4], p[5], p[6]])
                pose = _pose(p, points[_VERTICES, 2] * view.scale[0])
                faces.append(Found(points5, detection.score, _box(p), pose, how))
        return faces

    def _full_range(self, view: SearchRegion, box: Box | None) -> Box | None:
        """Return the face box that the full-range detector (faces up to 5 m away) gives, in original pixels."""
        return choose(self._far_boxes(view), box, lambda seen: seen)

    def _far_boxes(self, view: SearchRegion) -> list[Box]:
        return [_box_of(detection, view) for detection in _networks("full-range").find(view.image, _FAR_CONFIDENCE)]


def _pose(points: np.ndarray, depths: np.ndarray) -> tuple[float, float, float]:
    """Return (roll, yaw, pitch) in degrees of the vertices `_VERTICES`: points [11, 2] and depths [11] in pixels."""
    eyes = points[2:4].sum(0) - points[0:2].sum(0)
    across, down = points[10] - points[9], points[8] - points[7]
    roll = math.atan2(eyes[1], eyes[0])
    yaw = math.atan2(depths[10] - depths[9], math.hypot(*across))
    pitch = math.atan2(depths[7] - depths[8], math.hypot(*down))
    return math.degrees(roll), math.degrees(yaw), math.degrees(pitch)


def _box(points: np.ndarray) -> Box:
    """Return the box around points [n, 2]."""
    return (*points.min(0).tolist(), *points.max(0).tolist())


def _box_of(detection: Detection, view: SearchRegion) -> Box:
    """Return the box around a detection in a view, in pixels of the image."""
    left, top, right, bottom = detection.box
    return _box(view.to_original(np.array([(left, top), (right, top), (left, bottom), (right, bottom)])))


_built = threading.local()


def _networks(kind: str) -> Any:
    """Return this thread's network of a kind, built at the first call: networks are not safe to share."""
    if not hasattr(_built, kind):
        makers = {"detector": Detector, "full-range": lambda: Detector(full_range=True), "mesh": Mesh}
        setattr(_built, kind, makers[kind]())
    return getattr(_built, kind)
