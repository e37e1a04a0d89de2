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
    """YAML takes a bare on or off for a truth value."""
    return ("on" if value else "off") if isinstance(value, bool) else value


def _one_of(value: str, names: Sequence[str]) -> str:
    if value not in names:
        close = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"{brief(repr(value))} is not known{hint}; one of {', '.join(names)}")
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

#: The second type of each is what may be written instead; the schema for editors names both.
Names = Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]
Fraction = Annotated[float, Field(ge=0, le=1)]
#: Numbers that torch and numpy count with have 63 bits.
LARGEST = (1 << 63) - 1
Positive = Annotated[int, Field(gt=0, le=LARGEST)]
#: Of random numbers.
Seed = Annotated[int, Field(ge=0, le=LARGEST)]
#: A learning rate by epoch: ``{1: 1e-4, 11: 1e-5}`` is 1e-4 up to epoch 10 and 1e-5 from 11 on; a number is constant.
_Rate = Annotated[float, Field(ge=0)]
_Rates = Annotated[dict[Positive, _Rate], Field(min_length=1)]
Rates = Annotated[_Rates, BeforeValidator(_as_steps, json_schema_input_type=_Rate | _Rates)]
HeadWeights = Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=NUM_HEADS, max_length=NUM_HEADS)]


class Section(BaseModel):
    """A part of the spec: unknown keys are errors, numbers are finite, and a spec does not change once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Explained(Section):
    """A section whose keys are explained, each by the words under it: in `fercli init`, and in the JSON Schema.

    pydantic reads the words from the source, so that ``python -OO`` keeps them. Sections elsewhere (methods' options,
    model files) go without: to find a class's source Python looks at every loaded module, and beside torch that takes
    long and can import more.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)


class Paths(_Explained):
    """Folders of photographs, prepared stores and runs."""

    data: Path = Path("data")
    """photographs, each dataset in a folder of its name."""
    prepared: Path = Path("prepared")
    """stores of prepared faces."""
    runs: Path = Path("runs")
    """trained models and their reports, each run in a folder of its name."""


class Dataset(_Explained):
    """How to read a dataset that is not built in, or lies elsewhere than ``paths.data/NAME``."""

    reader: str | None = None
    """whose layout it has (``fercli datasets`` lists them); without, the dataset's own."""
    root: Path | None = None
    """where it lies."""
    store: Path | None = None
    """where its prepared faces lie; without, in ``paths.prepared``, in a folder of its name."""
    options: dict[str, Any] = {}
    """of the reader; ``fercli datasets show NAME`` lists them."""


class Augment(_Explained):
    """The random views of training."""

    flip: Fraction = 0.5
    """how often a face is mirrored, 0 to 1."""
    jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """how far the crop moves and by how much its size varies, as a share of the face."""
    crop: Literal["standard", "released"] = "standard"
    """``standard`` moves and scales; ``released``, as the released code, scales width and height apart and moves
    nothing."""
    shared_crop: bool = False
    """whether the weak and the strong view of a face have the same crop and flip, as in the released code."""
    operations: Annotated[int, Field(ge=0, le=14)] = 3
    """strong operations in a row (RandAugment), of stage 2."""
    magnitude: Annotated[float, Field(ge=0, le=10)] = 5
    """how strong they are, 0 to 10; with ``randaugment: released`` it is not read."""
    randaugment: Literal["standard", "released"] = "standard"
    """``standard``, all at one magnitude, or ``released``: the released code's, of random strengths, with black borders
    and a square cut out of every strong view."""
    swap_landmarks: bool = True
    """whether a mirrored face swaps left and right landmarks; the released code does not."""
    move_landmarks: bool = True
    """whether strong operations move the landmarks with the face; the released code does not."""


class Data(_Explained):
    """The datasets and their roles."""

    source: Names = ["raf-db"]
    """labelled datasets to train on: a name or a list of names."""
    balance: Literal["images", "sqrt", "equal"] = "sqrt"
    """how much of every batch each of several sources gets: ``images``, as many as it has (one union),
    ``equal`` shares, or ``sqrt``, by the square root of its faces, which lies between."""
    targets: Names = ["ck+", "jaffe", "sfew", "fer2013", "expw"]
    """datasets to adapt to and to score on; their labels are read for the score alone."""
    datasets: dict[str, Dataset] = {}
    """for those of your own, and those elsewhere: ``NAME: {reader: folders, root: FOLDER, options: {}}``."""
    validation: float | str = 0.1
    """what chooses the epoch: a share of the source's training faces, held out, or the name of a split of its own
    (``public-test``), and then all training faces are trained on. 0 holds none out: rules that read them cannot choose,
    and no temperature is fitted."""
    augment: Augment = Augment()
    """Random views of faces in training: crop and flip, in stage 2 RandAugment on top."""

    @field_validator("validation")
    @classmethod
    def _share_or_split(cls, value: float | str) -> float | str:
        if value == "" or (not isinstance(value, str) and not 0 <= value < 1):
            raise ValueError(
                f"{brief(repr(value))} is neither a share, 0 or more and less than 1, nor the name of a split"
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
                f"{', '.join(both)} stands in both data.source and data.targets; a target must be another set"
            )
        return self


