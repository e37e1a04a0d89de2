"""The run spec's sections: pydantic models that forbid unknown keys and check across fields.

Defaults are the published settings of AGLRLS (Gao et al., IEEE TMM 2024, arXiv 2401.11085, and its code).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from fercli.console import brief
from fercli.errors import SpecError
from fercli.files import is_file_name
from fercli.spec.fidelity import with_published
from fercli.spec.plugins import is_place
from fercli.spec.registry import METHODS, RULES
from fercli.starter import NAME

#: Head weights are given in this order: global, five local, fused.
NUM_HEADS = 7


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_steps(value: Any) -> Any:
    return {1: value} if isinstance(value, int | float | str) else value


def _as_switch(value: Any) -> Any:
    """Undo YAML's reading of a bare ``on`` or ``off`` as a boolean."""
    return ("on" if value else "off") if isinstance(value, bool) else value


def _one_of(value: str, names: Sequence[str]) -> str:
    if value not in names:
        close = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"{brief(repr(value))} is not known{hint}; choose one of {', '.join(names)}")
    return value


def _each_once(values: list[Any], what: str) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError(f"a {what} is named twice")
    return values


_RULES, _METHODS = list(RULES), list(METHODS)
_SOURCE_RULES = [name for name, rule in RULES.items() if not rule.needs_target]
_Rule = Annotated[str, AfterValidator(lambda name: _one_of(name, _RULES)), Field(json_schema_extra={"enum": _RULES})]
_SourceRule = Annotated[str, AfterValidator(lambda name: _one_of(name, _SOURCE_RULES))]
_Method = Annotated[
    str,
    AfterValidator(lambda name: name if is_place(name) else _one_of(name, _METHODS)),
    Field(json_schema_extra={"anyOf": [{"enum": _METHODS}, {"pattern": "^[^:]+:[^:]+$"}]}),
]
_Retry = Literal["border", "upscale", "low-confidence", "full-range", "rotate"]

#: The second type of each is an accepted shorthand; the schema for editors lists both.
Names = Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]
Fraction = Annotated[float, Field(ge=0, le=1)]
#: The largest integer that torch and numpy can hold (63 bits).
LARGEST = (1 << 63) - 1
Positive = Annotated[int, Field(gt=0, le=LARGEST)]
#: Seed of a random number generator.
Seed = Annotated[int, Field(ge=0, le=LARGEST)]
#: Learning rates by epoch: ``{1: 1e-4, 11: 1e-5}`` is 1e-4 up to epoch 10, then 1e-5. One number is constant.
_Rate = Annotated[float, Field(ge=0)]
_Rates = Annotated[dict[Positive, _Rate], Field(min_length=1)]
Rates = Annotated[_Rates, BeforeValidator(_as_steps, json_schema_input_type=_Rate | _Rates)]
HeadWeights = Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=NUM_HEADS, max_length=NUM_HEADS)]


class Section(BaseModel):
    """A part of the spec. Unknown keys are errors, numbers must be finite, and instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Explained(Section):
    """A section whose keys are documented by the docstring under each, for `fercli init` and the JSON Schema.

    pydantic reads these docstrings from the source, so ``python -OO`` keeps them. Sections elsewhere (methods' options,
    model files) do not use this: to find a class's source Python looks at every loaded module, which is slow once torch
    is loaded and can import more.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)


class Paths(_Explained):
    """Folders of dataset images, prepared stores and runs."""

    data: Path = Path("data")
    """Folder of the dataset images; each dataset is in a subfolder of its name."""
    prepared: Path = Path("prepared")
    """Folder of the stores of prepared faces."""
    runs: Path = Path("runs")
    """Folder of trained models and reports; each run has a subfolder of its name."""


class Dataset(_Explained):
    """How to read a dataset that is not built in or is not in ``paths.data/NAME``."""

    reader: str | None = None
    """Reader for the dataset's layout (``fercli datasets`` lists them); null is the dataset's own reader."""
    root: Path | None = None
    """Folder of the dataset; null is ``paths.data/NAME``."""
    store: Path | None = None
    """Folder of its prepared faces; null is ``paths.prepared/NAME``."""
    options: dict[str, Any] = {}
    """Options of the reader; ``fercli datasets show NAME`` lists them."""


