"""The label-free selection rules against plain loops and by hand; NaN never wins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from loops import ensemble_agreement, seven_heads
from torch import Tensor

from fercli.evaluation import predictions, selection
from fercli.evaluation.importance_weights import weighted_risk
from fercli.spec.registry import RULES

ON_TARGET = ["entropy", "infomax", "agreement", "bnm", "snd", "corr-c"]
DIMENSIONS = 5


def sure(answers: list[int]) -> Tensor:
    """All seven heads make these predictions with probability 1."""
    return torch.eye(7)[answers].unsqueeze(1).expand(-1, 7, -1).contiguous()


UNIFORM = torch.full((21, 7, 7), 1 / 7)
COLLAPSED = sure([4] * 21)
PERFECT = sure([i % 7 for i in range(21)])
TWO_CLASSES = sure([2 * (i % 2) for i in range(22)])


# --- plain loops -----------------------------------------------------------------------------------------------------


def loop_entropy(row: list[float], floor: float = 1e-5) -> float:
    return -sum(p * math.log(p + floor) for p in row)


def loop_snd(rows: list[list[float]]) -> float:
    total = 0.0
    for i, a in enumerate(rows):
        near = []
        for j, b in enumerate(rows):
            if j != i:
                cosine = sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)
                near.append(math.exp(cosine / 0.05))
        total -= sum(v / sum(near) * math.log(v / sum(near)) for v in near)
    return total / len(rows)


def loop_corr_c(rows: list[list[float]]) -> float:
    k = [[sum(row[c] * row[d] for row in rows) / len(rows) for d in range(7)] for c in range(7)]
    norm = math.sqrt(sum(v * v for line in k for v in line))
    return sum(k[c][c] for c in range(7)) / norm / math.sqrt(7)


def loop_dev(train: Tensor, target: Tensor, held: Tensor, wrong: list[bool]) -> float:
    """Newton's method for the logistic regression, then the control variate, face by face."""
    both = torch.cat([train, target]).double().numpy()
    mean, deviation = both.mean(0), both.std(0)
    x = np.c_[(both - mean) / deviation, np.ones(len(both))]
    y = np.r_[np.ones(len(train)), np.zeros(len(target))]
    penalty = np.diag([0.1] * both.shape[1] + [0.0])
    w = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ w))
        gradient = x.T @ (p - y) / len(y) + penalty @ w
        w -= np.linalg.solve(x.T @ (x * (p * (1 - p))[:, None]) / len(y) + penalty, gradient)
    ratios, weighted = [], []
    for face, is_wrong in zip(held.double().numpy(), wrong, strict=True):
        source = 1 / (1 + math.exp(-float(np.r_[(face - mean) / deviation, 1] @ w)))
        ratios.append(len(train) / len(target) * (1 - source) / source)
        weighted.append(ratios[-1] * is_wrong)
    m, v = sum(weighted) / len(held), sum(ratios) / len(held)
    covariance = sum((a - m) * (b - v) for a, b in zip(weighted, ratios, strict=True))
    eta = -covariance / sum((b - v) ** 2 for b in ratios)
    return m + eta * v - eta


# --- rules on the target ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5, 50, 100])
@pytest.mark.parametrize("sharpness", [0.1, 2.0, 8.0])
def test_target_scores_equal_loops(count: int, sharpness: float) -> None:
    p = seven_heads(count, count, sharpness)
    rows = p[:, 6].double().tolist()
    certainty = -sum(loop_entropy(row) for row in rows) / count
    mean = [sum(row[c] for row in rows) / count for c in range(7)]
    same = sum(int(p[i, k].argmax() == p[i, 6].argmax()) for i in range(count) for k in range(6))
    eigenvalues = np.linalg.eigvalsh(np.array(rows).T @ np.array(rows))
    expected = {
        "entropy": certainty,
        "infomax": loop_entropy(mean) + certainty,
        "agreement": same / count / 6,
        "bnm": sum(math.sqrt(max(v, 0)) for v in eigenvalues) / math.sqrt(7 * count),
        "snd": loop_snd(rows),
        "corr-c": loop_corr_c(rows),
    }
    found = selection.target_scores(p)
    assert list(found) == ON_TARGET
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)