class Prepare(_Explained):
    """How faces are prepared."""

    align: Literal["template", "box"] = "template"
    """``template``, a similarity to the ArcFace template by five landmarks, or ``box``, as in the released code: the
    face's box, a tenth wider at each end, squashed to a square and not turned."""
    landmarks: Literal["detect", "given"] = "detect"
    """``detect``, or ``given``: the dataset's own, where it brings any."""
    missing: Literal["reject", "mean-landmarks"] = "reject"
    """what to do with images without a face: ``reject``, or ``mean-landmarks``, the dataset's mean shape."""
    size: Annotated[int, Field(ge=32, le=448)] = 112
    """side of the face as the network sees it."""
    margin: Annotated[int, Field(ge=0, le=112)] = 14
    """how much more is kept around it, for jitter."""
    crop_size: Annotated[int, Field(ge=16, le=224)] = 48
    """side of the local crops."""
    crop_zoom: Annotated[float, Field(gt=0, le=8)] = 1.5
    """how much closer than the face the local crops look."""
    confidence: Fraction = 0.5
    """least score of a detection, 0 to 1."""
    low_confidence: Fraction = 0.2
    """the same in the later retries."""
    retries: list[_Retry] = list(get_args(_Retry))
    """what is tried, in this order, where no face is found."""
    workers: Annotated[int, Field(ge=0, le=1 << 15)] = 0
    """processes; 0 is all cores, or all of the cluster."""
    backend: Literal["loky", "dask", "ray", "threading", "sequential"] = "loky"
    """where they run."""
    cluster: str | None = None
    """address of a dask scheduler or a ray head."""
    chunk: Positive = 64
    """records in a piece of work; no byte of the store depends on it."""

    @property
    def side(self) -> int:
        """Side S of a prepared face in pixels: the face and its margins."""
        return self.size + 2 * self.margin

    def rows(self) -> dict[str, tuple[int, ...]]:
        """Shape of one face's row in each array of `fercli.store.FACE_ARRAYS`."""
        face, crops = (self.side, self.side, 3), (5, self.crop_size, self.crop_size, 3)
        return {"faces": face, "landmarks": (5, 2), "crops": crops, "shapes": (5, 2), "digests": (16,)}

    def parameters(self) -> dict[str, Any]:
        """The settings that a store's bytes depend on: all but where and in what pieces the work is done."""
        return self.model_dump(mode="json", exclude={"workers", "backend", "cluster", "chunk"})


class Model(_Explained):
    """The network."""

    backbone: Literal["ir50", "ir18", "mobilenet-v2", "mobilenet-v2-wide", "ir-small", "ir-lite"] = "ir50"
    """of the global branch; ``mobilenet-v2-wide`` is the one of the released checkpoints, whose layers are not
    torchvision's; ``ir-lite`` and ``ir-small`` are for CPUs."""
    width: Annotated[int, Field(ge=4, le=64)] = 16
    """channels of the first layer of ir-lite and ir-small; the others have their own."""
    local: Literal["feature-map", "image-crop"] = "feature-map"
    """what the five local nets see: windows of the backbone's ``feature-map``, or patches of the photograph."""
    classifiers: Literal["shared", "separate"] = "shared"
    """whether the five local heads have one (``shared``) or one each (``separate``)."""
    input: Literal["colour", "grey"] = "colour"
    """``colour``, or ``grey``: the face's luminance alone, for a source without colours."""
    test_flip: bool = False
    """whether the answer for a face is the mean of its image's and its mirror image's."""
    first_weights: Literal["standard", "released"] = "standard"
    """what no checkpoint fills: ``standard``, Kaiming-normal convolutions, Xavier-uniform heads and no biases, or
    ``released``, as in AGLRLS's code: torch's own, Xavier-normal heads, and five crop nets that begin alike."""
    weights: Path | None = None
    """a checkpoint to start from (``fercli weights inspect FILE`` tells what one fills); without, noise. ``starter`` is
    the model that comes with fercli."""

    @property
    def reads_crops(self) -> bool:
        """Whether batches must bring the prepared local crops."""
        return self.local == "image-crop"

    @field_validator("weights", mode="before")
    @classmethod
    def _a_place_stays_one(cls, value: Any) -> Any:
        """Keep ``./starter``, which a path forgets to be a place, apart from the word ``starter``."""
        return (
            Path(value).absolute() if isinstance(value, str) and value != NAME and Path(value) == Path(NAME) else value
        )


