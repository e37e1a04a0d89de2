"""A model that adapts to the faces it answers: test-time adaptation, batch by batch, without labels and source.

Three methods of the literature take the network's place in `fercli.predict.recognizer.Recognizer.answer`:

- `AdaBN` moves the statistics of the batch norms;
- `Tent` moves these and, by the gradient of the answers' entropy, the batch norms' weights and biases;
- `T3A` moves no weight: each head answers by the mean features of classes.

Each is *continual*, what is learnt of a batch staying for those behind it, or *episodic*: before every batch the model
is as it was loaded. Either way a face's answer depends on the faces of its batch, and a continual one on all before.
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

#: N of Schneider et al.: how many faces the model's own statistics count as.
OWN_FACES = 16
#: Tent's rate for a batch of `RATE_FACES`, and its momentum. Of 0.001, 0.02 and 0.05 it gained most on real
#: faces, by less than their number bears out, and 0.05 most on drawn ones; the authors' lie in 0.00025..0.001.
RATE, RATE_FACES, MOMENTUM = 0.02, 64, 0.9
#: M of T3A: supports of a class at most.
SUPPORTS = 100


class Adaptation:
    """A method at work on one model.

    Args:
        network: in eval mode, which it stays in; adapted in place.
        transform: what the model's method makes of the network's output, if anything.
        heads: those of `fercli.models.HEADS` that the model has.
        episodic: see the module.

    Attributes:
        label: how outputs name it: ``tent, episodic``.
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
        """Adapt to a batch and answer it; what fails leaves no trace, so that the faces may be answered again."""
        # Tensors of the inference mode cannot be learnt from.
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
        """Go back to the model as it was loaded."""
        with torch.inference_mode(False), torch.no_grad():
            self.restore(self._loaded)

    def run(self, *inputs: Tensor | None) -> Output:
        """What the model answers as it is now."""
        output = self.network(*inputs)
        return output if self.transform is None else self.transform(output)

    def begin(self) -> None:
        """Take hold of what the method moves."""
        raise NotImplementedError

    def adapt(self, *inputs: Tensor | None) -> Output:
        """Adapt to what `GlobalLocal` is given, and answer it."""
        raise NotImplementedError

    def state(self) -> Any:
        """All that the method moves, as it is now; what is adapted later leaves it as it is."""
        raise NotImplementedError

    def restore(self, state: Any) -> None:
        """Go back to a `state`."""
        raise NotImplementedError


class _Seen(NamedTuple):
    """Mean and variance [C] of what a batch norm was given of some faces; the variance is over all pixels."""

    faces: int
    mean: Tensor
    variance: Tensor


class _Norm:
    """A batch norm that normalises by its own statistics and those of the faces seen.

    Attributes:
        collects: whether the next maps count; they put it back to False.
    """

    def __init__(self, module: _BatchNorm):
        self.module, self.collects = module, False
        self._own, self._seen = (module.running_mean, module.running_var), None
        module.register_forward_pre_hook(self._before)

    @property
    def state(self) -> tuple[_Seen | None, Tensor, Tensor]:
        """None of these tensors is ever changed in place."""
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
        if old is not None:  # the moments of both parts together (Chan et al., 1983)
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

    With n faces seen, in this batch and, if continual, before it, a batch norm normalises by N / (N + n) of the
    model's own mean and variance and n / (N + n) of theirs (Schneider et al., arXiv 2006.16971), where N is
    `OWN_FACES`: one face moves them by 1/17 and 64 by four fifths. N = 16 is what Zhang et al. (MEMO, NeurIPS 2022)
    take for images that come alone.

    Their code knows single batches alone; the continual moments are those of all faces so far together. A layer
    collects under the statistics that the layers below it have by then. With ``model.test_flip`` faces count as they
    are, and their mirror images are normalised by the same statistics.
    """

    name = "adabn"

    def begin(self) -> None:
        self._norms = [_Norm(module) for module in batch_norms(self.network).values()]
        if not self._norms:
            raise FercliError(f"--adapt {self.name} moves batch norms, and this model has none", "take t3a")

    def adapt(self, *inputs: Tensor | None) -> Output:
        return self.collect(*inputs)

    def collect(self, *inputs: Tensor | None) -> Output:
        """`run`, with statistics that count these faces too."""
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
    """Entropy minimisation (Wang et al., ICLR 2021): one step of the batch norms' weights and biases a batch.

    The loss is the mean entropy over the batch's faces and the model's heads. The step is SGD's with momentum at
    `RATE` times the batch's faces over `RATE_FACES`, so that a batch of one face moves the model a 64th of what a
    full one does (the linear rule that Niu et al., ICLR 2023, use for batches of one). Statistics are `AdaBN`'s.

    Differs from the code (github.com/DequanWang/tent): there statistics are those of the batch alone, by which a face
    that comes alone loses its answer; they are constants of the step here, and no gradient runs through them. There
    the answer is that from before the step, which of an episodic model would be the answer of statistics alone; here
    it is that from after it, for one pass more. A step whose gradient is not finite is left out.
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
        # A norm below heads that the model lacks alone has none.
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
    """The supports of one head: unit features [S, D], the class [S] that each was answered with, entropies [S]."""

    features: Tensor
    classes: Tensor
    entropies: Tensor


class T3A(Adaptation):
    """Test-time classifier adjustment (Iwasawa and Matsuo, NeurIPS 2021), of each head by itself.

    The supports of a head begin with the rows of its classifier's weight, one a class. A face's feature, at unit
    length, joins those of the class that the classifier answers, and a class keeps the M = `SUPPORTS` of the lowest
    entropy. Logits are the products of the feature with the classes' templates, the unit means of their supports.

    `SUPPORTS` is the largest number that the authors try, beside no limit (1, 5, 20, 50, 100; they choose on the
    source's validation faces, which are not here). Memory is bounded by it.

    Differs from the code (github.com/matsuolab/T3A): a row of the weight is a support of its own class even where the
    classifier answers it with another, so that no class is without; and templates have the mean length of the rows in
    place of 1, so that probabilities are about as sharp as the model's own. Both change no answer of a head otherwise.
    """

    name = "t3a"

    def begin(self) -> None:
        if self.transform is not None:
            raise FercliError(
                "--adapt t3a needs the network's own classifiers, and the method of this model answers by others",
                "take adabn or tent",
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
    """The supports with those of a batch, [B, D] and [B, 7]: of every class the surest, of equals those before."""
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
    """The method of a name at work on a model; None where there is none to be.

    Raises:
        FercliError: there is no such method, the model is none for it, or `episodic` has none.
    """
    if name is None:
        if episodic:
            raise SpecError("--episodic says how --adapt goes on, and there is no --adapt", "name a method by --adapt")
        return None
    if name not in ADAPTATIONS:
        raise SpecError(f"--adapt {name}: no such method", f"one of {', '.join(ADAPTATIONS)}")
    return ADAPTATIONS[name](network, transform, heads, episodic)
