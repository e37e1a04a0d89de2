"""What an adaptation has changed, without labels: the starting model's and the adapted model's predictions on the same
target faces, and what a user without labels may conclude from them.

None of this measures accuracy. It finds the most common failures that go unnoticed without labels: one expression takes
over, predictions change at random, heads diverge. A model that makes the starting model's mistakes with more confidence
drifts little and looks sound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fercli.evaluation.decision import FUSED
from fercli.evaluation.predictions import agreement, certainty
from fercli.evaluation.selection import target_scores
from fercli.expressions import EXPRESSIONS, NUM_EXPRESSIONS
from fercli.store import subsample

#: Maximum number of faces for the selection rules: the time of one rule grows with the square of the number of faces.
RULE_FACES = 2000
#: The possible verdicts, best first.
VERDICTS = ("trusted", "doubtful", "not trusted")

#: Number of faces below which a histogram says little: a share of 15 % is known to within 7 points (95 %).
FEW_FACES = 100
#: Share of the starting model's predictions above which a target may show mainly one expression, and the loss of it
#: that counts.
ONE_EXPRESSION, LOST = 0.6, 0.02
#: An expression leads where it has more than half of the predictions, and may have taken over where it has more than
#: two thirds; the last number is how much a leading expression may gain.
LEADS, TAKEN, GAINED = 0.5, 2 / 3, 0.2
#: Share of the starting model's predictions below which an expression counts as rare; a rare one should not take over.
RARE = 0.2
#: An expression with at least this share of the starting model's predictions should not vanish.
PRESENT = 0.05
#: Loss of head agreement that is reported, and share of unchanged predictions below which it is reported.
HEADS_APART, LITTLE_KEPT = 0.02, 0.3
#: Mean entropy of the adapted model's predictions, in nats, above which the model is unsure: half of ln 7.
UNSURE = math.log(NUM_EXPRESSIONS) / 2
#: Share of the listed images without a face, and share of duplicates among the faces, above which the folder itself is
#: doubtful.
MANY_WITHOUT, MANY_DUPLICATES = 0.2, 0.02


def drift(before: Tensor, after: Tensor) -> dict[str, Any]:
    """How the predictions of an adapted model differ from those of its starting model.

    Args:
        before, after: float [N, 7 heads, 7 expressions], the probabilities of the starting model and of the adapted
            model on the same faces in the same order.

    Returns:
        Plain values for JSON. Shares are in 0..1; what is not defined (no face, outputs that are not finite) is None.
        ``faces``: N. ``agreement``: the share of faces whose fused prediction is unchanged. ``histogram`` {"before",
        "after"}: of the fused predictions, [7] shares each. ``total_variation``: half the sum of the histograms'
        absolute differences, 0..1. ``entropy`` {"before", "after"}: mean of the fused head, 0..ln 7 nats.
        ``heads_agreement`` {"before", "after"}: mean share of the other heads that predict the same as the fused head.
        ``largest`` {"before", "after"}: the most frequent ``expression`` and its ``share``. ``rules``: each rule of
        `fercli.evaluation.selection.target_scores` -> its score "before" and "after", and which model it "prefers":
        "start", "adapted" or "neither" (equal, or not defined). The rules use at most `RULE_FACES` faces, evenly
        spaced.

    Raises:
        ValueError: `before` and `after` differ in shape.
    """
    if before.shape != after.shape:
        raise ValueError(f"outputs of different faces: {list(before.shape)} and {list(after.shape)}")
    pair = {"before": before, "after": after}
    fused = {when: outputs[:, FUSED] for when, outputs in pair.items()}
    sound = {when: len(outputs) > 0 and bool(torch.isfinite(outputs).all()) for when, outputs in pair.items()}
    rows = torch.from_numpy(subsample(len(before), RULE_FACES))
    scores = {when: target_scores(outputs[rows]) for when, outputs in pair.items()}
    histogram = {when: answer_shares(pair[when]) if sound[when] else None for when in pair}
    both = all(sound.values())
    moved = [abs(a - b) for a, b in zip(*histogram.values(), strict=True)] if both else None
    same = fused["before"].argmax(-1) == fused["after"].argmax(-1)
    return {
        "faces": len(before),
        "agreement": same.double().mean().item() if both else None,
        "histogram": histogram,
        "total_variation": sum(moved) / 2 if both else None,
        "entropy": {when: max(0.0, -certainty(fused[when])) if sound[when] else None for when in pair},
        "heads_agreement": {when: _heads_agreement(pair[when]) if sound[when] else None for when in pair},
        "largest": {when: None if shares is None else _largest(shares) for when, shares in histogram.items()},
        "rules": {
            rule: {
                "before": _finite(old),
                "after": _finite(scores["after"][rule]),
                "prefers": _preferred(old, scores["after"][rule]),
            }
            for rule, old in scores["before"].items()
        },
    }


def answer_shares(outputs: Tensor) -> list[float]:
    """Shares [7] of the fused head's predictions on N >= 1 faces; outputs are [N, 7 heads, 7 expressions]."""
    fused = outputs[:, FUSED]
    return (torch.bincount(fused.argmax(-1), minlength=NUM_EXPRESSIONS).double() / len(fused)).tolist()


