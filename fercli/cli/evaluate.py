"""fercli evaluate"""

from __future__ import annotations

from typing import Any

import click

from fercli import console
from fercli.cli.completion import complete_runs
from fercli.cli.options import (
    chosen_targets,
    outside_method_option,
    read_spec,
    show_files,
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
    help="Score this model, of any run: starter, a model file, a stage folder, a checkpoint.",
)
@target_option("Target (may be repeated), or all. Default: those adapted to.")
@outside_method_option
@click.option("--report", is_flag=True, help="Also write the HTML report.")
def command(spec_file, overrides, quiet, as_json, sources, model, targets, report):
    """Score the source model and the adapted ones; write the numbers and, with --report, one HTML file.

    Into the run's folder report/ go results.json, results.csv (the scores, one a row), predictions/*.csv (a row a
    face) and report.html.

    With --model it scores that model on prepared datasets, without a run of the spec. MODEL is a run folder, a stage
    folder, a checkpoint, a .safetensors of fercli weights export, or starter, the model that comes with fercli. The
    numbers go to model-NAME/report under paths.runs. --target may then be the model's source too: its test part is
    scored.

    Of a spec with a sweep section it makes the benchmark's table from whatever the sweep has trained so far.

    \b
    Examples:
      fercli evaluate --report
      fercli evaluate --target jaffe --json
      fercli evaluate -c shifts --report
      fercli evaluate --model starter --target jaffe
    """
    from fercli.scoring.evaluate import adapted_targets, evaluate

    spec = read_spec(spec_file, overrides, quiet, as_json, sources)
    if model is not None:
        _evaluate_model(spec, model, sources, targets, report)
        return
    if spec.sweep is not None:
        _evaluate_sweep(spec, targets, report)
        return
    names = chosen_targets(spec, targets) if targets else adapted_targets(spec)
    _show(*evaluate(spec, names, report))


def _show(results, files, of_model=False):
    title, *table = _headline(results)
    console.table(results["title"] if of_model else title, *table)
    if of_model:
        console.table(*_expressions(results))
    show_files(results, files)


def _evaluate_model(spec, name, sources, targets, report):
    from fercli.engine.trained import find_trained
    from fercli.errors import Advice, SpecError
    from fercli.scoring.evaluate import evaluate_model

    if sources:
        raise SpecError("--source is of a run's spec, and --model brings its own", "leave --source out")
    prepared = [one for one in spec.data.targets if (spec.store_path(one) / "meta.json").exists()]
    datasets = list(dict.fromkeys(targets)) if targets and "all" not in targets else prepared
    if not datasets:
        raise SpecError(
            f"no dataset to score on is prepared in {spec.paths.prepared}",
            Advice(Advice.run("prepare", "--dataset NAME"), ", and name it with --target NAME"),
        )
    _show(*evaluate_model(spec, find_trained(name), datasets, report), of_model=True)


def _evaluate_sweep(spec, targets, report):
    from fercli.cli.sweep import show
    from fercli.report.sweep import write_sweep_report
    from fercli.sweep.aggregate import gather
    from fercli.sweep.run import write_results

    if targets and "all" not in targets:
        spec = spec.model_copy(update={"sweep": spec.sweep.model_copy(update={"targets": list(targets)})})
    document = gather(spec)
    files = write_results(document, spec.run_folder)
    if report:
        files["report"] = write_sweep_report(document, spec.run_folder)
    show(document, files)


def _headline(results: dict[str, Any]) -> tuple[str, list[str], list[list[str]], str]:
    """The results as (title, columns, rows, caption) for `fercli.console.table`."""
    columns = ["tested on", "method", "decision", "acc %", "F1 %", "scored/listed", "epoch", "chosen by"]
    rows = []
    for entry in results["entries"]:
        if entry["role"] == "source":
            name, model, rule = entry["dataset"], entry["model"], entry["decision"]["rule"]
            figures = _figures(entry["decision"]["metrics"], entry["counts"])
            rows.append([f"{_marked(results, name)} (source)", model, rule, *figures, entry["epoch"]])
            rows[-1].append(entry["selection"]["rule"])
    for row in results["table"]:
        star = "*" if not row["oracle"] and row["method"] != "source-only" else ""
        chosen = "ORACLE" if row["oracle"] else row["selection"]
        name = star + _marked(results, row["target"])
        rows.append([name, row["method"], row["decision"], *_figures(row, row), row["epoch"], chosen])
    notes = []
    if results["synthetic"]:
        notes.append("Datasets marked † are synthetic: procedural faces drawn by fercli, not photographs.")
    if any(row["oracle"] for row in results["table"]):
        notes.append("ORACLE rows used target labels, to choose the epoch or to train: an upper bound, not a result.")
    return f"{results['title']}: source-only beside adapted", columns, rows, "\n".join(notes)


def _expressions(results: dict[str, Any]) -> tuple[str, list[str], list[list[str]], str | None]:
    """Recall, precision and F1 of the decision for each expression, as `_headline`, of every dataset with labels."""
    columns = ["tested on", "expression", "recall %", "precision %", "F1 %", "faces"]
    rows = []
    for entry in results["entries"]:
        for one in (entry["decision"]["metrics"] or {}).get("per_expression", []):
            figures = [_percent(one[name]) for name in ("recall", "precision", "f1")]
            rows.append([_marked(results, entry["dataset"]), one["expression"], *figures, str(one["support"])])
    notes = [
        f"{entry['dataset']}: {_intervals(entry['intervals'])}" for entry in results["entries"] if entry["intervals"]
    ]
    return "By expression", columns, rows, "\n".join(notes) or None


def _intervals(found: dict[str, Any]) -> str:
    names = (("accuracy", "acc"), ("macro_f1", "F1"))
    said = [f"{name} {_percent(found[key][0])} to {_percent(found[key][1])}" for key, name in names]
    return f"95 % intervals, bootstrap over {found['units']} {found['by']}: {', '.join(said)}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _marked(results: dict[str, Any], dataset: str) -> str:
    return dataset + (" †" if results["datasets"][dataset]["synthetic"] else "")


def _figures(metrics: dict[str, Any] | None, counts: dict[str, Any]) -> list[str]:
    shown = [_percent(metrics and metrics[name]) for name in ("accuracy", "macro_f1")]
    return [*shown, f"{counts['scored']}/{counts['expected']}"]
