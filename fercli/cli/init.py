"""fercli init"""

from __future__ import annotations

from pathlib import Path

import click

from fercli import console
from fercli.cli.completion import complete_packaged
from fercli.cli.options import console_options, force_option, source_option, target_option


@click.command("init", short_help="Write a run spec to edit, with every key explained.")
@click.argument("file", metavar="[FILE]", default="fercli.yaml")
@source_option
@target_option("Unlabelled target (may be repeated). Default: the targets of the --from spec.")
@click.option("--backbone", metavar="NAME", help="A shortcut for model.backbone: ir50, ir18, mobilenet-v2, ir-lite.")
@click.option(
    "--from",
    "base",
    metavar="NAME",
    default="default",
    show_default=True,
    shell_complete=complete_packaged,
    help="Spec to start from: the name of a packaged spec, or a file.",
)
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Set any key: --set adapt.epochs=5")
@force_option("Replace FILE if it already exists.")
@console_options
def command(file, sources, targets, backbone, base, overrides, force, quiet, as_json):
    """Write a run spec with every key, its value and its meaning; rarely used keys are commented out.

    FILE defaults to ./fercli.yaml, which all commands read if no other spec is named. If FILE is a folder, fercli.yaml
    is written in it; - is stdout. The first line names the JSON schema of the installed fercli, with which editors that
    have a YAML language server complete and check keys.

    \b
    Examples:
      fercli init
      fercli init jaffe.yaml --source raf-db --target jaffe --backbone ir18
      fercli init mine.yaml --from demo --set name=mine
    """
    from fercli.errors import FercliError
    from fercli.files import disk_error, write_atomically
    from fercli.spec import load
    from fercli.spec.json_schema import schema_file
    from fercli.spec.template import to_template

    console.configure(quiet=quiet, as_json=as_json)
    shortcuts = {"data.source": list(sources), "data.targets": list(targets), "model.backbone": backbone}
    if sources and not targets:
        # A target of the --from spec that is now a source is no longer a target.
        shortcuts["data.targets"] = [name for name in load(base).data.targets if name not in sources]
    spec = load(base, overrides, {key: value for key, value in shortcuts.items() if value})
    # Read by editors that have a YAML language server, which complete and check keys during typing.
    text = f"# yaml-language-server: $schema={schema_file().absolute().as_uri()}\n{to_template(spec)}"
    if file == "-":
        console.write(text)
        return
    path = Path(file) / "fercli.yaml" if Path(file).is_dir() else Path(file)
    if path.exists() and not force:
        raise FercliError(f"{path} already exists", "give another name, or replace it with --force")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as failure:
        raise FercliError(f"cannot write {path}: {disk_error(failure, path)}", "give another name") from None
    where = "" if path == Path("fercli.yaml") else f" -c {path}"
    console.say(f"{path}: put the datasets under {spec.paths.data}/, or set their folders in this file")
    console.say(f"to check what is missing: fercli doctor{where}; then: fercli prepare{where}")
    console.result({"init": {"file": str(path), "spec": spec.model_dump(mode="json")}})
