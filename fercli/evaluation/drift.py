"""What an adaptation has changed, without a label: the answers of the start and of the adapted model to the same target
faces, and what a user who has no labels may conclude from them.

None of this measures accuracy. It finds what most often goes wrong where nobody looks: one expression that takes over,
answers that are thrown about, heads that fall apart. A model that is wrong in the start's own way, only surer of it,
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

#: Most faces that the selection rules are asked of: the time of one of them grows with the square of their number.
RULE_FACES = 2000
#: What a verdict may be, the best first.
VERDICTS = ("trusted", "doubtful", "not trusted")

#: Faces below which no histogram says much: the share of an expression at 15 % is known to 7 points (95 %).
FEW_FACES = 100
#: Share of the start's answers above which a target may be of one expression in the main, and loss of it that counts.
ONE_EXPRESSION, LOST = 0.6, 0.02
#: An expression leads where it has more than half of the answers, and may have taken over where it has more than two
#: thirds; what a leading one may have gained.
LEADS, TAKEN, GAINED = 0.5, 2 / 3, 0.2
#: Share of the start's answers below which an expression that then takes over comes from nowhere.
RARE = 0.2
#: Share of the start's answers from which on an expression may not vanish.
PRESENT = 0.05
#: Loss of the heads' agreement, and share of answers as before, that tell of another model.
HEADS_APART, LITTLE_KEPT = 0.02, 0.3
#: Mean entropy of the adapted model's answers, in nats, above which it is not sure of them: half of ln 7.
UNSURE = math.log(NUM_EXPRESSIONS) / 2
#: Share of the listed images without a face, and share of duplicates among the faces, above which the folder itself
#: is in doubt.
MANY_WITHOUT, MANY_DUPLICATES = 0.2, 0.02


def drift(before: Tensor, after: Tensor) -> dict[str, Any]:
    """How the answers of an adapted model differ from its start's.

    Args:
        before, after: float [N, 7 heads, 7 expressions], the probabilities of the start and of the adapted model on the
            same faces in the same order.

    Returns:
        Plain values for JSON, shares in 0..1, None for what is not defined (no face, outputs that are not finite):
        ``faces`` N; ``agreement``, the share of faces whose fused answer is the start's; ``histogram`` {"before",
        "after"} of the fused answers, [7] shares each; their ``total_variation`` (half the sum of differences, 0..1);
        ``entropy`` {"before", "after"}, mean of the fused head, 0..ln 7 nats; ``heads_agreement`` {"before", "after"},
        mean share of the other heads that answer as the fused head; ``largest`` {"before", "after"}: the most frequent
        ``expression`` and its ``share``; ``rules``, each rule of `fercli.evaluation.selection.target_scores` -> its
        score "before" and "after", and which it "prefers": "start", "adapted" or "neither" (equal, or not defined). The
        rules are asked of at most `RULE_FACES` faces, evenly spread.

    Raises:
        ValueError: the two are not of the same shape.
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
    """Shares [7] of the fused head's answers to N >= 1 faces; outputs [N, 7 heads, 7 expressions]."""
    fused = outputs[:, FUSED]
    return (torch.bincount(fused.argmax(-1), minlength=NUM_EXPRESSIONS).double() / len(fused)).tolist()


def collapsed(before: Sequence[float], after: Sequence[float]) -> str | None:
    """Whether one expression has taken over the answers, in words; None where it has not.

    It has where it holds more than two thirds of the answers and held at most half before, and either the effective
    number of expressions, exp of the histogram's entropy, has more than halved, or it held less than a fifth before (of
    a start that answers one expression on most faces no number can halve). An expression that already
    led on most faces may be what the target shows: a folder of portraits that smile, where the start answers happiness
    on 70 % and the adapted model on 97 %, is no collapse. Everyday photographs may well be half neutral where a start
    spread its answers. A largest share says nothing of the others (half happiness and half neutral is 2 expressions
    before and 1.6 at 80 % happiness), and a halved number alone may be two expressions that the target does show.

    A target of one expression that the start answers on less than half of its faces cannot be told from a collapse.

    Args:
        before, after: shares [7] of the answers, each summing to 1.
    """
    largest = _largest(after)
    name, share = largest["expression"], largest["share"]
    held = before[EXPRESSIONS.index(name)]
    old, new = _effective(before), _effective(after)
    if share <= TAKEN or held > LEADS or (new >= old / 2 and held >= RARE):
        return None
    return (
        f"{name} has taken over: {_percent(share)} of the answers, {_percent(held)} before "
        f"({new:.1f} expressions in effect, {old:.1f} before)"
    )


