"""AGRA: adversarial graph representation adaptation.

Papers: Xie et al., ACM MM 2020, arXiv 2008.00859; Chen et al., TPAMI 2022, arXiv 2008.00923. The figures are those of
the authors' code (github.com/HCPLab-SYSU/CD-FER-Benchmark): AGRA/Model.py and VGG.py at commit 7385d33, and, which the
benchmark's methods share, CADA/TransferToTargetDomain.py and Utils.py at d825cb8. `AGRA` says where we differ.
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

#: Adam's rate in the warm start.
WARM_RATE = 1e-3


class AGRA(Method):
    """Features refined by two graph networks over both domains' nodes, then CDAN+E on what comes out.

    An image gives the six nodes of its own domain; the six of the other domain are one of that domain's seven means:
    the nearest to the image's own features, both standardised by their domain's moments. Each half passes its domain's
    batch norm, then `StackedGraphs`; the image's own half, 6 x 64, is what it is known by from there on:

    - the fused head's logits are this method's own linear layer (384 to 7) on them; the network's fused classifier is
      not used and not trained;
    - the global and the five local heads stay the network's own, on its unrefined features. AGRA has no such heads:
      ``adapt.head_weights: [0, 0, 0, 0, 0, 0, 1]`` leaves them out, and the losses are exactly the published ones;
    - as published, a second linear layer (320 to 7) on the refined local features is trained too, and never answers.

    Losses: the source's cross-entropy (heads by their weights; the second layer by the fused head's), and
    `conditional_adversarial` of refined features and fused logits, at weight 1.

    The published source stage trains graph, norms and both layers, together with the backbone; ours has trained the
    plain heads only. So, with ``warm_start``, they are first fitted to the features that the network gives the source
    faces, by the two source losses, the means in their places: ``warm_steps`` steps of Adam (`WARM_RATE`, no decay) on
    batches as large as the adaptation's. Adam and not the run's SGD, so that no rate of the spec decides how far they
    get. Without it refined features and fused head begin the adaptation as noise.

    Means: before the first epoch and every ``recluster`` epochs the features of all training faces are clustered, and
    each batch moves the means towards what it brought (`ClassMeans`). ``means: clusters`` is the published way: k-means
    on either domain, labels unread. ``means: classes`` begins the source's at its classes' means, moves them by label,
    and lets the target's k-means start from there (carried over to the target's moments), so that the means of a row
    belong together.

    `transform_output` takes every image for a target image, since it is not told better; so the source's held-out
    faces, which the code scores as source images, go the way here that the target's answers come from, under the
    target's norm.

    Differs from the code: it clusters the refined features and compares the centres with the unrefined (in training
    batch-normalised) ones, and its moving average adds the mean over all dimensions, one number, to all of a centre;
    here all of it is done on the unrefined features, vector by vector. It never standardises the centres that a face is
    compared with. Where one domain's features are smaller than the other's, most of its faces are then nearest to the
    other's smallest mean, and, a mean being some 70 % of what a node is refined from at first, get one answer. Its
    reversal inside the discriminator grows at twice the stated speed, being counted twice a step. All that is the
    method's own learns at ``adapt.discriminator_lr``.

    Degenerate input: one source face, or one class, is fitted as it is. A class absent from the source, and clusters
    beyond the number of different faces, leave means that nobody is near to, never NaN. A batch needs two faces of each
    domain, as batch norm does.
    """

    name = "agra"
    wants = frozenset({"target"})
    transforms_output = True

    class Options(Section):
        """``adapt.options`` of AGRA."""

        adversarial_weight: Annotated[float, Field(ge=0)] = 1.0
        entropy_conditioning: bool = True
        reversal_steps: Annotated[float, Field(gt=0)] = 10_000
        hidden: Annotated[int, Field(gt=0)] = 512
        means: Literal["clusters", "classes"] = "clusters"
        recluster: Annotated[int, Field(gt=0)] = 10
        average: Annotated[float, Field(ge=0, le=1)] = 0.1
        average_after: Annotated[int, Field(ge=0)] = 32
        warm_start: bool = True
        warm_steps: Annotated[int, Field(gt=0)] = 500

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
        """What AGRA makes of target images: refined features [B, 6, 64] and the fused head's logits from them.

        The logits of the other heads stay. No label is read, and in eval mode an image's result does not depend on the
        others of its batch.
        """
        flat = fused_feature(output)
        refined = self.graphs(self._nodes(self.norms[TARGET](flat), flat, TARGET))
        return self._answer(output, refined[:, NUM_FEATURES:])

    def _fit(self, points: list[Tensor], labels: Tensor) -> None:
        """Fit graph, norms and both layers to the source's points, [N, 6 D] of either domain, and its labels [N].

        Target faces pass through as in training, so that the norms' running moments are of both; none of their answers
        is asked for. Faces are drawn from torch's global CPU generator.
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
        """Refined features [B, 6, D] of source and then target images, from theirs, [B_s, 6 D] and [B_t, 6 D]."""
        count = len(flat[SOURCE])
        own = [norm(each) for norm, each in zip(self.norms, flat, strict=True)]
        refined = self.graphs(
            torch.cat([self._nodes(own[domain], flat[domain], domain) for domain in (SOURCE, TARGET)])
        )
        return torch.cat([refined[:count, :NUM_FEATURES], refined[count:, NUM_FEATURES:]])

    def _nodes(self, own: Tensor, flat: Tensor, domain: int) -> Tensor:
        """Twelve nodes [B, 12, D] of images of `domain`, from their features [B, 6 D], normalised and not."""
        elsewhere = SOURCE if domain == TARGET else TARGET
        other = self.norms[elsewhere](self.means[elsewhere].matching(self.means[domain].standardise(flat)))
        halves = [own, other] if domain == SOURCE else [other, own]
        return torch.cat(halves, 1).unflatten(1, (2 * NUM_FEATURES, -1))

    def _answer(self, output: Output, features: Tensor) -> Output:
        fused = self.classifier(features.flatten(1)).to(output.logits.dtype)
        return Output(torch.cat([output.logits[:, :-1], fused[:, None]], 1), features)