class Engine(_Explained):
    """The training loop and its device."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where the network is trained; ``auto`` is CUDA where there is any."""
    precision: Literal["auto", "32-true", "tf32", "bf16-mixed", "16-mixed"] = "auto"
    """of the network in training; losses, saved weights and evaluation are float32 in any case. ``auto`` is bf16-mixed
    on CUDA devices that have it, else 32-true."""
    compile: Annotated[
        Literal["off", "auto", "on"],
        BeforeValidator(_as_switch, json_schema_input_type=Literal["off", "auto", "on"] | bool),
    ] = "auto"
    """what is made once so that steps are faster. ``auto``: on a single CUDA device a step is recorded as one CUDA
    graph, and run by a single launch. ``on``: ``torch.compile`` for the network in training, too, on any device; it
    takes minutes at first, and pays in long trainings. ``off``: nothing."""
    data: Literal["auto", "device", "host"] = "auto"
    """where prepared faces wait: whole on the ``device``, or in the ``host``'s memory; ``auto`` is the device where it
    is a CUDA device and they fit."""
    crop_nets: Literal["auto", "loop", "grouped", "matmul"] = "auto"
    """how the five crop nets run (`fercli.models.local.LocalNets`); ``auto`` measures on CUDA devices, and is
    ``grouped`` for small nets on CPUs."""
    threads: Annotated[int, Field(ge=0, le=1 << 15)] = 0
    """of the processor; 0 leaves it to torch."""
    seed: Seed = 0
    """of network, batches and views."""
    deterministic: bool = False
    """the same bits from run to run on the same machine; slower."""
    batch_norm: Literal["synchronised", "local"] = "synchronised"
    """of several processes that train together. ``synchronised``: by the whole batch, so that they compute what one
    process would, for two messages a norm and pass, some hundreds a step. ``local``: each by its own share of the
    batch, without a message; running statistics are the processes' means. Results are then those of smaller batches
    in the norms (4 faces each with 16 on 4 processes), no longer those of the method as published. One process: the
    same either way."""
    log_every: Positive = 20
    """steps between two lines of the log."""
    save_every_s: Annotated[float, Field(ge=0)] = 300
    """seconds between two checkpoints to go on from."""
    evaluate_batch: Positive = 128
    """faces at a time where nothing is trained."""
    keep_outputs: Positive | None = None
    """how many epochs, the latest and the best, an adaptation keeps the outputs of, 98 bytes a face; null is all. The
    oracle and the selection rules are then computed over those epochs. All stay where the rule compares epochs."""
    tensorboard: bool = True
    """whether curves are written for TensorBoard too."""


#: Keys of both stages that were renamed in 0.3.
RENAMED = {"rate": "lr", "new_rate": "head_lr_multiplier", "discriminator_rate": "discriminator_lr"}

#: Keys of both stages whose defaults differ: their words go with the type, so that they are said once.
_Batch = Annotated[int, Field(ge=2, description="faces in a batch, of each domain.")]
_Epochs = Annotated[Positive, Field(description="how many; may be raised later, the same command then goes on.")]
_LearningRate = Annotated[
    Rates, Field(description="learning rate of the backbone, one number or ``{first epoch: rate, ...}``.")
]
_LossWeights = Annotated[HeadWeights, Field(description="of the heads' losses: global, five local, fused.")]


