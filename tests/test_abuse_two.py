"""Two commands at once in one folder: the second is refused with one line, and the first ends as if it were alone."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Bench
from nursery import Nursery, ended, left_of, send
from stores import cut
from trained_runs import assert_same_run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]

#: Long enough that the second command starts while the first is running.
LONG = {"train_source.steps_per_epoch": 30, "adapt.steps_per_epoch": 20}


@pytest.fixture(scope="module")
def nurseries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Nursery, Nursery]]:
    made = Nursery(tmp_path_factory.mktemp("one")), Nursery(tmp_path_factory.mktemp("other"))
    yield made
    for nursery in made:
        nursery.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, prepared: Path, trained: Bench) -> Bench:
    """A bench with the results of undisturbed commands. Read only."""
    bench = Bench(tmp_path_factory.mktemp("alone"), prepared, LONG)
    bench.done("train-source", "--quiet")
    bench.done("adapt", "--quiet")
    return bench


@pytest.fixture
def bench(tmp_path: Path, alone: Bench) -> Bench:
    """A bench with the source model of `alone` and no adaptation."""
    made = Bench(tmp_path / "bench", alone.prepared, LONG)
    shutil.copytree(alone.runs / "source", made.runs / "source")
    return made


def refused(code: int, told: str) -> None:
    """Check that a command was refused with one line that names the other command."""
    lines = [line for line in told.splitlines() if line.startswith(("error: ", "Traceback"))]
    assert code == 1 and len(lines) == 1 and lines[0].startswith("error: "), (code, told)
    assert "another fercli" in lines[0], told


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("train-source",), ("train-source",)),
        (("train-source",), ("train-source", "--restart")),
        (("adapt",), ("adapt",)),
        (("adapt",), ("adapt", "--method", "mcd")),
        (("adapt",), ("adapt", "--restart")),
        (("train-source", "--restart"), ("train-source", "--restart")),
    ],
    ids=" beside ".join,
)
def test_the_second_in_a_folder_is_refused(first, second, bench: Bench, alone: Bench, nurseries) -> None:
    stage = bench.runs / {"train-source": "source", "adapt": "adapt-jaffe"}[first[0]]
    if first == ("train-source",):
        shutil.rmtree(stage)
    begun = (stage / "metrics.jsonl").stat().st_ino if stage.exists() else None
    number = nurseries[0].start(first[0], "-c", bench.spec, *first[1:])
    deadline = time.monotonic() + 60
    while not ended(number) and time.monotonic() < deadline:
        try:
            if (stage / "metrics.jsonl").stat().st_ino != begun:
                break
        except FileNotFoundError:
            pass
        time.sleep(0.002)
    assert not ended(number), nurseries[0].end()
    nurseries[1].start(second[0], "-c", bench.spec, *second[1:])
    refused(*nurseries[1].end())
    code, told = nurseries[0].end()
    assert code == 0, told
    assert_same_run(alone.runs / stage.name, stage)
    assert (stage / "spec.yaml").read_text().replace(str(bench.folder), "") == (
        alone.runs / stage.name / "spec.yaml"
    ).read_text().replace(str(alone.folder), "")


@pytest.mark.parametrize("options", [(), ("--restart",)], ids=["plain", "restart"])
def test_only_one_of_two_started_together_runs(options, bench: Bench, alone: Bench, nurseries) -> None:
    shutil.rmtree(bench.runs / "source")
    for nursery in nurseries:
        nursery.start("train-source", "-c", bench.spec, *options)
    ends = sorted((nursery.end() for nursery in nurseries), key=lambda end: end[0])
    assert ends[0][0] == 0, ends
    refused(*ends[1])
    assert_same_run(alone.runs / "source", bench.runs / "source")


def test_adaptations_to_different_targets_run_side_by_side(
    tmp_path: Path, bench: Bench, alone: Bench, nurseries
) -> None:
    stores = tmp_path / "stores"
    stores.mkdir()
    for name in ("raf-db", "jaffe"):
        (stores / name).symlink_to(alone.prepared / name)
    cut(alone.prepared / "jaffe", stores / "fer2013", np.arange(0, 42, 2), name="fer2013")
    both = Bench(bench.folder, stores, {**LONG, "data.targets": ["jaffe", "fer2013"]})
    for nursery, target in zip(nurseries, ("jaffe", "fer2013"), strict=True):
        nursery.start("adapt", "-c", both.spec, "--target", target)
    ends = [nursery.end() for nursery in nurseries]
    assert [code for code, _ in ends] == [0, 0], ends
    assert_same_run(alone.runs / "adapt-jaffe", bench.runs / "adapt-jaffe")
    assert (bench.runs / "adapt-fer2013/best.ckpt").exists()


def test_evaluate_during_an_adaptation_reads_only_complete_files(bench: Bench, alone: Bench, nurseries) -> None:
    number = nurseries[0].start("adapt", "-c", bench.spec)
    looks = 0
    while not ended(number) and looks < 5:
        nurseries[1].start("evaluate", "-c", bench.spec)
        code, told = nurseries[1].end()
        assert code == 0, told
        looks += 1
    code, told = nurseries[0].end()
    assert code == 0 and looks, told
    assert_same_run(alone.runs / "adapt-jaffe", bench.runs / "adapt-jaffe")


def test_two_demos_do_not_mix(tmp_path: Path, nurseries) -> None:
    """The test uses a few existing faces, because drawing the demo's own takes a minute."""
    from fercli.synthetic.domains import LAB, STUDIO
    from fercli.synthetic.render import sample
    from fercli.synthetic.writers import write_jaffe, write_raf_db

    data = tmp_path / "demo/seed-0/data"
    write_raf_db(data / "raf-db", sample(STUDIO, 42, 0, range(12)), sample(STUDIO, 21, 1, range(12, 18)))
    write_jaffe(data / "jaffe", sample(LAB, 21, 2, range(20, 26)))
    numbers = [nursery.start("demo", "--out", tmp_path / "demo") for nursery in nurseries]
    deadline = time.monotonic() + 60
    while not any(map(ended, numbers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    loser = next((i for i, number in enumerate(numbers) if ended(number)), None)
    for i, number in enumerate(numbers):
        if i != loser:
            send(number, signal.SIGINT, whole_session=True)
    ends = [nursery.end() for nursery in nurseries]
    assert loser is not None, f"both demos trained for a minute: {ends}"
    refused(*ends[loser])
    assert ends[1 - loser][0] == 130, ends
    assert not any(left_of(number, 5) for number in numbers)
