"""The run spec: one typed, strict YAML that drives every command.

`load` reads ``-c FILE``, else ``./fercli.yaml``, else the packaged ``configs/default.yaml``, puts ``--set`` overrides
on top and returns a `Spec`, or raises one `SpecError` that lists every problem with its key path, its value and what is
allowed. Defaults are the published settings of AGLRLS (Gao et al., IEEE TMM 2024, arXiv 2401.11085, and its code).
Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from fercli.console import brief
from fercli.errors import SpecError
from fercli.files import is_file_name
from fercli.plugins import is_place, trust
from fercli.yaml_data import MAX_DEPTH, NotYAML, read_yaml, read_yaml_file

#: Head weights are given in this order: global, five local, fused.
NUM_HEADS = 7


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_steps(value: Any) -> Any:
    return {1: value} if isinstance(value, int | float | str) else value


def _as_switch(value: Any) -> Any:
    """YAML takes a bare on or off for a truth value."""
    return ("on" if value else "off") if isinstance(value, bool) else value


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


class Paths(Section):
    """Where things are. Relative paths start at the working folder.

    Attributes:
        data: photographs, each dataset in a folder of its name.
        prepared: stores of prepared faces.
        runs: trained models and their reports, each run in a folder of its name.
    """

    data: Path = Path("data")
    prepared: Path = Path("prepared")
    runs: Path = Path("runs")


class Dataset(Section):
    """How to read a dataset that is not built in, or lies elsewhere than ``paths.data/NAME``.

    Attributes:
        reader: whose layout it has (``fercli datasets`` lists them); without, the dataset's own.
        root: where it lies.
        options: of the reader; ``fercli datasets show NAME`` lists them.
    """

    reader: str | None = None
    root: Path | None = None
    options: dict[str, Any] = {}


class Augment(Section):
    """Random views of faces in training: crop and flip, in stage 2 RandAugment on top.

    Attributes:
        flip: how often a face is mirrored, 0 to 1.
        jitter: how far the crop moves and by how much its size varies, as a share of the face.
        operations: strong operations in a row (RandAugment), of stage 2.
        magnitude: how strong they are, 0 to 10.
        swap_landmarks: whether a mirrored face swaps left and right landmarks; the released code does not.
        move_landmarks: whether strong operations move the landmarks with the face; the released code does not.
    """

    flip: Fraction = 0.5
    jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    operations: Annotated[int, Field(ge=0, le=14)] = 3
    magnitude: Annotated[float, Field(ge=0, le=10)] = 5
    swap_landmarks: bool = True
    move_landmarks: bool = True


class Data(Section):
    """Which datasets take part, and how their faces are varied in training.

    Attributes:
        source: labelled datasets to train on: a name or a list of names.
        balance: how much of every batch each of several sources gets: ``images``, as many as it has (one union, as
            published), ``equal`` shares, or ``sqrt``, by the square root of its faces, which lies between.
        targets: datasets to adapt to and to score on; their labels are read for the score alone.
        datasets: for those of your own, and those elsewhere: ``NAME: {reader: folders, root: FOLDER, options: {}}``.
        validation: what chooses the epoch: a share of the source's training faces, held out, or the name of a split of
            its own (``public-test``), and then all training faces are trained on.
    """

    source: Names = ["raf-db"]
    balance: Literal["images", "sqrt", "equal"] = "sqrt"
    targets: Names = ["ck+", "jaffe", "sfew", "fer2013", "expw"]
    datasets: dict[str, Dataset] = {}
    validation: float | str = 0.1
    augment: Augment = Augment()

    @field_validator("validation")
    @classmethod
    def _share_or_split(cls, value: float | str) -> float | str:
        if value == "" or (not isinstance(value, str) and not 0 < value < 1):
            raise ValueError(
                f"{brief(repr(value))} is neither a share, greater than 0 and less than 1, nor the name of a split"
            )
        return value

    @field_validator("source")
    @classmethod
    def _one_or_more(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("at least one source dataset is needed")
        if len(set(value)) < len(value):
            raise ValueError("a source is named twice")
        return value

    @model_validator(mode="after")
    def _target_is_not_source(self) -> Data:
        both = sorted(set(self.source) & set(self.targets))
        if both:
            raise ValueError(
                f"{', '.join(both)} stands in both data.source and data.targets; a target must be another set"
            )
        return self


class Prepare(Section):
    """Photographs to aligned faces. Sizes are in pixels.

    Attributes:
        align: ``template``, a similarity to the ArcFace template by five landmarks, or ``box``, the paper's square
            around the box, not turned.
        landmarks: ``detect``, or ``given``: the dataset's own, where it brings any.
        missing: what becomes of pictures without a face: ``reject``, or ``mean-landmarks``, the dataset's mean shape.
        size: side of the face as the network sees it.
        margin: how much more is kept around it, for jitter.
        crop_size: side of the local crops.
        crop_zoom: how much closer than the face the local crops look.
        confidence: least score of a detection, 0 to 1.
        low_confidence: the same in the later retries.
        retries: what is tried, in this order, where no face is found.
        workers: processes; 0 is all cores, or all of the cluster.
        backend: where they run.
        cluster: address of a dask scheduler or a ray head.
        chunk: records in a piece of work; no byte of the store depends on it.
    """

    align: Literal["template", "box"] = "template"
    landmarks: Literal["detect", "given"] = "detect"
    missing: Literal["reject", "mean-landmarks"] = "reject"
    size: Annotated[int, Field(ge=32, le=448)] = 112
    margin: Annotated[int, Field(ge=0, le=112)] = 14
    crop_size: Annotated[int, Field(ge=16, le=224)] = 48
    crop_zoom: Annotated[float, Field(gt=0, le=8)] = 1.5
    confidence: Fraction = 0.5
    low_confidence: Fraction = 0.2
    retries: list[Literal["border", "upscale", "low-confidence", "full-range", "rotate"]] = [
        "border",
        "upscale",
        "low-confidence",
        "full-range",
        "rotate",
    ]
    workers: Annotated[int, Field(ge=0, le=1 << 15)] = 0
    backend: Literal["loky", "dask", "ray", "threading", "sequential"] = "loky"
    cluster: str | None = None
    chunk: Positive = 64

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


class Model(Section):
    """The global-local network.

    Attributes:
        backbone: of the global branch; ``ir-lite`` and ``ir-small`` are for CPUs.
        width: channels of the first layer of ir-lite and ir-small; the others have their own.
        local: what the five local nets see: windows of the backbone's ``feature-map``, or patches of the photograph.
        classifiers: whether the five local heads have one (``shared``) or one each (``separate``).
        input: ``colour``, or ``grey``: the face's luminance alone, for a source without colours.
        test_flip: whether the answer for a face is the mean of its picture's and its mirror image's.
        weights: a checkpoint to start from (``fercli weights inspect FILE`` tells what one fills); without, noise.
            ``starter`` is the model that comes with fercli.
    """

    backbone: Literal["ir50", "ir18", "mobilenet-v2", "ir-small", "ir-lite"] = "ir50"
    width: Annotated[int, Field(ge=4, le=64)] = 16
    local: Literal["feature-map", "image-crop"] = "feature-map"
    classifiers: Literal["shared", "separate"] = "shared"
    input: Literal["colour", "grey"] = "colour"
    test_flip: bool = False
    weights: Path | None = None

    @property
    def reads_crops(self) -> bool:
        """Whether batches must bring the prepared local crops."""
        return self.local == "image-crop"

    @field_validator("weights", mode="before")
    @classmethod
    def _a_place_stays_one(cls, value: Any) -> Any:
        """Keep ``./starter``, which a path forgets to be a place, apart from the word ``starter``."""
        from fercli.starter import NAME

        return (
            Path(value).absolute() if isinstance(value, str) and value != NAME and Path(value) == Path(NAME) else value
        )


class Engine(Section):
    """The one training loop, its device and its habits.

    Attributes:
        device: where the network is trained; ``auto`` is CUDA where there is any.
        precision: of the network in training; losses, saved weights and evaluation are float32 in any case. ``auto`` is
            bf16-mixed on CUDA devices that have it, else 32-true.
        compile: ``torch.compile`` for the network in training; ``auto`` does so on a single CUDA device.
        data: where prepared faces wait: whole on the ``device``, or in the ``host``'s memory; ``auto`` is the device
            where it is a CUDA device and they fit.
        crop_nets: how the five crop nets run (`fercli.models.local.LocalNets`); ``auto`` measures on CUDA devices, and
            is ``grouped`` for small nets on CPUs.
        threads: of the processor; 0 leaves it to torch.
        seed: of network, batches and views.
        deterministic: the same bits from run to run on the same machine; slower.
        log_every: steps between two lines of the log.
        save_every_s: seconds between two checkpoints to go on from.
        evaluate_batch: faces at a time where nothing is trained.
        tensorboard: whether curves are written for TensorBoard too.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "32-true", "tf32", "bf16-mixed", "16-mixed"] = "auto"
    compile: Annotated[
        Literal["off", "auto", "on"],
        BeforeValidator(_as_switch, json_schema_input_type=Literal["off", "auto", "on"] | bool),
    ] = "off"
    data: Literal["auto", "device", "host"] = "auto"
    crop_nets: Literal["auto", "loop", "grouped", "matmul"] = "auto"
    threads: Annotated[int, Field(ge=0, le=1 << 15)] = 0
    seed: Seed = 0
    deterministic: bool = False
    log_every: Positive = 20
    save_every_s: Annotated[float, Field(ge=0)] = 300
    evaluate_batch: Positive = 128
    tensorboard: bool = True


