"""A plain step of AGLRLS that works as the published implementation is described, for comparison with fercli's.

It is written from the papers' description, not from that code. Windows are cut in a Python loop over samples and
landmarks. The five crop nets run one after the other. Four batches' worth of faces pass through the network with
gradients ([source + target], [weak], [strong]). Everything is float32 in the plain layout with torch's own layers.
Hits are counted image by image on the CPU. The losses equal fercli's: with the same weights and faces, both give the
same numbers (tested).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fercli import console
from fercli.benchmarks.steps import Steps, changed, with_settings
from fercli.durations import digits
from fercli.engine.acceleration import accelerate, set_libraries
from fercli.errors import FercliError
from fercli.expressions import NUM_EXPRESSIONS
from fercli.loading.batches import Batch
from fercli.machine import seconds
from fercli.methods.aglrls import AGLRLS
from fercli.methods.base import NUM_HEADS
from fercli.methods.losses import conditional_adversarial, learning_status, reversal_coefficient
from fercli.models import GlobalLocal, Output
from fercli.models.local import WINDOW, cut_windows, to_map
from fercli.spec import Spec

MAP = 28
#: Repetitions of window cutting per measurement; a single one is too short to time.
_REPEATS = 20


def cut_one_by_one(maps: Tensor, landmarks: Tensor, size: int) -> list[Tensor]:
    """Cut the windows of maps [B, C, 28, 28] around landmarks [B, 5, 2] (pixels of an image of `size`) in a loop.

    Returns:
        Five tensors [B, C, 7, 7].
    """
    half, last = WINDOW // 2, maps.shape[-1] - 1 - WINDOW // 2
    regions = []
    for region in range(landmarks.shape[1]):
        windows = []
        for sample in range(len(maps)):
            x = int(landmarks[sample, region, 0].item() * maps.shape[-1] / size)
            y = int(landmarks[sample, region, 1].item() * maps.shape[-1] / size)
            x, y = min(max(x, half), last), min(max(y, half), last)
            windows.append(maps[sample : sample + 1, :, y - half : y + half + 1, x - half : x + half + 1])
        regions.append(torch.cat(windows))
    return regions


class PublishedStep:
    """The step, on the modules of a `GlobalLocal` (feature-map) and of an `AGLRLS` with the published settings.

    Attributes:
        hits: [heads, classes], number of correct predictions on the source so far, on the CPU.
        seen: [classes], number of source faces so far, on the CPU.
    """

    def __init__(self, network: GlobalLocal, method: AGLRLS):
        self.network, self.method = network, method
        self.hits = torch.zeros(NUM_HEADS, NUM_EXPRESSIONS)
        self.seen = torch.zeros(NUM_EXPRESSIONS)

    def answers(self, images: Tensor, landmarks: Tensor) -> Output:
        """The network's output, computed region by region and head by head."""
        network = self.network
        local_map, global_map = network.backbone(images)
        windows = cut_one_by_one(local_map, landmarks, images.shape[-1])
        features = [network.global_head(global_map)]
        features += [net(window) for net, window in zip(network.local_nets.nets, windows, strict=True)]
        first, *middle, last = network.classifiers
        heads = [first, *(middle * 5 if len(middle) == 1 else middle)]
        logits = [head(feature) for head, feature in zip(heads, features, strict=True)]
        logits.append(last(torch.cat(features, dim=1)))
        return Output(torch.stack(logits, dim=1), torch.stack(features, dim=1))

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The three losses of a step; counts hits and fills the banks, image by image."""
        options, weights, count = self.method.options, self.method.head_weights, len(batch.labels)
        both = self.answers(
            torch.cat([batch.source.images, batch.target.images]),
            torch.cat([batch.source.landmarks, batch.target.landmarks]),
        )
        weak, strong = self.answers(*batch.weak.inputs[:2]), self.answers(*batch.strong.inputs[:2])

        source = sum(
            weights[head] * F.cross_entropy(both.logits[:count, head], batch.labels) for head in range(NUM_HEADS)
        )

        is_source = torch.arange(len(both.logits), device=both.logits.device) < count
        coefficients, adversarial = self.method.discriminators.coefficients(step), 0.0
        of_entropy = reversal_coefficient(step, options.reversal_steps)
        for head in range(NUM_HEADS):
            feature = both.features.flatten(1) if head == NUM_HEADS - 1 else both.features[:, head]
            discriminator = self.method.discriminators[self.method.discriminators.of_head[head]]
            how = (coefficients[head], options.entropy_conditioning, of_entropy)
            adversarial = adversarial + conditional_adversarial(
                *(feature, both.logits[:, head], is_source, discriminator), *how
            )

        pseudo, status = 0.0, learning_status(self.method.bank)
        for head in range(NUM_HEADS):
            probability, label = weak.logits[:, head].detach().softmax(-1).max(-1)
            limit = options.threshold * ((status[head, label] + 1) / 2) ** 2
            each = F.cross_entropy(strong.logits[:, head], label, reduction="none")
            pseudo = pseudo + weights[head] * (each * (probability >= limit)).mean()
            for image in range(count):
                if probability[image].item() >= options.threshold:
                    self.method.bank[head, batch.indices[image]] = label[image]

        answered, labels = both.logits[:count].detach().argmax(-1).cpu(), batch.labels.cpu()
        for image in range(count):
            self.seen[labels[image]] += 1
            for head in range(NUM_HEADS):
                if answered[image, head] == labels[image]:
                    self.hits[head, labels[image]] += 1
        return {
            "source": source,
            "adversarial": options.adversarial_weight * adversarial,
            "pseudo": options.pseudo_weight * pseudo,
        }


class _PublishedSteps(Steps):
    """The same stage, set up for `PublishedStep`."""

    def __init__(self, spec: Spec, room: Path):
        super().__init__(spec, "adapt", room)
        network = self.training.network.to(self.device, memory_format=torch.contiguous_format)
        for module in network.modules():
            if isinstance(module, nn.PReLU):
                module.__class__ = nn.PReLU  # torch's own
        self._plain = PublishedStep(network, self.training.method)

    def update(self, batch: Batch, timed: Any) -> None:
        loss = sum(self._plain.losses(batch, self.training.step).values())
        self.training.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.training.optimizer.step()


def compare(
    spec: Spec, batches: Sequence[int], precisions: Sequence[str], steps: int, rounds: int, room: Path
) -> dict[str, Any]:
    """Compare fercli's step with the published one, in alternating turns in one process on the same stores of noise.

    fercli's step has the spec's settings (engine, ``adapt.options``), by default the same four passes. Making the batch
    counts on both sides.

    Args:
        batches: faces per domain (empty: the spec's).
        precisions: precisions of fercli's step (empty: the spec's).
        steps: steps per turn.
        rounds: turns of each side, after one that is not counted. Results are medians over the rounds.

    Returns:
        ``passes`` of fercli's step: ``published`` (four batches' worth) or ``shared`` (three). ``windows``: window
        cutting alone at batch 32, forward and with gradients. ``rows``: whole steps, with the milliseconds of both
        sides and the speed-up. A batch that does not fit into the device's memory has ``failed`` instead.

    Raises:
        FercliError: the spec does not use AGLRLS with all its parts, or has ``model.local: image-crop``.
    """
    options = AGLRLS.options_of(spec) if spec.adapt.method == "aglrls" else None
    if options is None or not (options.adversarial and options.pseudo_labels) or spec.model.reads_crops:
        raise FercliError(
            "--against published needs adapt.method aglrls with all its parts and model.local feature-map"
        )
    sizes = list(batches) or [spec.adapt.batch]
    wanted = list(precisions) or [spec.engine.precision]
    rows = []
    with console.progress("bench adapt", total=len(sizes) * rounds) as bar:
        for batch in sizes:
            try:
                rows += _steps(spec, batch, wanted, steps, rounds, room / str(batch), bar)
            except torch.cuda.OutOfMemoryError:
                rows += [{"batch": batch, "precision": name, "failed": "out of memory"} for name in wanted]
                torch.cuda.empty_cache()
    return {
        "bench": "adapt",
        "against": "published",
        "backbone": spec.model.backbone,
        "width": spec.model.width,
        "options": spec.adapt.options,
        "passes": options.passes,
        "steps": steps,
        "rounds": rounds,
        "windows": windows(spec, rounds),
        "rows": rows,
    }


def _steps(spec: Spec, batch: int, precisions: list[str], steps: int, rounds: int, room: Path, bar: Any) -> list[dict]:
    plain = with_settings(spec, "adapt", batch, "32-true")
    as_published = {name: value for name, value in spec.adapt.options.items() if name != "passes"}
    plain = changed(plain, adapt={"options": as_published})
    sides: dict[str, Steps] = {"published": _PublishedSteps(plain, room / "published")}
    chosen: dict[str, dict[str, Any]] = {}
    for precision in precisions:
        cell = with_settings(spec, "adapt", batch, precision)
        sides[precision] = Steps(cell, "adapt", room / precision)
        ours = sides[precision].training
        chosen[precision] = accelerate(ours.network, cell.engine, sides[precision].device, ours.faces_a_step)
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            set_libraries(
                chosen.get(name, {}).get("precision", "32-true"), side.device.type, side.spec.engine.deterministic
            )
            turn = seconds(lambda side=side: [side.run() for _ in range(steps)], side.device, rounds=1, warm=0)
            if number:
                spent[name] += turn
        bar.advance(1 if number else 0)
    theirs = spent["published"]
    return [
        {
            "batch": batch,
            **chosen[name],
            "published_ms": 1e3 * statistics.median(theirs) / steps,
            "ours_ms": 1e3 * statistics.median(spent[name]) / steps,
            **_ratio(theirs, spent[name]),
        }
        for name in precisions
    ]


def windows(spec: Spec, rounds: int, batch: int = 32) -> list[dict[str, Any]]:
    """Time window cutting alone, by gather and by loop, on the backbone's local maps: forward, and with gradients."""
    from fercli.engine.fabric import make_fabric
    from fercli.models.backbones import build_backbone

    device = make_fabric(spec.engine).device
    with torch.device("meta"):
        channels = build_backbone(spec.model.backbone, spec.model.width).local_channels
    maps = torch.randn(batch, channels, MAP, MAP, device=device)
    size = spec.prepare.size
    landmarks = (torch.rand(batch, 5, 2) * size).to(device)
    kept = maps.contiguous(memory_format=torch.channels_last)  # each side gets the layout of its network

    def ours(leaf: Tensor) -> list[Tensor]:
        return list(cut_windows(leaf, to_map(landmarks, size, MAP)).unbind(1))

    def theirs(leaf: Tensor) -> list[Tensor]:
        return cut_one_by_one(leaf, landmarks, size)

    rows = []
    for gradients in (False, True):
        spent: dict[str, list[float]] = {"ours": [], "published": []}
        for _ in range(rounds):
            for name, cut, source in (("published", theirs, maps), ("ours", ours, kept)):
                run = _backward(cut, source) if gradients else partial(cut, source)
                turn = seconds(lambda run=run: [run() for _ in range(_REPEATS)], device, rounds=3)
                spent[name].append(min(turn) / _REPEATS)
        rows.append(
            {
                "what": "forward and backward" if gradients else "forward",
                "batch": batch,
                "published_ms": 1e3 * statistics.median(spent["published"]),
                "ours_ms": 1e3 * statistics.median(spent["ours"]),
                **_ratio(spent["published"], spent["ours"]),
            }
        )
    return rows


