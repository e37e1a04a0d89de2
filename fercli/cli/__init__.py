"""The command line: a group that loads each command on first use.

Neither torch, mediapipe nor the spec is imported here, so that ``fercli --help`` responds at once.

- `init`, `prepare`, `datasets`, `train_source`, `adapt`, `evaluate`, `compare`, `predict`, `export`, `sweep`,
  `weights`, `bench`, `doctor`, `demo`: one command each: options, one library call, output;
- `compare_view`, `datasets_view`, `weights_view`: the output of these three commands;
- `results_view`: the output of `evaluate` and `sweep`;
- `options`: shared options, and how they become a spec;
- `completion`: shell completion of option values;
- `hints`: commands in messages, with the options that the user gave;
- `docstrings`: help texts where Python has dropped docstrings.
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

# By default, OpenMP threads spin while they wait. Next to another busy process, that starves both: two trainings on two
# cores ran at 0.1 steps/s, and at 4.6 steps/s with sleeping threads. The variable is read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Where /dev/shm is not writable, joblib warns even if it is not needed; `fercli.parallel` warns where it matters.
warnings.filterwarnings("ignore", message=".*joblib will operate in serial mode")

#: Commands in the order of use; each is in the module of the same name.
COMMANDS = (
    *("init", "prepare", "datasets", "train-source", "adapt", "evaluate", "compare", "predict", "export"),
    *("sweep", "weights", "bench", "doctor", "demo"),
)
#: Commands that can resume after a stop.
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
                f"no such command: {name!r}"
                + (f"; did you mean {close[0]}?" if close else f"; choose one of {', '.join(COMMANDS)}")
            )
        return super().resolve_command(ctx, args)

    def main(self, args=None, prog_name=None, complete_var=None, standalone_mode=True, **extra) -> Any:
        """As click's, except that a usage error prints one line and --debug may be given anywhere."""
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
            if lost is None:  # another file's error
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
        # A user error prints one line and sets the exit code; a traceback is shown only with --debug.
        try:
            return super().invoke(ctx)
        except FercliError as problem:
            if ctx.meta.get("debug"):
                raise
            from fercli.cli.hints import with_options

            console.error(with_options(problem.text))
            ctx.exit(problem.exit_code)
        except EOFError as problem:
            # No command prompts the user, so this is not Ctrl-D, as click would assume: a file ended early.
            raise FercliError(_ended_early(problem)) from problem
        except KeyboardInterrupt:
            if ctx.meta.get("debug"):
                raise
            goes_on = ctx.invoked_subcommand in _GO_ON
            console.error("stopped" + ("; run the same command again to resume" if goes_on else ""))
            ctx.exit(130)


def _ended_early(problem: EOFError) -> str:
    said = " ".join(str(problem).split())
    return f"a file is empty or truncated{f' ({said})' if said else ''}; run the same command with --debug to see which"


def _not_printed(failure: OSError) -> int:
    """Report why the results could not be printed; return the exit code. A closed pipe (``| head``) is no error."""
    if failure.errno == errno.EPIPE:
        return 0
    why = "it is closed" if failure.errno == errno.EBADF else failure.strerror
    console.error(f"cannot print the results on stdout: {why}; redirect stdout to a file or a terminal")
    return 1


def _with_help(command: click.Command) -> click.Command:
    """Set the help of a command and its subcommands where Python has dropped docstrings."""
    if command.help is None and command.callback is not None:
        command.help = docstring(command.callback)
    for below in getattr(command, "commands", {}).values():
        _with_help(below)
    return command


def _debug_first(args: list[str]) -> list[str]:
    """Move --debug to the front, where the group reads it, if it was given after the command."""
    end = args.index("--") if "--" in args else len(args)
    if "--debug" not in args[:end]:
        return args
    return ["--debug", *(arg for arg in args[:end] if arg != "--debug"), *args[end:]]


def _tell(problem: click.ClickException) -> None:
    """Print a usage error as one line; a group called without a command prints its help."""
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
    To enable shell completion (for zsh: zsh_source):
      eval "$(_FERCLI_COMPLETE=bash_source fercli)"
      _FERCLI_COMPLETE=fish_source fercli | source
    """,
)
@click.version_option(__version__, "-V", "--version", message="fercli %(version)s")
@click.option("--debug", is_flag=True, help="Show an error's full traceback; may be given anywhere.")
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """Cross-domain facial expression recognition, from images to an adapted model.

    \b
    The usual workflow; each step reads the same run spec:
      fercli init                   write the spec, with every key explained
      fercli prepare                find, align and store the faces
      fercli train-source           train on the labelled source
      fercli adapt --target jaffe   adapt to an unlabelled target
      fercli evaluate --report      score both models, write the report

    \b
    To get started:
      fercli predict photo.jpg      predict with the model that comes with fercli
      fercli demo                   run the workflow on synthetic faces
      fercli doctor                 check what this machine lacks
    """
    ctx.meta["debug"] = debug