class Augment(_Explained):
    """Random augmentation of training views."""

    flip: Fraction = 0.5
    """Probability of a horizontal flip, 0 to 1."""
    jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Largest shift and largest change of scale of the crop, as a fraction of the face size."""
    crop: Literal["standard", "released"] = "standard"
    """``standard`` shifts and scales the crop; ``released`` scales width and height independently and does not shift
    it, as the released code does."""
    shared_crop: bool = False
    """Whether the weak and the strong view of a face share crop and flip, as in the released code."""
    operations: Annotated[int, Field(ge=0, le=14)] = 3
    """Number of RandAugment operations applied in sequence to a strong view."""
    magnitude: Annotated[float, Field(ge=0, le=10)] = 5
    """Strength of the RandAugment operations, 0 to 10; ignored with ``randaugment: released``."""
    randaugment: Literal["standard", "released"] = "standard"
    """``standard`` applies all operations at `magnitude`; ``released``, as the released code, draws random strengths,
    leaves black borders and cuts a square out of every strong view."""
    swap_landmarks: bool = True
    """Whether a flip swaps left and right landmarks; the released code does not."""
    move_landmarks: bool = True
    """Whether geometric operations of strong views move the landmarks with the face; the released code does not."""


class Data(_Explained):
    """The datasets and their roles."""

    source: Names = ["raf-db"]
    """Labelled datasets to train on: one name or a list of names."""
    balance: Literal["images", "sqrt", "equal"] = "sqrt"
    """How several sources share a batch: ``images``, in proportion to their number of faces (one union); ``equal``, in
    equal parts; ``sqrt``, in proportion to the square root of their number of faces."""
    targets: Names = ["ck+", "jaffe", "sfew", "fer2013", "expw"]
    """Datasets to adapt to and score on; their labels are read only for scoring."""
    datasets: dict[str, Dataset] = {}
    """Your own datasets, and those stored elsewhere: ``NAME: {reader: folders, root: FOLDER, options: {}}``."""
    validation: float | str = 0.1
    """Source faces held out for choosing the epoch: a fraction of the training faces, or the name of one of the
    dataset's own splits, such as ``public-test``. With a split, all training faces are used for training. 0 holds none
    out: selection rules that need held-out faces cannot be used, and no temperature is fitted."""
    augment: Augment = Augment()
    """Random augmentation of faces in training: crop and flip, and RandAugment on top in strong views (stage 2)."""

    @field_validator("validation")
    @classmethod
    def _share_or_split(cls, value: float | str) -> float | str:
        if value == "" or (not isinstance(value, str) and not 0 <= value < 1):
            raise ValueError(
                f"{brief(repr(value))} is neither a fraction (at least 0, less than 1) nor the name of a split"
            )
        return value

    @field_validator("source")
    @classmethod
    def _one_or_more(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("at least one source dataset is needed")
        return _each_once(value, "source")

    @model_validator(mode="after")
    def _target_is_not_source(self) -> Data:
        both = sorted(set(self.source) & set(self.targets))
        if both:
            raise ValueError(
                f"{', '.join(both)} is in both data.source and data.targets; a target must be another dataset"
            )
        return self


class Prepare(_Explained):
    """How faces are prepared."""

    align: Literal["template", "box"] = "template"
    """``template`` aligns five landmarks to the ArcFace template by a similarity transform; ``box``, as in the released
    code, takes the face box, widened by 10% on each side and stretched to a square, without rotation."""
    landmarks: Literal["detect", "given"] = "detect"
    """``detect`` finds them; ``given`` uses the dataset's own where it has any."""
    missing: Literal["reject", "mean-landmarks"] = "reject"
    """What to do with images in which no face is found: ``reject`` them, or use the dataset's mean shape
    (``mean-landmarks``)."""
    size: Annotated[int, Field(ge=32, le=448)] = 112
    """Side of the face image that the network receives."""
    margin: Annotated[int, Field(ge=0, le=112)] = 14
    """Extra border kept on each side of the face, for jitter."""
    crop_size: Annotated[int, Field(ge=16, le=224)] = 48
    """Side of the local crops."""
    crop_zoom: Annotated[float, Field(gt=0, le=8)] = 1.5
    """Magnification of the local crops relative to the face."""
    confidence: Fraction = 0.5
    """Minimum detection score, 0 to 1."""
    low_confidence: Fraction = 0.2
    """Minimum detection score in the later retries, 0 to 1."""
    retries: list[_Retry] = list(get_args(_Retry))
    """What to try when no face is found, in this order: ``border``, ``upscale``, ``low-confidence``, ``full-range``,
    ``rotate``."""
    workers: Annotated[int, Field(ge=0, le=1 << 15)] = 0
    """Number of processes; 0 is one per core, or all workers of the cluster."""
    backend: Literal["loky", "dask", "ray", "threading", "sequential"] = "loky"
    """How the work is run: in processes (``loky``) or threads (``threading``) of this machine, in one process
    (``sequential``), or on a cluster (``dask``, ``ray``)."""
    cluster: str | None = None
    """Address of a dask scheduler or a ray head."""
    chunk: Positive = 64
    """Records per unit of work; it does not affect the store's contents."""

    @property
    def side(self) -> int:
        """Side S of a prepared face in pixels: the face and its margins."""
        return self.size + 2 * self.margin

    def rows(self) -> dict[str, tuple[int, ...]]:
        """Shape of one face's row in each array of `fercli.store.FACE_ARRAYS`."""
        face, crops = (self.side, self.side, 3), (5, self.crop_size, self.crop_size, 3)
        return {"faces": face, "landmarks": (5, 2), "crops": crops, "shapes": (5, 2), "digests": (16,)}

    def parameters(self) -> dict[str, Any]:
        """The settings that a store's bytes depend on: all but those of where, and in what units, the work is done."""
        return self.model_dump(mode="json", exclude={"workers", "backend", "cluster", "chunk"})


