"""A model that adapts to the faces it receives: test-time adaptation, batch by batch, without labels or source.

Three published methods replace the network in `fercli.predict.recognizer.Recognizer.answer`:

- `AdaBN` adapts the statistics of the batch norms;
- `Tent` also adapts the batch norms' weights and biases, by the gradient of the predictions' entropy;
- `T3A` changes no weight: each head predicts with the mean features of the classes.

Each is *continual* (what is learnt from a batch is kept for the batches after it) or *episodic* (before every batch
the model is as it was loaded). Either way a face's prediction depends on the faces of its batch; with a continual
method it also depends on all faces before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fercli.errors import FercliError, SpecError
from fercli.expressions import NUM_EXPRESSIONS
from fercli.loading.augment import View
from fercli.methods.losses import entropy
from fercli.methods.source_free import batch_norms, head_features
from fercli.models import HEADS, GlobalLocal, Output

#: N of Schneider et al.: the number of faces that the model's own statistics count as.
OWN_FACES = 16
#: Tent's learning rate for a batch of `RATE_FACES`, and its momentum. Of 0.001, 0.02 and 0.05, this rate gained most on
#: real faces, though not significantly, and 0.05 gained most on drawn faces. The authors' rates are 0.00025..0.001.
RATE, RATE_FACES, MOMENTUM = 0.02, 64, 0.9
#: M of T3A: largest number of supports per class.
SUPPORTS = 100


class Adaptation:
    """A method applied to one model.

    Args:
        network: in eval mode, and left in it; adapted in place.
        transform: what the model's method applies to the network's output, if anything.
        heads: those of `fercli.models.HEADS` that the model has.
        episodic: see the module's docstring.

    Attributes:
        label: its name in outputs, such as ``tent, episodic``.
    """

    name: ClassVar[str]

    def __init__(
        self,
        network: GlobalLocal,
        transform: Callable[[Output], Output] | None = None,
        heads: Sequence[str] = HEADS,
        episodic: bool = False,
    ):
        self.network, self.transform, self.heads, self.episodic = network, transform, heads, episodic
        self.label = f"{self.name}, {'episodic' if episodic else 'continual'}"
        self.begin()
        self._loaded = self.state()

    def __call__(self, view: View) -> Output:
        """Adapt to a batch and predict it; a failure leaves no trace, so that the faces can be predicted again."""
        # Tensors created in inference mode cannot be used for learning.
        with torch.inference_mode(False), torch.no_grad():
            before = self.state()
            try:
                output = self.adapt(*(None if given is None else given.clone() for given in view.inputs))
            except BaseException:
                self.restore(before)
                raise
            if self.episodic:
                self.restore(before)
            return output

    def reset(self) -> None:
        """Restore the model as it was loaded."""
        with torch.inference_mode(False), torch.no_grad():
            self.restore(self._loaded)

    def run(self, *inputs: Tensor | None) -> Output:
        """Return the output of the model in its current state."""
        output = self.network(*inputs)
        return output if self.transform is None else self.transform(output)

    def begin(self) -> None:
        """Collect what the method adapts."""
        raise NotImplementedError

    def adapt(self, *inputs: Tensor | None) -> Output:
        """Adapt to the inputs of `GlobalLocal`, and return the output for them."""
        raise NotImplementedError

    def state(self) -> Any:
        """Return everything that the method adapts, as it is now; later adaptation does not change that value."""
        raise NotImplementedError

    def restore(self, state: Any) -> None:
        """Restore a `state`."""
        raise NotImplementedError


class _Seen(NamedTuple):
    """Mean and variance [C] of a batch norm's inputs for a number of faces; the variance is over all pixels."""

    faces: int
    mean: Tensor
    variance: Tensor


