"""Answers of models to the faces of subjects, drawn: faces of one subject are alike, as in photographs of people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: How many faces the subjects have: as many each, as in a laboratory, or as differing as in films.
EQUAL, UNEQUAL = (21,), (3, 7, 14, 21, 35, 60)


def confusions(
    rng: np.random.Generator, samples: int, subjects: int, faces: Sequence[int], right: float = 0.85, sd: float = 1.0
) -> np.ndarray:
    """Confusion matrices of one model, int64 [samples, subjects, 7, 7], every subject drawn anew.

    Args:
        faces: a subject has one of these numbers of faces, each as likely.
        right: an ordinary subject's share of right answers; some expressions are easier than others, and some taken for
            others more often.
        sd: how much subjects differ, as the deviation of the logit of that share; half as much again an expression.
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
    """Which faces two models of one accuracy answer rightly, each bool [samples, subjects, faces].

    Args:
        right: an ordinary subject's share of right answers.
        sd: how much each model, for itself, differs from subject to subject, as the deviation of the logit of that
            share.
    """
    logit = np.log(right / (1 - right)) + sd * rng.normal(size=(2, samples, subjects, 1))
    first, second = rng.random((2, samples, subjects, faces)) < 1 / (1 + np.exp(-logit))
    return first, second
