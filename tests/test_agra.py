"""AGRA against plain loops on a small network: graphs, refined features, means, losses, state, degenerate input.

Equations: Xie et al., arXiv 2008.00859; numbers of the graph and the means: github.com/HCPLab-SYSU/CD-FER-Benchmark,
commit 7385d33, AGRA/GraphConvolutionNetwork.py and AGRA/Model.py.
"""

from __future__ import annotations

import loops
import pytest
import torch
from torch import nn

from fercli.loading.augment import View
from fercli.loading.batches import Batch
from fercli.methods.agra import AGRA, SOURCE, TARGET
from fercli.methods.base import Outputs, Progress
from fercli.methods.graph import (
    ClassMeans,
    StackedGraphs,
    carried_over,
    class_means,
    k_means,
    k_means_from,
    row_normalised,
)
from fercli.models import Output
from fercli.spec import Adapt

D, B, STEP = 4, 5, 700
WIDTH = 6 * D
WEIGHTS = [7.0, 1, 1, 1, 1, 1, 7]


class Tiny(nn.Module):
    """Features and logits directly from the image's values, so that every test can set them."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.5))

    def forward(self, images, landmarks, crops=None):
        flat = self.gain * images.flatten(1)
        return Output(flat[:, :49].view(-1, 7, 7), flat[:, 49 : 49 + WIDTH].view(-1, 6, D).relu())


def view(seed: int, count: int = B) -> View:
    return View(
        2 * torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed)), torch.zeros(count, 5, 2)
    )


def batch(seed: int = 0, source: int = B, target: int = B) -> Batch:
    labels = torch.randint(0, 7, (source,), generator=torch.Generator().manual_seed(seed))
    return Batch(view(10 * seed + 1, source), labels, view(10 * seed + 2, target))


class Survey:
    """All faces of both domains. Target labels are None, so that reading them would raise."""

    def __init__(self, source: torch.Tensor, labels: torch.Tensor, target: torch.Tensor):
        self.given = [(source, labels), (target, None)]
        self.looks = 0

    def source(self) -> Outputs:
        self.looks += 1
        return self._seen(SOURCE)

    def target(self) -> Outputs:
        return self._seen(TARGET)

    def _seen(self, domain: int) -> Outputs:
        points, labels = self.given[domain]
        return Outputs(torch.full((len(points), 7, 7), 1 / 7), points.unflatten(1, (6, -1)), labels)


def evaluator(seed: int = 0, source: int = 40, target: int = 30) -> Survey:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(source + target, WIDTH, generator=generator)
    return Survey(points[:source], torch.arange(source) % 7, points[source:])


def agra(target_size: int = 12, still: bool = True, width: int = D, **options) -> AGRA:
    """A method without dropout, as in the reference, and with a short warm start, so that tests are fast."""
    torch.manual_seed(0)
    given = {"hidden": 8, "warm_steps": 3, **options}
    made = AGRA(Adapt(head_weights=WEIGHTS), AGRA.read_options(given), width, target_size)
    for module in made.modules():
        if still and isinstance(module, nn.Dropout):
            module.p = 0.0
    return made


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# The reference: loops written from the equations


def convolution_loop(nodes, adjacency, linear):
    """Each node's new value: the sum of edge times (W x + b) over its neighbours."""
    return [
        sum(adjacency[i, j] * (linear.weight @ x + linear.bias) for j, x in enumerate(nodes)) for i in range(len(nodes))
    ]


def normalised_loop(adjacency, permitted):
    rows = []
    for i, row in enumerate(adjacency.detach()):
        kept = [max(float(x), 0.0) if permitted(i, j) else 0.0 for j, x in enumerate(row)]
        rows.append([x / sum(kept) if sum(kept) else 0.0 for x in kept])
    return torch.tensor(rows)


def crosses(i: int, j: int) -> bool:
    return i == j or (i < 6) != (j < 6)


