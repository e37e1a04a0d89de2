"""What the shell offers for a value behind an option; nothing here imports torch.

``_FERCLI_COMPLETE=bash_source fercli`` (zsh_source, fish_source) prints click's script for the shell, which asks these.
A completion never fails: what cannot be read is not offered.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from click import Context, Parameter
from click.shell_completion import CompletionItem

from fercli.errors import FercliError
from fercli.starter import NAME

if TYPE_CHECKING:
    from fercli.spec import Spec


def complete_specs(ctx: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """YAML files of the working folder and packaged specs; where none fits, files."""
    from fercli.spec import packaged

    here = [path.name for path in sorted(Path().glob("*.y*ml"))]
    return [CompletionItem(incomplete, type="file"), *_fitting([*here, *packaged()], incomplete)]


def complete_packaged(ctx: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Packaged specs."""
    from fercli.spec import packaged

    return _fitting(packaged(), incomplete)


def complete_datasets(ctx: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Datasets that can be read, and those that the run spec names."""
    from fercli.datasets import READERS

    spec = _spec(ctx)
    own = [] if spec is None else [*spec.data.source, *spec.data.targets, *spec.data.datasets]
    return _fitting([*READERS, *own], incomplete)


def complete_readers(ctx: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Readers of the registry."""
    from fercli.datasets import READERS

    return _fitting(READERS, incomplete)


def complete_targets(ctx: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Datasets, and ``all``."""
    return [*_fitting(["all"], incomplete), *complete_datasets(ctx, parameter, incomplete)]


def complete_methods(ctx: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Adaptation methods."""
    from fercli.spec.registry import METHODS

    return _fitting(METHODS, incomplete)


def complete_rules(ctx: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Selection rules."""
    from fercli.spec.registry import RULES

    return _fitting(RULES, incomplete)


def complete_runs(ctx: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Runs under paths.runs, by name and by path, and the starter model; where none fits, folders."""
    spec = _spec(ctx)
    runs = [] if spec is None else sorted(path.parent for path in spec.paths.runs.glob("*/spec.yaml"))
    names = [*(run.name for run in runs), *(str(run) for run in runs)]
    return [CompletionItem(incomplete, type="dir"), *_fitting([*names, NAME], incomplete)]


def _fitting(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in dict.fromkeys(names) if name.startswith(incomplete)]


def _spec(ctx: Context) -> Spec | None:
    from fercli.spec import load

    try:
        return load(ctx.params.get("spec_file"), ctx.params.get("overrides") or ())
    except (FercliError, OSError):
        return None
