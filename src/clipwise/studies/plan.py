"""From a study and the user's settings to trainings: which there are, what each needs, and what lies there already."""

import difflib
import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from clipwise.config import READING, Config, ViewsConfig, flat, load_config, override_views
from clipwise.data.manifest import Manifest
from clipwise.files import file_sha256, portable_path
from clipwise.models.complexity import count_macs, count_parameters
from clipwise.models.registry import create_model
from clipwise.models.weights import weight_file
from clipwise.studies.study import Study, Variant
from clipwise.training.account import RunAccount, is_run, read_epochs, videos_hash
from clipwise.training.run import split_manifest

__all__ = [
    "Plan",
    "Request",
    "Row",
    "Standing",
    "Training",
    "choose_variants",
    "hash_of",
    "is_remnant",
    "make_plan",
    "record_path",
    "standing",
]

_LAST = "last.safetensors"
_OTHER_VIDEOS = "the videos or their labels are others"


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    study: Study
    output: Path
    data: Path | None = None
    """None for the rendered set."""
    recipe: str | None = None
    backbone: str = "resnet50"
    seeds: tuple[int, ...] = (0, 1, 2)
    variants: tuple[str, ...] = ()
    """Labels; all of the study when empty."""
    overrides: tuple[str, ...] = ()
    known: Path | None = None
    """A ``study.json`` whose runs need not be run again, though their folders are not here."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds are different numbers from 0 on, such as 0,1,2; got {self.seeds}")
        for name, instead in (("model.name", "the study's variants name it"), ("training.seed", "--seeds gives them")):
            if any(override.partition("=")[0].strip() == name for override in self.overrides):
                raise ValueError(f"--set {name} does not go with a study: {instead}")

    @property
    def asked(self) -> tuple[str, ...]:
        """The labels of the variants to run."""
        return self.variants or tuple(variant.label for variant in self.study.variants)

    def command(self, *, whole: bool = False, jobs: int | None = None, hours: float | None = None) -> str:
        """The command that begins this, and goes on with it; of the ``whole`` study, or what was asked of it."""
        words = ["clipwise", "reproduce", self.study.name, *([str(self.data)] if self.data else [])]
        words += ["--output", str(self.output)]
        words += ["--known", str(self.known)] if self.known else []
        words += ["--recipe", self.recipe] if self.recipe else []
        words += ["--backbone", self.backbone] if self.backbone != Request.backbone else []
        words += ["--seeds", ",".join(map(str, self.seeds))]
        chosen = [variant.slug for variant in self.study.variants if variant.label in self.variants]
        words += ["--variants", ",".join(chosen)] if chosen and not whole else []
        for override in self.overrides:
            words += ["--set", override]
        words += ["--jobs", str(jobs)] if jobs is not None else []
        words += ["--hours", f"{hours:g}"] if hours is not None else []
        return shlex.join(words)


@dataclass(frozen=True)
class Training:
    """One run: a network with one seed, for one variant or several that differ in testing alone."""

    label: str
    """Of the first of these variants."""
    seed: int
    folder: Path
    overrides: tuple[str, ...]
    """``--set`` of ``clipwise train``."""
    config: Config
    macs: int
    """Of one clip as trained."""
    start: "Training | None"
    """The run whose last weights it starts from."""

    @property
    def name(self) -> str:
        """For a person: ``CSTM, seed 0``."""
        return f"{self.label}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """What the training printed."""
        return self.folder.with_name(f"{self.folder.name}.log")


@dataclass(frozen=True)
class Row:
    """A variant on this data and backbone."""

    variant: Variant
    model: str
    options: dict[str, Any]
    parameters: int
    macs: int
    """Of one clip as tested."""
    views: ViewsConfig
    """In testing."""


@dataclass(frozen=True)
class Standing:
    """How far a training is."""

    epochs: int
    seconds: float
    """Of these epochs together."""
    finished: bool


@dataclass(frozen=True)
class Plan:
    """The whole study: rows, and the training of each row and seed."""

    request: Request
    recipe: str | None
    data: Path
    """Of the videos."""
    manifest: Manifest
    base: Config
    """As recipe and ``--set`` give it, before any variant."""
    metric: str
    """The figure that is compared."""
    rows: tuple[Row, ...]
    trainings: dict[tuple[str, int], Training]
    """By label and seed: of all seeds asked for, and of those that lie in the folder besides."""
    parts: dict[int, tuple[Manifest, Manifest]]
    """By seed the videos to train on and to test on; without splits in the data each seed holds others out."""
    known: "dict[tuple[str, int], Known]" = field(default_factory=dict)
    """By label and seed what ``request.known`` tells of runs that have nothing here and are not needed here."""

    def standing(self, training: Training) -> Standing:
        """How far a training is, those that are known included."""
        there = standing(training)
        if there.epochs or not any(self.trainings[key] is training for key in self.known):
            return there
        return Standing(training.config.training.epochs, 0.0, True)

    @property
    def distinct(self) -> list[Training]:
        """All trainings, each once."""
        return list({training.folder: training for training in self.trainings.values()}.values())

    @property
    def asked(self) -> list[Training]:
        """The trainings asked for and those they start from, each once: seed by seed, so that a table fills early."""
        return self._of(self.request.asked)

    @property
    def whole(self) -> list[Training]:
        """The same of all variants of the study."""
        return self._of(row.variant.label for row in self.rows)

    def _of(self, labels: Iterable[str]) -> list[Training]:
        labels = tuple(labels)
        found: dict[Path, Training] = {}
        for seed in self.request.seeds:
            for label in labels:
                for training in self._with_starts(self.trainings[label, seed]):
                    found[training.folder] = training
        return list(found.values())

    def _with_starts(self, training: Training) -> Iterator[Training]:
        """A training after those that it needs."""
        if training.start and not self.standing(training).finished:
            yield from self._with_starts(training.start)
        yield training


@dataclass(frozen=True)
class Known:
    """A run that was made elsewhere."""

    run: dict[str, Any]
    """As ``study.json`` has it."""
    config: Config
    views: tuple[str, ...]
    """The variant's own, in testing."""
    videos_sha256: str