def graph_loop(nodes, graphs, intra, inter):
    """Refine twelve nodes of one image."""
    halves = []
    for half in (nodes[:6], nodes[6:]):
        hidden = [x.relu() for x in convolution_loop(half, intra, graphs.intra_layers[0].linear)]
        halves += convolution_loop(hidden, intra, graphs.intra_layers[1].linear)
    return torch.stack(convolution_loop(halves, inter, graphs.inter_layer.linear))


def norm_loop(rows, norm, training):
    """Batch norm of rows with their own moments in training, with the running ones in evaluation."""
    mean = sum(rows) / len(rows) if training else norm.running_mean
    variance = sum((x - mean) ** 2 for x in rows) / len(rows) if training else norm.running_var
    return [(x - mean) / (variance + norm.eps) ** 0.5 * norm.weight + norm.bias for x in rows]


def nearest_loop(x, means):
    distances = [((x - mean) ** 2).sum().item() for mean in means]
    return distances.index(min(distances))


def standardised_loop(x, means):
    return torch.stack([(x[i] - means.centre[i]) / (means.variance[i] + 1e-5).sqrt() for i in range(len(x))])


def matching_loop(x, own, other):
    """Index of the mean of the other domain whose relative position there is nearest to that of x in its own domain."""
    return nearest_loop(standardised_loop(x, own), [standardised_loop(mean, other) for mean in other.means])


def refined_loop(method, features, domain, training):
    """Refined features, a list of [6, D], for the features [B, 6, D] of one domain's images."""
    rows = list(features.flatten(1))
    means = method.means[1 - domain]
    own = norm_loop(rows, method.norms[domain], training)
    found = [means.means[matching_loop(x.detach(), method.means[domain], means)] for x in rows]
    other = norm_loop(found, method.norms[1 - domain], training)
    intra, inter = method.graphs.intra, method.graphs.inter
    if not training:
        intra, inter = normalised_loop(intra, lambda i, j: True), normalised_loop(inter, crosses)
    results = []
    for mine, theirs in zip(own, other, strict=True):
        halves = [mine, theirs] if domain == SOURCE else [theirs, mine]
        nodes = [x for half in halves for x in half.view(6, D)]
        refined = graph_loop(nodes, method.graphs, intra, inter)
        results.append(refined[:6] if domain == SOURCE else refined[6:])
    return results


def linear(layer, x):
    return layer.weight @ x + layer.bias


# The graphs


@pytest.mark.parametrize(
    ("graph", "weight", "edges"),
    [
        ("intra", 1.0, [(0, 0), (3, 3)]),
        ("intra", 0.8, [(0, 4), (2, 0)]),
        ("intra", 0.5, [(1, 5), (4, 2)]),
        ("inter", 1.0, [(0, 0), (9, 9)]),
        ("inter", 0.0, [(0, 3), (8, 11)]),  # within a domain a node only has an edge to itself
        ("inter", 0.9, [(0, 6), (9, 3)]),
        ("inter", 0.4, [(0, 8), (6, 5), (7, 0), (2, 6)]),
        ("inter", 0.25, [(1, 8), (11, 4)]),
    ],
)
def test_edges_start_as_published(graph: str, weight: float, edges: list[tuple[int, int]]) -> None:
    adjacency = getattr(StackedGraphs(D), graph)
    assert [adjacency[edge].item() for edge in edges] == pytest.approx([weight] * len(edges))


def test_row_normalisation_by_hand() -> None:
    adjacency = torch.tensor([[1.0, 3, 5], [-1, 2, 2], [-1, -1, 7]])
    allowed = torch.tensor([[1.0, 1, 0], [1, 1, 1], [1, 1, 0]])
    expected = torch.tensor([[0.25, 0.75, 0], [0, 0.5, 0.5], [0, 0, 0]])
    assert torch.equal(row_normalised(adjacency, allowed), expected)


