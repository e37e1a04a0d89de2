"""The A-distance on domains whose gap is known, the map of t-SNE, and what both make of too little."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm
from threadpoolctl import threadpool_limits

from fercli.evaluation.domain_gap import a_distance, embed
from fercli.loading.face_dataset import FaceDataset
from fercli.store import Store, subsample


def _domains(shift: float, source: int = 300, target: int = 300, length: int = 20, seed: int = 0):
    """Two normal clouds whose means lie `shift` standard deviations apart along the first axis."""
    rng = np.random.default_rng(seed)
    there = np.zeros(length)
    there[0] = shift
    return rng.normal(size=(source, length)), rng.normal(size=(target, length)) + there


class TestThin:
    @pytest.mark.parametrize(
        ("count", "limit", "expected"),
        [
            (0, 5, []),
            (3, 5, [0, 1, 2]),
            (5, 5, [0, 1, 2, 3, 4]),
            (5, 3, [0, 2, 4]),
            (10, 4, [0, 3, 6, 9]),
            (10, 1, [0]),
            (10, 0, []),
        ],
    )
    def test_by_hand(self, count, limit, expected):
        assert subsample(count, limit).tolist() == expected

    def test_even_and_without_repeats(self):
        for count in range(1, 60):
            for limit in range(1, count + 1):
                gaps = np.diff(subsample(count, limit))
                assert len(gaps) == limit - 1 and (gaps >= 1).all()
                assert limit == 1 or np.ptp(gaps) <= 1

    @pytest.mark.parametrize("limit", [1, 3, 4, 5, 6, 7, 100])
    def test_chooses_the_faces_that_training_watches(self, raf_store, limit):
        """Evaluation finds the labels of `Watch`'s outputs by it."""
        store = Store.open(raf_store)
        indices = store.indices(["train"])
        watched = FaceDataset([store], [indices], torch.device("cpu"), False).subsampled(limit)
        ids = [name for _, _, name in watched.names(np.arange(len(watched)))]
        assert ids == [str(name) for name in store.ids[indices[subsample(len(indices), limit)]]]


class TestADistance:
    @pytest.mark.parametrize(
        ("source", "target", "expected"),
        [
            # The best classifier of two normal clouds errs with probability Phi(-shift / 2).
            *(
                (*_domains(shift, 2000, 2000), pytest.approx(2 - 4 * norm.cdf(-shift / 2), abs=0.08))
                for shift in (0.0, 0.5, 1.0, 2.0, 4.0)
            ),
            # Naming always the larger domain would err on a tenth.
            pytest.param(*_domains(0.0, 2000, 200), pytest.approx(0, abs=0.32), id="more of one domain"),
            pytest.param(*_domains(50.0), 2.0, id="far apart"),
            pytest.param(_domains(0.0)[0], _domains(0.0)[0], 0.0, id="the very same faces"),
            pytest.param(np.ones((9, 4)), np.ones((9, 4)), 0.0, id="nothing varies"),
            pytest.param(np.zeros((5, 1)), np.ones((5, 1)), 2.0, id="as few as there are folds"),
        ],
    )
    def test_known_gaps(self, source, target, expected):
        got = a_distance(source, target)
        assert got["a_distance"] == expected
        assert 0 <= got["a_distance"] <= 2 and 0 <= got["error"] <= 1
        assert json.loads(json.dumps(got, allow_nan=False)) == got

    def test_equals_a_plain_loop(self):
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold

        scale, offset = np.geomspace(1e-3, 1e3, 20), np.arange(20)
        source, target = (scale * domain + offset for domain in _domains(1.0, 60, 23))
        got = a_distance(torch.from_numpy(source), torch.from_numpy(target), folds=4, seed=3)
        faces = np.concatenate([source[subsample(60, 23)], target])
        domain = np.array([0] * 23 + [1] * 23)
        wrong = 0
        for known, unseen in StratifiedKFold(4, shuffle=True, random_state=3).split(faces, domain):
            mean, deviation = faces[known].mean(0), faces[known].std(0)
            model = LogisticRegression(C=100 / len(known), tol=1e-8).fit(
                (faces[known] - mean) / deviation, domain[known]
            )
            for i in unseen:
                wrong += model.predict([(faces[i] - mean) / deviation])[0] != domain[i]
        assert got == {"a_distance": max(0.0, 2 * (1 - 2 * wrong / 46)), "error": wrong / 46, "faces": [60, 23]}

    @pytest.mark.parametrize(("source", "target"), [(0, 9), (9, 0), (4, 9), (9, 4), (0, 0)])
    def test_too_few_faces(self, source, target):
        got = a_distance(*_domains(1.0, source, target))
        assert got == {"a_distance": None, "error": None, "faces": [source, target]}

    @pytest.mark.parametrize(
        ("source", "target", "message"),
        [
            (np.ones((9, 3)), np.ones((9, 4)), "length 3 but target features 4"),
            (np.ones((9, 3)), np.full((9, 3), np.nan), "not a finite number"),
        ],
    )
    @pytest.mark.parametrize("make", [a_distance, embed])
    def test_bad_features_are_errors(self, make, source, target, message):
        with pytest.raises(ValueError, match=message):
            make(source, target)