def collapsed(before: Sequence[float], after: Sequence[float]) -> str | None:
    """Whether one expression has taken over the predictions, in words; None where none has.

    An expression has taken over if it has more than two thirds of the predictions now and had at most half before, and
    one of two things holds. Either the effective number of expressions, exp of the histogram's entropy, has more than
    halved, or the expression had less than a fifth before. The second case is for a starting model that predicts one
    expression on most faces, whose effective number cannot halve.

    An expression that already led on most faces may be what the target shows. A folder of smiling portraits, where the
    starting model predicts happiness on 70 % and the adapted model on 97 %, is not a collapse. Everyday photographs may
    well be half neutral where the starting model spread its predictions. A largest share says nothing about the others:
    half happiness and half neutral is 2 expressions, and 80 % happiness still 1.6. A halved number alone may reflect
    two expressions that the target does show.

    A target of one expression that the starting model predicts on less than half of the faces cannot be distinguished
    from a collapse.

    Args:
        before, after: shares [7] of the predictions, each summing to 1.
    """
    largest = _largest(after)
    name, share = largest["expression"], largest["share"]
    held = before[EXPRESSIONS.index(name)]
    old, new = _effective(before), _effective(after)
    if share <= TAKEN or held > LEADS or (new >= old / 2 and held >= RARE):
        return None
    return (
        f"{name} has taken over: {_percent(share)} of the predictions, {_percent(held)} before "
        f"({new:.1f} effective expressions, {old:.1f} before)"
    )


