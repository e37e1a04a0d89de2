"""Shell completion of option values; nothing here imports torch.

``_FERCLI_COMPLETE=bash_source fercli`` (zsh_source, fish_source) prints click's script for the shell, which calls the
functions here. A completion never fails: a spec or folder that cannot be read contributes no values.
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
    """Complete YAML files in the working folder and packaged specs; if none matches, files."""
    from fercli.spec import packaged

    here = [path.name for path in sorted(Path().glob("*.y*ml"))]
    return [CompletionItem(incomplete, type="file"), *_fitting([*here, *packaged()], incomplete)]


def complete_packaged(ctx: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete packaged specs."""
    from fercli.spec import packaged

    return _fitting(packaged(), incomplete)


def complete_datasets(ctx: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the datasets that fercli can read and those named in the run spec."""
    from fercli.datasets import READERS

    spec = _spec(ctx)
    own = [] if spec is None else [*spec.data.source, *spec.data.targets, *spec.data.datasets]
    return _fitting([*READERS, *own], incomplete)


def complete_readers(ctx: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the readers in the registry."""
    from fercli.datasets import READERS

    return _fitting(READERS, incomplete)


def complete_targets(ctx: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete datasets, and ``all``."""
    return [*_fitting(["all"], incomplete), *complete_datasets(ctx, parameter, incomplete)]


def complete_methods(ctx: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete adaptation methods."""
    from fercli.spec.registry import METHODS

    return _fitting(METHODS, incomplete)


def complete_rules(ctx: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete selection rules."""
    from fercli.spec.registry import RULES

    return _fitting(RULES, incomplete)


def complete_runs(ctx: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete runs under paths.runs, by name and by path, and the starter model; if none matches, folders."""
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
