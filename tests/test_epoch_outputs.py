"""Outputs in files: what is read equals what was written, except for rounding that changes no prediction."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fercli.errors import FercliError
from fercli.evaluation.calibration import fit_temperature, reliability
from fercli.evaluation.decision import FUSED, DecisionRule
from fercli.evaluation.outputs import EpochOutputs, epoch_file, prune, read_outputs, rounded, write_outputs


def probabilities(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    sharpness = 12 * torch.rand(count, 1, 1, generator=generator)
    return (sharpness * torch.randn(count, 7, 7, generator=generator)).softmax(-1)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    given = {"scored": probabilities(50), "held": probabilities(9, 1), "status": torch.rand(7, 7)}
    features = {"features": torch.randn(5, 384)}
    write_outputs(tmp_path / "o", {**given, **features}, {"faces": "abc", "model": "def"})
    found, about = read_outputs(tmp_path / "o")
    assert about == {"faces": "abc", "model": "def"} and list(found) == sorted(found)
    assert torch.equal(found["status"], given["status"]) and torch.equal(found["features"], features["features"])
    for name in ("scored", "held"):
        assert torch.equal(found[name], rounded(given[name]))
        torch.testing.assert_close(found[name], given[name], rtol=2e-2, atol=4e-4)
    first = (tmp_path / "o").read_bytes()
    for _ in range(5):  # the same bytes, in any order of the arguments
        write_outputs(tmp_path / "o", {**features, **given}, {"model": "def", "faces": "abc"})
        assert (tmp_path / "o").read_bytes() == first


def test_a_face_takes_98_bytes(tmp_path: Path) -> None:
    write_outputs(tmp_path / "o", {"scored": probabilities(990), "held": probabilities(10)}, {})
    assert 98_000 <= (tmp_path / "o").stat().st_size < 98_500


def test_rounding_changes_no_head_s_prediction_and_hardly_a_figure() -> None:
    exact = probabilities(20_000)
    exact[:2000, :, 1] = exact[:2000, :, 0] * (1 + 1e-5)  # closer to each other than float16 can distinguish
    exact[:2000] /= exact[:2000].sum(-1, keepdim=True)
    kept = rounded(exact)
    assert torch.equal(kept.argmax(-1), exact.argmax(-1))
    assert torch.equal(DecisionRule("fused")(kept).answers, DecisionRule("fused")(exact).answers)
    labels = torch.randint(0, 7, (20_000,), generator=torch.Generator().manual_seed(1))
    for name in ("ece", "nll"):
        one, other = (reliability(p[:, FUSED], labels)[name] for p in (kept, exact))
        assert one == pytest.approx(other, rel=1e-3)
    assert fit_temperature(kept[:, FUSED], labels) == pytest.approx(fit_temperature(exact[:, FUSED], labels), rel=1e-3)


def test_probabilities_of_zero_and_nan_survive() -> None:
    one_hot = torch.eye(7).expand(1, 7, 7)
    assert rounded(one_hot)[0, 0].argmax() == 0 and (rounded(one_hot) >= 0).all()
    assert rounded(torch.full((1, 7, 7), torch.nan)).isnan().all()


BROKEN = {
    "missing": (lambda path: path.unlink(), "is missing"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-7]), "is damaged"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is damaged"),
    "of something else": (lambda path: save_file({"x": torch.zeros(2)}, path), "was written by another version"),
    "of no format": (
        lambda path: save_file({"x": torch.zeros(2)}, path, {"fercli.outputs": "1"}),
        "was written by another version",
    ),
    "a part alone": (lambda path: write_outputs(path, {"held": probabilities(2)}, {}), "it lacks scored"),
    "no numbers": (
        lambda path: write_outputs(path, dict.fromkeys(("scored", "held"), torch.full((1, 7, 7), torch.nan)), {}),
        "has unexpected values, type or shape",
    ),
    "other shapes": (
        lambda path: write_outputs(path, {"status": torch.zeros(3)}, {}),
        "status has unexpected values, type or shape",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_not_as_it_was_written_is_named(case: str, tmp_path: Path) -> None:
    path, (spoil, text) = epoch_file(tmp_path, 3), BROKEN[case]
    path.parent.mkdir()
    write_outputs(path, {"scored": probabilities(4), "held": probabilities(2)}, {"faces": "f"})
    spoil(path)
    with pytest.raises(FercliError) as problem:
        read_outputs(path)
    assert str(path) in problem.value.text and text in problem.value.text and "--restart" in problem.value.text


def leave(folder: Path, *epochs: int) -> None:
    (folder / "outputs").mkdir(exist_ok=True)
    for epoch in epochs:
        write_outputs(epoch_file(folder, epoch), dict.fromkeys(("scored", "held"), probabilities(2, epoch)), {})


def test_epochs_are_in_order_and_expected_ones_are_reported_missing(tmp_path: Path) -> None:
    assert EpochOutputs(tmp_path, [1, 2]).paths == {}  # an earlier version's folder
    leave(tmp_path, 10, 2, 12345)
    (tmp_path / "outputs/epoch-0003.npy").touch()
    assert list(EpochOutputs(tmp_path).paths) == [2, 10, 12345]
    outputs = EpochOutputs(tmp_path, [1, 2])
    assert list(outputs.paths) == [1, 2, 10, 12345]
    assert torch.equal(outputs[2][0]["scored"], rounded(probabilities(2, 2)))
    with pytest.raises(FercliError, match=r"epoch-0001\.safetensors is missing"):
        outputs[1]


@pytest.mark.parametrize(
    ("keep", "best", "kept"),
    [(None, 1, [1, 2, 3, 4, 5]), (2, 1, [1, 4, 5]), (2, 4, [4, 5]), (1, 5, [5]), (9, 1, [1, 2, 3, 4, 5])],
)
def test_the_latest_and_the_best_are_kept(keep: int | None, best: int, kept: list[int], tmp_path: Path) -> None:
    leave(tmp_path, 1, 2, 3, 4, 5)
    prune(tmp_path, keep, best)
    assert list(EpochOutputs(tmp_path).paths) == kept
    assert len(os.listdir(tmp_path / "outputs")) == len(kept)
