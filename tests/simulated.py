"""Simulated model predictions on the faces of subjects: faces of one subject are alike, as in photographs of people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Numbers of faces per subject: equal, as in a laboratory dataset, or varied, as in films.
EQUAL, UNEQUAL = (21,), (3, 7, 14, 21, 35, 60)


def confusions(
    rng: np.random.Generator, samples: int, subjects: int, faces: Sequence[int], right: float = 0.85, sd: float = 1.0
) -> np.ndarray:
    """Confusion matrices of one model, int64 [samples, subjects, 7, 7], with newly drawn subjects in each sample.

    Args:
        faces: a subject has one of these numbers of faces, each equally likely.
        right: an ordinary subject's share of correct predictions; some expressions are easier than others, and some are
            confused with others more often.
        sd: standard deviation of the logit of that share between subjects; half as much again between expressions.
    """
    count = rng.choice(faces, (samples, subjects))
    support = rng.multinomial(count, np.full(7, 1 / 7))
    logit = np.log(right / (1 - right)) + np.linspace(-0.8, 0.8, 7)
    logit = logit + sd * (rng.normal(size=(samples, subjects, 1)) + 0.5 * rng.normal(size=(samples, subjects, 7)))
    correct = rng.binomial(support, 1 / (1 + np.exp(-logit)))
    taken_for = np.array([[0 if a == b else 1 + (3 * a + 5 * b) % 4 for b in range(7)] for a in range(7)], np.float64)
    found = rng.multinomial(support - correct, taken_for / taken_for.sum(1, keepdims=True))
    found[..., range(7), range(7)] += correct
    return found


def right_answers(
    rng: np.random.Generator, samples: int, subjects: int, faces: int, right: float = 0.7, sd: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Which faces two models of equal accuracy predict correctly, each bool [samples, subjects, faces].

    Args:
        right: an ordinary subject's share of correct predictions.
        sd: standard deviation of the logit of that share between subjects, for each model separately.
    """
    logit = np.log(right / (1 - right)) + sd * rng.normal(size=(2, samples, subjects, 1))
    first, second = rng.random((2, samples, subjects, faces)) < 1 / (1 + np.exp(-logit))
    return first, second
