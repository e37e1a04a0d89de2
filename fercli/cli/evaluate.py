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
    help="Score this model, of any run: starter, a model file, a stage folder, a checkpoint, a released one.",
)
@target_option("Target (may be repeated), or all. Default: those adapted to.")
@outside_method_option
@click.option("--decision", metavar="RULE", help="Answer by fused, global+fused, glpc, glpc:THRESHOLD, or a head.")
@click.option(
    "--select",
    metavar="RULE",
    shell_complete=complete_rules,
    help="Score adapted models at the epoch that this selection rule chooses.",
)
@click.option("--report", is_flag=True, help="Also write the HTML report.")
def command(spec_file, overrides, quiet, as_json, sources, model, targets, decision, select, report):
    """Score the source model and the adapted ones; write the numbers and, with --report, one HTML file.

    Into the run's folder report/ go results.json, results.csv (the scores, one a row), predictions/*.csv (a row a
    face) and report.html. The models' outputs are computed once and kept: --decision and --select ask another rule of
    them and train nothing.

    With --model it scores that model on prepared datasets, without a run of the spec. MODEL is a run folder, a stage
    folder, a checkpoint, a .safetensors of fercli weights export, or starter, the model that comes with fercli. The
    numbers go to model-NAME/report under paths.runs. --target may then be the model's source too: its test part is
    scored.

    MODEL may also be a checkpoint (.pkl) that the makers of AGLRLS, CGLRL or AGRA released. The spec then says how
    faces are prepared, and --source what it was trained on, if you know. Its classes are taken in the benchmark's
    order, and its epoch as chosen on the target's test labels, as the released code does.

    Of a spec with a sweep section it makes the benchmark's table from whatever the sweep has trained so far.

    \b
    Examples:
      fercli evaluate --report
      fercli evaluate --target jaffe --json
      fercli evaluate --decision fused --select corr-c
      fercli evaluate -c shifts --report
      fercli evaluate --model starter --target jaffe
      fercli evaluate --model ResNet50RAFtoJAFFE.pkl --target jaffe --source raf-db --report
    """
    from fercli.cli.results_view import show
    from fercli.errors import SpecError
    from fercli.scoring.evaluate import Scoring, adapted_targets, evaluate
    from fercli.spec.registry import RULES

    spec = read_spec(spec_file, overrides, quiet, as_json, sources)
    if select is not None and select not in RULES:
        raise SpecError(f"--select {select}: no such selection rule", f"one of {', '.join(RULES)}")
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
        raise SpecError("--source is of a run's spec, and --model brings its own", "leave --source out")
    prepared = [one for one in spec.data.targets if (spec.store_path(one) / "meta.json").exists()]
    datasets = list(dict.fromkeys(targets)) if targets and "all" not in targets else prepared
    if not datasets:
        raise SpecError(
            f"no dataset to score on is prepared in {spec.paths.prepared}",
            Advice(Advice.run("prepare", "--dataset NAME"), ", and name it with --target NAME"),
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
