"""A trained model in its stage folder: what was made of which spec, and the network ready for use.

Checkpoints carry their spec, so a model needs no YAML beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fercli.engine import checkpoint
from fercli.engine.stages import empty_network, load_network
from fercli.errors import FercliError
from fercli.methods import method_class
from fercli.models import FEATURE_SIZE, GlobalLocal, Output
from fercli.spec import Spec, parse

BEST = "best.ckpt"


@dataclass(frozen=True)
class Trained:
    """A checkpoint: the source model, or one adapted to `target`."""

    path: Path
    state: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The stage's folder."""
        return self.path.parent

    @property
    def stage(self) -> str:
        """ "source" or "adapt"."""
        return self.state["stage"]

    @property
    def target(self) -> str | None:
        """The target it was adapted to."""
        return self.state.get("target")

    @property
    def method(self) -> str:
        """What tables call it: the method, and its tag where it has one."""
        tag = self.state["spec"]["adapt"]["tag"] if self.stage == "adapt" else ""
        return self.registered + (f" ({tag})" if tag not in ("", self.registered) else "")

    @property
    def registered(self) -> str:
        """The method's name in the registry."""
        return self.state.get("method_name", "source-only")

    @property
    def spec(self) -> Spec:
        """The spec that it was trained with. Raises SpecError where this version of fercli cannot read it."""
        return parse(self.state["spec"], where=str(self.path))

    @property
    def decision(self) -> str:
        """The decision rule."""
        return self.state["decision"]

    @property
    def status(self) -> Tensor | None:
        """The class status b of GLPC, [7 heads, 7 expressions]; None where the method has none."""
        return self.state["status"]

    def network(self, device: torch.device) -> GlobalLocal:
        """The network with its weights, on `device`, in eval mode."""
        spec = self.spec
        network = empty_network(spec)
        load_network(network, self.state, spec, self.path)
        return network.to(device).eval()

    def refine(self, device: torch.device) -> Callable[[Output], Output] | None:
        """What the method makes of the network's output, or None where that is nothing."""
        kind = method_class(self.registered)
        if not kind.refines:
            return None
        settings = self.spec.adapt
        method = kind(settings, kind.read_options(settings.options), FEATURE_SIZE, target_size=0)
        try:
            method.load_state_dict(self.state["method"])
        except RuntimeError:
            raise FercliError(
                f"{self.path} was made by another version of {self.registered}; adapt again, --restart"
            ) from None
        return method.to(device).eval().refine


def read_trained(folder: Path) -> Trained | None:
    """The chosen model of a stage folder; None where there is none yet."""
    path = folder / BEST
    return _read(path) if path.exists() else None


def adapted_models(spec: Spec) -> list[Trained]:
    """The adapted models of a run, in the order of their folders' names."""
    found = (read_trained(path) for path in sorted(spec.run_folder.glob("adapt-*")))
    return [model for model in found if model is not None]


def find_trained(run: str | Path, target: str | None = None) -> Trained:
    """The model that a user names.

    Args:
        run: a run folder, one of its stage folders, or a checkpoint file of fercli.
        target: of a run folder with several adaptations, the one to this target; ``source`` is the source model.

    Returns:
        Of a run folder the one adapted model, or the source model where nothing is adapted.

    Raises:
        FercliError: there is no model, several fit (they are named), or the file is no checkpoint of fercli.
    """
    path = Path(run)
    if path.is_file():
        return _read(path)
    if not path.is_dir():
        raise FercliError(f"no run folder or checkpoint {path}; train one: fercli train-source")
    if (path / BEST).exists():
        return _read(path / BEST)
    adapted = sorted(p.parent for p in path.glob(f"adapt-*/{BEST}"))
    source = path / "source" / BEST
    if target == "source" or (target is None and not adapted and source.exists()):
        if not source.exists():
            raise FercliError(f"no source model in {path}; run: fercli train-source")
        return _read(source)
    models = [_read(folder / BEST) for folder in adapted]
    fitting = [model for model in models if target is None or target in (model.target, model.folder.name)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(folder.name for folder in adapted) or "none"
    if fitting:
        raise FercliError(f"{path} has several adapted models ({names}); name one: {fitting[0].folder}")
    if target is None:
        raise FercliError(f"{path} holds no trained model; run: fercli train-source")
    raise FercliError(
        f"{path} has no model adapted to {target} (adapted: {names}); run: fercli adapt --target {target}"
    )


def _read(path: Path) -> Trained:
    return Trained(path, checkpoint.load(path))