def rules_prefer_start(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Whether every selection rule scores the start higher than the adapted model.

    Args:
        before, after: rule -> score, higher is better (`fercli.evaluation.selection.target_scores`).

    Returns:
        False also where no rule is finite in both: then nothing speaks for the start.
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
    """Whether an adaptation is to be trusted, in words for somebody who has no labels.

    Args:
        drift: from `drift`.
        found, listed: how many images have a face, and how many there are; None where not known.
        duplicates: faces that are a copy of another; None where not known.
        start_kept: whether the adaptation was given up, and the start is the answer.

    Returns:
        ``trust``, one of `VERDICTS`, and ``reasons``, sentences for it, the gravest first; none where it is trusted.
        "not trusted": a collapse, all rules for the start, or the start kept; any other reason is a doubt.

    What it is worth, as measured in November 2026, on the data on which the thresholds were set: of 120 adaptations to
    drawn faces by methods without a source and CDAN+E 14 were worse than their start, and 12 of these are warned of, as
    are 11 of the 106 others; what tells is that the heads agree less. Of 21 from the starter to photographs 6 were
    worse, by 3 points at most, and none is warned of. All 14 adaptations to targets of one expression, or nearly, that
    lost accuracy are warned of (docs/measurements.md).

    How many answers changed, and how far the histogram moved, are no reasons, for they told nothing of harm: what
    gained most moved most. On a target of one expression the rules do not help either, as they reward variety; only
    the start's own histogram warns of it, and it warns as well where a start that answers one expression throughout is
    put right. Nothing here sees a model that grows surer of the start's mistakes.
    """
    grave, light = [], []
    if not drift["faces"]:
        return {"trust": "not trusted", "reasons": ["There is no face, so there is nothing to go by."]}
    if drift["agreement"] is None:
        return {"trust": "not trusted", "reasons": ["A model's outputs are not finite numbers."]}
    old, new = drift["histogram"]["before"], drift["histogram"]["after"]
    taken = collapsed(old, new)
    if start_kept:
        grave.append("The start was kept: the adaptation was given up, and the answers are the start's.")
    if taken:
        grave.append(f"{taken[0].upper()}{taken[1:]}.")
    asked = [rule["prefers"] for rule in drift["rules"].values() if None not in (rule["before"], rule["after"])]
    for_start = asked.count("start")
    if asked and for_start == len(asked):
        grave.append(f"All {for_start} selection rules that need no label prefer the start.")
    elif 2 * for_start > len(asked):
        light.append(f"{for_start} of {len(asked)} selection rules that need no label prefer the start.")
    if drift["faces"] < FEW_FACES:
        few = "1 face is" if drift["faces"] == 1 else f"{drift['faces']} faces are"
        light.append(f"{few} few: below {FEW_FACES}, a histogram of answers says little.")
    first = drift["largest"]["before"]
    left = new[EXPRESSIONS.index(first["expression"])]
    if first["share"] > ONE_EXPRESSION and first["share"] - left > LOST:
        light.append(
            f"The start answers {first['expression']} on {_percent(first['share'])} of the faces, the adapted model on "
            f"{_percent(left)}: where a target shows one expression in the main, spreading the answers does harm."
        )
    last = drift["largest"]["after"]
    held = old[EXPRESSIONS.index(last["expression"])]
    if not taken and held <= LEADS < last["share"] and last["share"] - held > GAINED:
        light.append(f"{_percent(last['share'])} of the answers are {last['expression']}, {_percent(held)} before.")
    unsure = drift["entropy"]["after"]
    if unsure > UNSURE and not start_kept:
        light.append(
            f"The adapted model is still unsure: {unsure:.2f} nats of entropy, where a guess has "
            f"{math.log(NUM_EXPRESSIONS):.2f}."
        )
    if drift["agreement"] < LITTLE_KEPT:
        light.append(f"Only {_percent(drift['agreement'])} of the faces are answered as before.")
    pairs = zip(EXPRESSIONS, old, new, strict=True)
    gone = [f"{name} ({_percent(share)} before)" for name, share, left in pairs if share >= PRESENT and not left]
    if gone:
        light.append(f"No face is answered any more: {', '.join(gone)}.")
    heads = drift["heads_agreement"]
    if heads["after"] < heads["before"] - HEADS_APART:
        light.append(f"The heads agree less: {_percent(heads['after'])}, {_percent(heads['before'])} before.")
    if listed and found is not None and listed - found > MANY_WITHOUT * listed:
        light.append(f"{listed - found} of {listed} images have no face: are these photographs of faces?")
    if duplicates and duplicates > MANY_DUPLICATES * drift["faces"]:
        light.append(f"{duplicates} of {drift['faces']} faces are copies of others, and count more than once.")
    trust = VERDICTS[2] if grave else VERDICTS[1] if light else VERDICTS[0]
    return {"trust": trust, "reasons": [*grave, *light]}


def _heads_agreement(outputs: Tensor) -> float:
    answers = outputs.argmax(-1)
    return agreement(answers[:, :FUSED], answers[:, FUSED])


def _largest(shares: Sequence[float]) -> dict[str, Any]:
    """The most frequent expression; of several the first."""
    at = max(range(len(shares)), key=shares.__getitem__)
    return {"expression": EXPRESSIONS[at], "share": shares[at]}


def _effective(shares: Sequence[float]) -> float:
    """exp of the entropy: 1 (one expression) .. 7 (all alike)."""
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
