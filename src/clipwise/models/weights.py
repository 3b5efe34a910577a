"""Loading weights into a network: ImageNet files, this project's checkpoints, and the account of what happened."""

import http.client
import os
import re
import shutil
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipwise.files import file_sha256, written_whole
from clipwise.models.files import read_weight_file
from clipwise.models.network import VideoNetwork, inflate

if TYPE_CHECKING:
    from clipwise.checkpoint import Card
    from clipwise.config import ModelConfig

__all__ = ["LoadReport", "grouped", "imagenet_file", "load_weights", "read_state_dict", "weight_file"]

# torchvision's IMAGENET1K_V1 files, which the papers start from; the eight digits open the file's SHA-256.
_IMAGENET = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "resnet152": "resnet152-394f9c45.pth",
    "googlenet": "googlenet-1378be20.pth",
    "mobilenet_v2": "mobilenet_v2-b0353104.pth",
}
_IMAGENET_CLASSES = 1000
_HEAD = ("fc.weight", "fc.bias")
_IMAGENET_ADDRESS = "https://download.pytorch.org/models/"


def grouped(keys: Iterable[str]) -> str:
    """Keys for a message. Blocks repeat the same parts: ``layer*.*.cmm.reduce.weight (16)`` says it once."""
    groups: dict[str, int] = {}
    for key in keys:
        pattern = re.sub(r"\b(layer)?\d+\b", lambda match: f"{match[1] or ''}*", key)
        groups[pattern] = groups.get(pattern, 0) + 1
    return ", ".join(f"{key} ({count})" if count > 1 else key for key, count in groups.items()) or "none"


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor of a file and of a network."""

    source: str
    sha256: str
    matched: tuple[str, ...]
    """The network's keys that took a tensor as it is."""
    derived: tuple[str, ...]
    """The network's keys whose tensor was made from one of the file's: a part of it, or inflated."""
    new: tuple[str, ...]
    """The network's keys that keep their start."""
    left: tuple[str, ...]
    """The file's keys that nothing took."""
    reordered: bool = False
    """Whether the head's rows were put into the order of the network's classes, by their names."""
    network: str | None = None
    """What the file's folder says it is of, where that is another network."""

    def __str__(self) -> str:
        lines = [
            f"weights from {self.source}: {len(self.matched)} tensors matched, {len(self.derived)} derived",
            f"new in the network: {grouped(self.new)}",
            f"left in the file:   {grouped(self.left)}",
        ]
        if self.network:
            lines.append(f"the file is of another network, {self.network}: what only that one has is left")
        if self.reordered:
            lines.append("the file's classes are in another order: the head's rows were put into that of the data")
        return "\n  ".join(lines)


def imagenet_file(backbone: str) -> Path:
    """torchvision's ImageNet file of a backbone such as ``resnet50``, downloaded once and checked by its hash; of
    ``timm/NAME`` the weights that timm fetches.

    It is kept under ``$CLIPWISE_CACHE``, or ``~/.cache/clipwise``.

    Raises:
        ValueError: if there is none for this backbone, or the download's hash is wrong.
        ConnectionError: if it is neither cached nor can be fetched; the message says where to put it by hand.
    """
    folder = Path(os.environ.get("CLIPWISE_CACHE", "~/.cache/clipwise")).expanduser()
    if backbone.startswith("timm/"):
        from clipwise.models.timm import timm_file

        return timm_file(backbone, folder)
    if backbone not in _IMAGENET:
        raise ValueError(f"no ImageNet weights are known for {backbone!r}; there are {', '.join(_IMAGENET)}")
    name = _IMAGENET[backbone]
    digits = name.rsplit("-", 1)[1].removesuffix(".pth")
    target = folder / name
    if target.is_file():
        _check_hash(target, digits)
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(target) as partial:
            with partial.open("wb") as file, urllib.request.urlopen(_IMAGENET_ADDRESS + name, timeout=30) as reply:
                shutil.copyfileobj(reply, file)
            _check_hash(partial, digits)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"cannot fetch {_IMAGENET_ADDRESS}{name} ({getattr(error, 'reason', error)}); "
            f"download it where there is a network and put it at {target} (CLIPWISE_CACHE names another folder), "
            "give the path of a weight file instead (--set model.weights=PATH), or start from random weights "
            "(--set model.weights=null)"
        ) from error
    return target


