"""The command line: a group whose commands are loaded when they are called for.

Neither torch nor mediapipe nor the spec is imported here, so that ``fercli --help`` answers at once.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import click

from fercli import __version__, console
from fercli.errors import FercliError

# By default OpenMP's threads spin while they wait. Beside another busy process that starves both: two cores shared by
# two trainings took 0.1 steps a second, and 4.6 with waiting threads asleep. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

#: Commands in the order a user meets them; each lives in the module of its name.
COMMANDS = (
    *("init", "prepare", "datasets", "train-source", "adapt", "evaluate", "compare", "predict", "export"),
    *("sweep", "weights", "bench", "doctor", "demo"),
)


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(f"fercli.cli.{name.replace('-', '_')}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS:
            close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
            ctx.fail(
                f"no command {name!r}" + (f"; did you mean {close[0]}?" if close else f"; one of {', '.join(COMMANDS)}")
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        # The user's mistakes leave one line and a code; a trace only where --debug asks for it.
        try:
            return super().invoke(ctx)
        except FercliError as problem:
            if ctx.find_root().meta.get("debug"):
                raise
            console.error(str(problem))
            ctx.exit(problem.exit_code)
        except KeyboardInterrupt:
            console.error("stopped; the same command goes on where this one was")
            ctx.exit(130)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "-V", "--version", message="fercli %(version)s")
@click.option("--debug", is_flag=True, help="Show the trace of an error instead of one line.")
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """Cross-domain facial expression recognition, from photographs to an adapted model.

    \b
    The usual way, each step reading the same run spec:
      fercli prepare                find, align and store the faces of every dataset in the spec
      fercli train-source           train on the labelled source
      fercli adapt --target jaffe   adapt to an unlabelled target
      fercli evaluate --report      score before and after, write the report

    First time here? Run: fercli demo
    """
    ctx.find_root().meta["debug"] = debug
