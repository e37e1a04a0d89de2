"""The energy distance of domains with a known gap, the t-SNE map, and both with too little data."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import energy_distance as scipy_distance
from threadpoolctl import threadpool_limits

from fercli.evaluation.domain_gap import embed, energy_distance, why_unmeasured
from fercli.loading.face_dataset import FaceDataset
from fercli.store import Store, subsample


def _domains(shift: float, source: int = 300, target: int = 300, length: int = 20, seed: int = 0):
    """Two normal clouds whose means are `shift` standard deviations apart along the first axis."""
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

    def test_evenly_spaced_and_without_repeats(self):
        for count in range(1, 60):
            for limit in range(1, count + 1):
                gaps = np.diff(subsample(count, limit))
                assert len(gaps) == limit - 1 and (gaps >= 1).all()
                assert limit == 1 or np.ptp(gaps) <= 1

    @pytest.mark.parametrize("limit", [1, 3, 4, 5, 6, 7, 100])
    def test_chooses_the_faces_that_training_watches(self, raf_store, limit):
        """Evaluation uses it to find the labels of `Watch`'s outputs."""
        store = Store.open(raf_store)
        indices = store.indices(["train"])
        watched = FaceDataset([store], [indices], torch.device("cpu"), False).subsampled(limit)
        ids = [name for _, _, name in watched.names(np.arange(len(watched)))]
        assert ids == [str(name) for name in store.ids[indices[subsample(len(indices), limit)]]]


def _by_loops(source, target) -> float:
    """The normalised energy distance, pair by pair."""
    source, target = ([face / np.linalg.norm(face) for face in domain] for domain in (source, target))

    def mean(pairs):
        return np.mean([np.sqrt(((one - other) ** 2).sum()) for one, other in pairs])

    between = mean(itertools.product(source, target))
    within = [mean(itertools.permutations(domain, 2)) for domain in (source, target)]
    return 1 - sum(within) / (2 * between)


