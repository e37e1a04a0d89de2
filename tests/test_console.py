"""Terminal output: durations and rates, progress, and characters that the terminal's encoding lacks."""

from __future__ import annotations

import inspect
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import Bench

from fercli import console
from fercli.cli import main
from fercli.durations import digits, duration, rate

# Times and rates


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "under 0.1 s"), (0.049, "under 0.1 s"), (0.05, "0.1 s"), (3.24, "3.2 s"), (59.94, "59.9 s")),
        *((59.96, "1 min 00 s"), (125, "2 min 05 s"), (3599.7, "1 h 00 min"), (3725, "1 h 02 min")),
    ],
)
def test_a_duration_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (0.00123, "0.00123"), (0.0456, "0.0456"), (1, "1.00"), (9.996, "10.0"), (12.34, "12.3")),
        *((99.96, "100"), (682.4, "682"), (12345.6, "12346"), (-3.14159, "-3.14"), (float("nan"), "nan")),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    assert digits(value) == text


def test_a_slow_rate_is_not_zero() -> None:
    assert rate(1, 30) == "0.0333/s" and rate(6820, 10) == "682/s"


def test_progress_shows_no_rate_before_the_first_item(monkeypatch, capsys) -> None:
    monkeypatch.setattr(console, "PLAIN_INTERVAL_S", 0)
    with console.progress("rounds", 3) as bar:
        for amount in (0, 1, 2):  # 0: a warm-up round, as in `bench adapt`
            bar.advance(amount)
    first, second, last = capsys.readouterr().err.splitlines()
    assert first == "rounds: 0/3"
    assert re.fullmatch(r"rounds: 1/3, [\d.]+/s, under 0\.1 s left", second)
    assert re.fullmatch(r"rounds: 3/3, [\d.]+/s", last)


def test_a_resumed_run_counts_its_own_steps_only(monkeypatch, capsys) -> None:
    monkeypatch.setattr(console, "PLAIN_INTERVAL_S", 0)
    with console.progress("train", 10, done=4) as bar:
        bar.advance(0)
    assert capsys.readouterr().err == "train: 4/10\n"


@pytest.mark.parametrize("command", ["train-source", "adapt"])
def test_a_finished_training_is_reported_instead_of_a_duration(command: str, make_adapting) -> None:
    bench = make_adapting("again")
    first = bench.done("adapt").stderr.strip().splitlines()[-1]
    assert re.search(r", (under 0\.1 s|\d+\.\d s|\d+ min \d\d s)$", first)
    assert bench.done(command).stderr.strip().splitlines()[-1].endswith(", already trained")


# Characters that the encoding lacks


def printed(monkeypatch: pytest.MonkeyPatch, encoding: str, errors: str = "strict") -> tuple[str, str]:
    """Return stdout and stderr after printing one of everything that the console prints."""
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding, errors) for name in ("stdout", "stderr")}
    with monkeypatch.context() as patch:
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        console.fit_streams()
        console.table("Accuracy ± sd", ["dataset", "%"], [["jaffe †", "88.4 ± 5.8"], ["caf\udce9 ☃", "–"]], "→ ≥ é")
        console.say("é → caf\udce9")
        console.warn("é → caf\udce9")
        console.error("é → caf\udce9")
        for stream in streams.values():
            stream.flush()
    return tuple(stream.buffer.getvalue().decode(encoding) for stream in streams.values())


@pytest.mark.parametrize(
    ("encoding", "cells", "said"),
    [
        ("ascii", ["jaffe *", "88.4 +/- 5.8", r"caf\xe9 \u2603", "-", r"-> >= \xe9"], r"\xe9 -> caf\xe9"),
        ("latin-1", ["jaffe *", "88.4 ± 5.8", r"caf\xe9 \u2603", "-", "-> >= é"], r"é -> caf\xe9"),
        ("cp1252", ["jaffe †", "88.4 ± 5.8", r"caf\xe9 \u2603", "–", "-> >= é"], r"é -> caf\xe9"),
        ("utf-8", ["jaffe †", "88.4 ± 5.8", r"caf\xe9 ☃", "–", "→ ≥ é"], r"é → caf\xe9"),
    ],
)
def test_every_terminal_shows_every_character(encoding: str, cells: list[str], said: str, monkeypatch) -> None:
    stdout, stderr = printed(monkeypatch, encoding)
    assert all(cell in stdout for cell in cells)
    rows = [line for line in stdout.splitlines() if line[:1] in "|│┃+┏└┡├"]
    assert len(rows) >= 5 and len({len(row) for row in rows}) == 1  # the columns are as wide as their contents
    assert stderr.splitlines() == [said, f"warning: {said}", f"error: {said}"]


def test_the_users_error_handler_for_such_characters_is_kept(monkeypatch) -> None:
    assert printed(monkeypatch, "ascii", "ignore")[1].splitlines()[0].split() == ["caf"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_evaluate_prints_its_table_on_any_terminal(encoding: str, make_adapting) -> None:
    bench = make_adapting("narrow")
    bench.done("adapt", "--quiet")
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner.__init__).parameters else {}
    result = CliRunner(charset=encoding, **apart).invoke(main, ["evaluate", "-c", str(bench.spec)])
    assert result.exit_code == 0, result.exception
    assert (
        "jaffe *" in result.stdout and "* are synthetic: procedural faces" in result.stdout
    )  # the dagger of synthetic faces
    assert list(bench.runs.rglob("results.json"))


#: Environment in which Python 3.10 to 3.12 uses ASCII for the terminal and for files.
ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def in_locale(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "fercli", *arguments]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **environment})
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    return done.stdout.decode("latin-1")


@pytest.mark.parametrize(
    ("environment", "name"),
    [(ASCII_LOCALE, "Pietik\\xe4inen"), ({"PYTHONIOENCODING": "latin-1"}, "Pietikäinen")],
)
def test_names_are_shown_in_any_locale(environment: dict[str, str], name: str) -> None:
    assert name in in_locale(environment, "datasets", "show", "oulu-casia")


def test_a_report_is_written_in_a_locale_of_ascii(trained: Bench, tmp_path: Path) -> None:
    target = Bench(tmp_path / "ascii", trained.prepared)
    shutil.copytree(trained.runs, target.runs)
    assert "* are synthetic: procedural faces" in in_locale(
        ASCII_LOCALE, "evaluate", "-c", str(target.spec), "--report"
    )
    (page,) = target.runs.rglob("report.html")
    assert not page.read_text(encoding="utf-8").isascii()


@pytest.mark.parametrize(("width", "framed"), [(60, True), (34, False)])
def test_a_table_wider_than_the_terminal_goes_without_frames(width: int, framed: bool, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    console.table("Scores", ["model", "accuracy", "points", "broken"], [["a-run/adapt-jaffe", "95.71", "+2.52", "4"]])
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.strip() == "Scores" and max(map(len, lines)) <= width
    assert any("│" in line for line in lines) is framed
    headings = " ".join(lines[:2])
    assert all(word in headings for word in ("model", "accuracy", "points", "broken"))