class Optimisation(Section):
    """What both training stages set: SGD over groups, each with a rate by epoch.

    Attributes:
        batch: faces in a batch, of each domain.
        epochs: how many; may be raised later, the same command then goes on.
        patience: ends training early, after so many epochs in a row that the `select` rule did not like better.
        steps_per_epoch: null is once through the larger domain.
        rate: learning rate of the backbone, one number or ``{first epoch: rate, ...}``.
        schedule: ``steps``, as `rate` says, or ``cosine``, from `rate`, one number, down to 0 at the last step
            (Loshchilov and Hutter, ICLR 2017).
        warmup_epochs: in which the rates rise evenly from 0, parts of an epoch too (Goyal et al., 2017).
        new_rate: how many times that the new layers learn at.
        momentum: of SGD.
        nesterov: whether it looks ahead.
        weight_decay: of SGD, on all weights.
        clip_norm: largest norm of the gradient; null does not clip.
        ema: decay a step of the moving average of the weights, such as 0.999; the averaged network is what is scored
            and kept (Polyak and Juditsky, 1992). null keeps the weights themselves.
        head_weights: of the heads' losses: global, five local, fused.
    """

    batch: Annotated[int, Field(ge=2)]
    epochs: Positive
    patience: Positive | None = None
    steps_per_epoch: Positive | None = None
    rate: Rates
    schedule: Literal["steps", "cosine"] = "steps"
    warmup_epochs: Annotated[float, Field(ge=0)] = 0
    new_rate: Annotated[float, Field(gt=0)] = 10
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    head_weights: HeadWeights

    @model_validator(mode="after")
    def _cosine_starts_at_one_rate(self) -> Optimisation:
        rates = {"rate": self.rate, "discriminator_rate": getattr(self, "discriminator_rate", {})}
        if self.schedule == "cosine":
            for name, steps in rates.items():
                # The default's first rate is meant where none is named, in a resolved spec too.
                if len(steps) > 1 and steps != type(self).model_fields[name].default:
                    raise ValueError(f"schedule: cosine starts at one rate; set {name} to a number")
        return self