class Model(_Explained):
    """The network."""

    backbone: Literal["ir50", "ir18", "mobilenet-v2", "mobilenet-v2-wide", "ir-small", "ir-lite"] = "ir50"
    """Backbone of the global branch: ``ir50``, ``ir18``, ``mobilenet-v2``, ``mobilenet-v2-wide`` (that of the released
    checkpoints, whose layers differ from torchvision's), ``ir-small`` or ``ir-lite`` (both for CPUs)."""
    width: Annotated[int, Field(ge=4, le=64)] = 16
    """Channels of the first layer of ir-lite and ir-small; other backbones have a fixed width."""
    local: Literal["feature-map", "image-crop"] = "feature-map"
    """Input of the five local nets: windows of the backbone's feature map (``feature-map``), or patches of the image
    (``image-crop``)."""
    classifiers: Literal["shared", "separate"] = "shared"
    """Whether the five local heads share one classifier (``shared``) or have one each (``separate``)."""
    input: Literal["colour", "grey"] = "colour"
    """``colour``, or ``grey``: luminance only, for a source without colour."""
    test_flip: bool = False
    """Whether a prediction is the mean over the face and its mirror image."""
    first_weights: Literal["standard", "released"] = "standard"
    """Initial values of weights that no checkpoint fills. ``standard``: Kaiming-normal convolutions, Xavier-uniform
    heads and no biases. ``released``, as in AGLRLS's code: torch's defaults, Xavier-normal heads, and five crop nets
    with the same initial weights."""
    weights: Path | None = None
    """A checkpoint to start from (``fercli weights inspect FILE`` shows what it fills), or ``starter``, the model that
    comes with fercli; null is random initialisation."""

    @property
    def reads_crops(self) -> bool:
        """Whether batches must include the prepared local crops."""
        return self.local == "image-crop"

    @field_validator("weights", mode="before")
    @classmethod
    def _a_place_stays_one(cls, value: Any) -> Any:
        """Distinguish the path ``./starter``, from which `Path` drops the ``./``, from the word ``starter``."""
        return (
            Path(value).absolute() if isinstance(value, str) and value != NAME and Path(value) == Path(NAME) else value
        )