E, LN7 = math.exp(20), math.log(7)


def near(alike: int, other: int) -> float:
    """SND where each image has this many equal images and this many orthogonal ones."""
    total = alike * E + other
    return -(alike * E * math.log(E / total) - other * math.log(total)) / total


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (PERFECT, [0, LN7, 1, 1, near(2, 18), 1]),
        (sure([i % 7 for i in range(10_003)]), [0, LN7, 1, 1, near(1428, 8574), 1]),
        (COLLAPSED, [0, 0, 1, math.sqrt(1 / 7), math.log(20), math.sqrt(1 / 7)]),
        (UNIFORM, [-LN7, 0, 1, 1 / 7, math.log(20), math.sqrt(1 / 7)]),
        (TWO_CLASSES, [0, math.log(2), 1, math.sqrt(2 / 7), near(10, 11), math.sqrt(2 / 7)]),
        (PERFECT[:2], [0, math.log(2), 1, math.sqrt(2 / 7), 0, math.sqrt(2 / 7)]),
        (PERFECT[:1], [0, 0, 1, math.sqrt(1 / 7), math.nan, math.sqrt(1 / 7)]),  # it has no neighbour
    ],
    ids=["perfect", "perfect on many", "collapsed", "uniform", "two classes", "two images", "one image"],
)
def test_target_scores_by_hand(given: Tensor, expected: list[float]) -> None:
    found = selection.target_scores(given)
    assert list(found.values()) == pytest.approx(expected, abs=1e-4, nan_ok=True)  # the floor in entropy's logarithm
    for name in ("bnm", "snd", "corr-c"):  # these have no floor
        assert found[name] == pytest.approx(expected[ON_TARGET.index(name)], abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("block", [1, 70, 1000, 2**20])
def test_snd_is_the_same_in_blocks_of_any_size(block: int) -> None:
    rows = seven_heads(67, 1)[:, 6].double()
    assert predictions.soft_neighbourhood_density(rows, block=block) == pytest.approx(loop_snd(rows.tolist()))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("head", [0, 6])
def test_broken_outputs_and_no_images_score_nan(bad: float, head: int) -> None:
    p = PERFECT.clone()
    p[3, head] = bad  # in one image: its argmax counts as a prediction, and equally broken heads agree
    for scores in (selection.target_scores(p), selection.target_scores(p[:0])):
        assert list(scores) == ON_TARGET
        assert all(math.isnan(value) for value in scores.values())
    for given, labels in ((p, [0] * 21), (p[:0], [])):
        assert math.isnan(selection.source_score(given, torch.tensor(labels, dtype=torch.long))["source-val"])


def test_source_val_by_hand() -> None:
    labels = torch.tensor([0, 1, 2, 3, 0, 0])
    assert selection.source_score(sure([0, 1, 2, 3, 4, 5]), labels) == {"source-val": pytest.approx(4 / 6)}


# --- DEV -------------------------------------------------------------------------------------------------------------


def draw_dev(seed: int, sizes: tuple[int, int, int] = (80, 50, 40), shift: float = 0.5) -> tuple[Tensor, ...]:
    """Arguments of `dev_score`: features of different scales, with the target shifted in the first."""
    generator = torch.Generator().manual_seed(seed)
    train, target, held = (torch.randn(n, DIMENSIONS, generator=generator) for n in sizes)
    target[:, 0] += shift
    labels = torch.randint(7, (sizes[2],), generator=generator)
    scale = torch.tensor([3, 30, 0.3, 15, 6])
    return scale * train + 1, scale * target + 1, scale * held + 1, seven_heads(sizes[2], seed)[:, 6], labels


def wrong_in(p: Tensor, labels: Tensor) -> list[bool]:
    return [int(row.argmax()) != label for row, label in zip(p, labels.tolist(), strict=True)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sizes", [(80, 50, 40), (20, 90, 7), (160, 100, 80)])
def test_dev_equals_a_loop(seed: int, sizes: tuple[int, int, int]) -> None:
    train, target, held, p, labels = draw_dev(seed, sizes)
    expected = -loop_dev(train, target, held, wrong_in(p, labels))
    assert selection.dev_score(train, target, held, p, labels) == {"dev": pytest.approx(expected, rel=1e-4)}


def test_weighted_risk_by_hand() -> None:
    # w l = 2, 0, 1 (mean 1), w = 2, 3, 1 (mean 2): Cov = (1 * 0 - 1 * 1 + 0 * -1) / 3 = -1/3, Var = 2/3, eta = 1/2
    found = weighted_risk(np.array([2.0, 3.0, 1.0]), np.array([1.0, 0.0, 1.0]))
    assert found == pytest.approx(1 + 0.5 * (2 - 1))
    assert weighted_risk(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == 0.25  # equal weights: no control variate
    assert weighted_risk(np.array([3.0]), np.array([1.0])) == 3  # one face: no variance


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_dev_where_domains_look_alike_is_minus_the_error(constant: float) -> None:
    train, _, held, p, labels = draw_dev(0)
    error = sum(wrong_in(p, labels)) / len(labels)
    assert selection.dev_score(train, train.flip(0), held, p, labels)["dev"] == pytest.approx(-error, rel=1e-3)
    same = [torch.full_like(x, constant) for x in draw_dev(0)[:3]]  # dead features; 80 against 50 faces
    assert selection.dev_score(*same, p, labels)["dev"] == pytest.approx(-error, rel=1e-3)


def test_dev_predicts_the_error_on_a_shifted_target() -> None:
    """Errors rise with the shifted feature, so the source's own error underestimates them."""
    generator = torch.Generator().manual_seed(0)
    train, target, held = (torch.randn(n, DIMENSIONS, generator=generator) for n in (3000, 3000, 3000))
    target[:, 0] += 1
    labels = torch.zeros(3000, dtype=torch.long)
    p = torch.eye(7)[(held[:, 0] > 1).long()]
    on_source, on_target = float((held[:, 0] > 1).double().mean()), float((target[:, 0] > 1).double().mean())
    found = -selection.dev_score(train, target, held, p, labels)["dev"]
    assert on_source < 0.2 < 0.45 < on_target
    assert found == pytest.approx(on_target, abs=0.07)


@pytest.mark.parametrize("which", range(4))
def test_dev_without_faces_or_with_broken_ones_is_nan(which: int) -> None:
    given = list(draw_dev(2))
    broken, empty = list(given), list(given)
    broken[which] = given[which].clone()
    broken[which][0, 0] = math.nan
    for k in (2, 3, 4) if which >= 2 else (which,):
        empty[k] = given[k][:0]
    assert math.isnan(selection.dev_score(*broken)["dev"])
    assert math.isnan(selection.dev_score(*empty)["dev"])


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 50, 40), (80, 1, 40), (80, 50, 1)])
def test_dev_with_one_face_is_a_number(sizes: tuple[int, int, int]) -> None:
    assert math.isfinite(selection.dev_score(*draw_dev(3, sizes))["dev"])