class TestEmbed:
    def test_clusters_stay_apart(self):
        """Two clouds far apart: on the plane, too, each face's nearest neighbour is of its own domain."""
        got = embed(*_domains(30.0, 40, 50))
        assert got["domain"] == [0] * 40 + [1] * 50 and got["perplexity"] == pytest.approx(89 / 3)
        plane = np.array([got["x"], got["y"]]).T
        distances = np.linalg.norm(plane[:, None] - plane, axis=-1) + 9 * np.eye(90)
        domain = np.array(got["domain"])
        assert (domain[distances.argmin(1)] == domain).all()
        assert json.loads(json.dumps(got, allow_nan=False)) == got

    @pytest.mark.parametrize(
        ("source", "target", "length", "perplexity"),
        [
            pytest.param(3, 2, 8, 4 / 3, id="as few as allowed"),
            pytest.param(6, 0, 8, 5 / 3, id="source only"),
            pytest.param(0, 6, 8, 5 / 3, id="target only"),
            pytest.param(5, 5, 1, 3.0, id="one feature"),
            pytest.param(60, 60, 100, 30.0, id="more features than components"),
        ],
    )
    def test_fills_the_unit_square(self, source, target, length, perplexity):
        got = embed(*_domains(1.0, source, target, length))
        assert got["perplexity"] == pytest.approx(perplexity)
        assert len(got["x"]) == len(got["y"]) == len(got["domain"]) == source + target
        assert got["domain"] == [0] * source + [1] * target
        assert min(got["x"]) == 0 and max(got["x"]) == 1
        for values in (got["x"], got["y"]):
            assert all(0 <= value <= 1 and value == round(value, 4) for value in values)

    @pytest.mark.parametrize(
        ("source", "target"),
        [
            pytest.param(np.zeros((2, 3)), np.eye(3)[:2], id="four faces"),
            pytest.param(np.zeros((0, 3)), np.zeros((0, 3)), id="none"),
            pytest.param(np.ones((9, 4)), np.ones((3, 4)), id="all alike"),
        ],
    )
    def test_too_little(self, source, target):
        assert embed(source, target) is None

    def test_same_again_however_many_threads(self):
        domains = _domains(1.0, 30, 30)
        with threadpool_limits(2):
            got = embed(*domains)
        assert embed(*domains) == got


def test_a_machine_that_cannot_count_its_cores_says_nothing_of_it(tmp_path: Path) -> None:
    """joblib asks lscpu, which slim containers lack, and prints a warning with a trace."""
    code = (
        "import numpy as np; from fercli.evaluation.domain_gap import embed; "
        "x = np.random.default_rng(0).normal(size=(12, 4)); print(len(embed(x, x + 1)['x']))"
    )
    environment = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "24\n", "")