class Engine(_Explained):
    """The training loop and its device."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on: ``cpu``, ``cuda``, or ``auto``, which is CUDA where it is available."""
    precision: Literal["auto", "32-true", "tf32", "bf16-mixed", "16-mixed"] = "auto"
    """Precision of the network in training: ``32-true``, ``tf32``, ``bf16-mixed``, ``16-mixed``, or ``auto``, which is
    bf16-mixed on CUDA devices that support it and otherwise 32-true. Losses, saved weights and evaluation are always
    float32."""
    compile: Annotated[
        Literal["off", "auto", "on"],
        BeforeValidator(_as_switch, json_schema_input_type=Literal["off", "auto", "on"] | bool),
    ] = "auto"
    """How training steps are sped up. ``auto``: on a single CUDA device a step is recorded as one CUDA graph and
    replayed with a single launch. ``on``: in addition, ``torch.compile`` for the network in training, on any device; it
    takes minutes at first and pays off in long trainings. ``off``: neither."""
    data: Literal["auto", "device", "host"] = "auto"
    """Where prepared faces are held: all on the ``device``, or in the ``host``'s memory; ``auto`` is the device if it
    is a CUDA device and they fit."""
    crop_nets: Literal["auto", "loop", "grouped", "matmul"] = "auto"
    """How the five crop nets are computed (`fercli.models.local.LocalNets`): one after another (``loop``), as grouped
    convolutions (``grouped``), or as batched matrix products (``matmul``). ``auto`` measures which is fastest on CUDA
    devices, and is ``grouped`` for small nets on CPUs and ``loop`` otherwise (also with `deterministic`)."""
    threads: Annotated[int, Field(ge=0, le=1 << 15)] = 0
    """Number of CPU threads; 0 leaves it to torch."""
    seed: Seed = 0
    """Random seed of the network's initial weights, batches and views."""
    deterministic: bool = False
    """Whether results are bit-identical from run to run on the same machine; slower."""
    batch_norm: Literal["synchronised", "local"] = "synchronised"
    """How batch norm works when several processes train together; no effect with one process. ``synchronised``:
    statistics of the whole batch, so that results equal those of one process, at the cost of two messages per norm and
    pass (some hundreds per step). ``local``: statistics of each process's share of the batch, without messages; running
    statistics are averaged over the processes. Norms then see smaller batches (4 faces for a batch of 16 on 4
    processes), and results are no longer those of the method as published."""
    log_every: Positive = 20
    """Steps between log entries."""
    save_every_s: Annotated[float, Field(ge=0)] = 300
    """Seconds between checkpoints from which an interrupted run resumes."""
    evaluate_batch: Positive = 128
    """Batch size for evaluation and prediction."""
    keep_outputs: Positive | None = None
    """Number of latest epochs whose outputs an adaptation keeps (98 bytes per face and epoch), besides those of the
    best epoch; null keeps all. The oracle and the selection rules are then computed over the kept epochs only. All are
    kept if the selection rule compares epochs."""
    tensorboard: bool = True
    """Whether to write TensorBoard logs as well."""


#: Keys of both stages that were renamed in 0.3.
RENAMED = {"rate": "lr", "new_rate": "head_lr_multiplier", "discriminator_rate": "discriminator_lr"}

#: Keys of both stages whose defaults differ. The description goes with the type, so that it is written once.
_Batch = Annotated[int, Field(ge=2, description="Batch size, in faces per domain.")]
_Epochs = Annotated[
    Positive, Field(description="Number of epochs; after raising it, run the same command again to continue.")
]
_LearningRate = Annotated[
    Rates, Field(description="Learning rate of the backbone: one number, or ``{first epoch: rate, ...}``.")
]
_LossWeights = Annotated[HeadWeights, Field(description="Loss weights of the heads: global, five local, fused.")]


class Optimisation(_Explained):
    """Settings of both training stages: SGD over parameter groups, each with a learning rate by epoch."""

    batch: _Batch
    epochs: _Epochs
    patience: Positive | None = None
    """Number of consecutive epochs without improvement under the `select` rule after which training stops; null never
    stops early."""
    steps_per_epoch: Positive | None = None
    """Training steps per epoch; null is one pass over the larger domain."""
    lr: _LearningRate
    schedule: Literal["steps", "cosine"] = "steps"
    """``steps`` follows `lr`; ``cosine`` falls from `lr`, which must be one number, to 0 at the last step (Loshchilov
    and Hutter, ICLR 2017)."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0
    """Epochs of linear warm-up of the rates from 0; may be a fraction (Goyal et al., 2017)."""
    head_lr_multiplier: Annotated[float, Field(gt=0)] = 10
    """Learning rate of the new layers, as a multiple of `lr`."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Whether SGD uses Nesterov momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    """Weight decay of SGD, on all weights."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Maximum gradient norm; null does not clip."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of the exponential moving average of the weights, such as 0.999. The averaged network is the one
    scored and saved (Polyak and Juditsky, 1992). null uses no average."""
    head_weights: _LossWeights

    @model_validator(mode="after")
    def _cosine_starts_at_one_rate(self) -> Optimisation:
        rates = {"lr": self.lr, "discriminator_lr": getattr(self, "discriminator_lr", {})}
        if self.schedule == "cosine":
            for name, steps in rates.items():
                # With the default rates, cosine starts from the first of them, also in a resolved spec.
                if len(steps) > 1 and steps != type(self).model_fields[name].default:
                    raise ValueError(f"schedule: cosine needs a single initial rate; set {name} to one number")
        return self


class TrainSource(Optimisation):
    """Stage 1, on the labelled source."""

    batch: _Batch = 64
    epochs: _Epochs = 15
    lr: _LearningRate = {1: 1e-4, 11: 1e-5, 21: 1e-6}
    head_weights: _LossWeights = [5, 1, 1, 1, 1, 1, 5]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of each label spread evenly over all expressions (Szegedy et al., CVPR 2016)."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Blending of pairs of faces and their labels, with one ratio per batch drawn from Beta(mixup, mixup) (Zhang et
    al., ICLR 2018); 0 turns it off."""
    class_balance: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How much extra weight rare expressions get: a face's weight is the size of its class to the power of minus this
    value, scaled to a mean of 1 (Cui et al., CVPR 2019, compare such weights); 0 weights all faces equally."""
    views: Literal["weak", "strong"] = "weak"
    """Training views: ``weak`` (flip and crop, as published) or ``strong`` (RandAugment on top)."""
    late_rates: bool = False
    """Whether a new learning rate takes effect one step late, and all groups use `lr` and half the weight decay on the
    very first step, as in AGLRLS's code."""
    select: _SourceRule = "source-val"
    """Rule that selects the epoch: ``source-val``, the accuracy on held-out source faces, or ``last``."""


