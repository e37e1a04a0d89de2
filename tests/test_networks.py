"""The face networks without MediaPipe's graph, compared with MediaPipe itself."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from drawn import STREET, THUMBNAIL

from fercli.faces.networks import MESH_POINTS, Detector, Mesh, _merge
from fercli.synthetic.render import LAB, STUDIO, render


def solution(name: str) -> Any:
    """Import a module of MediaPipe's last release with the networks; skip the test if it has no wheel here."""
    return pytest.importorskip(f"mediapipe.python.solutions.{name}")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Return faces of four domains; wide, tall, small, turned and cut-off images; two faces in one; and no face."""
    drawn = [
        render(domain, person, person % 7, person).image
        for domain in (STUDIO, LAB, THUMBNAIL, STREET)
        for person in range(4)
    ]
    first, second = drawn[0], cv2.resize(drawn[1], first_size := drawn[0].shape[1::-1])
    turned = cv2.warpAffine(first, cv2.getRotationMatrix2D((100, 100), 20, 1), first_size, borderMode=1)
    return [
        *drawn,
        np.hstack([first, second]),
        np.vstack([first, second]),
        turned,
        first[:, : first.shape[1] * 3 // 5],
        np.full((90, 200, 3), 128, np.uint8),
    ]


def test_the_plain_pass_agrees_with_mediapipe(pictures):
    theirs, detector, mesh = solution("face_mesh").FaceMesh(static_image_mode=True, max_num_faces=5), Detector(), Mesh()
    compared = 0
    for picture in pictures:
        size = np.array([picture.shape[1], picture.shape[0], picture.shape[1]])
        expected = [
            np.array([(p.x, p.y, p.z) for p in found.landmark]) * size
            for found in theirs.process(picture).multi_face_landmarks or ()
        ]
        found = [mesh.fit(picture, detection) for detection in detector.find(picture, 0.5)]
        found = [points for points, sure in found if sure > 0.5]
        assert len(found) == len(expected)
        for one in expected:
            nearest = min(found, key=lambda points: np.abs(points - one).mean())
            # Relative to the face's width: hundredths of a pixel, because MediaPipe rounds its samples differently.
            assert np.abs(nearest - one).mean() < 0.005 * np.ptp(one[:, 0])
            compared += 1
    assert compared >= 15


@pytest.mark.parametrize(("full_range", "least"), [(False, 0.5), (True, 0.6)])
def test_detectors_agree_with_mediapipe(pictures, full_range, least):
    theirs = solution("face_detection").FaceDetection(least, model_selection=int(full_range))
    detector = Detector(full_range)
    compared = 0
    for picture in pictures:
        expected = theirs.process(picture).detections or ()
        found = detector.find(picture, least)
        assert abs(len(found) - len(expected)) <= 1
        for one in expected[:1]:
            box = one.location_data.relative_bounding_box
            corners = np.array([box.xmin, box.ymin, box.xmin + box.width, box.ymin + box.height])
            corners *= np.tile(picture.shape[1::-1], 2)
            nearest = min(found, key=lambda d: np.abs(d.box - corners).max())
            assert np.abs(nearest.box - corners).max() < 0.03 * (corners[2] - corners[0])
            assert abs(nearest.score - one.score[0]) < 0.05
            compared += 1
    assert compared >= 5


def test_a_face_is_where_it_was_drawn():
    face = render(STUDIO, 3, 6, 1)
    detection = Detector().find(face.image, 0.5)[0]
    assert np.abs(detection.eyes - face.landmarks[:2]).max() < 0.1 * np.ptp(face.landmarks[:2, 0])
    points, sure = Mesh().fit(face.image, detection)
    assert points.shape == (MESH_POINTS, 3) and sure > 0.9
    # The centre between each eye's corners, image-left first.
    eyes = np.stack([points[[33, 133], :2].mean(0), points[[263, 362], :2].mean(0)])
    assert np.abs(eyes - face.landmarks[:2]).max() < 0.1 * np.ptp(face.landmarks[:2, 0])


def test_no_face_is_an_empty_list():
    assert Detector().find(np.zeros((40, 300, 3), np.uint8), 0.5) == []


def test_proposals_of_one_face_become_their_weighted_mean():
    """Two boxes that overlap by 2/3 with scores 0.9 and 0.6, and a separate one: (0.9 a + 0.6 b) / 1.5."""
    values = np.zeros((3, 8))
    values[:, :4] = [(0, 0, 10, 10), (2, 0, 12, 10), (50, 50, 60, 60)]
    merged = _merge(values, np.array([0.9, 0.6, 0.95]))
    assert [score for _, score in merged] == [0.95, 0.9]
    assert np.allclose(merged[0][0][:4], (50, 50, 60, 60)) and np.allclose(merged[1][0][:4], (0.8, 0, 10.8, 10))
