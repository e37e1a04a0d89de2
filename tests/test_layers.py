"""The architecture: which package may import which, no import cycles, and package docstrings that list all modules."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fercli

ROOT, TESTS = Path(fercli.__file__).parent, Path(__file__).parent

#: From the bottom up: a package or root module imports only from entries before it in this list, or from itself.
LAYERS = (
    *("version", "errors", "expressions", "durations", "console", "files"),
    *("machine", "media", "output_files", "parallel", "spreadsheet"),
    *("starter", "spec", "datasets", "faces", "synthetic", "store"),
    *("loading", "models", "methods", "evaluation", "report"),
    *("prepare", "engine", "scoring", "sweep", "predict", "export"),
    *("benchmarks", "doctor", "cli", "__init__", "__main__"),
)
#: The root holds the base modules, the store and the entry points.
MOST_AT_THE_ROOT = 14


def _modules() -> dict[str, Path]:
    """Return every module by its name below fercli, such as ``engine.loop``; ``engine`` is a package's __init__."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imports(name: str) -> set[str]:
    """Return the fercli modules that a module imports, also in functions and for the type checker."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in names:
            package, _, below = full.partition(".")
            if package != "fercli":
                continue
            while below and below not in MODULES:
                below = below.rpartition(".")[0]
            found.add(below or "__init__")
    return found - {name}


def test_imports_run_downwards() -> None:
    upward = []
    for name in MODULES:
        own = name.partition(".")[0]
        for other in _imports(name):
            there = other.partition(".")[0]
            if there != own and LAYERS.index(there) > LAYERS.index(own):
                upward.append(f"{name} imports {other}")
    assert not upward


def test_there_are_no_import_cycles() -> None:
    try:
        TopologicalSorter({name: _imports(name) for name in MODULES}).prepare()
    except CycleError as circle:
        pytest.fail(f"import cycle: {' -> '.join(circle.args[1])}")


def test_every_package_has_a_layer() -> None:
    rooms = {name.partition(".")[0] for name in MODULES} - {"configs"}
    assert rooms == set(LAYERS)
    assert len([name for name in LAYERS if (ROOT / f"{name}.py").exists()]) <= MOST_AT_THE_ROOT


@pytest.mark.parametrize("package", sorted(name for name in MODULES if MODULES[name].stem == "__init__" and name))
def test_a_package_docstring_lists_every_module(package: str) -> None:
    """The entries ``- `module`, `module`: what it does`` in a package's docstring are the modules in its folder."""
    told = ast.get_docstring(ast.parse(MODULES[package].read_text(encoding="utf-8"))) or ""
    named = [
        name for line in re.findall(r"^- ((?:`\w+`(?:,\s+)?)+)", told, re.M) for name in re.findall(r"`(\w+)`", line)
    ]
    there = [name.removeprefix(f"{package}.") for name in MODULES if name.startswith(f"{package}.")]
    assert sorted(named) == sorted(name for name in there if "." not in name)


def test_the_spec_imports_only_base_modules() -> None:
    used = {other for name in MODULES if name.partition(".")[0] == "spec" for other in _imports(name)}
    below = {name for name in used if name.partition(".")[0] != "spec"}
    assert below <= {"console", "errors", "files", "starter", "version"}


@pytest.mark.parametrize("file", sorted(TESTS.glob("test_*.py")), ids=lambda file: file.stem)
def test_no_test_file_imports_another(file: Path) -> None:
    """Shared helpers have their own modules: importing a test file would bring in its fixtures and constants."""
    imported = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        imported |= {name.split(".")[-1] for name in names}
    assert not imported & {path.stem for path in TESTS.glob("test_*.py")}