class Adapt(Optimisation):
    """Stage 2, adaptation."""

    method: _Method = "aglrls"
    """Adaptation method (``configs/methods`` has a spec for each)."""
    start: Annotated[str, Field(min_length=1)] | None = None
    """The starting model: ``starter``, a run or stage folder, a model file, a checkpoint or a released checkpoint. The
    network, the preparation of faces and ``data.source`` are then the model's. null is the run's own source model."""
    tag: Annotated[str, Field(pattern=r"^[A-Za-z0-9._+-]*$", max_length=100)] = ""
    """Suffix of the stage folder's name, after the target's name, to keep several adaptations to one target."""
    batch: _Batch = 16
    epochs: _Epochs = 30
    lr: _LearningRate = {1: 1e-5, 11: 5e-6, 21: 1e-6}
    discriminator_lr: Rates = {1: 1e-4, 21: 1e-5}
    """Learning rate of a method's own discriminators, in the same form as `lr`."""
    head_weights: _LossWeights = [7, 1, 1, 1, 1, 1, 7]
    carry_momentum: bool = False
    """Whether SGD starts with the momentum from the end of stage 1's selected epoch, as in AGLRLS's code; stage 1 must
    also have been trained with this key set."""
    options: dict[str, Any] = {}
    """Options of the method."""
    sharpness: Annotated[float, Field(gt=0)] | None = None
    """Length of an ascent step on the source loss, such as 0.05. The method's own step is computed at the weights
    reached, for flatter minima (SDAT, Rangwani et al., ICML 2022), at the cost of one more pass over the batch's source
    faces. null turns it off."""
    select: _Rule = "infomax"
    """Rule that selects the epoch (`fercli.spec.registry`)."""
    select_images: Positive = 2000
    """Maximum number of target faces that selection rules use."""
    also_score: Names = []
    """Costly rules (``dev``) to compute each epoch in addition to `select`."""

    @field_validator("also_score")
    @classmethod
    def _rules_are_costly(cls, value: list[str]) -> list[str]:
        return [_one_of(name, [rule for rule, about in RULES.items() if about.costly]) for name in value]

    @model_validator(mode="after")
    def _patience_needs_a_score_each_epoch(self) -> Adapt:
        if self.patience is not None and RULES[self.select].post_hoc:
            raise ValueError(f"patience cannot be used with {self.select}, which is known only after the last epoch")
        return self


#: Method labels become parts of folder names.
_LABEL = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"


def _as_methods(value: Any) -> Any:
    named = dict.fromkeys(value) if isinstance(value, list) else value
    return {name: {} if given is None else given for name, given in named.items()} if isinstance(named, dict) else named


_Methods = Annotated[dict[Annotated[str, Field(pattern=_LABEL)], dict[str, Any]], Field(min_length=1)]
_Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(lambda seeds: _each_once(seeds, "seed"))]


#: A union's error would have one line for each of its types; `_as_jobs` makes it one line.
_Jobs = Positive | Literal["gpus"] | None