class Optimisation(_Explained):
    """What both training stages set: SGD over groups, each with a rate by epoch."""

    batch: _Batch
    epochs: _Epochs
    patience: Positive | None = None
    """ends training early, after so many epochs in a row that the `select` rule did not like better."""
    steps_per_epoch: Positive | None = None
    """null is once through the larger domain."""
    lr: _LearningRate
    schedule: Literal["steps", "cosine"] = "steps"
    """``steps``, as `lr` says, or ``cosine``, from `lr`, one number, down to 0 at the last step (Loshchilov and
    Hutter, ICLR 2017)."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0
    """in which the rates rise evenly from 0, parts of an epoch too (Goyal et al., 2017)."""
    head_lr_multiplier: Annotated[float, Field(gt=0)] = 10
    """how many times `lr` the new layers learn at."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """of SGD."""
    nesterov: bool = False
    """whether it looks ahead."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    """of SGD, on all weights."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """largest norm of the gradient; null does not clip."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """decay a step of the moving average of the weights, such as 0.999; the averaged network is what is scored and kept
    (Polyak and Juditsky, 1992). null keeps the weights themselves."""
    head_weights: _LossWeights

    @model_validator(mode="after")
    def _cosine_starts_at_one_rate(self) -> Optimisation:
        rates = {"lr": self.lr, "discriminator_lr": getattr(self, "discriminator_lr", {})}
        if self.schedule == "cosine":
            for name, steps in rates.items():
                # The default's first rate is meant where none is named, in a resolved spec too.
                if len(steps) > 1 and steps != type(self).model_fields[name].default:
                    raise ValueError(f"schedule: cosine starts at one rate; set {name} to a number")
        return self


class TrainSource(Optimisation):
    """Stage 1, on the labelled source."""

    batch: _Batch = 64
    epochs: _Epochs = 15
    lr: _LearningRate = {1: 1e-4, 11: 1e-5, 21: 1e-6}
    head_weights: _LossWeights = [5, 1, 1, 1, 1, 1, 5]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """share of the answer given to all expressions alike (Szegedy et al., CVPR 2016)."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """pairs of faces are blended, a batch by one share from Beta(mixup, mixup), and so are their answers (Zhang et al.,
    ICLR 2018); 0 blends none."""
    class_balance: Annotated[float, Field(ge=0, le=1)] = 0.0
    """how far rare expressions weigh more: a face by the size of its class to the power of minus this, 1 in the mean
    (Cui et al., CVPR 2019, compares such weights); 0 treats all faces alike."""
    views: Literal["weak", "strong"] = "weak"
    """of the faces: ``weak`` (flip and crop, as published) or ``strong`` (RandAugment on top)."""
    late_rates: bool = False
    """whether a new learning rate is used one step late, and on the very first step all groups learn at `lr` with half
    the weight decay, as in AGLRLS's code."""
    select: _SourceRule = "source-val"
    """the rule that chooses the epoch: ``source-val``, accuracy on the faces held out, or ``last``."""


class Adapt(Optimisation):
    """Stage 2, adaptation."""

    method: _Method = "aglrls"
    """how (``configs/methods`` has one spec each)."""
    start: Annotated[str, Field(min_length=1)] | None = None
    """the trained model to begin with: ``starter``, a run or stage folder, a model file, a checkpoint, a released one.
    The network, how faces are prepared and ``data.source`` are then the model's. null is the run's own source model."""
    tag: Annotated[str, Field(pattern=r"^[A-Za-z0-9._+-]*$", max_length=100)] = ""
    """put behind the target's name in the folder's, to keep several adaptations to one target."""
    batch: _Batch = 16
    epochs: _Epochs = 30
    lr: _LearningRate = {1: 1e-5, 11: 5e-6, 21: 1e-6}
    discriminator_lr: Rates = {1: 1e-4, 21: 1e-5}
    """learning rate of a method's own discriminators, as `lr`."""
    head_weights: _LossWeights = [7, 1, 1, 1, 1, 1, 7]
    carry_momentum: bool = False
    """whether SGD goes on with the momentum that stage 1 ended its chosen epoch with, as in AGLRLS's code; stage 1 must
    have been trained with this key set."""
    options: dict[str, Any] = {}
    """what the method lets one set."""
    sharpness: Annotated[float, Field(gt=0)] | None = None
    """length of a step uphill of the source's loss, such as 0.05, at whose end a method's own step is computed, for
    flatter minima (SDAT, Rangwani et al., ICML 2022); costs one more pass of the source's faces. null takes none."""
    select: _Rule = "infomax"
    """the rule that chooses the epoch (`fercli.spec.registry`)."""
    select_images: Positive = 2000
    """faces of the target that rules look at, at most."""
    also_score: Names = []
    """costly rules (``dev``) to compute each epoch though another chooses."""

    @field_validator("also_score")
    @classmethod
    def _rules_are_costly(cls, value: list[str]) -> list[str]:
        return [_one_of(name, [rule for rule, about in RULES.items() if about.costly]) for name in value]

    @model_validator(mode="after")
    def _patience_needs_a_score_each_epoch(self) -> Adapt:
        if self.patience is not None and RULES[self.select].post_hoc:
            raise ValueError(f"patience cannot wait for {self.select}, which is known only after the last epoch")
        return self