@pytest.mark.parametrize("training", [True, False])
def test_the_graphs_equal_a_loop_in_values_and_gradients(training: bool) -> None:
    torch.manual_seed(1)
    graphs = StackedGraphs(D).train(training)
    graphs.dropout.p = 0.0
    with torch.no_grad():
        graphs.intra += 0.6 * torch.randn(6, 6)  # learned edges: some negative, some not allowed
        graphs.inter += 0.6 * torch.randn(12, 12)
    intra, inter = normalised_loop(graphs.intra, lambda i, j: True), normalised_loop(graphs.inter, crosses)
    intra.requires_grad_(), inter.requires_grad_()
    nodes = torch.randn(3, 12, D, requires_grad=True)
    weights = torch.randn(3, 12, D)

    given = graphs(nodes)
    expected = torch.stack([graph_loop(list(x), graphs, intra, inter) for x in nodes])
    same(given, expected)
    shared = [nodes, *(p for name, p in graphs.named_parameters() if "linear" in name)]
    own = [graphs.intra, graphs.inter] if training else []
    ours = torch.autograd.grad((given * weights).sum(), [*shared, *own])
    theirs = torch.autograd.grad((expected * weights).sum(), [*shared, intra, inter])
    for a, b in zip(ours, theirs, strict=False):
        same(a, b)
    if training:  # the projection is stored, and repeating it changes nothing
        same(graphs.intra.detach(), intra.detach())
        same(graphs.inter.detach(), inter.detach())


# Refining


def test_refining_equals_a_loop_in_values_and_gradients() -> None:
    method = agra()
    method.begin_epoch(evaluator())
    for seed in range(3):
        method(Tiny(), batch(seed), Progress(seed, 1))  # norms and means that differ from their initial values
    method.eval()
    output = Tiny()(*view(7).inputs)
    output = Output(output.logits.detach(), output.features.detach().requires_grad_())
    refined = method.transform_output(output)
    rows = refined_loop(method, output.features, TARGET, training=False)

    assert refined.logits.shape == (B, 7, 7)
    assert refined.features.shape == (B, 6, D)
    same(refined.features, torch.stack(rows))
    fused = torch.stack([linear(method.classifier, x.flatten()) for x in rows])
    same(refined.logits[:, 6], fused)
    assert torch.equal(refined.logits[:, :6], output.logits[:, :6])
    parts = [output.features, *method.classifier.parameters(), *method.norms[TARGET].parameters()]
    ours = torch.autograd.grad(refined.logits[:, 6, 2].sum(), parts)
    theirs = torch.autograd.grad(fused[:, 2].sum(), parts)
    for a, b in zip(ours, theirs, strict=True):
        same(a, b)
        assert a.any()


def test_an_image_is_refined_the_same_in_any_batch() -> None:
    method = agra()
    method.begin_epoch(evaluator())
    method(Tiny(), batch(), Progress(0, 1))
    method.eval()
    output = Tiny()(*view(3).inputs)
    whole = method.transform_output(output)
    for i in range(B):
        alone = method.transform_output(Output(output.logits[i : i + 1], output.features[i : i + 1]))
        same(alone.features, whole.features[i : i + 1])
        same(alone.logits, whole.logits[i : i + 1])


def test_refining_reads_the_source_s_means_and_the_moments_of_both() -> None:
    method, points = agra(), torch.rand(9, WIDTH)
    method.begin_epoch(evaluator())
    method.eval()
    output = Tiny()(*view(3).inputs)
    before = method.transform_output(output)
    target, source = method.means[TARGET], method.means[SOURCE]
    target.means.copy_(torch.rand(7, WIDTH))
    assert torch.equal(method.transform_output(output).features, before.features)
    target.centre.add_(3 * torch.rand(WIDTH) - 1.5)
    assert not torch.equal(method.transform_output(output).features, before.features)
    before = method.transform_output(output)
    source.start(torch.rand(7, WIDTH), points)
    assert not torch.equal(method.transform_output(output).features, before.features)


