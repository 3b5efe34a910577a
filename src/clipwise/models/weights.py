"""Loading weights into a network: ImageNet files, this project's checkpoints, and the account of what happened."""

import http.client
import os
import pickle
import re
import shutil
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clipwise.files import file_sha256, written_whole

__all__ = ["LoadReport", "imagenet_file", "load_weights", "read_state_dict"]

# torchvision's IMAGENET1K_V1 files, which the papers start from; the eight digits open the file's SHA-256.
_IMAGENET = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
}
_IMAGENET_ADDRESS = "https://download.pytorch.org/models/"


# What an image network and its temporal descendants share.
_IMAGE_PART = re.compile(r"(layer\d\.\d+\.)?(conv\d|bn\d|downsample\.\d)\.(weight|bias|running_mean|running_var)")


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor of a file and of a network."""

    source: str
    sha256: str
    matched: tuple[str, ...]
    """The network's keys that took a tensor as it is."""
    derived: tuple[str, ...]
    """The network's keys that took a part of a tensor (STC's spatial convolution)."""
    new: tuple[str, ...]
    """The network's keys that keep their start."""
    left: tuple[str, ...]
    """The file's keys that nothing took."""

    def __str__(self) -> str:
        def named(keys: tuple[str, ...]) -> str:
            # Blocks repeat the same parts: `layer*.*.cmm.reduce.weight (16)` says it once.
            groups: dict[str, int] = {}
            for key in keys:
                pattern = re.sub(r"\b(layer)?\d+\b", lambda match: f"{match[1] or ''}*", key)
                groups[pattern] = groups.get(pattern, 0) + 1
            return ", ".join(f"{key} ({count})" if count > 1 else key for key, count in groups.items()) or "none"

        return (
            f"weights from {self.source}: {len(self.matched)} tensors matched, {len(self.derived)} derived\n"
            f"  new in the network: {named(self.new)}\n"
            f"  left in the file:   {named(self.left)}"
        )


def imagenet_file(backbone: str) -> Path:
    """torchvision's ImageNet file of a backbone such as ``resnet50``, downloaded once and checked by its hash.

    It is kept under ``$CLIPWISE_CACHE``, or ``~/.cache/clipwise``.

    Raises:
        ValueError: if there is none for this backbone, or the download's hash is wrong.
        ConnectionError: if it is neither cached nor can be fetched; the message says where to put it by hand.
    """
    if backbone not in _IMAGENET:
        raise ValueError(f"no ImageNet weights are known for {backbone!r}; there are {', '.join(_IMAGENET)}")
    name = _IMAGENET[backbone]
    digits = name.rsplit("-", 1)[1].removesuffix(".pth")
    folder = Path(os.environ.get("CLIPWISE_CACHE", "~/.cache/clipwise")).expanduser()
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
    """The tensors of a ``.safetensors`` file, or of a PyTorch file read with ``weights_only=True``.

    A PyTorch file may hold the tensors themselves or a dictionary with them under ``state_dict``.

    Raises:
        ValueError: if the file is missing, damaged, holds no tensors, or is a pickle that would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such weight file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not a readable safetensors file ({error}); fetch or write it again") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused, for it is a pickle that would run code or is no weight file; save the state dict "
            "alone, as safetensors or with torch.save(model.state_dict(), ...)"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a readable PyTorch file ({error}); fetch or write it again") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: holds no state dict, a mapping of names to tensors")
    return content


def load_weights(model: nn.Module, source: str | Path, *, name: str) -> LoadReport:
    """Load what fits of a weight file into a network, and say what did.

    ``fc`` is loaded where its shape fits and counts as left otherwise, so that an ImageNet file starts a network of
    other classes. The image network's part must match whole: a file that lacks some of it, has more blocks, or other
    shapes is another network's.

    Args:
        model: the network, changed in place.
        source: ``"imagenet"`` or a path.
        name: the network's registered name; its backbone picks the ImageNet file.

    Raises:
        ValueError: if the file cannot be read, or is another network's.
        ConnectionError: see :func:`imagenet_file`.
    """
    path = imagenet_file(name.rsplit("_", 1)[1]) if source == "imagenet" else Path(source)
    state = read_state_dict(path)
    own = model.state_dict()
    loaded: dict[str, Tensor] = {}
    derived: dict[str, Tensor] = {}
    sources: set[str] = set()
    for module_name, module in model.named_modules():
        key = f"{module_name}.weight"
        if hasattr(module, "from_image_conv") and key in state:
            parts = module.from_image_conv(state[key])
            derived |= {f"{module_name}.{part}": value for part, value in parts.items()}
            sources.add(key)
    wrong = []
    for key, value in state.items():
        if key not in own:
            continue
        if own[key].shape == value.shape:
            loaded[key] = value
        elif not key.startswith("fc."):
            wrong.append(f"{key} {tuple(value.shape)} for {tuple(own[key].shape)}")
    if wrong:
        raise ValueError(
            f"{path}: {len(wrong)} tensors have other shapes than {name}'s, the first {wrong[0]}; "
            "the file belongs to another network or width"
        )
    if not any(key.endswith("conv1.weight") for key in loaded):
        some = ", ".join(list(state)[:3])
        raise ValueError(f"{path}: nothing in it matches {name}; its keys begin {some} – is it another network's?")
    lacking = [key for key in own if _IMAGE_PART.fullmatch(key) and key not in loaded]
    lacking += [key for key in own if key.endswith("conv2.spatial.weight") and key not in loaded and key not in derived]
    surplus = [key for key in state if _IMAGE_PART.fullmatch(key) and key not in loaded and key not in sources]
    if lacking or surplus:
        raise ValueError(
            f"{path}: not the weights of {name}'s image network: {len(lacking)} of its tensors are missing and "
            f"{len(surplus)} are another's (the first: {(lacking + surplus)[0]}); give a file of the same backbone"
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
        new=tuple(k for k in own if k not in loaded and k not in derived and not k.endswith(counters)),
        left=tuple(
            k for k in state if k not in loaded and (k not in sources or not derived) and not k.endswith(counters)
        ),
    )
