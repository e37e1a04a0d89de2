"""The set-up of a training stage: all that the loop works on. Stage 1, adaptations and the benchmark share it."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fercli.engine import distributed
from fercli.engine.averaging import WeightAverage
from fercli.engine.data import Source, Target, view_settings
from fercli.engine.evaluator import SourceEvaluator, TargetEvaluator
from fercli.engine.guards import NonFiniteGuard
from fercli.engine.log import Meter
from fercli.engine.schedule import rate_in, set_rates
from fercli.engine.sharding import ShardedNetwork, average_norms, check_batch, shard_of, sync_norms
from fercli.errors import FercliError, SpecError
from fercli.loading.batches import Batch, Batches, SourceRecipe
from fercli.methods import method_class
from fercli.methods.base import Method, Progress
from fercli.methods.losses import head_cross_entropy
from fercli.methods.sharpness import uphill
from fercli.models import FEATURE_SIZE
from fercli.spec import Optimisation, Spec
from fercli.spec.registry import RULES


def check_sharpness(sharpness: float | None, method: Method | type[Method]) -> None:
    """Refuse ``adapt.sharpness`` for a method without a source loss, and where several processes train.

    Raises:
        SpecError: the method uses no source.
        FercliError: there are several processes.
    """
    if sharpness is not None and not method.needs_source:
        raise SpecError(
            f"adapt.sharpness: it smooths the source loss, but {method.name} uses no source; set it to null"
        )
    if sharpness is not None and distributed.world_size() > 1:
        raise FercliError("adapt.sharpness works in one process only", "start one process, or set it to null")


class TrainingModule(nn.Module):
    """The network and its method as one module, so that one wrapped forward pass computes the losses.

    With ``sharpness`` (rho) the method's whole step is computed at network weights where the source loss is higher, and
    its gradient is applied to the original weights. This is smooth domain-adversarial training, SDAT (Rangwani et al.,
    ICML 2022, arXiv 2206.08213), for any method that trains on the source. The step uphill follows only the source's
    weighted cross-entropy, whatever other losses the method has: the paper's point is to smooth the task's loss but not
    the adversary's. Parameters of the method itself (discriminators, a second classifier) keep their values. No step
    depends on the one before. Each costs one more pass over the source, forward and backward.

    Two things differ from the authors' code (github.com/val-iisc/SDAT, commit 192083a). There the first pass has both
    domains in its batch norms and updates their running statistics; here it has only the source's faces, and updates
    none. There the first pass of a method with MCC (cdan_mcc_sdat.py) includes that loss; here it does not.

    Args:
        network: passed to the method.
        method: computes the losses.
        sharpness: rho > 0, the length of the step uphill over all weights together; None for no such step.

    Raises:
        SpecError, FercliError: as `check_sharpness`.
    """

    def __init__(self, network: nn.Module, method: Method, sharpness: float | None = None):
        super().__init__()
        self.network, self.method, self.sharpness = network, method, sharpness
        check_sharpness(sharpness, method)

    def forward(self, batch: Batch, progress: Progress, sharp: bool = True):
        if sharp and self.sharpness is not None:
            # During this call everything that the method reads from the network, even classifiers, has these weights.
            return functional_call(self, self._uphill(batch), (batch, progress), {"sharp": False})
        network = self.network if distributed.world_size() == 1 else ShardedNetwork(self.network)
        return self.method(network, batch, progress)

    def _uphill(self, batch: Batch) -> dict[str, Tensor]:
        """The network's weights after `fercli.methods.sharpness.uphill` on the source loss, by their names here."""
        # on copies of the running statistics, so that only the method's own passes update the originals
        statistics = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        answers = functional_call(self.network, statistics, batch.source.inputs)
        loss = head_cross_entropy(answers.logits, batch.labels, self.method.head_weights)
        return {f"network.{name}": w for name, w in uphill(self.network, loss, self.sharpness).items()}


