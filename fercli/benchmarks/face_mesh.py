"""MediaPipe's own face mesh, the yardstick of `fercli bench prepare`, from its "solutions" (old releases) or Tasks API.

The newer releases, which install on every Python, contain no networks. They get the same networks as fercli
(`fercli.faces.network_files`) in the archive format that their FaceLandmarker reads, so that both do the same work.
"""

from __future__ import annotations

import importlib.util
import io
import zipfile
from collections.abc import Callable

import numpy as np

from fercli.faces.network_files import read_network
from fercli.faces.quiet import mute_stderr

#: The names of the two networks in Tasks -> their file names here.
_BUNDLE = {
    "face_detector.tflite": "face_detection_short_range.tflite",
    "face_landmarks_detector.tflite": "face_landmark.tflite",
}


def is_installed() -> bool:
    """Whether mediapipe is installed."""
    found = importlib.util.find_spec("mediapipe")
    return found is not None and found.origin is not None


def face_mesh() -> Callable[[np.ndarray], int]:
    """Return a function that runs the face mesh on uint8 [H, W, 3] RGB and counts the faces. Its models are loaded."""
    with mute_stderr():
        try:
            run = _solutions()
        except ModuleNotFoundError:  # mediapipe 0.10.30 and later
            run = _tasks()
        run(np.zeros((64, 64, 3), np.uint8))
    return run


def _solutions() -> Callable[[np.ndarray], int]:
    from mediapipe.python.solutions.face_mesh import FaceMesh

    mesh = FaceMesh(static_image_mode=True)
    return lambda image: len(mesh.process(image).multi_face_landmarks or ())


def _tasks() -> Callable[[np.ndarray], int]:
    import mediapipe
    from mediapipe.tasks.python import BaseOptions, vision

    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for theirs, ours in _BUNDLE.items():
            file.writestr(theirs, read_network(ours))
    options = vision.FaceLandmarkerOptions(base_options=BaseOptions(model_asset_buffer=archive.getvalue()))
    mesh = vision.FaceLandmarker.create_from_options(options)

    def run(image: np.ndarray) -> int:
        picture = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=image)
        return len(mesh.detect(picture).face_landmarks)

    return run
