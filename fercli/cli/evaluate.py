"""fercli evaluate"""

from __future__ import annotations

import click

from fercli.cli.completion import complete_rules, complete_runs
from fercli.cli.options import (
    chosen_targets,
    outside_method_option,
    read_spec,
    source_option,
    spec_options,
    target_option,
)


@click.command("evaluate", short_help="Score source-only and adapted models; write the report.")
@spec_options
@source_option
@click.option(
    "--model",
    metavar="MODEL",
    shell_complete=complete_runs,
    help="Score this model instead: starter, a run or stage folder, a model file, a checkpoint or a released one.",
)
@target_option("Target (may be repeated), or all. Default: the targets that the run is adapted to.")
@outside_method_option
@click.option("--decision", metavar="RULE", help="Decision rule: fused, global+fused, glpc, glpc:THRESHOLD or a head.")
@click.option(
    "--select",
    metavar="RULE",
    shell_complete=complete_rules,
    help="Score adapted models at the epoch chosen by this selection rule.",
)
@click.option("--report", is_flag=True, help="Also write the HTML report.")
def command(spec_file, overrides, quiet, as_json, sources, model, targets, decision, select, report):
    """Score the source model and the adapted models; write the results and, with --report, one HTML file.

    It writes results.json, results.csv (one score per row), predictions/*.csv (one face per row) and report.html to the
    run's report/ folder. The models' outputs are computed once and kept: --decision and --select apply another rule to
    them, and nothing is trained. With --target, the report covers these targets only.

    With --model, it scores that model on prepared datasets, without a run of the spec. MODEL is a run folder, a stage
    folder, a checkpoint, a .safetensors file of fercli weights export, or starter, the model that comes with fercli.
    The results are written to model-NAME/report under paths.runs. In this mode, --target may also name the model's
    source: its test split is scored.

    MODEL may also be a checkpoint (.pkl) released by the authors of AGLRLS, CGLRL or AGRA. The spec then defines how
    faces are prepared. --source names the training dataset, if known. The class order is assumed to be the
    benchmark's. The epoch is assumed to be chosen on the target's test labels, as in the released code.

    For a spec with a sweep section, it makes the benchmark table from the cells that the sweep has trained so far.

    \b
    Examples:
      fercli evaluate --report
      fercli evaluate --target jaffe --json
      fercli evaluate --decision fused --select corr-c
      fercli evaluate -c shifts --report
      fercli evaluate --model starter --target jaffe
      fercli evaluate --model ResNet50RAFtoJAFFE.pkl --target jaffe --report
    """
    from fercli.cli.results_view import show
    from fercli.errors import SpecError
    from fercli.scoring.evaluate import Scoring, adapted_targets, evaluate
    from fercli.spec.registry import RULES

    spec = read_spec(spec_file, overrides, quiet, as_json, sources)
    if select is not None and select not in RULES:
        raise SpecError(f"--select {select}: no such selection rule", f"choose one of {', '.join(RULES)}")
    how = Scoring(decision, select, report)
    if model is not None:
        show(*_evaluate_model(spec, model, sources, targets, how))
    elif spec.sweep is not None:
        show(*_evaluate_sweep(spec, targets, how))
    else:
        show(*evaluate(spec, chosen_targets(spec, targets) if targets else adapted_targets(spec), how))


def _evaluate_model(spec, name, sources, targets, how):
    from fercli.engine.trained import find_trained
    from fercli.errors import Advice, SpecError
    from fercli.scoring.evaluate import evaluate_model

    trained = find_trained(name, spec=spec, sources=sources)
    if sources and not trained.released:
        raise SpecError("--source is not allowed here: the --model has its own source", "leave out --source")
    prepared = [one for one in spec.data.targets if (spec.store_path(one) / "meta.json").exists()]
    datasets = list(dict.fromkeys(targets)) if targets and "all" not in targets else prepared
    if not datasets:
        raise SpecError(
            f"no target dataset is prepared in {spec.paths.prepared}",
            Advice(Advice.run("prepare", "--dataset NAME"), ", then name it with --target NAME"),
        )
    return evaluate_model(spec, trained, datasets, how)


def _evaluate_sweep(spec, targets, how):
    from fercli.report.page import write_report
    from fercli.scoring.results_files import write_results
    from fercli.sweep.aggregate import gather

    if targets and "all" not in targets:
        spec = spec.model_copy(update={"sweep": spec.sweep.model_copy(update={"targets": list(targets)})})
    document = gather(spec, how.decision, how.select)
    files = write_results(document, [], spec.run_folder)
    if how.report:
        files["report"] = write_report(document, spec.run_folder)
    return document, files
