"""Five landmarks of the face in an image: MediaPipe's face mesh, and a ladder of retries where it finds none.

The five points are taken from the mesh so that they fit the ArcFace template (see `fercli.faces.align`): an eye is the
mean of its two corners, the mouth corners are 61 and 291, the nose tip is 4. Of the two usual nose tips, 4 lies 0.6 px
above the template's after the least-squares fit and 1 lies 2.4 px below it (980 real faces, 112 px template); iris
centres fit no better than the corners' mean, follow the gaze, and need the slower mesh with attention.
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
# image-left and image-right mouth corner; then forehead, chin and both cheeks, which only bound the face.
_EYE_LEFT, _EYE_RIGHT, _NOSE, _MOUTH_LEFT, _MOUTH_RIGHT = (33, 133), (263, 362), 4, 61, 291
_VERTICES = [*_EYE_LEFT, *_EYE_RIGHT, _NOSE, _MOUTH_LEFT, _MOUTH_RIGHT, 10, 152, 234, 454]

#: The mesh's own confidence that it lies on a face (MediaPipe's default). Lowering it with the detector's let meshes
#: settle on noses, ears and lettering: it stays.
_PRESENCE = 0.5
#: Least score of the full-range detector (MediaPipe's default).
_FAR_CONFIDENCE = 0.6
#: Least longer side of a mesh in pixels of the image: on 48 x 48 faces all smaller finds were false, and a smaller
#: face shows no expression.
_MIN_SIDE = 20
#: Faces looked for in one image; more costs nothing where there is one. `find_all` stops at the second.
_MAX_FACES, _MAX_ALL = 5, 300
#: The detector sees 128 x 128 pixels and the mesh 192 x 192: a larger image only costs time.
_MAX_SIDE = 1280
#: "upscale" enlarges images whose shorter side is below this.
_UPSCALE_TO = 256
#: "border" replicates the edge by this share of the longer side; a given or detected box is widened by `_WIDEN`.
_BORDER, _WIDEN = 0.25, 0.5
#: Degrees, clockwise, by which "rotate" turns the image, and how far from upright a face in it may then still lie.
_TURNS, _FAR_FROM_UPRIGHT = (30.0, -30.0, 60.0, -60.0), 60.0
#: A face rolled by more degrees is looked at again in an image turned so that it is upright: at 45 degrees that halves
#: the error of the landmarks.
_ROLLED = 25.0
#: `find_all`: in images whose longer side is above `_NEAR` small faces are looked for too, in tiles of a half, a
#: quarter and an eighth of it, none smaller than `_TILE`, that overlap by `_TILE_OVERLAP`: what is cut by a tile's edge
#: lies whole in the next, or is found in the larger ones. What the many tiles show must be surer than what the image
#: as a whole shows.
_NEAR, _TILE, _TILE_OVERLAP, _TILE_CONFIDENCE = 320, 160, 1 / 3, 0.6


@dataclass(frozen=True)
class Found:
    """A face in an image.

    Attributes:
        points5: float64 [5, 2] (x, y) in pixels of the image given, pixel centres at integers: image-left eye,
            image-right eye, nose tip, image-left and image-right mouth corner.
        score: the detector's confidence, 0..1.
        box: (left, top, right, bottom) of the mesh in the same pixels.
        pose: (roll, yaw, pitch) in degrees by the mesh: roll clockwise in the image, yaw towards its right, pitch
            upwards. Rough (the mesh is fitted to one image); for histograms, not for measuring heads.
        how: ``found`` in the plain pass, or ``retried:<step>`` with the step of the ladder that found it; ``far`` or
            ``tile`` for small faces of `Landmarker.find_all`.
    """

    points5: np.ndarray
    score: float
    box: Box
    pose: tuple[float, float, float]
    how: str


class Landmarker:
    """Finds the face that counts in an image, or all of them.

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

        The plain pass of `find` with all that it shows; then, in images with a longer side above 320 pixels, the
        full-range detector and the short-range one in overlapping tiles (`how` is ``far`` and ``tile``); and only where
        nothing is found, the retry ladder. What overlaps a face that was found before is that face. What `find` returns
        without a box is among them, to the bit, if the plain pass found it or the image is no larger than that; a
        large image's ladder would have taken a coarser look than the tiles do. At most 300 faces; an image without
        one gives [].

        Recall on procedural faces side by side (STUDIO and the tests' STREET, 960 to 1600 pixels wide; brow to chin
        in pixels): of 3 x 4 (120) and 6 x 8 (85) all, of 10 x 14 (55) all, of 12 x 20 (45) 479 of 480, none twice; the
        whole image alone shows both detectors 12 of 12, 11 of 48 and nothing. On 44 images of 640 x 480 without a
        face (text, bricks, clouds, ...) none is found. tests/test_landmarker.py repeats some of it.
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
        """Return the faces that the first step of the ladder to find any finds; of turned images, those of all."""
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
        """Yield faces that are small in the image; `known` grows meanwhile by those that are new."""
        whole = SearchRegion(image)
        for how, near in self._small_boxes(whole, view):
            if not is_new(near, [face.box for face in known]):
                continue
            # Looked at again with some room around it: a tile may have cut the face, and the mesh then lies askew.
            crop = whole.crop(near, 2 * _WIDEN).limit(_MAX_SIDE)
            found = self._mesh(crop.pad(_BORDER).enlarge(_UPSCALE_TO), self.low_confidence, near, how)
            if found is not None:
                yield self._set_upright(found, view)

    def _small_boxes(self, whole: SearchRegion, view: SearchRegion) -> Iterator[tuple[str, Box]]:
        """Yield (how, box in pixels of the image) of what the detectors see that look for small faces."""
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
        """Return the face that scores best in the view turned by `_TURNS`: in a wrong turn the mesh may be mirrored."""
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
        """Return the face as it is found once more with the view turned so that it is upright.

        The same face is returned where it was found near enough to upright, the view then turned by `angle`.
        """
        if abs(found.pose[0] + angle) < _ROLLED:
            return found
        upright = view.crop(found.box, 1.0).turn(-found.pose[0])
        again = self._mesh(upright, self.low_confidence, found.box, found.how)
        if again is None or overlap(again.box, found.box) < SAME:
            return found
        return replace(again, score=found.score)

    def _ladder(self, view: SearchRegion, box: Box | None) -> Iterator[tuple[str, SearchRegion, float]]:
        """Yield (step, view, confidence) for each try; the images are made only as far as the caller asks."""
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
        """Return the meshes laid over what the short-range detector sees, as far as they lie on a face of some size."""
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
    """The box around points [n, 2]."""
    return (*points.min(0).tolist(), *points.max(0).tolist())


def _box_of(detection: Detection, view: SearchRegion) -> Box:
    """The box around what a detector sees in a view, in pixels of the image."""
    left, top, right, bottom = detection.box
    return _box(view.to_original(np.array([(left, top), (right, top), (left, bottom), (right, bottom)])))


_built = threading.local()


def _networks(kind: str) -> Any:
    """Return this thread's network of a kind, built when first asked for: they are not safe to share."""
    if not hasattr(_built, kind):
        makers = {"detector": Detector, "full-range": lambda: Detector(full_range=True), "mesh": Mesh}
        setattr(_built, kind, makers[kind]())
    return getattr(_built, kind)