# The losses


@pytest.mark.parametrize("conditioned", [True, False])
@pytest.mark.parametrize("target", [B, 3])
def test_the_losses_are_the_sum_of_the_equations(conditioned: bool, target: int) -> None:
    method, network, given = agra(entropy_conditioning=conditioned), Tiny(), batch(target=target)
    method.begin_epoch(evaluator())
    losses, logs = method(network, given, Progress(STEP, 1))  # a batch this small moves no mean yet

    refined, logits, plain = [], [], []
    for domain, faces in ((SOURCE, given.source), (TARGET, given.target)):
        output = network(*faces.inputs)
        rows = refined_loop(method, output.features, domain, training=True)
        refined.append(rows)
        logits.append([linear(method.classifier, x.flatten()) for x in rows])
        plain.append(output.logits)
    answers = torch.cat([plain[SOURCE][:, :6], torch.stack(logits[SOURCE])[:, None]], 1)
    source = loops.head_cross_entropy(answers, given.labels, WEIGHTS)
    without_global = torch.stack([linear(method.local_classifier, rows[1:].flatten()) for rows in refined[SOURCE]])
    local = WEIGHTS[6] * loops.cross_entropy(without_global, given.labels)
    both = [torch.stack([*each[SOURCE], *each[TARGET]]) for each in (refined, logits)]
    is_source = torch.arange(len(both[0])) < len(refined[SOURCE])
    seen = both[0].flatten(1), both[1], is_source, method.discriminator
    adversarial = loops.conditional_adversarial(*seen, conditioned=conditioned)

    assert set(losses) == {"source", "local", "adversarial"}
    same(losses["source"], source)
    same(losses["local"], local)
    same(losses["adversarial"], adversarial)
    right = [int(x.argmax()) == int(label) for x, label in zip(logits[SOURCE], given.labels, strict=True)]
    assert logs["source-accuracy"].item() == pytest.approx(sum(right) / B)
    parts = [
        network.gain,
        *(p for name, p in method.graphs.named_parameters()),
        *method.norms.parameters(),
        *method.classifier.parameters(),
    ]
    ours = torch.autograd.grad(losses["source"] + losses["local"], parts, retain_graph=True, allow_unused=True)
    theirs = torch.autograd.grad(source + local, parts, retain_graph=True, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    (d,) = torch.autograd.grad(losses["adversarial"], [method.discriminator.layers[0].weight], retain_graph=True)
    same(d, torch.autograd.grad(adversarial, [method.discriminator.layers[0].weight], retain_graph=True)[0])


def test_weights_scale_their_terms() -> None:
    one = agra()(Tiny(), batch(), Progress(STEP, 1)).losses
    other = agra(adversarial_weight=3)(Tiny(), batch(), Progress(STEP, 1)).losses
    same(other["source"], one["source"])
    same(other["adversarial"], 3 * one["adversarial"])


def test_published_head_weights_leave_agra_s_own_losses() -> None:
    # One step of the graph's classifier only: ln 7 each for an untrained classifier.
    method = AGRA(Adapt(head_weights=[0, 0, 0, 0, 0, 0, 1]), AGRA.read_options({"hidden": 8}), D, 0)
    for layer in (method.classifier, method.local_classifier):
        nn.init.zeros_(layer.weight)
    losses, _ = method(Tiny(), batch(), Progress(0, 1))
    ln7 = torch.tensor(7.0).log()
    same(losses["source"], ln7)
    same(losses["local"], ln7)


def test_the_reversal_turns_the_graph_against_the_discriminator() -> None:
    gradients = {}
    for step in (0, STEP):
        method = agra(entropy_conditioning=False, reversal_steps=1000)
        method.begin_epoch(evaluator())
        losses, logs = method(Tiny(), batch(), Progress(step, 1))
        parts = [method.graphs.inter_layer.linear.weight, method.discriminator.layers[0].weight]
        gradients[step] = torch.autograd.grad(losses["adversarial"], parts)
    assert not gradients[0][0].any()  # the reversal is zero at step 0, so no gradient passes
    assert gradients[STEP][0].any()
    same(gradients[0][1], gradients[STEP][1])  # the discriminator still learns
    assert logs["reversal"] == pytest.approx(0.998, abs=2e-3)


# The means


def test_a_mean_moves_once_enough_is_gathered_by_hand() -> None:
    means = ClassMeans(2, 2, rate=0.1, wait=2)
    means.start(torch.tensor([[0.0, 0.0], [10, 10]]), torch.zeros(1, 2))
    means.gather(torch.tensor([[1.0, 0], [9, 9], [3, 2]]))  # two are near the first mean, one is near the second
    assert torch.equal(means.means, torch.tensor([[0.0, 0.0], [10, 10]]))
    assert means.counts.tolist() == [2, 1]
    means.gather(torch.tensor([[2.0, 4]]))  # more than two: the mean of (1, 0), (3, 2), (2, 4) is (2, 2)
    same(means.means, torch.tensor([[0.2, 0.2], [10, 10]]))
    assert means.counts.tolist() == [0, 1]
    assert means.sums.tolist() == [[0, 0], [9, 9]]
    means.gather(torch.tensor([[0.0, 0], [0, 0]]), torch.tensor([1, 1]))  # by label, though the other is nearer
    same(means.means, torch.tensor([[0.2, 0.2], [9.3, 9.3]]))  # 9 + 0 + 0 over 3 is 3


def test_moments_move_with_every_batch_by_hand() -> None:
    means = ClassMeans(2, 1, rate=0.1, wait=99)
    means.start(torch.zeros(2, 1), torch.tensor([[1.0], [3]]))
    assert (means.centre.item(), means.variance.item()) == (2, 1)
    means.gather(torch.tensor([[4.0], [8]]))  # mean 6, variance 4
    assert means.centre.item() == pytest.approx(2.4)
    assert means.variance.item() == pytest.approx(1.3)
    assert means.standardise(torch.tensor([[5.0]])).item() == pytest.approx(2.6 / (1.3 + 1e-5) ** 0.5)


def test_a_domain_with_smaller_features_finds_the_matching_means_by_hand() -> None:
    large, small = (ClassMeans(2, 1, rate=0.1, wait=99) for _ in range(2))
    large.start(torch.tensor([[10.0], [30]]), torch.tensor([[10.0], [30]]))
    small.start(torch.tensor([[1.0], [3]]), torch.tensor([[1.0], [3]]))
    # Without standardisation, all of 0.9 to 3.2 would be nearest to 10.
    faces = torch.tensor([[0.9], [1.9], [2.1], [3.2]])
    assert large.matching(small.standardise(faces)).flatten().tolist() == [10, 10, 30, 30]


def test_carried_over_by_hand() -> None:
    source, target = torch.tensor([[0.0, 5], [4, 5]]), torch.tensor([[10.0, 1], [12, 3]])
    # First dimension: moments 2, 4 and 11, 1. Second: no variance in the source, mean 2 in the target.
    same(carried_over(torch.tensor([[0.0, 5], [3, 5]]), source, target), torch.tensor([[10.0, 2], [11.5, 2]]))


@pytest.mark.parametrize("wait", [0, 3])
def test_the_means_of_training_equal_a_loop(wait: int) -> None:
    method, network = agra(average=0.3, average_after=wait), Tiny()
    method.begin_epoch(evaluator())
    expected = [[x.clone() for x in each.means] for each in method.means]
    gathered: list[list[list]] = [[[] for _ in range(7)] for _ in range(2)]
    for seed in range(6):
        given = batch(seed)
        for domain, faces in ((SOURCE, given.source), (TARGET, given.target)):
            for x in network(*faces.inputs).features.detach().flatten(1):
                pass_to = nearest_loop(x, method.means[domain].means)
                gathered[domain][pass_to].append(x)
            for k in range(7):
                if len(gathered[domain][k]) > wait:
                    new = sum(gathered[domain][k]) / len(gathered[domain][k])
                    expected[domain][k] = 0.7 * expected[domain][k] + 0.3 * new
                    gathered[domain][k] = []
        method(network, given, Progress(seed, 1))
        for domain in (SOURCE, TARGET):
            same(method.means[domain].means, torch.stack(expected[domain]))
    assert any(x.counts.any() for x in method.means) == (wait > 0)


def test_k_means_finds_separate_clusters() -> None:
    torch.manual_seed(0)
    centres = 20 * torch.eye(7, WIDTH)
    points = centres.repeat(6, 1) + 0.1 * torch.randn(42, WIDTH)
    found = k_means(points, 7)
    order = torch.cdist(centres, found).argmin(1)
    assert sorted(order.tolist()) == list(range(7))
    same(found[order], points.view(6, 7, WIDTH).mean(0))


def test_k_means_from_centres_by_hand() -> None:
    points, centres = torch.tensor([[0.0], [1], [10], [12]]), torch.tensor([[0.0], [9], [50]])
    # The second gets 10 and 12 at once; the third gets none from the start and stays.
    assert k_means_from(points, centres).tolist() == [[0.5], [11], [50]]
    assert k_means_from(points[:0], centres).tolist() == centres.tolist()
    # Two steps: 3 is nearer to 5 than to 0, but then nearer to 0 than to 7.5, the mean of the points of 5.
    points = torch.tensor([[0.0], [3], [8], [9], [10]])
    assert k_means_from(points, torch.tensor([[0.0], [5]])).tolist() == [[1.5], [9]]


def test_k_means_draws_only_from_torchs_generator() -> None:
    points, found = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append((k_means(points, 7), torch.rand(())))
    (first, after), (again, after_again), (other, _) = found
    assert torch.equal(first, again) and torch.equal(after, after_again) and not torch.equal(first, other)


def test_k_means_does_not_warn_of_points_that_are_equal_up_to_rounding(recwarn) -> None:
    points = torch.zeros(20, 2)
    points[:10, 0], points[10:, 1] = 1e-30 * torch.arange(10), 1
    assert {tuple(x) for x in k_means(points, 7).round().tolist()} == {(0, 0), (0, 1)} and not recwarn.list


@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_k_means_of_fewer_distinct_points_than_clusters(count: int) -> None:
    points = torch.arange(min(count, 3)).float().repeat(7)[:count, None].expand(count, WIDTH)
    found = k_means(points, 7)
    assert found.shape == (7, WIDTH)
    assert {tuple(x) for x in found.tolist()} == ({tuple(x) for x in points.tolist()} or {(0.0,) * WIDTH})


def test_a_class_without_faces_has_the_mean_of_all() -> None:
    points = torch.tensor([[1.0], [3], [8]])
    assert class_means(points, torch.tensor([0, 0, 2]), 3).tolist() == [[2], [4], [8]]
    assert class_means(points[:0], torch.tensor([], dtype=torch.long), 3).tolist() == [[0], [0], [0]]


@pytest.mark.parametrize("recluster", [1, 3, 10])
def test_faces_are_clustered_at_first_and_every_recluster_epochs(recluster: int) -> None:
    method, all_faces, looked = agra(recluster=recluster), evaluator(), []
    for epoch in range(1, 21):
        before = all_faces.looks
        method.begin_epoch(all_faces)
        if all_faces.looks > before:
            looked.append(epoch)
    assert looked == sorted({1, *range(recluster, 21, recluster)})


def test_means_of_classes_are_the_labels_and_the_target_starts_from_them() -> None:
    method, all_faces = agra(means="classes"), evaluator()
    method.begin_epoch(all_faces)
    (points, labels), (target, _) = all_faces.given
    expected = torch.stack([sum(x for x, y in zip(points, labels, strict=True) if y == k) for k in range(7)])
    expected /= torch.tensor([int((labels == k).sum()) for k in range(7)])[:, None]
    same(method.means[SOURCE].means, expected)
    same(method.means[TARGET].means, k_means_from(target, carried_over(expected, points, target)))

    given = batch()
    method(Tiny(), given, Progress(0, 1))
    assert method.means[SOURCE].counts.tolist() == torch.bincount(given.labels, minlength=7).tolist()


def test_clusters_do_not_read_the_source_labels() -> None:
    found = []
    for shift in (0, 3):
        method, all_faces = agra(), evaluator()
        points, labels = all_faces.given[SOURCE]
        all_faces.given[SOURCE] = (points, (labels + shift) % 7)
        method.begin_epoch(all_faces)
        found.append(method.means[SOURCE].means)
    assert torch.equal(*found)


# The warm start


def parts_of(method: AGRA) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in method.named_parameters()}