def _as_jobs(value: Any) -> Any:
    if value in (None, "gpus") or (isinstance(value, int) and value is not True and 1 <= value <= LARGEST):
        return value
    raise ValueError(f"{brief(repr(value))} is neither a positive integer nor gpus")


class Sweep(_Explained):
    """The runs of a sweep (`fercli.sweep`)."""

    methods: Annotated[
        _Methods, BeforeValidator(_as_methods, json_schema_input_type=list[str] | dict[str, dict[str, Any] | None])
    ]
    """Methods to compare, as ``label: {keys to set under adapt}``. Without ``method`` the label is the method's name. A
    list of names is enough if no keys are set. source-only is always included: all differences are relative to it."""
    targets: Names | None = None
    """Target datasets; null is ``data.targets``."""
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(lambda seeds: _each_once(seeds, "seed"))] = [
        0,
        1,
        2,
    ]
    """Random seeds of initial weights, batches and views; all runs with the same seed start from the same source
    model."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """``key.path: [values]``; every combination of the values is run."""
    jobs: Annotated[_Jobs, BeforeValidator(_as_jobs, json_schema_input_type=_Jobs)] = None
    """Number of cells trained at a time, each in its own process: an integer, or ``gpus``, one per GPU of this machine.
    null is one, or as many as the cluster has slots for."""
    backend: Literal["local", "dask", "ray"] = "local"
    """Where cells are trained: on this machine (``local``), or on the workers of a dask or ray cluster. The workers
    must see data and runs under the same paths; each cell is trained in its own process."""
    cluster: str | None = None
    """Address of a dask scheduler or a ray head."""


class Evaluate(_Explained):
    """Scores and reports."""

    title: str | None = None
    """Title of the report; null is the run's name."""
    published: bool = True
    """Whether reports include published results for comparison (never for synthetic data)."""


class Spec(_Explained):
    """One run: which data is read, and how it is prepared, trained on and scored."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=200)] = "baseline"
    """Name of the run, and of its folder in ``paths.runs``."""
    faithful: Literal["corrected", "published"] = "corrected"
    """Which defaults the other keys have: ``corrected``, or ``published``, those of the released AGLRLS code including
    its faults (docs/faithful.md). Keys that are set explicitly keep their values."""
    paths: Paths = Paths()
    """Folders. Relative paths start at the working folder."""
    data: Data = Data()
    """The datasets and their roles, and the augmentation of their faces in training."""
    prepare: Prepare = Prepare()
    """How images become aligned faces. Sizes are in pixels."""
    model: Model = Model()
    """The global-local network."""
    engine: Engine = Engine()
    """The training loop, its device and how it runs there."""
    train_source: TrainSource = TrainSource()
    """Stage 1: cross-entropy on the labelled source. Weight decay is the published 5e-4, doubled as in the code."""
    adapt: Adapt = Adapt()
    """Stage 2: adaptation to one unlabelled target."""
    evaluate: Evaluate = Evaluate()
    """How a trained run is scored and reported."""
    sweep: Sweep | None = None
    """Methods x targets x seeds (``fercli sweep``); null is a single run."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_published(cls, tree: Any) -> Any:
        return with_published(tree) if isinstance(tree, dict) and tree.get("faithful") == "published" else tree

    @model_validator(mode="after")
    def _held_out_faces_are_there(self) -> Spec:
        if self.data.validation != 0:
            return self
        named = {"train_source.select": [self.train_source.select], "adapt.select": [self.adapt.select]}
        named["adapt.also_score"] = self.adapt.also_score
        problems = [
            f"{key}: {rule} needs held-out source faces, and data.validation 0 holds none out; set another rule, such "
            "as last"
            for key, rules in named.items()
            for rule in rules
            if RULES[rule].needs_held_out
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def run_folder(self) -> Path:
        """The folder of everything that this run writes."""
        return self.paths.runs / self.name

    def store_path(self, dataset: str) -> Path:
        """The prepared store of a dataset. Raises SpecError for a name that is not a plain file name."""
        if not is_file_name(dataset):
            raise SpecError(
                f"{brief(repr(dataset))} cannot be a dataset's name",
                "give its folder with --root or data.datasets.NAME.root",
            )
        own = self.data.datasets[dataset].store if dataset in self.data.datasets else None
        return own or self.paths.prepared / dataset

    def adapt_folder(self, target: str) -> Path:
        """The folder of the adaptation to one target."""
        return self.run_folder / ("adapt-" + target + (f"-{self.adapt.tag}" if self.adapt.tag else ""))
