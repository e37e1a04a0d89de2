"""fercli adapt"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fercli import console
from fercli.cli.completion import complete_runs
from fercli.cli.options import (
    chosen_targets,
    method_option,
    read_spec,
    restart_option,
    source_option,
    spec_options,
    target_option,
)
from fercli.cli.train_source import told

if TYPE_CHECKING:
    from fercli.spec import Spec

#: The packaged spec for adapting a given model, if no other spec is named.
_WITHOUT_SPEC = "source-free"


@click.command("adapt")
@spec_options
@source_option
@target_option("Unlabelled target: a dataset or a folder of images (may be repeated). all: every target of the spec.")
@click.option(
    "--from",
    "start",
    metavar="MODEL",
    shell_complete=complete_runs,
    help="Start from this model: starter, a run folder, a stage folder, a model file or a checkpoint.",
)
@method_option
@restart_option
def command(spec_file, overrides, quiet, as_json, sources, targets, start, method, restart):
    """Adapt a model to unlabelled targets.

    Target labels are read neither for training nor for choosing the epoch. If --method differs from the spec's method,
    the spec's adapt.options are ignored, because they belong to the spec's method.

    The starting model is the run's own source model (fercli train-source), or any other model given by --from. That
    model is copied into the run, which then no longer needs the original. Without a spec, adapt --from uses the
    packaged spec source-free, whose method needs no labelled faces, and the run is named from-MODEL.

    A folder of images is prepared first: the largest face of each image is stored in the run's folder. Source-free
    methods (shot, aad, nrc, aglrls-sf, adabn, tent, sar) report at the end whether the adaptation can be trusted. They
    keep the starting model if every selection rule prefers it.

    \b
    Examples:
      fercli adapt --target jaffe
      fercli adapt --target all --set adapt.epochs=10
      fercli adapt --target jaffe --method mcd --set adapt.tag=mcd
      fercli adapt --target jaffe --set adapt.options.glpc=false --set adapt.tag=x
      fercli adapt --from starter --target photos/
      fercli adapt --from runs/mine/source --target photos/ --method tent
    """
    from fercli.engine import distributed
    from fercli.engine.interrupt import Interrupted, StopRequest
    from fercli.engine.stages import adapt

    spec = _spec(spec_file, overrides, quiet, as_json, sources, start, method)
    spec, names = _targets(spec, targets)
    outcomes = {}
    # After a signal, the current target ends in an orderly way, and the next one must not begin.
    with StopRequest() as stop:
        for name in names:
            if outcomes and any(distributed.any_of(stop.requested)):
                raise Interrupted(f"stopped before the adaptation to {name}; run the same command again to resume")
            outcome = outcomes[name] = adapt(spec, name, restart)
            console.say(f"{name if 'kept' in outcome else f'adapted to {name}'}: {told(outcome)}")
            if "verdict" in outcome:
                _tell_verdict(name, outcome)
    console.result({"adapt": outcomes})


def _spec(spec_file, overrides, quiet, as_json, sources, start, method) -> Spec:
    """Return the run's spec, with the changes from --from and --method."""
    from fercli.engine.start import find_start, is_there, with_start
    from fercli.errors import SpecError
    from fercli.spec.load import local_spec

    unnamed = start is not None and spec_file is None and local_spec() is None
    if unnamed:
        spec_file = _WITHOUT_SPEC
    if method is not None:
        # The options in the spec belong to the spec's own method.
        own = read_spec(spec_file, (), quiet, as_json, sources).adapt.method
        fresh = ("adapt.options={}",) if method != own else ()
        overrides = (*fresh, *overrides, f"adapt.method={method}")
    spec = read_spec(spec_file, overrides, quiet, as_json, sources)
    if start is not None:
        spec = spec.model_copy(update={"adapt": spec.adapt.model_copy(update={"start": start})})
    if spec.adapt.start is None:
        return spec
    model = find_start(spec)
    if sources and not model.released:
        raise SpecError("--source is not allowed here: the --from model has its own source", "leave out --source")
    if unnamed and not any(text.partition("=")[0].strip() == "name" for text in overrides):
        spec = spec.model_copy(update={"name": f"from-{model.label}"})
    spec = with_start(spec, model)
    is_there(spec, model)
    return spec


def _targets(spec: Spec, targets: tuple[str, ...]) -> tuple[Spec, list[str]]:
    """Return the spec and the target names; folders of images are prepared and added to the spec."""
    from fercli.datasets import READERS
    from fercli.engine.stages import check_adapt, check_begun
    from fercli.errors import FercliError
    from fercli.prepare.from_spec import list_dataset, photo_folder, prepare_listing
    from fercli.store import read_meta

    names, folders = [], []
    for named in targets:
        found = photo_folder(spec, named)
        if found is not None:
            spec, name = found
            folders.append(name)
        elif spec.adapt.start is not None and named != "all":
            known = {*READERS, *spec.data.datasets, *spec.data.source, *spec.data.targets}
            if named not in known and read_meta(spec.store_path(named)) is None:
                raise FercliError(
                    f"no such folder or dataset: {named}", "give a folder of images or a dataset (fercli datasets)"
                )
        names.append(named if found is None else name)
    chosen = chosen_targets(spec, tuple(names))
    if folders:  # checked first: finding the faces takes longest
        check_adapt(spec)
        check_begun(spec)
    for name in dict.fromkeys(folders):
        if not spec.data.datasets[name].root.is_dir():
            console.say(f"{spec.data.datasets[name].root} no longer exists; its faces are in {spec.store_path(name)}")
            continue
        row = prepare_listing(spec, list_dataset(spec, name))
        faces = row["expected"] - row["rejected"]
        console.say(f"{name}: faces found in {faces} of {row['expected']} images; {row['folder']}/contact-sheet.jpg")
    return spec, chosen


def _tell_verdict(name: str, outcome: dict[str, Any]) -> None:
    """Print whether the adaptation can be trusted."""
    drift, verdict = outcome["drift"], outcome["verdict"]
    if drift["agreement"] is not None:
        entropy = drift["entropy"]
        console.say(
            f"  compared with the starting model: {drift['agreement']:.0%} of the predictions unchanged, entropy "
            f"{entropy['before']:.2f} -> {entropy['after']:.2f}"
        )
    reasons = verdict["reasons"] or ["The checks that need no labels found no problem."]
    line = " ".join([f"{name}: {verdict['trust']}.", *reasons])
    if verdict["trust"] == "trusted":
        console.say(line)
    else:
        start = Path(outcome["folder"]).parent / "source"
        console.warn(f"{line} To predict with the starting model: --run {start}.")
