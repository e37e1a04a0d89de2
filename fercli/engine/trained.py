"""A trained model, in its stage folder or in one file: the checkpoint, its spec, and the network ready for use.

Checkpoints and model files carry their spec, so a model needs no separate YAML file. Released checkpoints do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fercli.engine import checkpoint
from fercli.engine.folder import digest
from fercli.engine.network import empty_network, load_network
from fercli.engine.released import released
from fercli.errors import Advice, Command, FercliError, SpecError
from fercli.evaluation.decision import DecisionRule
from fercli.methods import method_in_file
from fercli.methods.base import Method
from fercli.models import FEATURE_SIZE, HEADS, GlobalLocal, Output
from fercli.models.model_file import Foreign, read_model
from fercli.models.reading import is_safetensors
from fercli.models.weights import read_weights
from fercli.spec import Spec, parse_recorded
from fercli.spec.load import in_run
from fercli.starter import FILE as STARTER
from fercli.starter import NAME, is_starter, starter_file

BEST = "best.ckpt"
#: Entries of a trained stage's checkpoint, apart from its weights and its spec.
_NEEDED = ("stage", "best", "decision", "status")


@dataclass(frozen=True)
class Trained:
    """A checkpoint, or a model in one file: the source model, or one adapted to `target`.

    Attributes:
        path: the file.
        state: its contents, as `fercli.engine.checkpoint.load` returns them.
        one_file: whether it is a single file without a stage folder: a model file (`fercli.models.model_file`), or a
            released checkpoint.
        released: the title of a released checkpoint (`fercli.engine.released.Released.title`), else None.
        heads: the heads of `fercli.models.HEADS` that it has.
    """

    path: Path
    state: dict[str, Any]
    one_file: bool = False
    released: str | None = None
    heads: tuple[str, ...] = HEADS

    @property
    def folder(self) -> Path:
        """The stage's folder. For a model file, the file itself: tables show its name, and no files are below it."""
        return self.path if self.one_file else self.path.parent

    @cached_property
    def digest(self) -> str:
        """Identifies its network's weights (`fercli.engine.folder.digest`)."""
        return digest(self.state["network"])

    @property
    def is_starter(self) -> bool:
        """Whether it is the model that is shipped with fercli."""
        return self.path == STARTER

    @property
    def label(self) -> str:
        """The part of a folder name for this model, after ``model-`` or ``from-``."""
        if self.is_starter:
            return NAME
        parts = [self.path.stem] if self.one_file else [self.spec.name, self.folder.name]
        return re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(parts))

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
        """Its name in tables: the method, and its tag if it has one."""
        if self.released:
            return f"released {self.released}"
        tag = self.spec.adapt.tag if self.stage == "adapt" else ""
        return self.registered + (f" ({tag})" if tag not in ("", self.registered) else "")

    @property
    def registered(self) -> str:
        """The method's name in the registry; for a released checkpoint, the method that makes its predictions."""
        return self.state.get("method_name") or "source-only"

    @property
    def kind(self) -> type[Method]:
        """The method's class. Raises FercliError if it is an external method that the user has not named."""
        return method_in_file(self.registered, self.path)

    @property
    def spec(self) -> Spec:
        """The spec that it was trained with. Raises SpecError if this version of fercli cannot read it.

        Faces stored in its run are found there, even if the run has been moved.
        """
        tree = self.state["spec"]
        return parse_recorded(tree if self.one_file else in_run(tree, self.folder.parent), where=str(self.path))

    @property
    def decision(self) -> str:
        """The decision rule's name."""
        return self.state["decision"]

    @property
    def rule(self) -> DecisionRule:
        """The decision rule as trained: with the model's status b, and the threshold in its method's options.

        Raises FercliError if this version of the method has different options.
        """
        kind, options = self.kind, self.state.get("decision_options", {})
        if self.stage == "adapt":
            try:
                options = kind.decision_options(kind.options_of(self.spec))
            except SpecError:
                raise self._of_another_version() from None
        return DecisionRule(self.decision, self.state["status"], **options)

    def network(self, device: torch.device) -> GlobalLocal:
        """The network with its weights, on `device`, in eval mode."""
        spec = self.spec
        network = empty_network(spec)
        load_network(network, self.state, spec, self.path)
        return network.to(device).eval()

    def output_transform(self, device: torch.device) -> Callable[[Output], Output] | None:
        """The method's change to the network's output, or None if there is none."""
        kind = self.kind
        if not kind.transforms_output:
            return None
        spec = self.spec
        method = kind(spec.adapt, kind.options_of(spec), FEATURE_SIZE, target_size=0)
        try:
            method.load_state_dict(self.state["method"])
        except (KeyError, RuntimeError, TypeError, AttributeError):
            raise self._of_another_version() from None
        return method.to(device).eval().transform_output

    def _of_another_version(self) -> FercliError:
        return FercliError(
            f"{self.path} was written by another version of {self.registered}", "adapt again with --restart"
        )


def read_trained(folder: Path) -> Trained | None:
    """The chosen model of a stage folder; None if there is none yet. Raises FercliError if it is damaged."""
    path = folder / BEST
    return _read(path) if path.exists() else None


def source_model(spec: Spec) -> Trained:
    """The source model of a run.

    Raises:
        FercliError: it does not exist, it is damaged, or it is not of this stage.
    """
    model = read_trained(spec.run_folder / "source")
    if model is None:
        raise FercliError(f"no source model in {spec.run_folder}", Advice.run("train-source"))
    if model.stage != "source":
        raise FercliError(
            f"{model.path} is an adapted model, not a source model", Advice.run("train-source", "--restart")
        )
    return model