class TrainSource(Optimisation):
    """Stage 1: cross-entropy on the labelled source. Weight decay is the published 5e-4, doubled as in the code.

    Attributes:
        label_smoothing: share of the answer given to all expressions alike (Szegedy et al., CVPR 2016).
        mixup: pairs of faces are blended, a batch by one share from Beta(mixup, mixup), and so are their answers
            (Zhang et al., ICLR 2018); 0 blends none.
        class_balance: how far rare expressions weigh more: a face by the size of its class to the power of minus this,
            1 in the mean (Cui et al., CVPR 2019, compares such weights); 0 treats all faces alike.
        views: of the faces: ``weak`` (flip and crop, as published) or ``strong`` (RandAugment on top).
        select: the rule that chooses the epoch: ``source-val``, accuracy on the faces held out, or ``last``.
    """

    batch: Annotated[int, Field(ge=2)] = 64
    epochs: Positive = 15
    rate: Rates = {1: 1e-4, 11: 1e-5, 21: 1e-6}
    head_weights: HeadWeights = [5, 1, 1, 1, 1, 1, 5]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mixup: Annotated[float, Field(ge=0)] = 0.0
    class_balance: Annotated[float, Field(ge=0, le=1)] = 0.0
    views: Literal["weak", "strong"] = "weak"
    select: str = "source-val"

    @field_validator("select")
    @classmethod
    def _rule_needs_no_target(cls, value: str) -> str:
        from fercli.evaluation.rules import RULES  # torch-free

        return _one_of(value, [name for name, rule in RULES.items() if not rule.needs_target])


