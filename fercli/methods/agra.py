"""AGRA: adversarial graph representation adaptation.

Papers: Xie et al., ACM MM 2020, arXiv 2008.00859; Chen et al., TPAMI 2022, arXiv 2008.00923. The numbers are those of
the authors' code (github.com/HCPLab-SYSU/CD-FER-Benchmark): AGRA/Model.py and VGG.py at commit 7385d33, and the files
that the benchmark's methods share, CADA/TransferToTargetDomain.py and Utils.py, at d825cb8. The docstring of `AGRA`
lists the differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fercli.expressions import NUM_EXPRESSIONS
from fercli.loading.augment import cat
from fercli.loading.batches import Batch
from fercli.methods.base import Evaluator, Method, Progress, Step
from fercli.methods.graph import ClassMeans, StackedGraphs, carried_over, class_means, k_means, k_means_from
from fercli.methods.joint import fused_feature
from fercli.methods.losses import Discriminator, conditional_adversarial, head_cross_entropy, reversal_coefficient
from fercli.models import Output
from fercli.models.heads import NUM_FEATURES
from fercli.models.norms import BatchNorm1d
from fercli.spec import Optimisation, Section

SOURCE, TARGET = 0, 1

#: Adam's learning rate in the warm start.
WARM_RATE = 1e-3


class AGRA(Method):
    """Refines features with two graph networks over the nodes of both domains, and applies CDAN+E to the result.

    An image provides the six nodes of its own domain. The six nodes of the other domain are one of that domain's seven
    means: the one nearest to the image's features, both standardised by their domain's moments. Each half passes
    through its domain's batch norm and then through `StackedGraphs`. The refined half of the image's own domain, 6 x
    64, replaces its features from there on:

    - the fused head's logits come from this method's own linear layer (384 to 7) on the refined features; the network's
      fused classifier is neither used nor trained;
    - the global and the five local heads are still the network's, on its unrefined features. AGRA has no such heads:
      ``adapt.head_weights: [0, 0, 0, 0, 0, 0, 1]`` leaves them out, and the losses are then exactly the published ones;
    - as published, a second linear layer (320 to 7) on the refined local features is trained too, but never used for
      predictions.

    Losses: the source's cross-entropy (each head with its weight, the second layer with the fused head's), and
    `conditional_adversarial` of refined features and fused logits, with weight 1.

    The published source stage trains the graphs, the norms and both layers together with the backbone; fercli's trains
    only the plain heads. So with ``warm_start`` these parts are first fitted to the network's features of the source
    faces, with the two source losses and the means in place. This takes ``warm_steps`` steps of Adam (`WARM_RATE`, no
    weight decay) on batches of the adaptation's size. Adam replaces the run's SGD, so that no learning rate of the spec
    affects the fit. Without the warm start, refined features and fused head are noise at the start of the adaptation.

    Means: before the first epoch and every ``recluster`` epochs, the features of all training faces are clustered. Each
    batch then moves the means towards its features (`ClassMeans`). ``means: clusters`` is the published way: k-means on
    each domain, without labels. ``means: classes`` starts the source means at the class means and moves them by label.
    The target's k-means starts from these, transformed to the target's moments, so that means with the same index
    correspond.

    `transform_output` treats every image as a target image, since it cannot know its domain. The held-out source faces,
    which the code scores as source images, therefore take the same path as target faces here, with the target's norm.

    Differences from the code: it clusters the refined features but compares the centres with the unrefined ones (in
    training, batch-normalised), and its moving average adds the mean over all dimensions, a single number, to every
    component of a centre. Here everything uses the unrefined features, vector by vector. The code never standardises
    the centres that a face is compared with. If one domain's features are smaller than the other's, most of its faces
    are then nearest to the other's smallest mean. Since a mean is initially some 70 % of what a node is refined from,
    these faces all get the same prediction. The code's reversal inside the discriminator grows at twice the stated
    speed, because it is counted twice per step. All of the method's own parameters train at
    ``adapt.discriminator_lr``.

    Degenerate input: a single source face or class is fitted like any other. A class that is absent from the source, or
    more clusters than distinct faces, gives means that no face is near to, but never NaN. A batch needs two faces of
    each domain, as batch norm does.
    """

    name = "agra"
    wants = frozenset({"target"})
    transforms_output = True

    class Options(Section):
        """``adapt.options`` of AGRA."""

        adversarial_weight: Annotated[float, Field(ge=0)] = 1.0
        """Weight of the adversarial loss."""
        entropy_conditioning: bool = True
        """Whether confident faces weigh more in the adversarial loss, as in CDAN+E."""
        reversal_steps: Annotated[float, Field(gt=0)] = 10_000
        """Training steps after which the gradient reversal is nearly complete."""
        hidden: Annotated[int, Field(gt=0)] = 512
        """Width of the discriminator's hidden layers."""
        means: Literal["clusters", "classes"] = "clusters"
        """What the means stand for: clusters without labels, as published, or classes."""
        recluster: Annotated[int, Field(gt=0)] = 10
        """Epochs between two clusterings of all training faces."""
        average: Annotated[float, Field(ge=0, le=1)] = 0.1
        """How far a mean moves towards the features gathered for it, 0..1."""
        average_after: Annotated[int, Field(ge=0)] = 32
        """A mean moves once more than this many features are gathered for it."""
        warm_start: bool = True
        """Whether the parts that the source model lacks are fitted to the source faces first."""
        warm_steps: Annotated[int, Field(gt=0)] = 500
        """Steps of that fit."""

    def __init__(self, settings: Optimisation, options: AGRA.Options, feature_dim: int, target_size: int):
        super().__init__(settings, options, feature_dim, target_size)
        width = NUM_FEATURES * feature_dim
        self.norms = nn.ModuleList(BatchNorm1d(width) for _ in (SOURCE, TARGET))
        self.graphs = StackedGraphs(feature_dim)
        self.classifier = nn.Linear(width, NUM_EXPRESSIONS)
        self.local_classifier = nn.Linear(width - feature_dim, NUM_EXPRESSIONS)
        for layer in (self.classifier, self.local_classifier):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.discriminator = Discriminator(NUM_EXPRESSIONS * width, options.hidden)
        self.means = nn.ModuleList(
            ClassMeans(NUM_EXPRESSIONS, width, options.average, options.average_after) for _ in (SOURCE, TARGET)
        )
        self.batch = settings.batch
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))
        self.register_buffer("fitted", torch.tensor(not options.warm_start))

    def begin_epoch(self, evaluator: Evaluator) -> None:
        self.epoch += 1
        epoch = int(self.epoch)
        if epoch > 1 and epoch % self.options.recluster:
            return
        source, target = evaluator.source(), evaluator.target()
        points = [seen.features.flatten(1).to(self.means[SOURCE].means) for seen in (source, target)]
        labels = source.labels.to(points[SOURCE].device)
        if self.options.means == "classes":
            begun = class_means(points[SOURCE], labels, NUM_EXPRESSIONS)
            found = [begun, k_means_from(points[TARGET], carried_over(begun, *points))]
        else:
            found = [k_means(each, NUM_EXPRESSIONS) for each in points]
        for means, start, each in zip(self.means, found, points, strict=True):
            means.start(start, each)
        if not self.fitted:
            self._fit(points, labels)
            self.fitted.fill_(True)

    def forward(self, network: nn.Module, batch: Batch, progress: Progress) -> Step:
        options, count = self.options, len(batch.labels)
        output = network(*cat([batch.source, batch.target]).inputs)
        flat = fused_feature(output).tensor_split([count])
        by_label = batch.labels if options.means == "classes" else None
        self.means[SOURCE].gather(flat[SOURCE].detach(), by_label)
        self.means[TARGET].gather(flat[TARGET].detach())
        features = self._refined(flat)
        output = self._answer(output, features)

        coefficient = reversal_coefficient(progress.step, options.reversal_steps)
        is_source = torch.arange(len(features), device=features.device) < count
        adversarial = conditional_adversarial(
            features.flatten(1),
            output.logits[:, -1],
            is_source,
            self.discriminator,
            coefficient,
            options.entropy_conditioning,
        )
        losses = {
            "source": head_cross_entropy(output.logits[:count], batch.labels, self.head_weights),
            "local": self.head_weights[-1] * self._local_loss(features[:count], batch.labels),
            "adversarial": options.adversarial_weight * adversarial,
        }
        logs = {
            "source-accuracy": (output.logits[:count, -1].argmax(-1) == batch.labels).float().mean(),
            "reversal": coefficient,
        }
        return Step(losses, logs)

    def transform_output(self, output: Output) -> Output:
        """Return AGRA's output for target images: refined features [B, 6, 64] and the fused head's logits from them.

        The logits of the other heads stay the same. No label is read, and in eval mode an image's result does not
        depend on the other images of its batch.
        """
        flat = fused_feature(output)
        refined = self.graphs(self._nodes(self.norms[TARGET](flat), flat, TARGET))
        return self._answer(output, refined[:, NUM_FEATURES:])

    def _fit(self, points: list[Tensor], labels: Tensor) -> None:
        """Fit graphs, norms and both layers to the source, given points [N, 6 D] of each domain and source labels [N].

        Target faces pass through as in training, so that the norms' running moments cover both domains, but they have
        no loss. Faces are drawn with torch's global CPU generator.
        """
        parts = (self.norms, self.graphs, self.classifier, self.local_classifier)
        optimizer = torch.optim.Adam([each for part in parts for each in part.parameters()], WARM_RATE)
        for _ in range(self.options.warm_steps):
            drawn = [torch.randint(len(each), (self.batch,)).to(each.device) for each in points]
            features = self._refined([each[which] for each, which in zip(points, drawn, strict=True)])[: self.batch]
            given = labels[drawn[SOURCE]]
            fused = self.classifier(features.flatten(1))
            loss = F.cross_entropy(fused, given) + self._local_loss(features, given)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()

    def _local_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.local_classifier(features[:, 1:].flatten(1)).float(), labels)

    def _refined(self, flat: Sequence[Tensor]) -> Tensor:
        """Refine the features of source and target images, [B_s, 6 D] and [B_t, 6 D], to [B, 6, D], source first."""
        count = len(flat[SOURCE])
        own = [norm(each) for norm, each in zip(self.norms, flat, strict=True)]
        refined = self.graphs(
            torch.cat([self._nodes(own[domain], flat[domain], domain) for domain in (SOURCE, TARGET)])
        )
        return torch.cat([refined[:count, :NUM_FEATURES], refined[count:, NUM_FEATURES:]])

    def _nodes(self, own: Tensor, flat: Tensor, domain: int) -> Tensor:
        """Build twelve nodes [B, 12, D] for images of `domain` from their normalised and plain features, [B, 6 D]
        each."""
        elsewhere = SOURCE if domain == TARGET else TARGET
        other = self.norms[elsewhere](self.means[elsewhere].matching(self.means[domain].standardise(flat)))
        halves = [own, other] if domain == SOURCE else [other, own]
        return torch.cat(halves, 1).unflatten(1, (2 * NUM_FEATURES, -1))

    def _answer(self, output: Output, features: Tensor) -> Output:
        fused = self.classifier(features.flatten(1)).to(output.logits.dtype)
        return Output(torch.cat([output.logits[:, :-1], fused[:, None]], 1), features)
