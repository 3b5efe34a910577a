"""Other projects' checkpoints → a folder that ``clipwise predict`` and ``clipwise.load`` take.

The file is read without running code that it brings (``files.py``), its keys are renamed by the map of the project it
comes from and the network is recognised by the renamed keys (``import_maps.py``). Every tensor must then find its
place: anything missing, left over or of another shape is refused, but for what is known to be of no consequence and is
named.
"""

import dataclasses
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from clipwise.checkpoint import command_line, versions, write_card, write_weights
from clipwise.config import ModelConfig, ViewsConfig, load_config, override_views
from clipwise.data.labels import LabelSpace
from clipwise.files import file_sha256, write_json
from clipwise.models.files import read_weight_file
from clipwise.models.import_maps import SOURCES, Recognised, State
from clipwise.models.network import VideoNetwork
from clipwise.models.registry import create_model, model_entry
from clipwise.models.weights import grouped

__all__ = ["ImportReport", "import_checkpoint"]

_ACCOUNT = "import.json"
_OWN_FILES = {"model.json", "last.safetensors", _ACCOUNT}


@dataclass(frozen=True)
class ImportReport:
    """What became of each tensor of a file and of a network."""

    file: str
    sha256: str
    name: str
    """The network's."""
    num_frames: int
    options: dict[str, Any]
    notes: tuple[str, ...]
    matched: tuple[str, ...]
    """Keys that file and network share."""
    renamed: tuple[tuple[str, str], ...]
    """The file's key, the network's key."""
    derived: tuple[str, ...]
    """The network's keys whose tensor was made from the file's: turned, or put together from several."""
    missing: tuple[str, ...]
    """The network's keys that nothing in the file fills."""
    unfit: tuple[str, ...]
    """Keys whose tensors have another shape than the network's, or hold what no weight can be."""
    left: tuple[str, ...]
    """The file's keys that have no place in the network."""
    harmless: tuple[str, ...]
    """Likewise, but known to be of no consequence."""
    beside: tuple[str, ...]
    """What the file holds besides weights, and was not looked at."""

    @property
    def complete(self) -> bool:
        """Whether all that matters found its place."""
        return not (self.missing or self.unfit or self.left)

    def __str__(self) -> str:
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        more = f" and {len(self.unfit) - 4} more" if len(self.unfit) > 4 else ""
        lines = [
            f"{self.file}: {self.name}, num_frames={self.num_frames}{options}",
            f"  {len(self.matched)} keys matched, {len(self.renamed)} renamed, {len(self.derived)} derived",
            f"  missing in the file:          {grouped(self.missing)}",
            *([f"  not fit for their place:      {', '.join(self.unfit[:4])}{more}"] if self.unfit else []),
            f"  left over in the file:        {grouped(self.left)}",
            f"  left over, no consequence:    {grouped(self.harmless)}",
            *([f"  beside the weights, not read: {', '.join(self.beside)}"] if self.beside else []),
            *(f"  note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def import_checkpoint(
    file: str | Path,
    output: str | Path,
    *,
    source: str,
    labels: Sequence[str] | None = None,
    name: str | None = None,
    num_frames: int | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> ImportReport:
    """Turn another project's checkpoint into a Clipwise folder, whole or not at all.

    Args:
        file: the checkpoint.
        output: the folder to write: ``model.json``, ``last.safetensors`` and the account ``import.json``.
        source: one of :data:`~clipwise.models.import_maps.SOURCES`.
        labels: class names in the order of the head's outputs, which no such file tells.
        name: the network's registered name; recognised by the keys where None.
        num_frames: T; from the weights where they tell it, or else the network's usual number.
        overrides: what the weights do not show, such as ``model.options.temporal_pooling=true``, and what shall differ
            from the network's usual testing, such as ``views.clips=10``.
        overwrite: replace what an earlier import wrote into ``output``.

    Raises:
        ValueError: if the file cannot be read safely, is not recognised or does not fit whole; the message has the
            account. If the labels are not as many as the head's classes, or the output is in use.
    """
    if source not in SOURCES:
        raise ValueError(f"no source {source!r}; there are {', '.join(SOURCES)}")
    file, output = Path(file), Path(output)
    options, testing = _split(overrides)
    _check_output(output, overwrite)
    content = read_weight_file(file)
    state = _unwrapped(content.tensors)
    try:
        renamed = SOURCES[source].rename(state)
        found = SOURCES[source].recognise(state, renamed)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    except (IndexError, RuntimeError) as error:  # a map that joins or turns tensors of other shapes
        raise ValueError(f"{file}: some of its tensors have other shapes than {source}'s ({error})") from error
    name, found = _settle(file, source, found, name, options, state)
    frames = num_frames or found.num_frames or model_entry(name).num_frames
    classes = _class_count(file, renamed)
    if labels is None or len(labels) != classes:
        given = "no list of labels was given" if labels is None else f"the list of labels {len(labels)}"
        raise ValueError(
            f"{file}: its head has {classes} classes, {given}; give the list that it was trained with (--labels), a "
            "text file with one class a line in the order of the outputs"
        )
    model = create_model(name, num_classes=classes, num_frames=frames, **found.options)
    values, places = _place(model, renamed, state, SOURCES[source].harmless)
    report = ImportReport(
        file=str(file),
        sha256=file_sha256(file),
        name=name,
        num_frames=frames,
        options=found.options,
        notes=found.notes,
        beside=content.beside,
        **places,
    )
    if not report.complete:
        raise ValueError(f"{report}\nnothing was written: the file is not whole, or another network's than {name}")
    model.load_state_dict(values)
    protocol = override_views(ViewsConfig(**_usual_views(name)), testing)
    config = ModelConfig(name=name, num_frames=frames, weights=None, options=found.options)
    _write(output, model, config, labels, protocol, report, source)
    return report


def _split(overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Overrides → the model's options, and those that concern the views."""
    testing = [override for override in overrides if override.startswith("views.")]
    options = [override for override in overrides if override.startswith("model.options.")]
    if other := [override for override in overrides if override not in testing + options]:
        raise ValueError(f"only model.options.… and views.… can be set in an import, got {other[0]!r}")
    return load_config(overrides=options).model.options, testing


def _unwrapped(state: State) -> State:
    """Without the prefixes of data-parallel and compiled modules; each value an object of its own, even a tied one."""
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", key): value.detach() for key, value in state.items()}


def _settle(
    file: Path, source: str, found: Recognised | None, name: str | None, options: Mapping[str, Any], state: State
) -> tuple[str, Recognised]:
    """The network's name, and what was recognised with what the user says.

    Raises:
        ValueError: if the network is unknown, or the user has to decide something.
    """
    if found is None and name is None:
        begin = ", ".join(list(state)[:3])
        others = " or ".join(f"--from {other}" for other in SOURCES if _would_recognise(other, state))
        raise ValueError(
            f"{file}: none of {source}'s networks ({SOURCES[source].networks}) was recognised; its keys begin {begin}. "
            + (f"They look like another project's: {others}" if others else "If you know it, name it with --model")
        )
    if found is None:
        found = Recognised(name)
    elif found.name and name and found.name != name:
        found = Recognised(name, notes=(f"the keys look like {found.name}'s; --model says {name}",))
    chosen = name or found.name
    if chosen is None:
        raise ValueError(f"{file}: X3D-S and X3D-M have the same weights; say which with --model x3d_s or x3d_m")
    for option, reason in found.undecided.items():
        if option not in options:
            raise ValueError(f"{file}: {reason}; say it with --set model.options.{option}=…")
    return chosen, dataclasses.replace(found, options={**found.options, **options})


def _would_recognise(source: str, state: State) -> bool:
    try:
        return SOURCES[source].recognise(state, SOURCES[source].rename(state)) is not None
    except (ValueError, IndexError, RuntimeError):
        return False


def _class_count(file: Path, renamed: State) -> int:
    for key in ("fc.bias", "fc.weight"):
        if key in renamed and renamed[key].ndim:
            return len(renamed[key])
    raise ValueError(f"{file}: has no classifier; import a checkpoint of a whole network")


def _misfit(value: Tensor, own: Tensor) -> str:
    """Why a tensor cannot take a place; empty if it can. Dimensions of one at the end count nothing, for a 1×1×1
    convolution is a linear map.
    """
    shorter, longer = sorted((tuple(value.shape), tuple(own.shape)), key=len)
    if longer != shorter + (1,) * (len(longer) - len(shorter)):
        return str(tuple(value.shape))
    if own.is_floating_point() and not value.is_floating_point():
        return f"of {value.dtype}"
    return "" if value.isfinite().all() else "with NaN or infinite values"


def _place(
    model: VideoNetwork, renamed: State, state: State, known_harmless: str
) -> tuple[State, dict[str, tuple[Any, ...]]]:
    """Each tensor to its place, and the fields of :class:`ImportReport` that tell it."""
    named_in_file = {id(value): key for key, value in state.items()}
    own = model.state_dict()
    values: State = {}
    places: dict[str, list[Any]] = {fate: [] for fate in ("matched", "renamed", "derived", "unfit", "left", "harmless")}
    for key, value in renamed.items():
        original = named_in_file.get(id(value))
        if key not in own:
            # Counters of BN's batches have no effect; nor has a BN's scale of one, in a network that has none.
            scale_of_one = f"{key.removesuffix('weight')}running_var" in own and bool((value == 1).all())
            without_effect = key.endswith("num_batches_tracked") or scale_of_one
            known = without_effect or re.fullmatch(known_harmless, original or key)
            places["harmless" if known else "left"].append(original or key)
        elif reason := _misfit(value, own[key]):
            places["unfit"].append(f"{original or key} {reason} for {key} {tuple(own[key].shape)}")
        else:
            values[key] = value.reshape(own[key].shape).to(own[key].dtype)
            if original is None:
                places["derived"].append(key)
            elif original == key:
                places["matched"].append(key)
            else:
                places["renamed"].append((original, key))
    places["missing"] = [key for key in own if key not in renamed and not key.endswith("num_batches_tracked")]
    values |= {key: value for key, value in own.items() if key.endswith("num_batches_tracked") and key not in values}
    return values, {fate: tuple(keys) for fate, keys in places.items()}


_DENSE = {
    "i3d_deepmind": 1,
    "r3d_18": 2,
    "mc3_18": 2,
    "r2plus1d_18": 2,
    "s3d_torchvision": 2,
    "slowfast_resnet50_4x16": 2,
    "slowfast_resnet50_8x8": 2,
    "x3d_s": 6,
    "x3d_m": 5,
    "x3d_l": 5,
}
"""Networks that take consecutive frames, with the stride of their training; the others' frames span the video."""


def _usual_views(name: str) -> dict[str, Any]:
    """One view of a video, as the network's authors crop, normalise and sample it; published tests average several."""
    entry = model_entry(name)
    views: dict[str, Any] = {"size": entry.size, "mean": entry.mean, "std": entry.std}
    if name in _DENSE:
        views |= {"sampling": "dense", "stride": _DENSE[name]}
    if name.startswith("slowfast"):
        views["crop_ratio"] = 1.0  # 256 of 256
    return views


def _check_output(output: Path, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: is a file; give a folder for the import")
    inside = {entry.name for entry in output.iterdir()} if output.is_dir() else set()
    if foreign := sorted(inside - _OWN_FILES):
        raise ValueError(f"{output}: holds {foreign[0]}, which no import wrote; give another folder (--output)")
    if inside and not overwrite:
        raise ValueError(f"{output}: exists already; --overwrite replaces an earlier import")


def _write(
    output: Path,
    model: VideoNetwork,
    config: ModelConfig,
    labels: Sequence[str],
    views: ViewsConfig,
    report: ImportReport,
    source: str,
) -> None:
    """All files are written before the first takes its place."""
    new = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=output, prefix=".import.") as aside:
            folder = Path(aside)
            write_card(folder, config, LabelSpace.of(labels), views)
            write_weights(model, folder / "last.safetensors")
            account = {
                "from": source,
                "origin": SOURCES[source].origin,
                **dataclasses.asdict(report),
                "command": command_line(),
                "versions": versions(),
            }
            write_json(folder / _ACCOUNT, account)
            for file in folder.iterdir():
                file.replace(output / file.name)
    except BaseException:
        if new:
            shutil.rmtree(output, ignore_errors=True)
        raise
