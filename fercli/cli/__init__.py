"""The command line: a group whose commands are loaded when they are called for.

Neither torch nor mediapipe nor the spec is imported here, so that ``fercli --help`` answers at once.

- `init`, `prepare`, `datasets`, `train_source`, `adapt`, `evaluate`, `compare`, `predict`, `export`, `sweep`,
  `weights`, `bench`, `doctor`, `demo`: one command each: options, one call of the library, output;
- `compare_view`, `datasets_view`, `weights_view`: what these three show;
- `results_view`: what `evaluate` and `sweep` show;
- `options`: options that commands share, and how they become a spec;
- `completion`: what the shell offers behind an option;
- `hints`: commands in messages, with the options that the user gave;
- `docstrings`: help where Python has dropped docstrings.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import warnings
from typing import Any

import click

from fercli import console
from fercli.cli.docstrings import docstring
from fercli.errors import FercliError
from fercli.version import __version__

# By default OpenMP's threads spin while they wait. Beside another busy process that starves both: two cores shared by
# two trainings took 0.1 steps a second, and 4.6 with waiting threads asleep. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Where /dev/shm cannot be written to, joblib warns of it whoever needs it; `fercli.parallel` says so where it matters.
warnings.filterwarnings("ignore", message=".*joblib will operate in serial mode")

#: Commands in the order a user meets them; each lives in the module of its name.
COMMANDS = (
    *("init", "prepare", "datasets", "train-source", "adapt", "evaluate", "compare", "predict", "export"),
    *("sweep", "weights", "bench", "doctor", "demo"),
)
#: Those that take up again what a stop left.
_GO_ON = frozenset({"prepare", "train-source", "adapt", "sweep", "demo"})


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return _with_help(importlib.import_module(f"fercli.cli.{name.replace('-', '_')}").command)

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

    def main(self, args=None, prog_name=None, complete_var=None, standalone_mode=True, **extra) -> Any:
        """As click's, but for usage errors, which leave one line, and --debug, which may stand anywhere."""
        console.fit_streams()
        _with_help(self)
        args = _debug_first(list(sys.argv[1:] if args is None else args))
        given = {"args": args, "prog_name": prog_name, "complete_var": complete_var, "standalone_mode": False, **extra}
        if not standalone_mode:
            return super().main(**given)
        try:
            code = super().main(**given)
        except click.ClickException as problem:
            _tell(problem)
            code = problem.exit_code
        except click.Abort:
            console.error("stopped")
            code = 130
        except SystemExit as end:
            code = end.code
        except OSError:
            lost = console.unprinted()
            if lost is None:  # another file's
                raise
            code = _not_printed(lost)
        code = code if isinstance(code, int) else 0
        lost = console.unprinted()
        code = code or (0 if lost is None else _not_printed(lost))
        ranks = sys.modules.get("fercli.engine.distributed")
        if ranks is not None:
            ranks.end_process(code)
        sys.exit(code)

    def invoke(self, ctx: click.Context) -> Any:
        # The user's mistakes leave one line and a code; a trace only where --debug asks for it.
        try:
            return super().invoke(ctx)
        except FercliError as problem:
            if ctx.meta.get("debug"):
                raise
            from fercli.cli.hints import with_options

            console.error(with_options(problem.text, ctx))
            ctx.exit(problem.exit_code)
        except EOFError as problem:
            # Nothing here asks the user, so that this is no Ctrl-D, for which click would take it: a file ended early.
            raise FercliError(_ended_early(problem)) from problem
        except KeyboardInterrupt:
            if ctx.meta.get("debug"):
                raise
            goes_on = ctx.invoked_subcommand in _GO_ON
            console.error("stopped" + ("; the same command goes on where this one was" if goes_on else ""))
            ctx.exit(130)


def _ended_early(problem: EOFError) -> str:
    said = " ".join(str(problem).split())
    return f"a file is empty or cut short{f' ({said})' if said else ''}; the same command with --debug shows which"


def _not_printed(failure: OSError) -> int:
    """Tell what kept the results from stdout; return the exit code. A reader that has gone (``| head``) had enough."""
    if failure.errno == errno.EPIPE:
        return 0
    why = "it is closed" if failure.errno == errno.EBADF else failure.strerror
    console.error(f"the results could not be printed on stdout: {why}; send it elsewhere, to a file or a terminal")
    return 1


def _with_help(command: click.Command) -> click.Command:
    """Give a command, and those below it, the help that it lacks where Python has dropped docstrings."""
    if command.help is None and command.callback is not None:
        command.help = docstring(command.callback)
    for below in getattr(command, "commands", {}).values():
        _with_help(below)
    return command


def _debug_first(args: list[str]) -> list[str]:
    """Bring --debug, given behind the command, to where the group reads it."""
    end = args.index("--") if "--" in args else len(args)
    if "--debug" not in args[:end]:
        return args
    return ["--debug", *(arg for arg in args[:end] if arg != "--debug"), *args[end:]]


def _tell(problem: click.ClickException) -> None:
    """Print a usage error as one line; a group called without a command shows its help."""
    if isinstance(problem, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        problem.show()
        return
    ctx = getattr(problem, "ctx", None)
    said = " ".join(problem.format_message().split()).rstrip(".")
    console.error(said + (f" (run: {ctx.command_path} --help)" if ctx is not None else ""))


@click.group(
    "fercli",
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""
    \b
    The shell completes commands, options, datasets, methods and runs after (zsh: zsh_source):
      eval "$(_FERCLI_COMPLETE=bash_source fercli)"
      _FERCLI_COMPLETE=fish_source fercli | source
    """,
)
@click.version_option(__version__, "-V", "--version", message="fercli %(version)s")
@click.option("--debug", is_flag=True, help="Show the trace of an error instead of one line; may stand anywhere.")
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """Cross-domain facial expression recognition, from photographs to an adapted model.

    \b
    The usual way, each step reading the same run spec:
      fercli init                   write that spec, every key explained
      fercli prepare                find, align and store the faces of every dataset in the spec
      fercli train-source           train on the labelled source
      fercli adapt --target jaffe   adapt to an unlabelled target
      fercli evaluate --report      score before and after, write the report

    \b
    First time here? A model in minutes, on faces drawn for it; and what this machine lacks:
      fercli demo
      fercli doctor
    """
    ctx.meta["debug"] = debug
