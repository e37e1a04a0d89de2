"""fercli doctor"""

from __future__ import annotations

import click
from rich.text import Text

from fercli import console
from fercli.cli.hints import remember, with_options
from fercli.cli.options import spec_options

_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor", short_help="Check Python, CUDA, face networks, disk and data; suggest fixes.")
@spec_options
@click.pass_context
def command(ctx, spec_file, overrides, quiet, as_json):
    """Check what fercli needs on this machine and for a run spec, and say how to fix problems.

    "warn" marks something that some commands need. "fail" marks something that must be fixed; the command then exits
    with 1. With --quiet, it prints only "warn" and "fail". Nothing is written.

    \b
    Examples:
      fercli doctor
      fercli doctor -c raf-db-ir18 --set paths.runs=/scratch/runs
      fercli doctor --json
    """
    from fercli.doctor.checks import examine
    from fercli.doctor.software import FAIL, OK

    console.configure(quiet=quiet, as_json=as_json)
    remember(spec_file, overrides, ())
    findings = []
    for finding in examine(spec_file, overrides):
        findings.append(finding)
        if as_json or (quiet and finding.status == OK):
            continue
        label = Text(f"{finding.status:<5}", _STYLES[finding.status])
        console.show(label.append(f" {finding.check:<16} {finding.found}", "default"), even_silent=True)
        if finding.fix:
            console.show(Text(f"{'':<22} fix: {with_options(finding.fix)}"), even_silent=True)
    failed = sum(finding.status == FAIL for finding in findings)
    console.result({"doctor": {"findings": [vars(finding) for finding in findings], "failed": failed}})
    if failed:
        ctx.exit(1)
