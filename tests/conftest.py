"""A small prepared source and target, drawn once per session, and a bench that runs the command line on them."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: the machine's cores are shared
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it for its own output; fercli's tables would use it too

import pytest
import yaml
from click.testing import CliRunner, Result

from fercli import console
from fercli.cli import main

pytest.register_assert_rewrite("trained_runs", "pages", "trees", "loops")  # helpers that assert

#: Steps per epoch, and epochs, in a bench's runs.
STEPS, EPOCHS = 3, 2

_STAGE = {"batch": 8, "epochs": EPOCHS, "steps_per_epoch": STEPS, "head_lr_multiplier": 1, "clip_norm": 5}
TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": "raf-db", "targets": ["jaffe"]},
    "prepare": {"workers": 1, "backend": "sequential"},
    "model": {"backbone": "ir-small", "width": 4},
    "engine": {"device": "cpu", "threads": 1, "deterministic": True, "tensorboard": False, "log_every": 2},
    "train_source": {**_STAGE, "lr": {1: 0.01, 2: 0.005}},
    "adapt": {**_STAGE, "lr": 0.005, "discriminator_lr": 0.01},
}


def run(*arguments: object, stdin: bytes | None = None, catch: bool = False) -> Result:
    """Run ``fercli`` in this process; stdout and stderr are kept separate with every version of click."""
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner.__init__).parameters else {}
    return CliRunner(**apart).invoke(main, [str(a) for a in arguments], stdin, catch_exceptions=catch)


def fercli(
    *arguments: str | Path, flags: Sequence[str] = (), before: Path | None = None, **environment: str
) -> subprocess.CompletedProcess:
    """Run ``python FLAGS -m fercli`` in a separate process; modules in the folder `before` take precedence."""
    path = os.pathsep.join(map(str, filter(None, (before, Path(__file__).parents[1]))))
    return subprocess.run(
        [sys.executable, *flags, "-m", "fercli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=150,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


def told(result, code: int = 1) -> str:
    """Return the one-line error of a failed command."""
    assert result.exit_code == code, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


def warned(result) -> list[str]:
    """Return the lines on stderr, except doubts about the adaptation: the tiny test runs are never trusted."""
    doubt = re.compile(r"warning: jaffe, .+: (doubtful|not trusted)\. ")
    return [line for line in result.stderr.splitlines() if not doubt.match(line)]


def lines(result) -> list[dict[str, Any]]:
    """Return the JSON lines of a successful command."""
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def merge(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a nested mapping with changes of the form ``a.b: value`` applied."""
    tree = {key: merge(value, {}) if isinstance(value, dict) else value for key, value in tree.items()}
    for path, value in changes.items():
        *parents, last = path.split(".")
        below = tree
        for key in parents:
            below = below.setdefault(key, {})
        below[last] = value
    return tree


@dataclass
class Bench:
    """A folder with a spec; ``bench("adapt", ...)`` runs a command on it."""

    folder: Path
    prepared: Path
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.spec = self.folder / "spec.yaml"
        paths = {"data": "data", "runs": "runs"}
        where = {f"paths.{key}": str(self.folder / name) for key, name in paths.items()}
        tree = merge(TINY, {**where, "paths.prepared": str(self.prepared), **self.changes})
        self.spec.write_text(yaml.safe_dump(tree))

    def __call__(self, command: str, *arguments: str) -> Result:
        return run(command, "-c", str(self.spec), *arguments)

    def done(self, command: str, *arguments: str) -> Result:
        """Run a command that must succeed."""
        result = self(command, *arguments)
        assert result.exit_code == 0, result.stderr
        return result

    def json(self, command: str, *arguments: str) -> Any:
        """Return the JSON document of a command that must succeed."""
        return json.loads(self.done(command, *arguments, "--json").stdout, parse_constant=pytest.fail)

    @property
    def runs(self) -> Path:
        """Return the folder of this bench's run."""
        return self.folder / "runs" / "tiny"


#: Time limit in seconds for tests marked slow: they train, export and kill many times, at times on a busy machine.
SLOW_LIMIT_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests their own time limit instead of setup.cfg's."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_LIMIT_S))


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Restore the settings that a command changes for its whole process."""
    yield
    console.configure()
    if "torch" in sys.modules:
        sys.modules["torch"].use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of 84 + 42 procedural faces in RAF-DB's layout and 42 in JAFFE's, made by the real prepare. Read only."""
    from fercli.synthetic.domains import LAB, STUDIO
    from fercli.synthetic.render import sample
    from fercli.synthetic.writers import write_jaffe, write_raf_db

    folder = tmp_path_factory.mktemp("prepared")
    bench = Bench(folder, folder / "prepared")
    train, test = sample(STUDIO, 84, 0, range(12)), sample(STUDIO, 42, 1, range(12, 18))
    write_raf_db(folder / "data/raf-db", train, test)
    write_jaffe(folder / "data/jaffe", sample(LAB, 42, 2, range(20, 26)))
    bench.done("prepare", "--quiet")
    return bench.prepared


@pytest.fixture(scope="session")
def faces() -> list[Any]:
    """Two identities with each of the seven expressions. Read only, like everything made from them."""
    from fercli.synthetic.render import STUDIO, render

    return [render(STUDIO, identity, label, 3) for identity in range(2) for label in range(7)]


@pytest.fixture(scope="session")
def raf(tmp_path_factory: pytest.TempPathFactory, faces: list[Any]) -> Path:
    """The fourteen faces in RAF-DB's layout: eight for training, six for scoring."""
    from fercli.synthetic.writers import write_raf_db

    return write_raf_db(tmp_path_factory.mktemp("data") / "raf", faces[:8], faces[8:])


@pytest.fixture(scope="session")
def raf_store(tmp_path_factory: pytest.TempPathFactory, raf: Path) -> Path:
    """The store of `raf`, with default options."""
    from fercli.datasets import read_dataset
    from fercli.prepare import prepare
    from fercli.spec import Prepare

    out = tmp_path_factory.mktemp("prepared") / "raf-db"
    prepare(read_dataset("raf-db", "raf-db", raf), out, Prepare(workers=1))
    return out


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Bench:
    """A bench whose source model was trained without interruption. Read only: make a copy with `after_source`."""
    bench = Bench(tmp_path_factory.mktemp("trained"), prepared)
    bench.done("train-source", "--quiet")
    return bench


def after_source(
    folder: Path, trained: Bench, changes: dict[str, Any] | None = None, prepared: Path | None = None
) -> Bench:
    """Return a new bench with a copy of the trained source model."""
    made = Bench(folder, prepared or trained.prepared, changes or {})
    shutil.copytree(trained.runs / "source", made.runs / "source")
    return made


@pytest.fixture(scope="session")
def adapted(tmp_path_factory: pytest.TempPathFactory, trained: Bench) -> Bench:
    """A bench adapted to JAFFE without interruption. Read only except for its report."""
    bench = after_source(tmp_path_factory.mktemp("adapted"), trained)
    bench.done("adapt", "--quiet")
    return bench


@pytest.fixture
def bench(tmp_path: Path, prepared: Path) -> Bench:
    """A separate bench on the shared stores, without a trained model."""
    return Bench(tmp_path / "bench", prepared)


@pytest.fixture
def make_adapting(tmp_path: Path, trained: Bench):
    """Return a function (name, changes, prepared) -> a bench that has the trained source model."""

    def make(name: str, changes: dict[str, Any] | None = None, prepared: Path | None = None) -> Bench:
        return after_source(tmp_path / name, trained, changes, prepared)

    return make
