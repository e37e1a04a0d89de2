"""The demo's data and specs: procedural faces in the layouts of RAF-DB (source) and JAFFE (target).

The demo's sweep has three targets at growing distances from the source, each with its own csv file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from fercli import console
from fercli.files import write_atomically
from fercli.spec import packaged
from fercli.synthetic.domains import LAB, STUDIO, Domain, between
from fercli.synthetic.render import Face, sample
from fercli.synthetic.writers import write_csv, write_jaffe, write_raf_db

#: The number of faces in each part, and the identities shown. No identity appears in two parts.
TRAIN, TRAIN_PEOPLE = 1200, range(60)
TEST, TEST_PEOPLE = 300, range(60, 80)
TARGET, TARGET_PEOPLE = 420, range(80, 90)

#: The sweep's targets: the distance of each from the source, where 1 is `LAB` and higher values lie beyond it.
SHIFTS = {"near": 0.6, "middle": 1.0, "far": 1.3}
SHIFT_TRAIN, SHIFT_TARGET = 900, 280


def write_demo(folder: Path, seed: int) -> Path:
    """Draw the demo's datasets into ``folder/data`` and write its spec.

    Existing datasets are kept: drawing is deterministic, and a dataset's folder appears only when it is complete.

    Returns:
        The spec file, ``folder/fercli.yaml``.
    """

    def target(root: Path) -> None:
        write_jaffe(root, _draw(LAB, TARGET, TARGET_PEOPLE, seed, 2))

    _draw_missing(folder / "data", {"raf-db": _source(TRAIN, TEST, seed), "jaffe": target})
    return _write_spec(folder, "demo", f"demo-{seed}", seed)


def write_shifts(folder: Path) -> Path:
    """Draw the datasets of the demo's sweep into ``folder/data`` and write its spec, like `write_demo`."""

    def target(root: Path) -> None:
        domain = between(STUDIO, LAB, SHIFTS[root.name], root.name)
        people = range(TARGET_PEOPLE.start + 20 * list(SHIFTS).index(root.name), 200)[: len(TARGET_PEOPLE)]
        write_csv(root, {"all": _draw(domain, SHIFT_TARGET, people, 0, 2)})

    _draw_missing(folder / "data", {"raf-db": _source(SHIFT_TRAIN, SHIFT_TARGET, 0), **dict.fromkeys(SHIFTS, target)})
    return _write_spec(folder, "shifts", "shifts", seed=0)


def _source(train: int, test: int, seed: int) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        tested = _draw(STUDIO, test, TEST_PEOPLE, seed, 1)
        write_raf_db(root, _draw(STUDIO, train, TRAIN_PEOPLE, seed, 0), tested)

    return write


def _draw_missing(data: Path, writers: dict[str, Callable[[Path], None]]) -> None:
    for name, write in writers.items():
        if not (data / name).exists():
            console.say(f"drawing synthetic faces (procedural, no photographs): {name} ...")
            write(data / name)


def _write_spec(folder: Path, packaged_name: str, name: str, seed: int) -> Path:
    tree = yaml.safe_load(packaged()[packaged_name].read_text(encoding="utf-8"))
    tree["paths"] = {key: key for key in ("data", "prepared", "runs")}  # relative to the folder
    tree.setdefault("engine", {})["seed"] = seed
    tree["name"] = name
    file = folder / "fercli.yaml"
    write_atomically(file, yaml.safe_dump(tree, sort_keys=False).encode())
    return file


def _draw(domain: Domain, count: int, people: range, seed: int, part: int) -> Iterator[Face]:
    """Yield the faces of one part; other seeds draw other people."""
    return sample(domain, count, seed=3 * seed + part, identities=[1000 * seed + p for p in people], workers=-1)