class Adapt(Optimisation):
    """Stage 2: adaptation to one unlabelled target.

    Attributes:
        method: how (``configs/methods`` has one spec each).
        options: what the method lets one set.
        discriminator_rate: learning rate of a method's own discriminators, as `rate`.
        tag: put behind the target's name in the folder's, to keep several adaptations to one target.
        select: the rule that chooses the epoch (`fercli.evaluation.rules`).
        select_images: faces of the target that rules look at, at most.
        also_score: costly rules (``dev``) to reckon each epoch though another chooses.
    """

    method: str = "aglrls"
    tag: Annotated[str, Field(pattern=r"^[A-Za-z0-9._+-]*$", max_length=100)] = ""
    batch: Annotated[int, Field(ge=2)] = 16
    epochs: Positive = 30
    rate: Rates = {1: 1e-5, 11: 5e-6, 21: 1e-6}
    discriminator_rate: Rates = {1: 1e-4, 21: 1e-5}
    head_weights: HeadWeights = [7, 1, 1, 1, 1, 1, 7]
    options: dict[str, Any] = {}
    select: str = "infomax"
    select_images: Positive = 2000
    also_score: Names = []

    @field_validator("select")
    @classmethod
    def _rule_exists(cls, value: str) -> str:
        from fercli.evaluation.rules import RULES  # torch-free

        return _one_of(value, list(RULES))

    @field_validator("also_score")
    @classmethod
    def _rules_are_costly(cls, value: list[str]) -> list[str]:
        from fercli.evaluation.rules import RULES  # torch-free

        return [_one_of(name, [rule for rule, about in RULES.items() if about.costly]) for name in value]

    @model_validator(mode="after")
    def _patience_needs_a_score_each_epoch(self) -> Adapt:
        from fercli.evaluation.rules import RULES  # torch-free

        if self.patience is not None and RULES[self.select].post_hoc:
            raise ValueError(f"patience cannot wait for {self.select}, which is known only after the last epoch")
        return self

    @field_validator("method")
    @classmethod
    def _method_exists(cls, value: str) -> str:
        from fercli.methods import METHODS  # torch-free

        return value if is_place(value) else _one_of(value, list(METHODS))


