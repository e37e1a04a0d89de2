"""fercli adapt"""

from __future__ import annotations

import click

from fercli import console
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


@click.command("adapt")
@spec_options
@source_option
@target_option("Unlabelled target (may be repeated), or all. Default: all of the spec.")
@method_option
@restart_option
def command(spec_file, overrides, quiet, as_json, sources, targets, method, restart):
    """Adapt the source model to unlabelled targets.

    Target labels are not read, neither in training nor in choosing the epoch. With --method of another method than the
    spec's, the spec's adapt.options, which are that one's, do not count.

    \b
    Examples:
      fercli adapt --target jaffe
      fercli adapt --target all --set adapt.epochs=10
      fercli adapt --target jaffe --method mcd --set adapt.tag=mcd
      fercli adapt --target jaffe --set adapt.options.adversarial=false --set adapt.tag=no-adversarial
    """
    from fercli.engine import distributed
    from fercli.engine.interrupt import Interrupted, StopRequest
    from fercli.engine.stages import adapt

    if method is not None:
        # Options in the spec are those of the spec's own method.
        own = read_spec(spec_file, (), quiet, as_json, sources).adapt.method
        fresh = ("adapt.options={}",) if method != own else ()
        overrides = (*fresh, *overrides, f"adapt.method={method}")
    spec = read_spec(spec_file, overrides, quiet, as_json, sources)
    outcomes = {}
    # A signal in the last step of one target ends that one in order; the next must not begin.
    with StopRequest() as stop:
        for name in chosen_targets(spec, targets):
            if outcomes and any(distributed.any_of(stop.requested)):
                raise Interrupted(f"stopped before the adaptation to {name}; the same command goes on")
            outcome = outcomes[name] = adapt(spec, name, restart)
            console.say(f"adapted to {name}: {told(outcome)}")
    console.result({"adapt": outcomes})
