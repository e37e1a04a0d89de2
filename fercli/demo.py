"""The demo's data and spec: procedural faces in the layouts of RAF-DB (source) and JAFFE (target)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from fercli import console
from fercli.datasets.writers import write_jaffe, write_raf_db
from fercli.faces.domains import LAB, STUDIO, Domain
from fercli.faces.synthetic import Face, sample
from fercli.files import write_atomically
from fercli.spec import packaged

#: Faces drawn of each part, and who is on them: nobody stands in two parts.
TRAIN, TRAIN_PEOPLE = 1200, range(60)
TEST, TEST_PEOPLE = 300, range(60, 80)
TARGET, TARGET_PEOPLE = 420, range(80, 90)


def write_demo(folder: Path, seed: int) -> Path:
    """Draw the demo's datasets into ``folder/data`` and write its spec.

    What is there already is kept: drawing is deterministic, and a dataset's folder appears only when it is whole.

    Returns:
        The spec file, ``folder/fercli.yaml``.
    """
    data = folder / "data"
    for name, write in (("raf-db", _write_source), ("jaffe", _write_target)):
        if not (data / name).exists():
            console.say(f"drawing procedural faces (a stand-in, no photographs) in the layout of {name} ...")
            write(data / name, seed)
    tree = yaml.safe_load(packaged()["demo"].read_text(encoding="utf-8"))
    tree["paths"] = {key: str(folder / key) for key in ("data", "prepared", "runs")}
    tree.setdefault("engine", {})["seed"] = seed
    tree["name"] = f"demo-{seed}"
    file = folder / "fercli.yaml"
    write_atomically(file, yaml.safe_dump(tree, sort_keys=False).encode())
    return file


def _write_source(root: Path, seed: int) -> None:
    write_raf_db(root, _draw(STUDIO, TRAIN, TRAIN_PEOPLE, seed, 0), _draw(STUDIO, TEST, TEST_PEOPLE, seed, 1))


def _write_target(root: Path, seed: int) -> None:
    write_jaffe(root, _draw(LAB, TARGET, TARGET_PEOPLE, seed, 2))


def _draw(domain: Domain, count: int, people: range, seed: int, part: int) -> Iterator[Face]:
    """Faces of one part; other seeds draw other people."""
    return sample(domain, count, seed=3 * seed + part, identities=[1000 * seed + p for p in people], workers=-1)