#: Problems that are told one by one.
_MOST_PROBLEMS = 20

#: Labels of methods become parts of folders' names.
_LABEL = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"


def _as_methods(value: Any) -> Any:
    named = dict.fromkeys(value) if isinstance(value, list) else value
    return {name: {} if given is None else given for name, given in named.items()} if isinstance(named, dict) else named


_Methods = Annotated[dict[Annotated[str, Field(pattern=_LABEL)], dict[str, Any]], Field(min_length=1)]


class Sweep(Section):
    """Methods x targets x seeds, and any key of the spec (`fercli.sweep`).

    Attributes:
        methods: label -> what it sets under ``adapt``; without ``method`` the label is the method's name. A list of
            names does where nothing is set. Source-only is always there: all differences are to it.
        targets: null for those of ``data.targets``.
        seeds: of network, batches and views; every run with one seed starts from the same source model.
        grid: ``key.path: [values]``, every combination of which is run.
        jobs: cells trained at a time, each in a process of its own.
    """

    methods: Annotated[
        _Methods, BeforeValidator(_as_methods, json_schema_input_type=list[str] | dict[str, dict[str, Any] | None])
    ]
    targets: Names | None = None
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1, 2]
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    jobs: Positive = 1

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value):
            raise ValueError("a seed is named twice")
        return value


class Evaluate(Section):
    """How a trained run is scored.

    Attributes:
        title: of the report; null is the run's name.
        published: whether published rows stand beside ours (never beside stand-ins).
    """

    title: str | None = None
    published: bool = True


class Spec(Section):
    """One run: what is read, how it is prepared, trained and scored.

    Attributes:
        name: the run's folder under ``paths.runs``.
        sweep: methods x targets x seeds (``fercli sweep``); null is a single run.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=200)] = "baseline"
    paths: Paths = Paths()
    data: Data = Data()
    prepare: Prepare = Prepare()
    model: Model = Model()
    engine: Engine = Engine()
    train_source: TrainSource = TrainSource()
    adapt: Adapt = Adapt()
    evaluate: Evaluate = Evaluate()
    sweep: Sweep | None = None

    @property
    def run_folder(self) -> Path:
        """The folder that holds everything this run makes."""
        return self.paths.runs / self.name

    def store_path(self, dataset: str) -> Path:
        """The prepared store of a dataset. Raises SpecError for a name that would lead elsewhere."""
        if not is_file_name(dataset):
            raise SpecError(
                f"{brief(repr(dataset))} cannot be a dataset's name; say where it lies with --root or "
                "data.datasets.NAME.root"
            )
        return self.paths.prepared / dataset

    def adapt_folder(self, target: str) -> Path:
        """The folder of the adaptation to one target."""
        return self.run_folder / ("adapt-" + target + (f"-{self.adapt.tag}" if self.adapt.tag else ""))


def to_yaml(spec: Spec) -> str:
    """The resolved spec as YAML, every default written out."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, width=120)


