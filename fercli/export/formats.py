"""Converts the traced program to a file's bytes, and such bytes to a function: ONNX and torch.export."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fercli.errors import FercliError, SpecError
from fercli.export.graph import INPUTS, OUTPUTS
from fercli.export.quiet import quiet

#: Filename ending of each format.
ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}

#: Opset of ONNX. torch's exporter writes 18 and converts upwards; onnxruntime reads 18 since 1.14 (2023).
LEAST_OPSET = DEFAULT_OPSET = 18

#: Name of the entry of a .pt2 file that holds the metadata.
EXTRA_FILE = "fercli.json"

#: Takes the inputs of `fercli.export.graph.Deployed` and returns its outputs.
Runner = Callable[..., tuple[Tensor, ...]]


def require_onnx(opset: int = DEFAULT_OPSET) -> None:
    """Check the requirements of ONNX before the work begins.

    Raises:
        FercliError: onnx, onnxscript or onnxruntime is not installed.
        SpecError: the exporter does not write the opset, or the installed onnx does not support it.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as missing:
        raise FercliError(
            f'ONNX needs onnx, onnxscript and onnxruntime ({missing}); pip install "fercli[onnx]"'
        ) from None
    most = onnx.defs.onnx_opset_version()
    if not LEAST_OPSET <= opset <= most:
        raise SpecError(f"--opset {opset} cannot be written", f"give {LEAST_OPSET} to {most}")


def onnx_bytes(program: torch.export.ExportedProgram, opset: int, metadata: Mapping[str, str]) -> bytes:
    """Return the program as one ONNX file that includes its weights; axis 0 of every input and output is ``batch``.

    Raises:
        FercliError: torch's exporter cannot write it in this opset.
    """
    import onnx

    inputs = list(INPUTS[: len(_inputs(program))])
    with quiet():
        try:
            made = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=opset,
                input_names=inputs,
                output_names=list(OUTPUTS),
                custom_translation_table={torch.ops.aten._cdist_forward.default: _distances},
                verbose=False,
            )
            model = made.model_proto
        except Exception as problem:  # the exporter's own errors, and those of its dependencies
            raise FercliError(
                f"torch {torch.__version__} cannot write this model as ONNX with opset {opset}"
                f" ({type(problem).__name__})",
                "try another --opset, or --format torch",
            ) from problem
    written = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), None)
    if written != opset:
        raise FercliError(
            f"torch {torch.__version__} wrote opset {written} instead of {opset}", f"give --opset {written}"
        )
    _tidy(model)
    # The oldest file format that the operators allow, so that older runtimes can read it too.
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    model.producer_name, model.producer_version = "fercli", metadata["fercli"]
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def torch_bytes(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """Return the program as a .pt2 file with the metadata as JSON in `EXTRA_FILE`."""
    import json

    file = io.BytesIO()
    with quiet():
        torch.export.save(program, file, extra_files={EXTRA_FILE: json.dumps(dict(metadata), indent=1)})
    return file.getvalue()


def onnx_runner(data: bytes) -> Runner:
    """Return a function that runs the bytes of an ONNX file with onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        found = session.run(list(OUTPUTS), {k: v.numpy() for k, v in zip(names, inputs, strict=True)})
        return tuple(torch.from_numpy(each) for each in found)

    return run


def torch_runner(data: bytes) -> Runner:
    """Return a function that runs the bytes of a .pt2 file on the CPU."""
    with quiet():
        module = torch.export.load(io.BytesIO(data)).module()

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(module(*inputs))

    return run


def _inputs(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    return tuple(program.graph_signature.user_inputs)


def _distances(points, centres, p, compute_mode=None):
    """Euclidean distances for AGRA's nearest mean, [N, D] and [K, D] to [N, K]; torch's exporter has none (p is 2)."""
    from onnxscript import opset18 as op

    apart = op.Sub(op.Unsqueeze(points, [-2]), op.Unsqueeze(centres, [-3]))
    return op.Sqrt(op.ReduceSumSquare(apart, [-1], keepdims=0))


def _tidy(model) -> None:
    """Name the batch axis, and remove the exporter's debugging information, which contains this machine's paths."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
        del value.metadata_props[:]
    del model.graph.value_info[:], model.graph.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