def make_optimizer(module: TrainingModule, plan: Optimisation, fused: bool = False) -> torch.optim.SGD:
    """Make the optimizer: backbone at the base rate, new layers at ten times it, discriminators at their own rate.

    Each group has a ``rates`` entry (rate by epoch) and a ``scale``, beside its ``params``.

    Args:
        fused: whether a single operation does a group's step (see `fuse`).
    """
    parts, more = module.network.parameter_groups(), module.method.network_parameters()
    groups = [
        {"params": parts["backbone"], "rates": plan.lr, "scale": 1.0},
        {"params": [*parts["new"], *more], "rates": plan.lr, "scale": plan.head_lr_multiplier},
    ]
    ids = set(map(id, more))
    extra = [parameter for parameter in module.method.parameters() if id(parameter) not in ids]
    if extra:
        groups.append({"params": extra, "rates": plan.discriminator_lr, "scale": 1.0})
    how = {"momentum": plan.momentum, "weight_decay": plan.weight_decay, "nesterov": plan.nesterov}
    return torch.optim.SGD(groups, lr=rate_in(plan.lr, 1), fused=fused or None, **how)


def fuse(optimizer: torch.optim.SGD, device: torch.device) -> None:
    """Make an optimizer that was created `fused` keep on the device whatever changes from step to step.

    Rates become float32 tensors there. Momentum starts with zeros, which is what the first step would make of a missing
    one. Call it again after the optimizer has loaded a state.
    """
    for group in optimizer.param_groups:
        group["fused"] = True
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
        for parameter in group["params"] if group["momentum"] else ():
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


