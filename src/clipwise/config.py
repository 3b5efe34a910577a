"""The typed configuration, defined once: a YAML recipe fills it, the command line overrides with ``--set``.

The classes are plain dataclasses, so that training and evaluation need nothing more; pydantic checks what comes
from a file or a command line (:func:`load_config`).
"""

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

__all__ = [
    "READING",
    "AugmentationConfig",
    "Config",
    "DataConfig",
    "ModelConfig",
    "TrainingConfig",
    "ViewsConfig",
    "config_from_mapping",
    "flat",
    "load_config",
    "override_reading",
    "override_views",
    "recipe_names",
    "recipe_text",
    "section_from_json",
]

_STRICT = {"extra": "forbid"}

READING = (
    "data.on_error",
    "data.max_failed",
    "data.workers",
    "training.compile",
    "training.activation_checkpointing",
)
"""What a run that resumes may change, for its network sees the same clips and learns the same of them."""


def _at_least(section: object, minimum: float, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        if value is not None and not minimum <= value < math.inf:
            raise ValueError(f"{name} must be a number of at least {minimum:g}, got {value}")


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    __pydantic_config__ = _STRICT

    name: str = "stm_resnet50"
    """One of ``clipwise models``."""
    num_frames: int = 8
    """T, frames a clip; of a recipe that leaves it out, as many as the network usually takes."""
    weights: str | None = "imagenet"
    """Where it starts: ``imagenet``, the path of a weight file or of a run's folder (its best weights), or null for
    random; left out, ``imagenet`` where there is such a file for the network."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keywords of ``create_model``: dropout, stages, placement, caffe_stride, base_width, alpha …"""

    def __post_init__(self) -> None:
        _at_least(self, 1, "num_frames")


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how frames are drawn from it in training."""

    __pydantic_config__ = _STRICT

    train_split: str = "train"
    """The manifest's split to train on."""
    validation_split: str = "val"
    """The manifest's split to validate on; ``none`` for no validation."""
    holdout: float = 0.2
    """Where the data has no splits: the share of each class that is held out for validation, by ``training.seed``."""
    head: str | None = None
    """Of a manifest with several heads, such as verb and noun: the one to train; null for one network with all."""
    sampling: Literal["segments", "tsm", "dense"] = "segments"
    """Training frames: a random one of each segment, TSM's formula for that, or consecutive frames with a stride."""
    stride: int = 8
    """Frames from one to the next in dense sampling."""
    short: Literal["wrap", "repeat"] = "wrap"
    """What dense sampling does with a video shorter than its window."""
    workers: int = 2
    """Loader processes."""
    in_memory: bool = False
    """Decode all videos once before the first step and keep their frames in memory, shrunk to a short side of
    ``views.size / views.crop_ratio``; refused where they do not fit."""
    on_error: Literal["raise", "skip", "report"] = "raise"
    """At a video that cannot be read: stop; leave it out and name it at the end; or name it at once and also let the
    run end with exit status 1. It is never replaced by another."""
    max_failed: float = 0.05
    """Stop where more than this share of the videos could not be read."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "stride")
        _at_least(self, 0, "workers")
        if not 0 <= self.max_failed <= 1:
            raise ValueError(f"max_failed is a share, from 0 to 1, got {self.max_failed}")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout must lie between 0 and 1, got {self.holdout}")


@dataclass(frozen=True)
class AugmentationConfig:
    """How training clips are cropped and changed. The first three concern the crop, which is cut in the worker."""

    __pydantic_config__ = _STRICT

    position: Literal["corner", "centre", "anywhere"] = "corner"
    """Where a crop may lie: the thirteen positions of multi-scale corner crops, the centre, or anywhere."""
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    """Sides of the crop, as shares of the short side."""
    max_distort: int = 1
    """How far apart in ``scales`` height and width may be; 0 keeps the crop square."""
    flip: bool = True
    """Mirror half of the clips; a class named left or right changes into its partner, or is never mirrored."""
    reverse: bool = False
    """Play half of the clips backwards, of classes whose reversed partner is in the list: opening and closing …"""
    reverse_pairs: tuple[tuple[str, str], ...] = ()
    """Pairs of classes that are each other backwards, beside the known ones; a class paired with itself is the same
    either way."""
    brightness: float = 0.0
    """Strength of the jitter, drawn once a clip, as for the next three."""
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    greyscale: float = 0.0
    """Probability that a clip becomes grey."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "max_distort", "brightness", "contrast", "saturation", "hue", "greyscale")
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise ValueError(f"scales must lie in (0, 1], got {self.scales}")
        if self.reverse_pairs and not self.reverse:
            raise ValueError(f"reverse_pairs need reverse: true, got pairs of {self.reverse_pairs[0]} alone")
        if self.hue > 0.5 or self.greyscale > 1:
            raise ValueError(f"hue is at most 0.5 and greyscale at most 1, got {self.hue} and {self.greyscale}")

    @property
    def changes_colour(self) -> bool:
        """Whether anything happens to the pixels' values."""
        return any((self.brightness, self.contrast, self.saturation, self.hue, self.greyscale))


@dataclass(frozen=True)
class ViewsConfig:
    """The views of a video in testing: clips × crops, and how they are averaged. It travels with the weights.

    The papers' are :mod:`clipwise.evaluation.presets`.
    """

    __pydantic_config__ = _STRICT

    size: int = 224
    """Pixels of a side of the network's input, in training too; left out, the network's usual size."""
    crop_ratio: float = 0.875
    """Side of the centre crop as a share of the short side: 0.875 is 224 of 256."""
    three_crop_ratio: float = 1.0
    """The same where there are three crops: 1 is the whole short side."""
    clips: int = 1
    """Clips a video."""
    sampling: Literal["middle", "two_clips", "uniform", "random", "dense", "slowfast"] = "middle"
    """Where the clips lie (1 for ``middle``, 2 for ``two_clips``); ``slowfast``: dense, PySlowFast's places."""
    stride: int = 8
    """Frames from one to the next in dense sampling."""
    short: Literal["wrap", "repeat"] = "wrap"
    """What dense sampling does with a video shorter than its window."""
    average: Literal["softmax", "logits"] = "softmax"
    """A video's score: the mean of its views' softmax, or the softmax of the mean of their logits."""
    crops: Literal[1, 3] = 1
    """1: the centre. 3: along the longer side, by default each as high as the short side."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of red, green and blue in [0, 1], subtracted; left out, what the network's own weights expect."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Divided by."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "clips", "stride")
        if self.size < 32:
            raise ValueError(f"size must be at least 32 pixels, for the network halves it five times; got {self.size}")
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(f"crop_ratio must lie in (0, 1], got {self.crop_ratio}")
        if not 0 < self.three_crop_ratio <= 1:
            raise ValueError(f"three_crop_ratio must lie in (0, 1], got {self.three_crop_ratio}")
        fixed = {"middle": 1, "two_clips": 2}.get(self.sampling)
        if fixed is not None and self.clips != fixed:
            raise ValueError(
                f"sampling {self.sampling!r} means clips={fixed}, got clips={self.clips}; any number goes with "
                "sampling 'uniform', 'random', 'dense' or 'slowfast'"
            )
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std must be positive, got {self.std}")

    @property
    def one(self) -> "ViewsConfig":
        """The middle clip's centre crop alone."""
        sampling: Literal["middle", "dense"] = "dense" if self.sampling in ("dense", "slowfast") else "middle"
        return dataclasses.replace(self, clips=1, crops=1, sampling=sampling)


@dataclass(frozen=True)
class TrainingConfig:
    """SGD and its schedule."""

    __pydantic_config__ = _STRICT

    epochs: int = 50
    batch_size: int = 32
    """Clips a step, of all processes together."""
    lr: float = 0.01
    """Learning rate at ``reference_batch`` clips a step; the one in force is lr · batch_size / reference_batch."""
    reference_batch: int = 64
    momentum: float = 0.9
    nesterov: bool = False
    """Nesterov's momentum."""
    weight_decay: float = 5e-4
    norm_weight_decay: float | None = None
    """That of normalisations' scale and shift; null: the same."""
    schedule: Literal["steps", "cosine"] = "cosine"
    milestones: tuple[int, ...] = ()
    """Epochs at which the rate falls to a tenth (``steps``)."""
    warmup_epochs: float = 0.0
    """Epochs in which the rate rises from 0."""
    gradient_clip: float | None = 20.0
    """Largest norm of the gradient, null for none."""
    accumulate: int = 1
    """Parts of equal size that a step's clips go through the network in, one after another, for less memory; their
    gradients are summed, and BatchNorm sees one part at a time. Not with ``twins``."""
    lr_factors: dict[str, float] = field(default_factory=dict)
    """Multiples of the learning rate for parameters by the first parts of their name, such as ``{fc: 5, layer1: 0.1}``;
    the longest that fits counts, ``""`` fits all, and 0 leaves parameters and BatchNorm statistics as they are."""
    layer_decay: float = 1.0
    """Factor on the learning rate from one stage of the network to the one before it, the head being the last; 1 for
    none."""
    batch_norm: Literal["train", "partial", "frozen"] = "train"
    """Which BatchNorms are trained: all; only the first (TSN's partial BN); or none. The others keep the statistics,
    scale and shift that they started with."""
    sync_batch_norm: bool = False
    """BatchNorm over the clips of all processes together, on GPUs; without it, over each one's own."""
    ema: float = 0.0
    """Decay, a step, of the exponential mean of weights and BatchNorm statistics, which is then what is validated and
    kept; 0 for none. It looks back on about 1 / (1 − ema) steps, which should be few beside the run's."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes of a head; where a video has a set of labels, over yes and no
    of each class."""
    mixup: float = 0.0
    """α of the Beta distribution of mixup's weight, drawn once a batch; 0 for none."""
    cutmix: float = 0.0
    """The same of cutmix, which takes one rectangle of all frames from another clip; with both, each half the time."""
    twins: bool = False
    """Twins Training [STM-J §3.5]: two augmentations of each clip and the correlation loss between their logits; a step
    of ``batch_size`` clips puts twice as many through the network."""
    twins_lambda: float = 0.01
    """Weight of the correlation loss."""
    twins_beta: float = 0.0039
    """Weight of its part off the diagonal."""
    balanced: bool = False
    """Draw classes (of several heads the first one's) with equal probability, with replacement."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16 is autocast: weights stay fp32."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the network for training; ``auto``: on a GPU in a run of 1,000 steps or more, and not on a CPU, where it
    does not pay."""
    activation_checkpointing: bool = False
    """Keep activations between blocks only, and compute the others once more in the backward pass: less memory, a third
    more computing, the same numbers."""
    validation_views: Literal["one", "all"] = "one"
    """What each epoch is validated by: the middle clip's centre crop, or all of ``views``, which may cost more than the
    epoch."""
    best_by: Literal["top1", "mean_class_accuracy"] = "top1"
    """The validation figure that picks ``best.safetensors``, of several heads their mean; where a video has a set of
    labels it is mean average precision."""
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least(self, 1, "epochs", "batch_size", "reference_batch", "accumulate")
        _at_least(self, 0, "lr", "momentum", "weight_decay", "norm_weight_decay", "warmup_epochs", "gradient_clip")
        _at_least(self, 0, "seed")
        _at_least(self, 0, "ema", "label_smoothing", "mixup", "cutmix", "twins_lambda", "twins_beta")
        for prefix, factor in self.lr_factors.items():
            if not 0 <= factor < math.inf:
                raise ValueError(f"lr_factors are numbers of at least 0 (0 freezes), got {factor} for {prefix!r}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must lie in (0, 1], 1 for none, got {self.layer_decay}")
        if self.label_smoothing >= 1:
            raise ValueError(f"label_smoothing is a share, from 0 to below 1, got {self.label_smoothing}")
        if (self.twins or self.mixup or self.cutmix) and self.batch_size < 2:
            raise ValueError(
                f"twins, mixup and cutmix need other clips beside each: raise batch_size, got {self.batch_size}"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate must divide batch_size, for its parts are of equal size; got {self.accumulate} parts of "
                f"{self.batch_size} clips"
            )
        if self.twins and self.accumulate > 1:
            raise ValueError(
                "twins correlate the logits of a whole batch, which accumulate would divide; leave one of the two out, "
                f"or train in several processes, got accumulate {self.accumulate}"
            )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is a kind of momentum: give momentum above 0, got 0")
        if self.compile not in (True, False, "auto"):
            raise ValueError(f"compile is true, false or 'auto', got {self.compile!r}")
        if self.ema >= 1:
            raise ValueError(f"ema is a decay, from 0 (none) to below 1, such as 0.999; got {self.ema}")
        if self.gradient_clip == 0:
            raise ValueError("gradient_clip must be above 0, or null for none, got 0")
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below 2**32, got {self.seed}")
        if self.schedule == "steps" and not all(0 < milestone < self.epochs for milestone in self.milestones):
            raise ValueError(f"milestones must lie inside the run's {self.epochs} epochs, got {self.milestones}")

    @property
    def effective_lr(self) -> float:
        """The learning rate in force at this batch size."""
        return self.lr * self.batch_size / self.reference_batch


@dataclass(frozen=True)
class Config:
    """A whole experiment. Which data it runs on, and where the run is kept, are arguments beside it."""

    __pydantic_config__ = _STRICT

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON and YAML hold them."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Config":
        """What :meth:`to_dict` gave; nothing is checked that the classes do not check themselves.

        Raises:
            TypeError: for a field that does not exist.
            ValueError: for a value out of range.
        """
        kinds = {entry.name: entry.default_factory for entry in dataclasses.fields(cls)}
        return cls(**{name: section_from_json(kinds[name], section) for name, section in values.items()})  # type: ignore[arg-type]

    @property
    def sha256(self) -> str:
        """Hash of the values, the same however the recipe was written."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration's values by dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


Section = TypeVar("Section")


def section_from_json(kind: Callable[..., Section], values: dict[str, Any]) -> Section:
    """A section of the configuration from its plain values, whose lists become tuples."""
    return kind(**{key: _tuples(value) for key, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("clipwise") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """A recipe of the package as it is written, with its opening comment.

    Raises:
        ValueError: if there is none of that name; the message gives the nearest names.
    """
    names = recipe_names()
    if name not in names:
        near = [known for known in names if name in known] or difflib.get_close_matches(name, names, n=6)
        raise ValueError(
            f"no recipe {name!r}: neither a file nor one that comes with the package"
            + (f"; near it: {', '.join(near[:6])}" if name and near else "; `clipwise recipes` lists those")
        )
    return (resources.files("clipwise") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def load_config(recipe: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe and apply overrides such as ``training.lr=0.02``.

    Args:
        recipe: a name of :func:`recipe_names`, the path of a YAML file, or None for the defaults.
        overrides: ``section.field=value``, the value in YAML.

    Raises:
        ValueError: for a recipe, field or value that does not exist or fit; the message names each.
    """
    values = _read_recipe(recipe) if recipe is not None else {}
    for override in overrides:
        _apply_override(values, override)
    config = config_from_mapping(values, source=str(recipe) if recipe is not None else "the command line")
    _check_schedule(config.training)
    return config


def _check_schedule(training: TrainingConfig) -> None:
    """Raises ValueError for a schedule that would quietly be another than its fields say."""
    if training.schedule == "steps" and not training.milestones and training.epochs > 1:
        raise ValueError(
            "training.schedule=steps without milestones never changes the rate; say where it falls, such as "
            "training.milestones=[20, 40]"
        )
    if training.schedule != "steps" and training.milestones:
        raise ValueError(
            f"training.milestones={list(training.milestones)} belong to training.schedule=steps, and it is "
            f"{training.schedule}; set that, or training.milestones=[]"
        )
    if training.warmup_epochs > training.epochs:
        raise ValueError(
            f"training.warmup_epochs={training.warmup_epochs:g} of {training.epochs} epochs: the full rate is never "
            "reached; make it smaller, 0 for none"
        )


def override_views(views: ViewsConfig, overrides: Sequence[str]) -> ViewsConfig:
    """A testing protocol changed by overrides such as ``views.crops=3``.

    Raises:
        ValueError: for a field outside ``views``, or a value that does not fit.
    """
    values: dict[str, Any] = {"views": dataclasses.asdict(views)}
    for override in overrides:
        if not override.startswith("views."):
            raise ValueError(f"only fields of views can be set here, such as views.crops=3; got {override!r}")
        _apply_override(values, override)
    return config_from_mapping(values, source="the command line").views


def override_reading(config: Config, overrides: Sequence[str]) -> Config:
    """A run's configuration with another way of reading: what a run that resumes may change, for it sees the same.

    Raises:
        ValueError: for any other field, or a value that does not fit.
    """
    values = config.to_dict()
    for override in overrides:
        if override.partition("=")[0].strip() not in READING:
            raise ValueError(
                f"a resumed run goes on as it was begun; only {', '.join(READING)} can be set, got {override!r}"
            )
        _apply_override(values, override)
    return config_from_mapping(values, source="the command line") if overrides else config


def config_from_mapping(values: dict[str, Any], *, source: str) -> Config:
    """Check plain values and make them a :class:`Config`; ``source`` is named in messages.

    Frames, start, size of image, mean and std that are not given are those the network usually has.

    Raises:
        ValueError: naming each field that is unknown or does not fit.
    """
    from pydantic import TypeAdapter, ValidationError

    values = _with_network_defaults({name: section for name, section in values.items() if section is not None})
    try:
        return TypeAdapter(Config).validate_python(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            where = ".".join(str(part) for part in problem["loc"])
            if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
                lines.append(f"{where}: there is no such field{_fields_of(problem['loc'])}")
            else:
                message = problem["msg"].removeprefix("Value error, ")
                lines.append(
                    f"{where}: {message}"
                    + ("" if isinstance(problem["input"], dict) else f", got {problem['input']!r}")
                )
        raise ValueError(f"{source}: " + "; ".join(lines)) from error


def _with_network_defaults(values: dict[str, Any]) -> dict[str, Any]:
    from clipwise.models.registry import list_models, model_entry

    model, views = values.get("model", {}), values.get("views", {})
    if not isinstance(model, dict) or not isinstance(views, dict):
        return values  # the check that follows says what is wrong
    name = model.get("name", ModelConfig.name)
    if name not in list_models():
        return values
    entry = model_entry(name)
    start = {} if entry.image_backbone else {"weights": None}
    usual = {"size": entry.size, "mean": entry.mean, "std": entry.std}
    return {**values, "model": {"num_frames": entry.num_frames, **start, **model}, "views": {**usual, **views}}


def _fields_of(location: tuple[int | str, ...]) -> str:
    section: Any = Config
    for part in location[:-1]:
        named = {entry.name: entry.type for entry in dataclasses.fields(section)}
        section = named.get(str(part))
        if not dataclasses.is_dataclass(section):
            return ""
    return f"; there are {', '.join(entry.name for entry in dataclasses.fields(section))}"


def _read_recipe(recipe: str | Path) -> dict[str, Any]:
    import yaml

    path = Path(recipe)
    text = path.read_text(encoding="utf-8") if path.is_file() else recipe_text(str(recipe))
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{recipe}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{recipe}: a recipe is a mapping of sections, got {type(values).__name__}")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    import yaml

    name, equals, text = override.partition("=")
    if not equals or "." not in name:
        raise ValueError(f"--set takes section.field=value, such as training.lr=0.02; got {override!r}")
    *sections, last = name.strip().split(".")
    inner = values
    for section in sections:
        if inner.get(section) is None:  # absent, or an empty section of a recipe
            inner[section] = {}
        inner = inner[section]
        if not isinstance(inner, dict):
            raise ValueError(f"--set {override}: {section} is a value, not a section")
    try:
        inner[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {override}: {text!r} is not valid YAML ({str(error).splitlines()[0]})") from error