def standing(training: Training) -> Standing:
    """How far a training is, from the log of its epochs."""
    try:
        logs = read_epochs(training.folder)
    except (OSError, KeyError, TypeError, ValueError):  # no log of a run: what else lies in the folder is checked apart
        logs = ()
    epochs = max((log.epoch for log in logs), default=0)
    finished = epochs >= training.config.training.epochs and (training.folder / _LAST).is_file()
    return Standing(epochs, sum(log.seconds for log in logs), finished)


def record_path(training: Training, row: Row) -> Path:
    """Where the test of a training's last weights with a variant's views is kept."""
    return training.folder / f"evaluation_{row.variant.slug}.json"


def choose_variants(study: Study, names: Sequence[str]) -> tuple[str, ...]:
    """Labels of variants from their labels, or from what their folders are called.

    Raises:
        ValueError: for a name that is neither; the message gives the nearest.
    """
    known = {name: variant.label for variant in study.variants for name in (variant.slug, variant.label)}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=4) or [variant.label for variant in study.variants]
            raise ValueError(f"{study.name} has no variant {name!r}; there are {', '.join(near)}")
    return tuple(dict.fromkeys(known[name] for name in names))


def make_plan(request: Request, *, data: Path, recipe: str | None) -> Plan:
    """Work a study out on its data, and check what the folder holds against it.

    Raises:
        ValueError: for settings, data, weights or a network that cannot be used, and for a folder that holds a run of
            other settings or data; the message names the difference.
    """
    study = request.study
    base = load_config(recipe, request.overrides)
    manifest = Manifest.read(data)
    if base.data.head is not None:
        manifest = manifest.with_head(base.data.head)
    manifest.check_files(base.data.on_error)
    told = _read_known(request)
    seeds = sorted({*request.seeds, *_seeds_there(request.output, study), *(seed for _, seed in told)})
    rows: list[Row] = []
    trainings: dict[tuple[str, int], Training] = {}
    parts: dict[int, tuple[Manifest, Manifest]] = {}
    for variant in study.variants:  # what others start from stands before them
        name, options, overrides = _settings(request, base, variant)
        try:
            config = load_config(recipe, overrides)
            views = override_views(config.views, variant.views)
            with torch.device("meta"):
                model = create_model(
                    name, num_classes=len(manifest.classes), num_frames=config.model.num_frames, **options
                )
        except ValueError as error:
            raise ValueError(f"{study.name}, variant {variant.label}: {error}") from error
        trained = count_macs(model, config.views.size)
        tested = trained if views.size == config.views.size else count_macs(model, views.size)
        rows.append(Row(variant, name, options, count_parameters(model), tested, views))
        shared = study.training_of(variant.label)
        for seed in seeds:
            if shared is not variant:
                trainings[variant.label, seed] = trainings[shared.label, seed]
                continue
            start = trainings[variant.start, seed] if variant.start is not None else None
            own = [*overrides, f"training.seed={seed}"]
            if start:
                own.append(f"model.weights={_yaml(portable_path(start.folder / _LAST, Path.cwd()))}")
            config = load_config(recipe, own)
            folder = request.output / f"{variant.slug}_seed{seed}"
            trainings[variant.label, seed] = Training(variant.label, seed, folder, tuple(own), config, trained, start)
            if seed not in parts:
                parts[seed] = _parts(manifest, config)
    plan = Plan(
        request=request,
        recipe=recipe,
        data=data,
        manifest=manifest,
        base=base,
        metric="mean_average_precision" if manifest.multi_label else base.training.best_by,
        rows=tuple(rows),
        trainings=trainings,
        parts=parts,
    )
    for training in plan.distinct:
        _check_folder(training, *parts[training.seed])
    plan = replace(plan, known=_known(plan, told))
    for training in plan.asked:
        _check_start(plan, training)
    return plan