class TestEnergyDistance:
    def test_equals_a_plain_loop(self):
        source, target = _domains(1.0, 25, 12)
        got = energy_distance(torch.from_numpy(source), torch.from_numpy(target), seed=3)
        assert got["energy_distance"] == pytest.approx(_by_loops(source, target), rel=1e-9)
        drawn, without = np.random.default_rng(3), []
        for _ in range(100):
            faces = source[drawn.permutation(25)]
            without.append(_by_loops(faces[:12], faces[12:24]))
        assert got["no_gap"] == pytest.approx(np.quantile(without, 0.95), rel=1e-9)
        assert got["faces"] == [25, 12]
        assert json.loads(json.dumps(got, allow_nan=False)) == got

    def test_no_gap_is_for_sets_of_the_targets_size(self):
        """The value without a gap is for sets as large as the target, although the source has many more faces."""
        source, target = _domains(0.0, 400, 12)
        assert energy_distance(source, target)["no_gap"] > 3 * energy_distance(source, source[:200])["no_gap"]

    def test_agrees_with_scipy_on_a_line(self):
        """Faces on a short arc are almost on a line, for which scipy has the root of the squared energy distance."""
        rng = np.random.default_rng(0)
        source, target = rng.normal(size=3000), rng.normal(size=3000) + 2
        got = energy_distance(*(np.stack([np.ones(3000), 1e-4 * one], 1) for one in (source, target)))
        between = np.abs(source[:, None] - target).mean()
        assert got["energy_distance"] == pytest.approx(scipy_distance(source, target) ** 2 / (2 * between), abs=1e-3)

    def test_grows_where_a_linear_classifier_is_already_perfect(self):
        """Two clouds pulled apart; at each step the first feature alone separates them without error."""
        found = []
        for shift in (12, 16, 24, 40, 80, 200):
            source, target = _domains(shift)
            assert source[:, 0].max() < target[:, 0].min()
            found.append(energy_distance(source, target)["energy_distance"])
        assert (np.diff(found) > 0.01).all() and found[0] > 0.1 and found[-1] < 1

    @pytest.mark.parametrize(("source", "target"), [(300, 300), (30, 300), (300, 30), (10, 10)])
    def test_without_a_gap_it_is_about_zero(self, source, target):
        """For any number of faces the mean over many draws is 0, and no_gap is exceeded as rarely as stated."""
        found = [energy_distance(*_domains(0.0, source, target, seed=seed)) for seed in range(60)]
        read = np.array([one["energy_distance"] for one in found])
        limits = np.array([one["no_gap"] for one in found])
        assert abs(read.mean()) < 4 * read.std() / np.sqrt(len(read))
        assert (limits > 0).all() and (read > limits).mean() <= 0.15

    def test_only_directions_and_their_distances_count(self):
        source, target = _domains(1.0, 40, 50)
        got, rng = energy_distance(source, target), np.random.default_rng(5)
        rotation = np.linalg.qr(rng.normal(size=(20, 20)))[0]
        factors = [np.exp(rng.normal(size=(len(one), 1))) for one in (source, target)]
        for ours, theirs in (
            (7e-9 * source, 1e200 * target),
            (source * factors[0], target * factors[1]),
            (source @ rotation, target @ rotation),
            (np.pad(source, ((0, 0), (0, 5))), np.pad(target, ((0, 0), (0, 5)))),
        ):
            other = energy_distance(ours, theirs)
            assert other["energy_distance"] == pytest.approx(got["energy_distance"], rel=1e-9)
            assert other["no_gap"] == pytest.approx(got["no_gap"], rel=1e-9)
        assert energy_distance(target, source)["energy_distance"] == pytest.approx(got["energy_distance"], rel=1e-9)

    @pytest.mark.parametrize(
        ("source", "target", "expected"),
        [
            pytest.param(np.ones((20, 4)), 3 * np.ones((12, 4)), 0.0, id="all alike"),
            pytest.param(np.zeros((20, 4)), np.zeros((12, 4)), 0.0, id="all nothing"),
            pytest.param(np.zeros((20, 4)), np.ones((12, 4)), 1.0, id="nothing and something"),
            pytest.param(np.eye(4)[[0] * 20], np.eye(4)[[1] * 12], 1.0, id="a point each"),
        ],
    )
    def test_without_spread(self, source, target, expected):
        got = energy_distance(source, target)
        assert got == {"energy_distance": pytest.approx(expected, abs=1e-12), "no_gap": 0.0, "faces": [20, 12]}

    def test_same_again_however_many_threads(self):
        domains = _domains(1.0, 60, 70, 384)
        with threadpool_limits(2):
            got = energy_distance(*domains)
        assert energy_distance(*domains) == got

    @pytest.mark.parametrize(
        ("source", "target", "words"),
        [
            (0, 30, "no test faces, and none were held out of training"),
            (0, 0, "no test faces"),
            (9, 30, "too few faces to compare (9 of the source; at least 10 are needed)"),
            (30, 1, "too few faces to compare (1 of the target; at least 10 are needed)"),
            (3, 0, "(3 of the source and 0 of the target; at least 10 are needed)"),
        ],
    )
    def test_too_few_faces(self, source, target, words):
        got = energy_distance(*_domains(1.0, source, target))
        assert got == {"energy_distance": None, "no_gap": None, "faces": [source, target]}
        assert words in why_unmeasured(source, target)

    def test_ten_faces_are_enough(self):
        assert None not in energy_distance(*_domains(1.0, 10, 10)).values() and why_unmeasured(10, 10) is None

    @pytest.mark.parametrize(
        ("source", "target", "message"),
        [
            (np.ones((9, 3)), np.ones((9, 4)), "length 3 but target features 4"),
            (np.ones((9, 3)), np.full((9, 3), np.nan), "not a finite number"),
            (np.full((20, 3), np.inf), np.ones((20, 3)), "not a finite number"),
        ],
    )
    @pytest.mark.parametrize("make", [energy_distance, embed])
    def test_bad_features_are_errors(self, make, source, target, message):
        with pytest.raises(ValueError, match=message):
            make(source, target)


class TestEmbed:
    def test_clusters_stay_apart(self):
        """With two clouds far apart, each face's nearest neighbour on the plane is also from its own domain."""
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
    def test_too_little_data(self, source, target):
        assert embed(source, target) is None

    def test_same_again_however_many_threads(self):
        domains = _domains(1.0, 30, 30)
        with threadpool_limits(2):
            got = embed(*domains)
        assert embed(*domains) == got


def test_a_machine_that_cannot_count_its_cores_prints_no_warning(tmp_path: Path) -> None:
    """joblib calls lscpu, which slim containers lack, and prints a warning with a traceback."""
    code = (
        "import numpy as np; from fercli.evaluation.domain_gap import embed; "
        "x = np.random.default_rng(0).normal(size=(12, 4)); print(len(embed(x, x + 1)['x']))"
    )
    environment = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "24\n", "")
