"""From a prepared face to a prediction in one module, traced for any batch size.

Normalisation, network, the method's refinement and the decision rule are fercli's own functions, called here. The
exported model redefines none of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fercli.engine.data import view_settings
from fercli.engine.trained import Trained
from fercli.errors import FercliError
from fercli.evaluation.decision import DecisionRule
from fercli.export.quiet import quiet
from fercli.loading.augment import ViewSettings, plain_view
from fercli.models import Output

INPUTS = ("faces", "landmarks", "crops")
OUTPUTS = ("answer", "probabilities", "stage", "heads")

#: The first torch whose exporters, as called here, handle whole models with any batch size.
LEAST_TORCH = (2, 6)


class Deployed(nn.Module):
    """A trained model as it is used: prepared faces in, decisions out.

    Args:
        network: in eval mode, on the CPU.
        rule: the decision rule.
        output_transform: what the method applies to the network's output; a bound method if the method has its own
            networks.
        settings: the view settings; only the size of the face is read.

    `forward` takes faces uint8 [B, size, size, 3] RGB, aligned; landmarks float32 [B, 5, 2], (x, y) in pixels of that
    face, with pixel centres at integers; and, if the network reads them, crops uint8 [B, 5, C, C, 3]. It returns answer
    int64 [B] (index in `fercli.expressions.EXPRESSIONS`), probabilities float32 [B, 7] of the decision, stage int64 [B]
    (index in `fercli.evaluation.decision.STAGES`) and heads float32 [B, 7, 7], the probabilities of each head.
    Landmarks outside the face are moved to where a window is still inside it. The prediction for a face does not depend
    on the other faces of the batch.
    """

    def __init__(
        self,
        network: nn.Module,
        rule: DecisionRule,
        output_transform: Callable[[Output], Output] | None,
        settings: ViewSettings,
    ):
        super().__init__()
        self.network, self.output_transform, self.settings = network, output_transform, settings
        self._rule = rule._replace(status=None)
        # As a submodule, so that its tensors are parameters of the traced program and not constants.
        self.method = getattr(output_transform, "__self__", None)
        self.register_buffer("status", None if rule.status is None else rule.status.float())
        self.eval().requires_grad_(False)

    @property
    def rule(self) -> DecisionRule:
        """The decision rule, with its status as a buffer of this module."""
        return self._rule._replace(status=self.status)

    def forward(
        self, faces: Tensor, landmarks: Tensor, crops: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        view = plain_view(faces, landmarks, crops, self.settings)
        output = self.network(*view.inputs)
        if self.output_transform is not None:
            output = self.output_transform(output)
        heads = output.logits.float().softmax(-1)
        decision = self.rule(heads)
        return decision.answers, decision.probabilities, decision.stages, heads


def deploy(trained: Trained) -> Deployed:
    """Return the model of a checkpoint, on the CPU."""
    device = torch.device("cpu")
    settings = view_settings(trained.spec)
    return Deployed(trained.network(device), trained.rule, trained.output_transform(device), settings)


def trace(deployed: Deployed, crop_size: int | None) -> torch.export.ExportedProgram:
    """Trace with `torch.export`, for a batch of any size.

    Args:
        crop_size: C if the network reads local crops, else None.

    The program contains no face and no paths of this machine.

    Raises:
        FercliError: the model cannot be traced.
    """
    examples = blanks(deployed.settings.size, crop_size)
    batch = torch.export.Dim("batch")
    with torch.no_grad(), quiet():
        deployed(*examples)  # cached constants must be real tensors, not the tracer's
        try:
            program = torch.export.export(
                deployed, examples, dynamic_shapes=tuple({0: batch} for _ in examples), strict=False
            )
        except Exception as problem:  # the tracer's own errors, and those of its dependencies
            raise FercliError(
                f"torch {torch.__version__} cannot trace this model ({type(problem).__name__})",
                "try another version of torch, or use the model through `from fercli import Recognizer`",
            ) from problem
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def blanks(size: int, crop_size: int | None, count: int = 2) -> tuple[Tensor, ...]:
    """Return black faces with landmarks in the corner, in the shape of the inputs of `Deployed`."""
    parts = torch.zeros(count, size, size, 3, dtype=torch.uint8), torch.zeros(count, 5, 2)
    return parts if crop_size is None else (*parts, torch.zeros(count, 5, crop_size, crop_size, 3, dtype=torch.uint8))


def require_torch(version: str = torch.__version__) -> None:
    """Raise FercliError if torch is older than `LEAST_TORCH`."""
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < LEAST_TORCH:
        least = ".".join(map(str, LEAST_TORCH))
        raise FercliError(f"fercli export needs torch {least} or newer, but this is {version}", "pip install -U torch")