# --- EnsV ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 6])
def test_ensemble_scores_equal_a_loop(count: int) -> None:
    candidates = [seven_heads(40, seed)[:, 6] for seed in range(count)]
    expected = ensemble_agreement([c.double().tolist() for c in candidates])
    assert selection.ensemble_scores(candidates) == pytest.approx(expected)


def test_ensemble_scores_by_hand() -> None:
    right, other, flat = (sure(a)[:, 6] for a in ([0, 1, 2, 3], [0, 1, 5, 5], [6, 6, 6, 6]))
    # image 0: two of three predict 0; 1: two predict 1; 2 and 3: ties of three, which the first class wins: 2 and 3
    assert selection.ensemble_scores([right, other, flat]) == [1, 0.5, 0]
    assert selection.ensemble_scores([flat]) == [1]
    assert selection.ensemble_scores([]) == []


def test_a_broken_candidate_is_left_out_of_the_ensemble() -> None:
    good = [seven_heads(30, seed)[:, 6] for seed in range(3)]
    bad = good[0].clone()
    bad[7, 2] = math.nan
    found = selection.ensemble_scores([good[0], bad, good[1], good[2]])
    assert math.isnan(found.pop(1))
    assert found == selection.ensemble_scores(good)
    assert all(math.isnan(score) for score in selection.ensemble_scores([bad, bad]))
    assert all(math.isnan(score) for score in selection.ensemble_scores([bad[:0], bad[:0]]))
    with pytest.raises(ValueError, match="different shapes"):
        selection.ensemble_scores([good[0], good[1][:5]])