def adapted_models(spec: Spec) -> list[Trained]:
    """The adapted models of a run, in the order of their folder names; folders without one are `unfinished`.

    Raises:
        FercliError: a model is damaged, or not of this stage.
    """
    found = [read_trained(path) for path in sorted(spec.run_folder.glob("adapt-*"))]
    models = [model for model in found if model is not None]
    for model in models:
        if model.stage != "adapt" or model.target is None:
            raise FercliError(
                f"{model.path} is not an adapted model", f"remove {model.folder}, or adapt again with --restart"
            )
    return models


def unfinished(spec: Spec) -> list[Path]:
    """Folders of adaptations that have no model yet: started and stopped, or their model was removed."""
    return [path for path in sorted(spec.run_folder.glob("adapt-*")) if path.is_dir() and not (path / BEST).exists()]


def holds_model(run: Path) -> bool:
    """Whether a run folder has a trained model."""
    return any(path.exists() for name in ("source", "adapt-*") for path in run.glob(f"{name}/{BEST}"))


class NoModel(FercliError):
    """There is no trained model at the given place."""


def find_trained(
    run: str | Path, target: str | None = None, spec: Spec | None = None, sources: Sequence[str] = ()
) -> Trained:
    """The model that a user names.

    Args:
        run: a run folder, one of its stage folders, a checkpoint of fercli, a model file (the .safetensors that
            ``fercli weights export`` writes), a released checkpoint (`fercli.engine.released`), or the word
            ``starter``, the model shipped with fercli. A folder of that name is ``./starter``, or any Path.
        target: which model of a run folder: the target it was adapted to, the name of its folder, or ``source``.
            A stage folder or a file holds only one model, which must be that one.
        spec: how faces are prepared for a released checkpoint, which does not record it; all others carry their own.
        sources: what a released checkpoint was trained on, if the user knows it.

    Returns:
        For a run folder without `target`: the only adapted model, or the source model if nothing is adapted.

    Raises:
        NoModel: there is no model.
        FercliError: several models fit (they are named), the file is none of these, or a released checkpoint comes
            without `spec`.
    """
    if is_starter(run):
        return _checked(_read(starter_file()), target)
    path = Path(run)
    if path.is_file():
        return _checked(_read_any(path, spec, sources), target)
    if not path.is_dir():
        raise NoModel(f"no such run folder or checkpoint: {path}", Advice("train one: ", Command("train-source")))
    if (path / BEST).exists():
        return _checked(_read(path / BEST), target)
    adapted = sorted(p.parent for p in path.glob(f"adapt-*/{BEST}"))
    source = path / "source" / BEST
    names = ", ".join(folder.name for folder in adapted) or "none"
    if target == "source" or (target is None and not adapted and source.exists()):
        if not source.exists():
            raise NoModel(f"no source model in {path}", Advice.run("train-source"))
        return _read(source)
    if target is None:
        if not adapted:
            raise NoModel(f"{path} contains no trained model", Advice.run("train-source"))
        if len(adapted) == 1:
            return _read(adapted[0] / BEST)
        raise FercliError(f"{path} has several adapted models ({names})", f"name one: {adapted[0]}")
    fitting = [model for model in (_read(folder / BEST) for folder in adapted) if _is(model, target)]
    if len(fitting) > 1:
        names = ", ".join(model.folder.name for model in fitting)
        raise FercliError(f"{path} has several models adapted to {target} ({names})", f"name one: {fitting[0].folder}")
    if not fitting:
        raise NoModel(
            f"{path} has no model adapted to {target} (adapted: {names})", Advice.run("adapt", f"--target {target}")
        )
    return fitting[0]


def _is(model: Trained, target: str) -> bool:
    return target in (model.target, model.folder.name) or (target == "source" and model.stage == "source")


def _checked(model: Trained, target: str | None) -> Trained:
    if target is not None and not _is(model, target):
        told = f"adapted to {model.target}" if model.target else "the source model"
        told = f"a released checkpoint with an unknown target ({model.released})" if model.released else told
        raise FercliError(
            f"{model.path} is {told}, not a model for {target}", "leave out the target, or name the run folder"
        )
    return model


def _read(path: Path) -> Trained:
    with suppress(OSError):  # a file that cannot be opened is reported below
        if is_safetensors(path):
            return Trained(path, read_model(path), one_file=True)
    state = checkpoint.load(path)
    missing = [name for name in _NEEDED if name not in state]
    if missing:
        raise FercliError(
            f"{path} is not a model of train-source or adapt (missing: {', '.join(missing)})",
            "train again with --restart, or copy the file again",
        )
    return Trained(path, state)


def _read_any(path: Path, spec: Spec | None, sources: Sequence[str]) -> Trained:
    """Read a file that the user named: a fercli file, or a released checkpoint."""
    try:
        return _read(path)
    except Foreign as foreign:
        try:
            weights = read_weights(path)
        except FercliError as problem:
            why = problem.what.removeprefix(f"weights {path}: ")
            raise FercliError(f"{path} is not a fercli checkpoint and not a released one: {why}", problem.fix) from None
        if weights.description.kind == "fercli":
            raise foreign from None
    if spec is None:
        raise FercliError(
            f"{path} is a released checkpoint ({weights.description.title}), which does not record how its faces "
            "were cut",
            "use it with a spec: fercli evaluate --model FILE, fercli predict --run FILE",
        )
    found = released(weights, spec, sources)
    return Trained(path, found.state, one_file=True, released=found.title, heads=found.heads)
