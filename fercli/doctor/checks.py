"""All checks of `fercli doctor`: software first, then the spec, the machine, its disks, weights and datasets."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from fercli.doctor import software
from fercli.doctor.software import FAIL, OK, WARN, Finding
from fercli.errors import Advice, Command, FercliError
from fercli.spec import Dataset, Spec, load
from fercli.spec.load import find
from fercli.starter import NAME, starter_file

#: Free space in bytes below which there is a warning, and below which the check fails.
_LITTLE, _NONE = 10 * 2**30, 500 * 2**20
_MEMORY = 4 * 2**30

_NEW_SPEC = Advice("correct it, or write a new one: ", Command("init"))

_SOFTWARE = (
    *(software.python, software.packages, software.torch, software.opencv, software.pyav),
    *(software.face_networks, software.face, software.onnx),
)


def examine(spec_file: str | None = None, overrides: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Run all checks, in an order in which each can rely on those before it.

    A check that fails with an exception is itself a finding. If the spec cannot be read, its defaults are used instead.
    """
    spec = Spec()
    for check in _SOFTWARE:
        yield from _guarded(check)
    try:
        path = find(spec_file)
        spec = load(spec_file, overrides)
        yield Finding("spec", OK, str(path))
    except FercliError as problem:
        yield Finding("spec", FAIL, " ".join(str(problem).split()), _NEW_SPEC)
    for check in (software.cuda, _machine, _paths, _weights, _datasets):
        yield from _guarded(check, spec)


def _guarded(check: Callable[..., Iterator[Finding]], *arguments: Spec) -> Iterator[Finding]:
    try:
        yield from check(*arguments)
    except Exception as problem:
        name, broken = check.__name__.strip("_"), software.unloadable(problem)
        if broken is not None:
            yield Finding(name, FAIL, f"{broken.check} {broken.found}", broken.fix)
            return
        text = " ".join(str(problem).split())
        yield Finding(name, FAIL, f"{type(problem).__name__}: {text}", "see the error message")


def _machine(spec: Spec) -> Iterator[Finding]:
    from joblib import cpu_count

    from fercli.machine import processor

    yield Finding("cores", OK, f"{cpu_count()} of {processor()}")
    memory = _memory()
    if memory is not None:
        little = memory < _MEMORY
        fix = "use smaller batches (train_source.batch, adapt.batch) or fewer prepare.workers" if little else ""
        yield Finding("memory", WARN if little else OK, f"{memory / 2**30:.1f} GiB free", fix)


def _memory() -> int | None:
    """Bytes this process can still allocate: on the machine, or in its control group if that allows less."""
    free = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_bytes()) - int((group / "memory.current").read_bytes()))
    except (OSError, ValueError):  # not Linux, or no limit ("max")
        pass
    return min(free, default=None)


def _paths(spec: Spec) -> Iterator[Finding]:
    face = spec.prepare.size + 2 * spec.prepare.margin
    bytes_a_face = 3 * (face**2 + 5 * spec.prepare.crop_size**2)
    for name in ("prepared", "runs"):
        path = getattr(spec.paths, name).absolute()
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        try:
            with tempfile.TemporaryFile(dir=there) as file:
                file.write(b"fercli")
        except OSError as problem:
            found = f"{path}: cannot write in {there} ({problem.strerror})"
            yield Finding(f"paths.{name}", FAIL, found, f"set it to a writable folder: --set paths.{name}=FOLDER")
            continue
        free = shutil.disk_usage(there).free
        status = FAIL if free < _NONE else WARN if free < _LITTLE else OK
        found = f"{path}: {free / 2**30:.1f} GiB free"
        found += f", room for {free / bytes_a_face / 1e3:,.0f} thousand faces" if name == "prepared" else ""
        yield Finding(f"paths.{name}", status, found, "" if status == OK else f"free some space, or move paths.{name}")


def _weights(spec: Spec) -> Iterator[Finding]:
    path = spec.model.weights
    if path is not None and str(path) == NAME:
        try:
            yield Finding("weights", OK, f"{NAME}: {starter_file()}", "")
        except FercliError as problem:
            yield Finding("weights", FAIL, problem.what, problem.fix)
    elif path is not None:
        there = path.is_file()
        fix = "put the file there (see the spec's comments), or start from random weights: --set model.weights=null"
        yield Finding("weights", OK if there else FAIL, f"{path}{'' if there else ' is missing'}", "" if there else fix)


def _datasets(spec: Spec) -> Iterator[Finding]:
    from fercli.datasets import get_reader
    from fercli.store import Store

    # A starting model replaces the source, which methods without a source do not read.
    sources = [n for n in spec.data.source if spec.adapt.start is None or spec.store_path(n).is_dir()]
    own = [name for name, entry in spec.data.datasets.items() if entry.store is not None]
    for name in dict.fromkeys((*sources, *spec.data.targets, *own)):
        check, path, entry = f"dataset {name}", spec.store_path(name), spec.data.datasets.get(name, Dataset())
        folder = entry.root or spec.paths.data / name
        if path.is_dir():
            try:
                store = Store.open(path, labels=False, name=path.name)
            except FercliError as problem:
                yield Finding(check, FAIL, problem.what, problem.fix)
                continue
            counts = store.counts()
            yield Finding(check, OK, f"prepared: {len(store)} of {counts['expected']} faces in {path}")
            continue
        try:
            get_reader(entry.reader or name)
        except FercliError as problem:
            found = f"no reader is known for {name}" if entry.reader is None else str(problem)
            yield Finding(check, FAIL, found, f"choose one, such as --set data.datasets.{name}.reader=folders")
            continue
        if folder.is_dir():
            yield Finding(check, WARN, f"in {folder}, not prepared", Advice.run("prepare", f"--dataset {name}"))
        else:
            show = f"get it (fercli datasets show {entry.reader or name}) or set its folder"
            yield Finding(check, WARN, f"neither prepared nor in {folder}", f"{show}: data.datasets.{name}.root")