def _parts(manifest: Manifest, config: Config) -> tuple[Manifest, Manifest]:
    train, validation = split_manifest(manifest, config)
    if validation is None:
        raise ValueError(
            f"{manifest.source}: no split {config.data.validation_split!r} to test on; there is: "
            f"{', '.join(manifest.splits)}; name one by --set data.validation_split=NAME"
        )
    return train, validation


def _settings(request: Request, base: Config, variant: Variant) -> tuple[str, dict[str, Any], list[str]]:
    """A variant's network, its options, and all overrides of the recipe but the seed and the start."""
    given = {_field(override): override for override in request.overrides}
    fields = list(map(_field, variant.training))
    fields += [f"model.options.{key}" for key, value in variant.options.items() if value is not None]
    for name in fields:  # a variant's start wins: it may be the only one that there is
        if name in given and name != "model.weights":
            raise ValueError(
                f"--set {given[name]}: {request.study.name} sets {name} itself, for its variant {variant.label}; "
                "leave it out"
            )
    name = variant.model.replace("{backbone}", request.backbone)
    options = {**base.model.options, **variant.options}
    options = {key: value for key, value in options.items() if value is not None}
    return (
        name,
        options,
        [
            *request.overrides,
            f"model.name={name}",
            f"model.options={_yaml(options)}",
            *variant.training,
        ],
    )


def _field(override: str) -> str:
    return override.partition("=")[0].strip()


def _yaml(value: Any) -> str:
    """A value as ``--set`` reads it, in one line."""
    import yaml

    plain = json.loads(json.dumps(value))  # tuples are lists in YAML
    return yaml.safe_dump(plain, default_flow_style=True, width=math.inf).removesuffix("\n").removesuffix("\n...")


def _seeds_there(output: Path, study: Study) -> set[int]:
    """Seeds of the runs that lie in the study's folder."""
    slugs = "|".join(re.escape(variant.slug) for variant in study.variants)
    names = [path.name for path in output.iterdir() if path.is_dir()] if output.is_dir() else []
    return {int(found[1]) for name in names if (found := re.fullmatch(rf"(?:{slugs})_seed(\d+)", name))}


def is_remnant(folder: Path) -> bool:
    """Whether a folder holds nothing but the first files of a training that was killed as it began."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    return names <= {"model.json", "config.json", "splits.json"}


def _check_folder(training: Training, train: Manifest, validation: Manifest) -> None:
    """Raises ValueError where a training's folder holds another one."""
    folder = training.folder
    if not folder.is_dir() or is_remnant(folder):
        return
    if not is_run(folder):
        raise ValueError(f"{folder}: holds files that are no training run; move them away, or give another --output")
    account = RunAccount.read(folder)
    differences = _differences(training, account.config, (account.origin.get("weights") or {}).get("sha256"))
    if not _same_videos(account, train, validation):
        differences.append(_OTHER_VIDEOS)
    if differences:
        raise ValueError(
            f"{folder}: holds another run than the study's {training.name}: {'; '.join(differences)}; give the "
            "settings and data that it was begun with, or another --output"
        )


def _differences(training: Training, there: Config, start_sha256: str | None) -> list[str]:
    """In what a run of another configuration and start differs from a training; empty where they are one."""
    differences = _other_values(training, there)
    if not _same_weights(there.model.weights, start_sha256, training.config.model.weights):
        differences.append(f"model.weights is {there.model.weights} there and {training.config.model.weights} here")
    return differences


def _other_values(training: Training, there: Config) -> list[str]:
    values, wanted = _effective(there), _effective(training.config)
    return [
        f"{key} is {values.get(key)} there and {wanted.get(key)} here"
        for key in sorted({*values, *wanted} - {*READING, "model.weights"})
        if values.get(key) != wanted.get(key)
    ]


def _read_known(request: Request) -> dict[tuple[str, int], Known]:
    """By label and seed the runs that ``request.known`` tells of.

    Raises:
        ValueError: if it cannot be read, or is that of another study.
    """
    file = request.known
    if file is None:
        return {}
    found = {}
    try:
        study = json.loads(file.read_text(encoding="utf-8"))
        name, base, videos = study["study"], flat(study["config"]), study["data"]["videos_sha256"]
        for variant in study["variants"]:
            for run in variant["runs"]:
                found[variant["label"], run["seed"]] = Known(
                    run=run,
                    config=Config.from_json(_nested(base | run["config"])),
                    views=tuple(variant["views"]),
                    videos_sha256=run.get("videos_sha256", videos),
                )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{file}: is no study.json ({error!r}); give one that `clipwise reproduce` wrote") from error
    if name != request.study.name:
        raise ValueError(f"{file}: tells of the study {name}; runs of {request.study.name} are needed here")
    return found