def config_folder() -> Path:
    """The folder of the packaged specs: ``fercli/configs`` where installed, ``configs`` beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def packaged() -> dict[str, Path]:
    """The specs that come with fercli, by name; those of single methods are ``methods/NAME``."""
    folder = config_folder()
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def local_spec() -> Path | None:
    """The spec that the working folder has, ``./fercli.yaml``; None without one that can be read."""
    local = Path("fercli.yaml")
    return local if os.path.isfile(local) else None


def find(file: str | None) -> Path:
    """The spec file that ``-c FILE`` means: a path, or the name of a packaged spec.

    Raises:
        SpecError: there is neither such a file nor such a packaged spec.
    """
    if file is None:
        return local_spec() or packaged()["default"]
    path = Path(file)
    if os.path.isfile(path):
        return path
    if file in packaged():
        return packaged()[file]
    raise SpecError(f"no spec file {brief(file, 200)}; give a path, or a packaged spec: {', '.join(packaged())}")


def load(file: str | None = None, overrides: Sequence[str] = (), shortcuts: dict[str, Any] | None = None) -> Spec:
    """Read the run spec.

    Args:
        file: what ``-c/--spec`` was given; see `find`.
        overrides: ``key.path=value`` strings, the value in YAML (``adapt.epochs=5``, ``data.source=[raf-db, ck+]``).
        shortcuts: key path -> value from other options, put on top of the overrides.

    Raises:
        SpecError: with every problem, one a line.
    """
    path = find(file)
    tree = read_yaml_file(path)
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise SpecError(
            f"{path} must be a mapping of sections (paths, data, prepare, ...), not a {type(tree).__name__}"
        )
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise SpecError(f"--set {brief(text)}: write it as key.path=value, such as --set adapt.epochs=5")
        try:
            _put(tree, key.strip(), read_yaml(value))
        except NotYAML as problem:
            raise SpecError(f"--set {brief(text)}: the value is not YAML that fercli reads: {problem}") from None
    for key, value in (shortcuts or {}).items():
        _put(tree, key, value)
    spec = parse(tree, where=str(path))
    sweep = {} if spec.sweep is None else spec.sweep.methods
    trust(spec.adapt.method, *(str(given.get("method", label)) for label, given in sweep.items()))
    return spec


def parse(tree: dict[str, Any], where: str = "spec") -> Spec:
    """Check a nested mapping and return the `Spec`; see `load` for errors."""
    try:
        return Spec.model_validate(tree)
    except ValidationError as problem:
        lines = list(explain(problem, Spec))
        head = f"{where}: {max(problem.error_count(), len(lines))} problems"
        raise SpecError("\n  ".join([head, *lines]) if len(lines) > 1 else f"{where}: {lines[0]}") from None


def explain(problem: ValidationError, model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield one line a problem, and one for those beyond the first twenty: key path, value, what is allowed."""
    found = problem.errors(include_url=False)
    for item in found[:_MOST_PROBLEMS]:
        path = brief(".".join([prefix, *map(str, item["loc"])] if prefix else map(str, item["loc"])))
        value = brief(repr(item["input"]))
        if item["type"] == "extra_forbidden":
            *parents, key = item["loc"]
            known = _keys_at(model, parents)
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            yield f"{path}: unknown key ({hint})"
        elif item["type"] == "literal_error":
            yield f"{path}: {value} is not allowed; one of {item['ctx']['expected'].replace(' or ', ', ')}"
        elif item["type"] == "value_error":
            yield from (f"{path + ': ' if path else ''}{line}" for line in str(item["ctx"]["error"]).splitlines())
        elif item["type"] == "string_type" and isinstance(item["input"], int | float | date):
            yield f"{path}: {value}: write it in quotes, '{item['input']}'"
        else:
            yield f"{path}: {value}: {item['msg'][0].lower()}{item['msg'][1:]}"
    if len(found) > _MOST_PROBLEMS:
        yield f"and {len(found) - _MOST_PROBLEMS} more"


def _one_of(value: str, names: Sequence[str]) -> str:
    if value not in names:
        close = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"{brief(repr(value))} is not known{hint}; one of {', '.join(names)}")
    return value


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    if len(parents) > MAX_DEPTH:
        raise SpecError(f"--set {brief(path)}: no key of the spec lies that deep")
    for key in parents:
        below = tree.get(key)
        tree[key] = dict(below) if isinstance(below, dict) else {}
        tree = tree[key]
    tree[last] = value


def _keys_at(model: type[BaseModel], path: Sequence[Any]) -> list[str]:
    for key in path:
        field = model.model_fields.get(str(key))
        inner = field.annotation if field else None
        inner = next((one for one in get_args(inner) if one is Sweep), inner)  # Sweep | None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            # The values of a mapping (data.datasets.NAME) are Dataset sections.
            return list(Dataset.model_fields)
        model = inner
    return list(model.model_fields)