class _Norm:
    """A batch norm that normalises with its own statistics and those of the faces seen.

    Attributes:
        collects: whether the next input counts; that input resets it to False.
    """

    def __init__(self, module: _BatchNorm):
        self.module, self.collects = module, False
        self._own, self._seen = (module.running_mean, module.running_var), None
        module.register_forward_pre_hook(self._before)

    @property
    def state(self) -> tuple[_Seen | None, Tensor, Tensor]:
        """The statistics in use; none of these tensors is ever changed in place."""
        return self._seen, self.module.running_mean, self.module.running_var

    @state.setter
    def state(self, state: tuple[_Seen | None, Tensor, Tensor]) -> None:
        self._seen, self.module.running_mean, self.module.running_var = state

    def _before(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not self.collects:
            return
        self.collects = False
        variance, mean = torch.var_mean(inputs[0].detach(), (0, *range(2, inputs[0].ndim)), correction=0)
        new, old = len(inputs[0]), self._seen
        faces = new
        if old is not None:  # the combined moments of both parts (Chan et al., 1983)
            faces = old.faces + new
            apart, share = mean - old.mean, new / faces
            variance = torch.lerp(old.variance, variance, share) + share * (1 - share) * apart.square()
            mean = old.mean + share * apart
        self._seen = _Seen(faces, mean, variance)
        share = faces / (OWN_FACES + faces)
        module.running_mean = torch.lerp(self._own[0], mean, share)
        module.running_var = torch.lerp(self._own[1], variance, share)


class AdaBN(Adaptation):
    """Batch norms with statistics of the faces seen (Li et al., ICLR 2017 workshop; Schneider et al., NeurIPS 2020).

    n is the number of faces seen in this batch and, if continual, before it. A batch norm normalises with N / (N + n)
    of the model's own mean and variance and n / (N + n) of those of the faces (Schneider et al., arXiv 2006.16971). N
    is `OWN_FACES`: one face moves the statistics by 1/17, and 64 faces by four fifths. Zhang et al. (MEMO, NeurIPS
    2022) use N = 16 for images that come one at a time.

    The authors' code handles single batches only; the continual moments here are those of all faces so far. A layer
    collects its statistics after those of the layers below it are updated. With ``model.test_flip``, only the unflipped
    faces count, and their mirror images are normalised with the same statistics.
    """

    name = "adabn"

    def begin(self) -> None:
        self._norms = [_Norm(module) for module in batch_norms(self.network).values()]
        if not self._norms:
            raise FercliError(f"--adapt {self.name} adapts batch norms, but this model has none", "use t3a")

    def adapt(self, *inputs: Tensor | None) -> Output:
        return self.collect(*inputs)

    def collect(self, *inputs: Tensor | None) -> Output:
        """Do `run`, with statistics that include these faces."""
        for norm in self._norms:
            norm.collects = True
        try:
            return self.run(*inputs)
        finally:
            for norm in self._norms:
                norm.collects = False

    def state(self) -> Any:
        return [norm.state for norm in self._norms]

    def restore(self, state: Any) -> None:
        for norm, its in zip(self._norms, state, strict=True):
            norm.state = its


class Tent(AdaBN):
    """Entropy minimisation (Wang et al., ICLR 2021): one step on the batch norms' weights and biases per batch.

    The loss is the mean entropy over the batch's faces and the model's heads. The step is one of SGD with momentum. Its
    learning rate is `RATE` times the batch's faces over `RATE_FACES`, so that a batch of one face moves the model 1/64
    as far as a full one (the linear rule that Niu et al., ICLR 2023, use for batches of one). Statistics are `AdaBN`'s.

    Differences from the authors' code (github.com/DequanWang/tent): there the statistics are those of the batch alone,
    which destroys the prediction of a face that comes alone; here they are constants of the step, without a gradient.
    There the prediction is made before the step, which in an episodic model would use the statistics alone; here it is
    made after the step, at the cost of one more pass. A step whose gradient is not finite is skipped.
    """

    name = "tent"

    def begin(self) -> None:
        super().begin()
        self._moved = [
            moved.requires_grad_() for norm in self._norms for moved in (norm.module.weight, norm.module.bias)
        ]
        self._velocity = [torch.zeros_like(moved) for moved in self._moved]
        self._head = [HEADS.index(name) for name in self.heads]

    def adapt(self, *inputs: Tensor | None) -> Output:
        with torch.enable_grad():
            loss = entropy(self.collect(*inputs).logits[:, self._head].float().softmax(-1)).mean()
            found = torch.autograd.grad(loss, self._moved, allow_unused=True)
        # A norm that serves only heads which the model lacks has no gradient.
        gradients = [torch.zeros_like(m) if g is None else g for m, g in zip(self._moved, found, strict=True)]
        if all(bool(gradient.isfinite().all()) for gradient in gradients):
            rate = RATE * len(inputs[0]) / RATE_FACES
            self._velocity = [MOMENTUM * old + new for old, new in zip(self._velocity, gradients, strict=True)]
            for moved, velocity in zip(self._moved, self._velocity, strict=True):
                moved.sub_(rate * velocity)
        return self.run(*inputs)

    def state(self) -> Any:
        return super().state(), [moved.detach().clone() for moved in self._moved], self._velocity

    def restore(self, state: Any) -> None:
        statistics, weights, self._velocity = state
        super().restore(statistics)
        for moved, before in zip(self._moved, weights, strict=True):
            moved.copy_(before)


class _Supports(NamedTuple):
    """The supports of one head: unit features [S, D], the class [S] predicted for each, entropies [S]."""

    features: Tensor
    classes: Tensor
    entropies: Tensor


class T3A(Adaptation):
    """Test-time classifier adjustment (Iwasawa and Matsuo, NeurIPS 2021), for each head separately.

    A head's supports are at first the rows of its classifier's weight, one per class. A face's feature, scaled to unit
    length, joins the supports of the class that the classifier predicts. Each class keeps the M = `SUPPORTS` of lowest
    entropy. Logits are the products of the feature with the classes' templates, which are the unit means of their
    supports.

    `SUPPORTS` is the largest limit that the authors try (1, 5, 20, 50, 100 and none; they choose on the source's
    validation faces, which are not available here). It bounds the memory.

    Differences from the authors' code (github.com/matsuolab/T3A): a row of the weight supports its own class even if
    the classifier predicts another for it, so that every class has a support. Templates have the mean length of the
    rows instead of 1, so that probabilities are about as sharp as the model's own. Neither changes a head's prediction
    otherwise.
    """

    name = "t3a"

    def begin(self) -> None:
        if self.transform is not None:
            raise FercliError(
                "--adapt t3a needs the network's own classifiers, but the method of this model predicts with others",
                "use adabn or tent",
            )
        first, *locals_, last = self.network.classifiers
        self._classifiers = [first, *(locals_ if len(locals_) > 1 else locals_ * (len(HEADS) - 2)), last]
        own = torch.arange(NUM_EXPRESSIONS, device=first.weight.device)
        with torch.no_grad():
            self._length = [head.weight.norm(dim=1).mean() for head in self._classifiers]
            self._supports = [
                _Supports(F.normalize(head.weight, dim=1), own, entropy(head(head.weight).softmax(-1)))
                for head in self._classifiers
            ]

    def adapt(self, *inputs: Tensor | None) -> Output:
        output = self.run(*inputs)
        features = head_features(output.features)
        probabilities = output.logits.softmax(-1)
        self._supports = [
            _kept(supports, F.normalize(feature, dim=1), answers)
            for supports, feature, answers in zip(self._supports, features, probabilities.unbind(1), strict=True)
        ]
        logits = []
        for supports, feature, length in zip(self._supports, features, self._length, strict=True):
            sums = feature.new_zeros(NUM_EXPRESSIONS, feature.shape[1])
            sums.index_add_(0, supports.classes, supports.features)
            logits.append(feature @ (length * F.normalize(sums, dim=1)).T)
        return Output(torch.stack(logits, 1), output.features)

    def state(self) -> Any:
        return self._supports

    def restore(self, state: Any) -> None:
        self._supports = state


def _kept(supports: _Supports, features: Tensor, probabilities: Tensor) -> _Supports:
    """Add a batch, [B, D] and [B, 7]: each class keeps its most certain supports, and of equal ones the earlier."""
    joined = _Supports(
        torch.cat([supports.features, features]),
        torch.cat([supports.classes, probabilities.argmax(-1)]),
        torch.cat([supports.entropies, entropy(probabilities)]),
    )
    order = joined.entropies.argsort(stable=True)
    by_class = [order[joined.classes[order] == label][:SUPPORTS] for label in range(NUM_EXPRESSIONS)]
    return _Supports(*(part[torch.cat(by_class)] for part in joined))


#: The methods by name.
ADAPTATIONS: dict[str, type[Adaptation]] = {kind.name: kind for kind in (AdaBN, Tent, T3A)}


def adaptation(
    name: str | None,
    episodic: bool,
    network: GlobalLocal,
    transform: Callable[[Output], Output] | None,
    heads: Sequence[str],
) -> Adaptation | None:
    """Return the named method applied to a model; None if `name` is None.

    Raises:
        FercliError: there is no such method, it cannot adapt this model, or `episodic` is given without a method.
    """
    if name is None:
        if episodic:
            raise SpecError("--episodic needs --adapt", "name a method with --adapt")
        return None
    if name not in ADAPTATIONS:
        raise SpecError(f"--adapt {name}: no such method", f"choose one of {', '.join(ADAPTATIONS)}")
    return ADAPTATIONS[name](network, transform, heads, episodic)