class Training:
    """One stage of training, and its progress.

    Args:
        fabric: from `fercli.engine.fabric.make_fabric`.
        network: new, or with the weights of the starting model.
        source: None for a method that needs none.
        target: the target to adapt to with ``adapt.method``; None in stage 1.
        folder: where checkpoints and metrics are written.
        record: plain data saved in each checkpoint beside the state: the spec and the data it was trained on.

    Attributes:
        title: the text of the progress bar.
        plan, section: the stage's section of the spec, and its name.
        post_hoc: whether the epoch is chosen at the end, by a rule that compares all epochs with each other.
        faces_a_step: faces per step: one batch of each domain that the method trains on.
        batches: called with a step and the positions of `Method.pseudo_labelled`, returns the batch.
        evaluator: passes over all training faces that a method may request before an epoch, and the scores after it.
        steps_per_epoch, steps: in an epoch, and in total.
        module, optimizer: `raw` (network and method in one module) and its optimizer, as `fabric` has set them up.
        average: of the weights, to be scored and saved in their place, or None.
        progress: the training progress, on the device, for the method.
        step: steps done.
        best: ``{"epoch", "score", "rule"}`` of the best epoch so far; epoch 0 before the first. If the starting model
            is kept at the end (`fercli.engine.safeguards`), it is epoch 0 too, and ``kept`` gives the reason.
        start: the starting weights of an adaptation without a source, else None.
        collapse: why such an adaptation was ended early, in words, else None.

    Raises:
        FercliError: the batch cannot be split evenly over the processes.
    """

    def __init__(
        self,
        spec: Spec,
        fabric: Any,
        network: nn.Module,
        source: Source | None,
        target: Target | None,
        folder: Path,
        record: dict[str, Any],
    ):
        self.fabric, self.network, self.engine = fabric, network, spec.engine
        self.folder, self.record = folder, record
        if target is None:
            self.section, self.title = "train_source", "train-source " + "+".join(spec.data.source)
            self.plan = plan = spec.train_source
            name, options, train, recipe = "source-only", {}, None, SourceRecipe.of(plan)
        else:
            self.section, self.title = "adapt", f"adapt {spec.adapt.method} -> {target.store.name}"
            self.plan = plan = spec.adapt
            name, options, train, recipe = plan.method, plan.options, target.train, SourceRecipe()
        kind = method_class(name)
        self.method = method = kind(plan, kind.read_options(options, spec.faithful), FEATURE_SIZE, len(train or ()))
        settings = view_settings(spec)
        common = (network, method, settings, spec.engine.evaluate_batch, source)
        if target is None:
            self.evaluator = SourceEvaluator(*common)
        else:
            self.evaluator = TargetEvaluator(*common, train, target.scored, plan, folder, target.store)
        self.batches = Batches(
            *((None, None) if source is None else (source.train, source.labels)),
            *(train, method.wants, plan.batch, spec.engine.seed, settings, fabric.device),
            balance=spec.data.balance,
            recipe=recipe,
            shard=shard_of,
            drop_last=method.drop_last,
        )
        domains = [faces for faces in (source and source.train, train) if faces is not None]
        largest = max(map(len, domains))
        self.steps_per_epoch = plan.steps_per_epoch or max(1, largest // plan.batch)
        self.steps = plan.epochs * self.steps_per_epoch
        self.post_hoc = RULES[plan.select].post_hoc
        self.faces_a_step = plan.batch * ((source is not None) + bool(method.wants))

        distributed.on_rank_zero(check_batch, plan.batch, f"{self.section}.batch")
        if distributed.world_size() > 1 and spec.engine.batch_norm == "synchronised":
            sync_norms(network)
        method.begin(network)
        self.raw = TrainingModule(network, method, getattr(plan, "sharpness", None)).train()
        self.fused = fabric.device.type == "cuda"
        self.module, self.optimizer = fabric.setup(self.raw, make_optimizer(self.raw, plan, self.fused))
        self.fuse()
        self.average = None
        if plan.ema is not None:
            self.average = WeightAverage(network, method.network_parameters(), plan.ema)
        self.meter = Meter(fabric.device, spec.engine.log_every)
        self.guard = NonFiniteGuard(folder, self.meter, self._describe)
        self.progress = Progress(*torch.zeros(2, dtype=torch.float64, device=fabric.device).unbind())
        self._pseudo_labelled: Tensor | None = None
        self._asked = False
        self.step, self.best = 0, {"epoch": 0, "score": -math.inf, "rule": plan.select}
        self.start = self.collapse = None
        if source is None:
            self.start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        self.saved_at, self.note = time.monotonic(), ""

    @property
    def epoch(self) -> int:
        """The epoch of the latest step, from 1; 0 before the first step."""
        return -(-self.step // self.steps_per_epoch)

    @property
    def between_epochs(self) -> bool:
        """Whether the latest step was the last of an epoch, or no step is done yet."""
        return self.step % self.steps_per_epoch == 0

    @property
    def patience_is_out(self) -> bool:
        """Whether ``patience`` epochs in a row were no better than the best."""
        patience = self.plan.patience
        return patience is not None and self.between_epochs and self.epoch - self.best["epoch"] >= patience

    def fuse(self) -> None:
        """Call `fuse` on CUDA devices; do nothing on others."""
        if self.fused:
            fuse(self.bare_optimizer, self.fabric.device)

    @property
    def bare_optimizer(self) -> torch.optim.Optimizer:
        """Torch's own optimizer, inside Fabric's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def begin_epoch(self) -> None:
        """Let the method pass over all training faces. Its resulting state is then made equal in all processes."""
        self.method.begin_epoch(self.evaluator)
        distributed.broadcast(list(self.method.state_dict().values()))
        self._asked = False

    def pseudo_labelled(self) -> Tensor | None:
        """The method's selection of target faces for this epoch, on the CPU."""
        if not self._asked:
            chosen = self.method.pseudo_labelled()
            self._pseudo_labelled, self._asked = None if chosen is None else chosen.cpu(), True
        return self._pseudo_labelled

    def batch(self) -> Batch:
        """The batch of the next step."""
        return self.batches(self.step, self.pseudo_labelled())

    def begin_step(self) -> None:
        """Write all values that change from step to step, except faces, to where the step reads them."""
        set_rates(self.plan, self.optimizer.param_groups, self.step, self.steps_per_epoch)
        self.progress.step.fill_(self.step)
        self.progress.epoch.fill_(self.step // self.steps_per_epoch + 1)
        self.meter.begin_step(self.step)

    def count_step(self) -> None:
        """Count the step as done, and add its weights to their average."""
        if self.average is not None:
            self.average.update(self.step)
        self.step += 1

    def averaged(self) -> AbstractContextManager:
        """Within this context the network has the weights that are scored and saved."""
        return nullcontext() if self.average is None else self.average.in_place()

    def join_statistics(self) -> None:
        """With ``batch_norm: local``, set the batch norms' running statistics to the same values in all processes."""
        if distributed.world_size() > 1 and self.engine.batch_norm == "local":
            average_norms(self.network)
            if self.average is not None:
                with self.averaged():
                    average_norms(self.network)

    def check(self) -> None:
        """Refuse to score or save a state that the latest update has ruined. Raises FercliError."""
        self.guard.check()
        distributed.on_rank_zero(self.guard.check_weights, self.raw, self.step)

    def _describe(self, step: int) -> dict[str, Any]:
        """The training position at a step (from 0), and the faces of its batch, for `NonFiniteGuard`."""
        drawn = self.batches.names(step, self.pseudo_labelled())
        return {
            "epoch": step // self.steps_per_epoch + 1,
            "seed": self.engine.seed,
            "faces": {
                name: [{"position": position, "dataset": dataset, "id": face} for position, dataset, face in faces]
                for name, faces in drawn.items()
            },
        }