def _known(plan: Plan, told: dict[tuple[str, int], Known]) -> dict[tuple[str, int], Known]:
    """Of the runs told of, those of trainings that have nothing here and that none to be run starts from.

    Raises:
        ValueError: for a run of other settings, start or videos; the message names the difference.
    """
    found: dict[tuple[str, int], Known] = {}
    videos = {seed: videos_hash(*parts) for seed, parts in plan.parts.items()} if told else {}
    views = {row.variant.label: row.variant.views for row in plan.rows}
    for key, training in plan.trainings.items():
        mine = [other for other in plan.trainings if plan.trainings[other] is training]
        if any(each not in told for each in mine) or standing(training).epochs:
            continue
        known, seed = told[key], training.seed
        if training.start is None:
            differences = _differences(training, known.config, known.run.get("start_sha256"))
        else:  # whatever the file was called there
            differences = _other_values(training, known.config)
            start = told.get((training.start.label, seed))
            hashes = {known.run.get("start_sha256"), start and start.run["weights_sha256"]} - {None}
            differences += ["it started from another run"] if len(hashes) > 1 else []
        if known.views != views[key[0]]:
            differences.append(f"it was tested with {known.views or 'its own views'}")
        if known.videos_sha256 != videos[seed]:
            differences.append(_OTHER_VIDEOS)
        if differences:
            raise ValueError(
                f"{plan.request.known}: its {key[0]}, seed {seed} is another run than this study's: "
                f"{'; '.join(differences)}; give the settings and data of that study, or leave --known out"
            )
        found[key] = known
    # There are figures of a known run, but no weights to start from. Without it, it may need one itself.
    while True:
        now = replace(plan, known=found)
        starts = [one.start for one in now.asked if one.start and not now.standing(one).finished]
        kept = {key: known for key, known in found.items() if plan.trainings[key] not in starts}
        if len(kept) == len(found):
            return found
        found = kept


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration from its values by dotted names; an option that is None is none."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *sections, key = name.split(".", 2)  # what stands in a field may have dots of its own: lr_factors' prefixes
        within = nested
        for section in sections:
            within = within.setdefault(section, {})
        if sections != ["model", "options"] or value is not None:
            within[key] = value
    return nested


def _check_start(plan: Plan, training: Training) -> None:
    """Raises ValueError where a training is still to be begun and there is nothing for it to start from."""
    study, source = plan.request.study, training.config.model.weights
    if source is None or training.start or plan.standing(training).epochs:
        return
    remedy = "give a file by --set model.weights=PATH, or null for random weights"
    if source == "imagenet" and training.config.model.options.get("caffe_stride"):
        raise ValueError(
            f"{study.name}, variant {training.label}: torchvision's ImageNet weights have other strides than "
            f"caffe_stride; {remedy}"
        )
    if source != "imagenet" and not weight_file(source).is_file():
        raise ValueError(f"{study.name}, variant {training.label}: model.weights={source}: no such file; {remedy}")


def _effective(config: Config) -> dict[str, Any]:
    """The values that training depends on: milestones are of the schedule by steps alone."""
    if config.training.schedule != "steps":
        config = replace(config, training=replace(config.training, milestones=()))
    return flat(config.to_dict())


def _same_videos(account: RunAccount, train: Manifest, validation: Manifest) -> bool:
    data = account.origin["data"]
    if "videos_sha256" in data:
        return bool(data["videos_sha256"] == videos_hash(train, validation))
    # The first accounts had no such hash, nor names of segments.
    counts = (data["training_videos"], data["validation_videos"])
    return bool(data["classes_sha256"] == train.classes_hash and counts == (len(train), len(validation)))


def _same_weights(there: str | None, recorded: str | None, wanted: str | None) -> bool:
    """Whether two settings of ``model.weights`` mean one file, ``recorded`` being the SHA-256 of the first."""
    if wanted in (None, "imagenet") or there in (None, "imagenet"):
        return there == wanted
    file = weight_file(wanted)
    if file.is_file() and recorded:
        return hash_of(file) == recorded
    return os.path.realpath(there) == os.path.realpath(wanted)


def hash_of(file: Path) -> str:
    """SHA-256 of a file's bytes, read again only where it has changed."""
    return _hash(file, file.stat().st_mtime_ns)


@cache
def _hash(file: Path, _changed: int) -> str:
    return file_sha256(file)
