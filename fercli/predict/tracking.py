"""Follows each face from frame to frame of a video and smooths its probabilities over time.

Tracks are matched greedily by overlap. Of all pairs of a face in this frame and a track, the one whose boxes have the
largest intersection over union is joined first, if that is at least `LEAST`. A face left over begins a track, and a
track that has not been seen for `PATIENCE` seconds ends. Boxes are not extrapolated: a face that moves by more than
about half its size between two frames (with ``--every``, between two frames used) gets a new number.

Each track's probabilities p are an exponential average of its frames' probabilities x: over a step of dt seconds
p <- p + (1 - exp(-dt / T)) (x - p), which does not depend on the frame rate. T is the time after which 63 % of a sudden
change has taken effect. A track begins with the probabilities of its first frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fercli.expressions import EXPRESSIONS
from fercli.faces.networks import overlaps
from fercli.predict.recognizer import Face

#: Least intersection over union of a face with itself one frame later, and seconds that a face may be missing.
LEAST, PATIENCE = 0.3, 1.0


@dataclass
class _Track:
    number: int
    box: np.ndarray
    probabilities: np.ndarray
    seen_s: float


class Tracker:
    """Tracks the faces of one video, frame after frame.

    Args:
        smooth_s: T, in seconds; 0 leaves the probabilities as they are.
    """

    def __init__(self, smooth_s: float):
        self._smooth_s, self._tracks, self._count = smooth_s, [], 0

    def __call__(self, faces: Sequence[Face], time_s: float) -> list[Face]:
        """Return the faces with their track's number, its smoothed probabilities and the prediction from these.

        Stage and heads remain those of the frame. Times must not decrease.
        """
        self._tracks = [track for track in self._tracks if time_s - track.seen_s <= PATIENCE]
        mine = self._match([np.array(face.box) for face in faces])
        tracked = []
        for face, track in zip(faces, mine, strict=True):
            if track is None:
                track = _Track(self._count, np.array(face.box), face.probabilities.astype(np.float64), time_s)
                self._count += 1
                self._tracks.append(track)
            else:
                past = max(0.0, time_s - track.seen_s)
                weight = -math.expm1(-past / self._smooth_s) if self._smooth_s > 0 else 1.0
                track.probabilities += weight * (face.probabilities - track.probabilities)
                track.box, track.seen_s = np.array(face.box), time_s
            said = track.probabilities.astype(np.float32)
            answer = int(said.argmax())
            changed = {"expression": EXPRESSIONS[answer], "confidence": float(said[answer]), "probabilities": said}
            tracked.append(replace(face, track=track.number, **changed))
        return tracked

    def _match(self, boxes: list[np.ndarray]) -> list[_Track | None]:
        mine: list[_Track | None] = [None] * len(boxes)
        if not self._tracks or not boxes:
            return mine
        there = np.stack([track.box for track in self._tracks])
        common = np.stack([overlaps(box, there) for box in boxes])
        for at in np.argsort(-common, axis=None, kind="stable"):
            face, track = divmod(int(at), len(there))
            if common[face, track] < LEAST:
                break
            if mine[face] is None and not any(other is self._tracks[track] for other in mine):
                mine[face] = self._tracks[track]
        return mine