# --- choosing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({1: 0.2, 2: 0.5, 3: 0.5}, 2),
        ({3: 0.5, 2: 0.5, 1: 0.2}, 2),  # the earliest, in any mapping order
        ({1: math.nan, 2: -4.0, 3: math.inf, 4: -math.inf}, 2),
        ({1: math.nan, 2: math.inf}, None),
        ({}, None),
        ({7: -3.0}, 7),
    ],
)
def test_best_epoch(scores: dict[int, float], expected: int | None) -> None:
    assert selection.best_epoch(scores) == expected


def test_chosen_by_rule() -> None:
    history = {
        1: {"last": 1.0, "source-val": 0.9, "infomax": 0.1, "snd": math.nan, "not a rule": 1.0},
        2: {"last": 2.0, "source-val": 0.8, "infomax": 0.3, "snd": math.nan},
        3: {"last": 3.0, "source-val": 0.9, "infomax": math.nan, "snd": math.nan, "dev": -0.4},  # starts late
    }
    plain = {"last": 3, "source-val": 1, "infomax": 2, "dev": 3}
    assert selection.chosen_by_rule(history) == plain
    outputs = {1: sure([6, 6, 6])[:, 6], 2: sure([1, 2, 3])[:, 6], 3: sure([1, 2, 6])[:, 6]}
    found = selection.chosen_by_rule(history, outputs)
    assert found == {**plain, "ensv": 3}  # it predicts 1, 2, 6, as the ensemble does
    assert list(found) == [rule for rule in RULES if rule in found]
    assert selection.chosen_by_rule({1: {"ensv": 0.5}, 2: {"ensv": 0.7}}) == {"ensv": 2}  # computed before
    assert selection.chosen_by_rule({}, {}) == {}


# --- the registry ----------------------------------------------------------------------------------------------------


def test_every_rule_has_a_score() -> None:
    train, target, held, fused, labels = draw_dev(0)
    p = seven_heads(5, 4)
    named = {
        **selection.last_score(3),
        **selection.source_score(p, torch.zeros(5, dtype=torch.long)),
        **selection.target_scores(p),
        **selection.dev_score(train, target, held, fused, labels),
    }
    assert list(RULES) == [*named, "ensv"]
    assert [name for name, rule in RULES.items() if rule.post_hoc] == ["ensv"]
    assert [name for name, rule in RULES.items() if rule.costly] == ["dev"]
    for rule in RULES.values():
        assert rule.needs_target == ("target images" in rule.reads)
        assert not any("label" in word for word in rule.reads if "target" in word)


def test_rules_agree_with_pytorch_adapt() -> None:
    pytest.importorskip("pytorch_adapt")
    try:  # its dependencies do not load in every combination of versions
        from pytorch_adapt.validators import SNDValidator
        from pytorch_adapt.validators.deep_embedded_validator import get_dev_risk
    except Exception as problem:
        pytest.skip(f"pytorch_adapt does not load: {problem}")
    p = seven_heads(90, 0)[:, 6].double()
    snd = SNDValidator(batch_size=32)(target_train={"preds": p})
    assert predictions.soft_neighbourhood_density(p) == pytest.approx(snd, rel=1e-6)
    weights, losses = p[:40, :1] * 7, p[:40, 1:2]
    risk = get_dev_risk(weights.clone(), losses, None)
    assert weighted_risk(weights.numpy()[:, 0], losses.numpy()[:, 0]) == pytest.approx(float(risk))