def rules_prefer_start(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Whether every selection rule scores the starting model higher than the adapted model.

    Args:
        before, after: rule -> score, higher is better (`fercli.evaluation.selection.target_scores`).

    Returns:
        False also where no rule is finite for both models: then nothing favours the starting model.
    """
    told = [_preferred(old, after[rule]) for rule, old in before.items() if _both(old, after.get(rule))]
    return bool(told) and set(told) == {"start"}


def verdict(
    drift: Mapping[str, Any],
    found: int | None = None,
    listed: int | None = None,
    duplicates: int | None = None,
    start_kept: bool = False,
) -> dict[str, Any]:
    """Whether an adaptation can be trusted, in words for a user without labels.

    Args:
        drift: from `drift`.
        found, listed: how many images have a face, and how many images there are; None where not known.
        duplicates: how many faces are copies of another; None where not known.
        start_kept: whether the adaptation was discarded and the starting model kept.

    Returns:
        ``trust``, one of `VERDICTS`, and ``reasons``, the sentences that support it, most serious first; empty where
        the model is trusted. "not trusted" means a collapse, that all rules prefer the starting model, or that the
        starting model was kept. Any other reason makes the verdict "doubtful".

    How reliable it is was measured in November 2026, on the data on which the thresholds were set. Of 120 adaptations
    to drawn faces by methods without a source and CDAN+E, 14 were worse than their starting model. The verdict warns of
    12 of these, and of 11 of the 106 others; the telling sign is that the heads agree less. Of 21 adaptations from the
    starter to photographs, 6 were worse, by at most 3 points, and the verdict warns of none. It warns of all 14
    adaptations that lost accuracy on targets of one expression, or nearly one (docs/measurements.md).

    The number of changed predictions and the distance between the histograms are not reasons, because neither indicated
    harm: the adaptations that gained most also moved most. On a target of one expression the rules do not help either,
    because they reward variety. Only the starting model's own histogram warns of such a target. It also warns where the
    adaptation corrects a starting model that predicts one expression throughout. Nothing here detects a model that
    becomes more certain of the starting model's mistakes.
    """
    grave, light = [], []
    if not drift["faces"]:
        return {"trust": "not trusted", "reasons": ["No face was found, so there is nothing to judge."]}
    if drift["agreement"] is None:
        return {"trust": "not trusted", "reasons": ["A model's outputs are not finite numbers."]}
    old, new = drift["histogram"]["before"], drift["histogram"]["after"]
    taken = collapsed(old, new)
    if start_kept:
        grave.append("The adaptation was discarded: the predictions are those of the starting model.")
    if taken:
        grave.append(f"{taken[0].upper()}{taken[1:]}.")
    asked = [rule["prefers"] for rule in drift["rules"].values() if None not in (rule["before"], rule["after"])]
    for_start = asked.count("start")
    if asked and for_start == len(asked):
        grave.append(f"All {for_start} selection rules that need no labels prefer the starting model.")
    elif 2 * for_start > len(asked):
        light.append(f"{for_start} of {len(asked)} selection rules that need no labels prefer the starting model.")
    if drift["faces"] < FEW_FACES:
        few = "is only 1 face" if drift["faces"] == 1 else f"are only {drift['faces']} faces"
        light.append(f"There {few}: with fewer than {FEW_FACES}, a histogram of predictions is unreliable.")
    first = drift["largest"]["before"]
    left = new[EXPRESSIONS.index(first["expression"])]
    if first["share"] > ONE_EXPRESSION and first["share"] - left > LOST:
        light.append(
            f"The starting model predicts {first['expression']} on {_percent(first['share'])} of the faces, the "
            f"adapted model on {_percent(left)}: where a target shows mainly one expression, spreading the predictions "
            "does harm."
        )
    last = drift["largest"]["after"]
    held = old[EXPRESSIONS.index(last["expression"])]
    if not taken and held <= LEADS < last["share"] and last["share"] - held > GAINED:
        light.append(f"{_percent(last['share'])} of the predictions are {last['expression']}, {_percent(held)} before.")
    unsure = drift["entropy"]["after"]
    if unsure > UNSURE and not start_kept:
        light.append(
            f"The adapted model is still unsure: its entropy is {unsure:.2f} nats, that of a random guess "
            f"{math.log(NUM_EXPRESSIONS):.2f}."
        )
    if drift["agreement"] < LITTLE_KEPT:
        light.append(f"Only {_percent(drift['agreement'])} of the predictions are unchanged.")
    pairs = zip(EXPRESSIONS, old, new, strict=True)
    gone = [f"{name} ({_percent(share)} before)" for name, share, left in pairs if share >= PRESENT and not left]
    if gone:
        light.append(f"No longer predicted on any face: {', '.join(gone)}.")
    heads = drift["heads_agreement"]
    if heads["after"] < heads["before"] - HEADS_APART:
        light.append(f"The heads agree less: {_percent(heads['after'])}, {_percent(heads['before'])} before.")
    if listed and found is not None and listed - found > MANY_WITHOUT * listed:
        light.append(f"{listed - found} of {listed} images have no face: check that these are photographs of faces.")
    if duplicates and duplicates > MANY_DUPLICATES * drift["faces"]:
        light.append(f"{duplicates} of {drift['faces']} faces are copies of others and are counted more than once.")
    trust = VERDICTS[2] if grave else VERDICTS[1] if light else VERDICTS[0]
    return {"trust": trust, "reasons": [*grave, *light]}


def _heads_agreement(outputs: Tensor) -> float:
    answers = outputs.argmax(-1)
    return agreement(answers[:, :FUSED], answers[:, FUSED])


def _largest(shares: Sequence[float]) -> dict[str, Any]:
    """The most frequent expression; the first on a tie."""
    at = max(range(len(shares)), key=shares.__getitem__)
    return {"expression": EXPRESSIONS[at], "share": shares[at]}


def _effective(shares: Sequence[float]) -> float:
    """exp of the entropy: 1 (one expression) .. 7 (all equally frequent)."""
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


def _preferred(old: float, new: float) -> str:
    if not _both(old, new) or old == new:
        return "neither"
    return "start" if old > new else "adapted"


def _both(old: float | None, new: float | None) -> bool:
    return None not in (old, new) and math.isfinite(old) and math.isfinite(new)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