def _check_hash(file: Path, digits: str) -> None:
    found = file_sha256(file)
    if not found.startswith(digits):
        raise ValueError(
            f"{file}: SHA-256 begins with {found[:8]}, not {digits}: damaged or cut short; delete it and try again"
        )


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weight file: safetensors, NumPy's, or PyTorch's read with ``weights_only=True``.

    A PyTorch file may hold the tensors themselves or a dictionary with them under ``state_dict``, ``model_state`` or
    ``model``; see ``files.py``.

    Raises:
        ValueError: if the file is missing, damaged, holds no tensors, or is a pickle that would run code.
    """
    return read_weight_file(path).tensors


def weight_file(source: str | Path) -> Path:
    """The file that a path means: itself, or a run's best weights (its last ones where it was not validated)."""
    path = Path(source)
    if not path.is_dir():
        return path
    return next((path / name for name in ("best.safetensors", "last.safetensors") if (path / name).is_file()), path)


def load_weights(
    model: VideoNetwork,
    source: str | Path,
    *,
    name: str,
    image_backbone: str | None = None,
    reset_head: bool = False,
    classes: Sequence[str] | None = None,
) -> LoadReport:
    """Load what fits of a weight file into a network, and say what did.

    2D kernels are inflated where the network's are 3D; a module that replaces an image convolution by smaller ones
    takes its parts. The image network's part must match whole: a file that lacks some of it, has more blocks, or other
    shapes is another network's. The head is loaded where it fits; ImageNet's 1000 classes are left where it does not.
    Where both class lists are known – the file's stands in ``model.json`` beside it – the head's rows are taken by
    name, and a head of other classes does not fit, however many they are.

    The number of frames may differ, for most networks' weights are the same for any; those of TANet, TIN and TRN are
    not, and such a file is refused.

    Args:
        model: the network, changed in place.
        source: ``"imagenet"``, the path of a weight file, or a run's folder, whose best weights are taken.
        name: the network's registered name, for messages.
        image_backbone: whose ImageNet file ``"imagenet"`` means.
        reset_head: leave the file's head; without it, one that does not fit is refused.
        classes: what the network's outputs stand for, where that is known.

    Raises:
        ValueError: if the file cannot be read, is another network's or for another number of frames, or has other
            classes.
        ConnectionError: see :func:`imagenet_file`.
    """
    if source == "imagenet":
        if image_backbone is None:
            raise ValueError(
                f"{name} has no ImageNet file: give the path of a weight file, or leave weights out (null in a recipe)"
            )
        if getattr(model, "caffe_stride", False):
            raise ValueError(
                f"torchvision's ImageNet weights have the stride in the 3×3, and this {name} has caffe_stride; leave "
                "it out, or give the path of a file that was trained so"
            )
        path = imagenet_file(image_backbone)
    else:
        path = weight_file(source)
    state = model.from_image(read_state_dict(path))
    unfit = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if unfit:
        raise ValueError(f"{path}: {len(unfit)} of its tensors hold NaN or infinite values, the first {unfit[0]}")
    own = model.state_dict()
    loaded: dict[str, Tensor] = {}
    derived: dict[str, Tensor] = {}
    sources: set[str] = set()
    replaced: list[str] = []  # image convolutions in whose place this network has several
    for module_name, module in model.named_modules():
        key = f"{module_name}.weight"
        if not hasattr(module, "from_image_conv"):
            continue
        replaced.append(key)
        if key in state and key not in own:
            parts = module.from_image_conv(state[key])
            derived |= {f"{module_name}.{part}": value for part, value in parts.items()}
            sources.add(key)
    wrong = []
    for key, value in state.items():
        if key not in own or key in _HEAD:
            continue
        if own[key].shape == value.shape:
            loaded[key] = value
        elif own[key].ndim == 5 and value.ndim == 4 and own[key][:, :, 0].shape == value.shape:
            derived[key] = inflate(value, own[key].shape)
            sources.add(key)
        else:
            wrong.append(f"{key} {tuple(value.shape)} for {tuple(own[key].shape)}")
    card = _card_beside(path)
    if wrong:
        if card and card.config.name == name and _only_frames_differ(card.config, model):
            raise ValueError(
                f"{path}: was trained with {card.config.num_frames} frames a clip, and of the weights of {name} "
                f"{len(wrong)} depend on that, the first {wrong[0]}. Keep model.num_frames={card.config.num_frames}, "
                f"or start {model.num_frames} frames from other weights"
            )
        raise ValueError(
            f"{path}: {len(wrong)} tensors have other shapes than {name}'s, the first {wrong[0]}; "
            "the file belongs to another network or width (TANet, TIN, TRN: also to another number of frames)"
        )
    head = {key: state[key] for key in _HEAD if key in state}
    head_fits = [value.shape for value in head.values()] == [own[key].shape for key in _HEAD]
    reordered = False
    if head_fits and not reset_head:
        theirs = card.label_space.classes if card and classes is not None else None
        if theirs is None or classes is None or theirs == tuple(classes):
            loaded |= head
        elif set(theirs) == set(classes):
            place = {known: row for row, known in enumerate(theirs)}
            derived |= {key: value[[place[known] for known in classes]] for key, value in head.items()}
            sources |= set(head)
            reordered = True
        else:
            lost, new = sorted(set(theirs) - set(classes)), sorted(set(classes) - set(theirs))
            raise ValueError(
                f"{path}: its head has as many classes as the data and not the same: {len(lost)} of them the data has "
                f"not ({', '.join(lost[:3])}), {len(new)} of the data's it has not ({', '.join(new[:3])}); to keep the "
                "rest and start a new head, say so: --reset-head, or reset_head=True in Python"
            )
    if not loaded and not derived:
        some = ", ".join(list(state)[:3])
        raise ValueError(
            f"{path}: nothing in it matches {name}; its keys begin {some} – another network's, or "
            "another project's? `clipwise models import` takes those"
        )
    filled = {*loaded, *derived}
    lacking = [key for key in own if model.image_keys.fullmatch(key) and key not in filled]
    lacking += [
        key
        for key in replaced
        if key not in state and not any(k.startswith(key.removesuffix("weight")) for k in loaded)
    ]
    surplus = [key for key in state if model.image_keys.fullmatch(key) and key not in loaded and key not in sources]
    if lacking or surplus:
        raise ValueError(
            f"{path}: not the weights of {name}'s image network: {len(lacking)} of its tensors are missing and "
            f"{len(surplus)} are another's (the first: {(lacking + surplus)[0]}); give a file of the same backbone"
        )
    if head and not head_fits and not reset_head and len(head.get("fc.weight", ())) != _IMAGENET_CLASSES:
        shapes = " and ".join(f"{key} {tuple(value.shape)}" for key, value in head.items())
        raise ValueError(
            f"{path}: its head, {shapes}, is not that of {name} with {model.num_classes} classes; to keep the rest and "
            "start a new head, say so: --reset-head, or reset_head=True in Python"
        )
    model.load_state_dict(
        {**own, **{k: v.float() if v.is_floating_point() else v for k, v in (loaded | derived).items()}}
    )
    counters = "num_batches_tracked"  # absent from many files and of no consequence
    return LoadReport(
        source=str(path),
        sha256=file_sha256(path),
        matched=tuple(loaded),
        derived=tuple(derived),
        new=tuple(k for k in own if k not in filled and not k.endswith(counters)),
        left=tuple(
            k for k in state if k not in loaded and (k not in sources or not derived) and not k.endswith(counters)
        ),
        reordered=reordered,
        network=card.config.name if card and card.config.name != name else None,
    )


def _card_beside(path: Path) -> "Card | None":
    """What a file's folder says of it, where the folder is this project's."""
    from clipwise.checkpoint import CARD, read_card  # which builds networks, and so imports this module

    return read_card(path) if path.suffix == ".safetensors" and (path.parent / CARD).is_file() else None


def _only_frames_differ(config: "ModelConfig", model: VideoNetwork) -> bool:
    """Whether a network as ``config`` says, but for the clip's length, would have the tensors of ``model``."""
    from clipwise.models.registry import create_model  # whose families import this package's

    if config.num_frames == model.num_frames:
        return False
    try:
        with torch.device("meta"):
            other = create_model(
                config.name, num_classes=model.num_classes, num_frames=model.num_frames, **config.options
            )
    except ValueError:  # such as a length that these options do not take
        return False
    shapes, own = ({key: value.shape for key, value in of.state_dict().items()} for of in (other, model))
    return shapes == own