def apart(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [N, 192] of seven expressions that are easy to separate, and their labels."""
    labels = torch.arange(count) % 7
    prototypes = 2 * torch.rand(7, 192, generator=torch.Generator().manual_seed(99))
    noise = torch.rand(count, 192, generator=torch.Generator().manual_seed(seed))
    return prototypes[labels] + 0.3 * noise, labels


def test_a_warm_start_makes_predictions_on_both_domains_useful() -> None:
    points, labels = apart(70, 0)
    target, target_labels = apart(70, 1)
    target = 0.3 * target + 0.1  # the same faces with smaller features
    right = {}
    for warm in (True, False):
        method = agra(still=False, width=32, warm_start=warm, warm_steps=100)
        method.begin_epoch(Survey(points, labels, target))
        method.eval()
        with torch.no_grad():
            if not warm:  # moments like a trained network's; the rest is noise
                for norm, each in zip(method.norms, (points, target), strict=True):
                    norm.running_mean.copy_(each.mean(0)), norm.running_var.copy_(each.var(0))
            answers = (
                method.transform_output(Output(torch.zeros(70, 7, 7), target.view(-1, 6, 32))).logits[:, -1].argmax(-1)
            )
        right[warm] = (answers == target_labels).float().mean().item()
    assert right[True] > 0.95
    assert right[False] < 0.5


def test_one_step_of_the_warm_start_equals_the_source_losses() -> None:
    method = agra(warm_steps=1)
    before = parts_of(method)
    all_faces = Survey(torch.rand(1, WIDTH).repeat(9, 1), torch.full((9,), 4), torch.rand(9, WIDTH))
    method.begin_epoch(all_faces)
    after = parts_of(method)
    # All source faces are equal: for any draw, the refined features come from the norms' biases, initially zero.
    # Adam's first step moves by its rate against the sign of the gradient, which is p - y for the bias.
    for layer in ("classifier", "local_classifier"):
        step = after[f"{layer}.bias"] - before[f"{layer}.bias"]
        same(step, 1e-3 * torch.tensor([-1.0, -1, -1, -1, 1, -1, -1]))


def test_a_warm_start_leaves_discriminator_and_means_alone() -> None:
    warm, cold = agra(), agra(warm_start=False)
    states = []
    for method in (warm, cold):
        torch.manual_seed(5)
        method.begin_epoch(evaluator())
        states.append(method.state_dict())
        assert all(p.grad is None for p in method.parameters())
    for name in states[0]:
        same_in_both = torch.equal(states[0][name], states[1][name])
        left_alone = name.startswith(("discriminator", "means", "epoch", "fitted"))
        assert same_in_both == (left_alone or name.endswith("num_batches_tracked")), name


@pytest.mark.parametrize("warm", [True, False])
def test_only_the_first_epoch_starts_warm(warm: bool) -> None:
    method, changed = agra(recluster=1, warm_start=warm), []
    for _ in range(3):
        before = parts_of(method)
        method.begin_epoch(evaluator())
        changed.append(any(not torch.equal(v, before[k]) for k, v in parts_of(method).items()))
    assert changed == [warm, False, False]


# State


def test_a_resumed_run_continues_bit_for_bit() -> None:
    def train(method: AGRA, epochs: range) -> None:
        optimizer = torch.optim.SGD(method.parameters(), 0.01)
        for epoch in epochs:
            method.begin_epoch(evaluator(epoch))
            for seed in range(3):
                losses, _ = method(Tiny(), batch(seed), Progress(seed, epoch))
                optimizer.zero_grad()
                sum(losses.values()).backward()
                optimizer.step()

    through, stopped = (agra(still=False, recluster=2, average_after=4) for _ in range(2))
    torch.manual_seed(3)
    train(through, range(1, 5))
    torch.manual_seed(3)
    train(stopped, range(1, 3))
    state, rng = {k: v.clone() for k, v in stopped.state_dict().items()}, torch.get_rng_state()
    torch.manual_seed(99)
    resumed = agra(still=False, recluster=2, average_after=4)
    resumed.load_state_dict(state)
    torch.set_rng_state(rng)
    train(resumed, range(3, 5))
    for name, value in through.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_the_state_refines_the_same_for_any_target_size() -> None:
    method = agra(target_size=12)
    method.begin_epoch(evaluator())
    method(Tiny(), batch(), Progress(0, 1))
    other = agra(target_size=0)
    other.load_state_dict(method.state_dict())
    output = Tiny()(*view(3).inputs)
    for a, b in zip(method.eval().transform_output(output), other.eval().transform_output(output), strict=True):
        assert torch.equal(a, b)


def test_evaluation_changes_nothing() -> None:
    method = agra()
    method.begin_epoch(evaluator())
    method.eval()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    method.transform_output(Tiny()(*view(3).inputs))
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), name


# Degenerate input


@pytest.mark.parametrize("means", ["clusters", "classes"])
@pytest.mark.parametrize(
    "all_faces",
    [
        evaluator(target=1),
        evaluator(target=3),
        evaluator(source=1, target=1),
        Survey(torch.rand(20, WIDTH), torch.zeros(20, dtype=torch.long), torch.rand(20, WIDTH)),
        Survey(torch.zeros(20, WIDTH), torch.arange(20) % 5, torch.zeros(20, WIDTH)),
    ],
    ids=["one target face", "fewer than clusters", "one of each", "one class only", "all alike, classes absent"],
)
def test_degenerate_domains_train_and_refine(means: str, all_faces: Survey) -> None:
    method, network = agra(still=False, means=means, average_after=0), Tiny()
    optimizer = torch.optim.SGD([*network.parameters(), *method.parameters()], 0.01)
    method.begin_epoch(all_faces)
    alike = view(4, 1)
    for step in range(3):
        given = batch(step)._replace(target=View(alike.images.expand(B, -1, -1, -1), torch.zeros(B, 5, 2)))
        losses, _ = method(network, given, Progress(STEP, 1))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    refined = method.eval().transform_output(network(*alike.inputs))
    values = [*refined, *losses.values(), *method.state_dict().values(), network.gain]
    assert all(torch.isfinite(x).all() for x in values)


def test_zero_features_before_any_clustering_are_handled() -> None:
    method = agra().eval()
    refined = method.transform_output(Output(torch.zeros(1, 7, 7), torch.zeros(1, 6, D)))
    assert torch.isfinite(refined.features).all()


def test_half_precision_features_give_float32_logits() -> None:
    method = agra().eval()
    refined = method.transform_output(Output(torch.zeros(2, 7, 7), torch.rand(2, 6, D).bfloat16()))
    assert refined.logits.dtype == refined.features.dtype == torch.float32