def _backward(cut: Any, maps: Tensor) -> Any:
    leaf = maps.clone(memory_format=torch.preserve_format).requires_grad_()

    def run() -> None:
        leaf.grad = None
        regions = cut(leaf)
        torch.autograd.backward(regions, [torch.ones_like(region) for region in regions])

    return run


def _ratio(theirs: list[float], ours: list[float]) -> dict[str, Any]:
    each = [a / b for a, b in zip(theirs, ours, strict=True)]
    return {"times_faster": statistics.median(each), "spread": [min(each), max(each)]}


def tables(result: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return title, columns and rows of the two tables for a result of `compare`."""

    def figures(row: dict[str, Any]) -> list[str]:
        low, high = row["spread"]
        return [
            *(digits(row["published_ms"]), digits(row["ours_ms"])),
            *(f"{row['times_faster']:.1f}", f"{low:.1f} to {high:.1f}"),
        ]

    def shown(row: dict[str, Any]) -> list[str]:
        return [row["crop_nets"], *figures(row)]

    last = ["published ms", "fercli ms", "times faster", "spread"]
    cuts = [[row["what"], str(row["batch"]), *figures(row)] for row in result["windows"]]
    steps = [
        [str(row["batch"]), row["precision"], *([row["failed"], *[""] * 4] if "failed" in row else shown(row))]
        for row in result["rows"]
    ]
    return [
        ("Window cutting alone", ["", "batch", *last], cuts),
        (f"The whole adapt step, passes {result['passes']}", ["batch", "precision", "crop nets", *last], steps),
    ]
