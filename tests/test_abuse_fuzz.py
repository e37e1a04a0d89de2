"""Damaged files of every kind, drawn from a seed. Each ends in a plain line, and none silently changes the output.

FERCLI_ABUSE_CASES and FERCLI_ABUSE_SEED set the number of cases and the seed. A failing case can be run alone by its
number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from abuse import Ground, draw

CASES = int(os.environ.get("FERCLI_ABUSE_CASES", "240"))
SEED = int(os.environ.get("FERCLI_ABUSE_SEED", "14"))


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    before = Path.cwd()
    yield Ground(tmp_path_factory.mktemp("abuse"))
    os.chdir(before)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", range(CASES))
def test_case(number: int, ground: Ground) -> None:
    ground.restore()
    case = draw(SEED, number)
    faults = ground.meet(case)
    assert not faults, f"seed {SEED}, case {number}: {case.about}\n" + "\n".join(faults)
