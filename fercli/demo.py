"""The demo's data and spec: procedural faces in the layouts of RAF-DB (source) and JAFFE (target)."""

from __future__ import annotations

from pathlib import Path

import yaml

from fercli import console
from fercli.datasets.writers import write_jaffe, write_raf_db
from fercli.engine.checkpoint import atomic_write
from fercli.faces.domains import LAB, STUDIO
from fercli.faces.synthetic import sample
from fercli.spec import packaged

#: Faces drawn: source train and test, target.
TRAIN, TEST, TARGET = 1200, 300, 420


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
    atomic_write(file, yaml.safe_dump(tree, sort_keys=False).encode())
    return file


def _write_source(root: Path, seed: int) -> None:
    write_raf_db(root, sample(STUDIO, TRAIN, seed=3 * seed), sample(STUDIO, TEST, seed=3 * seed + 1))


def _write_target(root: Path, seed: int) -> None:
    write_jaffe(root, sample(LAB, TARGET, seed=3 * seed + 2, identities=10))