#: Labels of methods become parts of folders' names.
_LABEL = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"


def _as_methods(value: Any) -> Any:
    named = dict.fromkeys(value) if isinstance(value, list) else value
    return {name: {} if given is None else given for name, given in named.items()} if isinstance(named, dict) else named


_Methods = Annotated[dict[Annotated[str, Field(pattern=_LABEL)], dict[str, Any]], Field(min_length=1)]
_Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(lambda seeds: _each_once(seeds, "seed"))]


#: One union's error would be a line for each of its types.
_Jobs = Positive | Literal["gpus"] | None


def _as_jobs(value: Any) -> Any:
    if value in (None, "gpus") or (isinstance(value, int) and value is not True and 1 <= value <= LARGEST):
        return value
    raise ValueError(f"{brief(repr(value))} is neither a number from 1 on nor gpus")


class Sweep(_Explained):
    """The runs of a sweep (`fercli.sweep`)."""

    methods: Annotated[
        _Methods, BeforeValidator(_as_methods, json_schema_input_type=list[str] | dict[str, dict[str, Any] | None])
    ]
    """label -> what it sets under ``adapt``; without ``method`` the label is the method's name. A list of names does
    where nothing is set. Source-only is always there: all differences are to it."""
    targets: Names | None = None
    """null for those of ``data.targets``."""
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(lambda seeds: _each_once(seeds, "seed"))] = [
        0,
        1,
        2,
    ]
    """of network, batches and views; every run with one seed starts from the same source model."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """``key.path: [values]``, every combination of which is run."""
    jobs: Annotated[_Jobs, BeforeValidator(_as_jobs, json_schema_input_type=_Jobs)] = None
    """cells trained at a time, each in a process of its own: a number, or ``gpus``, one a GPU of this machine. null is
    one, or as many as the cluster has places for."""
    backend: Literal["local", "dask", "ray"] = "local"
    """where: on this machine, or on the workers of a dask or ray cluster, which see data and runs under the same paths
    and train each cell in a process of its own."""
    cluster: str | None = None
    """address of a dask scheduler or a ray head."""


class Evaluate(_Explained):
    """Scores and reports."""

    title: str | None = None
    """of the report; null is the run's name."""
    published: bool = True
    """whether published rows stand beside ours (never beside synthetic data)."""


class Spec(_Explained):
    """One run: what is read, how it is prepared, trained and scored."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=200)] = "baseline"
    """the run's folder under ``paths.runs``."""
    faithful: Literal["corrected", "published"] = "corrected"
    """what the other keys' defaults are: ``corrected``, or ``published``, as the released code of AGLRLS has them with
    what are faults in it (docs/faithful.md). A key that is set stays as it is set."""
    paths: Paths = Paths()
    """Where things are. Relative paths start at the working folder."""
    data: Data = Data()
    """Which datasets take part, and how their faces are varied in training."""
    prepare: Prepare = Prepare()
    """Photographs to aligned faces. Sizes are in pixels."""
    model: Model = Model()
    """The global-local network."""
    engine: Engine = Engine()
    """The one training loop, its device and its habits."""
    train_source: TrainSource = TrainSource()
    """Stage 1: cross-entropy on the labelled source. Weight decay is the published 5e-4, doubled as in the code."""
    adapt: Adapt = Adapt()
    """Stage 2: adaptation to one unlabelled target."""
    evaluate: Evaluate = Evaluate()
    """How a trained run is scored."""
    sweep: Sweep | None = None
    """methods x targets x seeds (``fercli sweep``); null is a single run."""

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
            f"{key}: {rule} chooses by held-out source faces, and with data.validation 0 there are none; set another "
            "rule, such as last"
            for key, rules in named.items()
            for rule in rules
            if RULES[rule].needs_held_out
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def run_folder(self) -> Path:
        """The folder that holds everything this run makes."""
        return self.paths.runs / self.name

    def store_path(self, dataset: str) -> Path:
        """The prepared store of a dataset. Raises SpecError for a name that would lead elsewhere."""
        if not is_file_name(dataset):
            raise SpecError(
                f"{brief(repr(dataset))} cannot be a dataset's name",
                "say where it lies with --root or data.datasets.NAME.root",
            )
        own = self.data.datasets[dataset].store if dataset in self.data.datasets else None
        return own or self.paths.prepared / dataset

    def adapt_folder(self, target: str) -> Path:
        """The folder of the adaptation to one target."""
        return self.run_folder / ("adapt-" + target + (f"-{self.adapt.tag}" if self.adapt.tag else ""))
