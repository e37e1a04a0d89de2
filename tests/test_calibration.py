"""Calibration: reliability by hand and by a plain loop, the temperature against a grid."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from loops import certain

from fercli.evaluation.calibration import T_RANGE, apply_temperature, calibration, fit_temperature, reliability

LEAST = torch.finfo(torch.float32).tiny


def _drawn(count: int, scale: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities whose logits are `scale` times those that the labels were drawn from: T = `scale` is correct."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 7, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return (scale * logits).softmax(-1), labels


def _nll(probabilities: torch.Tensor, labels: torch.Tensor, temperature: float) -> float:
    logits = probabilities.double().clamp_min(LEAST).log() / temperature
    return float(torch.nn.functional.cross_entropy(logits, labels))


class TestTemperature:
    @pytest.mark.parametrize("count", [5, 3, 40, 1000])
    @pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
    def test_no_point_of_a_grid_is_better(self, count, scale):
        probabilities, labels = _drawn(count, scale, seed=count)
        fitted = fit_temperature(probabilities, labels)
        grid = np.exp(np.linspace(*map(math.log, T_RANGE), 2001))
        losses = [_nll(probabilities, labels, t) for t in grid]
        assert _nll(probabilities, labels, fitted) <= min(losses) + 1e-9
        assert abs(math.log(fitted / grid[int(np.argmin(losses))])) < 0.01

    def test_by_hand(self):
        """Three of four right at 0.9 each: -3/4 log q - 1/4 log((1 - q) / 6) is least at q = 3/4.

        T divides the log odds of the top class against one of the six others.
        """
        probabilities, labels = certain((0, 0.9), (1, 0.9), (2, 0.9), (3, 0.9)), torch.tensor([0, 1, 2, 4])
        # 0.9 against 1/60 per class before, 3/4 against 1/24 per class after.
        expected = math.log(54) / math.log(18)
        assert fit_temperature(probabilities, labels) == pytest.approx(expected, rel=1e-6)
        scaled = apply_temperature(probabilities, expected)
        assert scaled.amax(-1).tolist() == pytest.approx([0.75] * 4)

    @pytest.mark.parametrize(
        ("probabilities", "labels"),
        [
            pytest.param(torch.zeros(0, 7), [], id="no faces"),
            pytest.param(certain((0, 0.9)), [-1], id="no labelled face"),
            pytest.param(torch.full((5, 7), 1 / 7), [0, 1, 2, 3, 4], id="nothing said, nothing to scale"),
            pytest.param(torch.full((1, 7), 1 / 7).half(), [0], id="the same in halves"),
            pytest.param(certain((0, 0.5), (1, 0.9)), [0, 1], id="all right"),
            pytest.param(torch.eye(7), list(range(7)), id="certain and right"),
            pytest.param(torch.eye(7), [1, 2, 3, 4, 5, 6, 0], id="certain and wrong"),
            pytest.param(certain((0, 0.5), (1, 0.9)), [2, 2], id="all wrong"),
        ],
    )
    def test_temperature_is_one_where_it_is_not_determined(self, probabilities, labels):
        assert fit_temperature(probabilities, torch.tensor(labels, dtype=torch.int64)) == 1.0

    def test_lengths_must_agree(self):
        with pytest.raises(ValueError, match="probabilities of 2 faces but 1 labels"):
            fit_temperature(torch.eye(7)[:2], torch.tensor([0]))


class TestApply:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    @pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
    def test_sums_to_one_and_keeps_predictions_and_type(self, dtype, temperature):
        probabilities = torch.cat([_drawn(50)[0], torch.eye(7)]).to(dtype)
        scaled = apply_temperature(probabilities, temperature)
        assert scaled.dtype == dtype and scaled.isfinite().all()
        torch.testing.assert_close(scaled.double().sum(-1), torch.ones(57).double(), rtol=0, atol=5e-3)
        assert (scaled.argmax(-1) == probabilities.argmax(-1)).all()

    def test_by_hand(self):
        """At T = 1/2, probabilities are squared and normalised: 2/3, 1/3 become 4/5, 1/5. T = 1 changes nothing."""
        row = torch.tensor([[2 / 3, 1 / 3, 0, 0, 0, 0, 0]])
        torch.testing.assert_close(apply_temperature(row, 1.0), row)
        torch.testing.assert_close(apply_temperature(row, 0.5), torch.tensor([[0.8, 0.2, 0, 0, 0, 0, 0]]))


class TestReliability:
    def test_by_hand(self):
        """Ten bins. Confidences 0.45 right, 0.85 right, 0.85 wrong, 1.0 right.

        Bins (0.4, 0.5], (0.8, 0.9] and (0.9, 1]: ECE = 1/4 * 0.55 + 2/4 * |0.5 - 0.85| + 0.
        """
        probabilities = certain((3, 0.45), (2, 0.85), (2, 0.85), (6, 1.0))
        got = reliability(probabilities, torch.tensor([3, 2, 0, 6]), bins=10)
        assert got["ece"] == pytest.approx(0.25 * 0.55 + 0.5 * 0.35, abs=1e-12)
        logs = [math.log(0.45), math.log(0.85), math.log(0.15 / 6), 0.0]
        assert got["nll"] == pytest.approx(-sum(logs) / 4, abs=1e-12)
        filled = {i: row for i, row in enumerate(got["bins"]) if row["count"]}
        assert sorted(filled) == [4, 8, 9]
        assert filled[4] == {"low": 0.4, "high": 0.5, "count": 1, "confidence": pytest.approx(0.45), "accuracy": 1.0}
        assert filled[8]["count"] == 2 and filled[8]["accuracy"] == 0.5
        assert filled[9] == {"low": 0.9, "high": 1.0, "count": 1, "confidence": 1.0, "accuracy": 1.0}
        assert got["bins"][0] == {"low": 0.0, "high": 0.1, "count": 0, "confidence": None, "accuracy": None}

    @pytest.mark.parametrize("bins", [1, 2, 15, 40])
    @pytest.mark.parametrize("count", [1, 10, 500])
    def test_equals_a_plain_loop(self, count, bins):
        probabilities, labels = _drawn(count, 2.0, seed=bins)
        got = reliability(probabilities, labels, bins)
        error, nll = 0.0, 0.0
        for i in range(bins):
            inside = [
                (float(p.max()), int(p.argmax()) == int(y))
                for p, y in zip(probabilities, labels, strict=True)
                if i / bins < float(p.max()) <= (i + 1) / bins
            ]
            assert got["bins"][i]["count"] == len(inside)
            if inside:
                sure, right = np.mean([c for c, _ in inside]), np.mean([r for _, r in inside])
                assert got["bins"][i]["confidence"] == pytest.approx(sure, abs=1e-12)
                assert got["bins"][i]["accuracy"] == pytest.approx(right, abs=1e-12)
                error += len(inside) / count * abs(sure - right)
        for p, y in zip(probabilities, labels, strict=True):
            nll -= math.log(float(p[y])) / count
        assert got["ece"] == pytest.approx(error, abs=1e-12)
        assert got["nll"] == pytest.approx(nll, abs=1e-6)

    @pytest.mark.parametrize(
        ("probabilities", "labels", "ece", "nll"),
        [
            pytest.param(torch.zeros(0, 7), [], None, None, id="no faces"),
            pytest.param(torch.eye(7)[:1], [-1], None, None, id="no labelled face"),
            pytest.param(torch.eye(7)[:1], [0], 0.0, 0.0, id="certain and right"),
            pytest.param(torch.eye(7)[:1], [1], 1.0, -math.log(LEAST), id="certain and wrong, yet finite"),
            pytest.param(torch.full((7, 7), 1 / 7), list(range(7)), 0.0, math.log(7), id="knows nothing, says so"),
        ],
    )
    def test_degenerate(self, probabilities, labels, ece, nll):
        got = reliability(probabilities, torch.tensor(labels, dtype=torch.int64))
        assert len(got["bins"]) == 15 and sum(row["count"] for row in got["bins"]) == sum(y >= 0 for y in labels)
        assert [got["ece"], got["nll"]] == pytest.approx([ece, nll], abs=1e-6)
        assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_unlabelled_faces_have_no_effect():
    probabilities, labels = _drawn(50, 2.0)
    some = torch.where(torch.arange(50) % 3 == 0, -1, labels)
    for figure in (fit_temperature, reliability):
        assert figure(probabilities, some) == figure(probabilities[some >= 0], labels[some >= 0])


class TestCalibration:
    def test_fits_on_the_held_faces_only(self):
        probabilities, labels = _drawn(3000, 3.0, seed=1)
        held = _drawn(3000, 3.0, seed=2)
        got = calibration(probabilities, labels, *held)
        assert got["temperature"] == fit_temperature(*held) and got["fitted_on"] == 3000
        assert got["before"] == reliability(probabilities, labels)
        assert got["after"] == reliability(apply_temperature(probabilities, got["temperature"]), labels)
        assert got["after"]["ece"] < 0.05 < 0.2 < got["before"]["ece"]
        assert got["after"]["nll"] < got["before"]["nll"]
        # Other labels on the described faces do not change the temperature.
        assert calibration(probabilities, labels.flip(0), *held)["temperature"] == got["temperature"]

    def test_without_labels_there_is_no_calibration(self):
        assert calibration(_drawn(4)[0], torch.full((4,), -1), *_drawn(9)) is None
        assert calibration(torch.zeros(0, 7), torch.zeros(0).long(), *_drawn(9)) is None

    def test_without_held_faces_nothing_is_scaled(self):
        got = calibration(*_drawn(9), torch.zeros(0, 7), torch.zeros(0).long())
        assert got["temperature"] == 1.0 and got["fitted_on"] == 0
        assert got["after"]["ece"] == pytest.approx(got["before"]["ece"], abs=1e-6)
