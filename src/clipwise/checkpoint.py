"""The folder that a network lives in: weights, class list, preprocessing and testing protocol.

``model.json`` says which network it is and how its input is made; ``best.safetensors`` and ``last.safetensors`` hold
weights. A training run's folder is such a folder, with the run's account beside these files.
"""

import contextlib
import dataclasses
import json
import os
import platform
import shlex
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clipwise.config import ModelConfig, ViewsConfig, section_from_json
from clipwise.data.labels import LabelSpace
from clipwise.data.manifest import class_list_hash
from clipwise.files import write_json, written_whole
from clipwise.inference.deploy import Deployed
from clipwise.models.network import VideoNetwork
from clipwise.models.registry import create_model
from clipwise.models.weights import read_state_dict

__all__ = [
    "CARD",
    "Card",
    "Checkpoint",
    "command_line",
    "device_name",
    "read_card",
    "read_checkpoint",
    "versions",
    "write_card",
    "write_weights",
]

CARD = "model.json"
_FORMAT = 2
"""Of networks with several heads or sets of labels; the others are written as format 1, which has only ``classes``."""


@dataclass(frozen=True)
class Card:
    """What ``model.json`` says."""

    config: ModelConfig
    label_space: LabelSpace
    views: ViewsConfig


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and all that is needed to use it."""

    model: VideoNetwork
    """In evaluation mode, fp32, on the CPU, laid out as by :func:`clipwise.models.network.channels_last`."""
    config: ModelConfig
    label_space: LabelSpace
    views: ViewsConfig
    weights: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """A name for each of the network's outputs."""
        return self.label_space.classes


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    found = {"python": platform.python_version()}
    for name in (
        "clipwise",
        "torch",
        "numpy",
        "av",
        "pytorch-lightning",
        "safetensors",
        "kornia",
        "torchmetrics",
    ):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def write_card(
    folder: Path, config: ModelConfig, label_space: LabelSpace, views: ViewsConfig, weights: str | None = None
) -> None:
    """Write ``model.json``; ``weights`` says in words what the weight files hold."""
    labels = label_space.to_json()
    card = {
        "format": _FORMAT if "heads" in labels else 1,
        "model": {
            "name": config.name,
            "num_frames": config.num_frames,
            "options": config.options,
        },
        **labels,
        "classes_sha256": class_list_hash(label_space.classes),
        "views": dataclasses.asdict(views),
        **({"weights": weights} if weights else {}),
    }
    write_json(folder / CARD, card)


def write_weights(model: nn.Module, path: Path) -> None:
    """Write a network's tensors as safetensors.

    Raises:
        ValueError: for a deployed network, whose tensors no other network could take.
    """
    if isinstance(model, Deployed):
        raise ValueError(
            "a deployed network is no checkpoint: its BNs are folded away; save the network it was made of, and call "
            "clipwise.deploy where it is to run"
        )
    tensors = {key: value.detach().contiguous().cpu() for key, value in model.state_dict().items()}
    with written_whole(path) as partial:
        save_file(tensors, partial)


def read_card(path: str | Path) -> Card:
    """Read ``model.json`` of a folder, or beside a weight file.

    Raises:
        ValueError: if there is none, it is damaged, or was written by a newer version.
    """
    path = Path(path)
    card_file = (path if path.is_dir() else path.parent) / CARD
    if not card_file.is_file():
        what = "no such file or folder" if not path.exists() else f"holds no {CARD}"
        raise ValueError(
            f"{path}: {what}; give a folder that `clipwise train` or `clipwise models import` wrote, "
            "or a weight file inside one"
        )
    try:
        card: dict[str, Any] = json.loads(card_file.read_text(encoding="utf-8"))
        version = card["format"]
        label_space = LabelSpace.from_json(card)
        config = ModelConfig(
            name=card["model"]["name"],
            num_frames=card["model"]["num_frames"],
            weights=None,
            options=card["model"]["options"],
        )
        views = section_from_json(ViewsConfig, card["views"])
        digest = card["classes_sha256"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{card_file}: damaged or not written by clipwise ({error!r})") from error
    if version not in (1, _FORMAT):
        raise ValueError(f"{card_file}: format {version}, this version reads {_FORMAT}; update clipwise")
    if digest != class_list_hash(label_space.classes):
        raise ValueError(f"{card_file}: the class list was changed after training; restore it")
    return Card(config, label_space, views)


class _WithoutStart(TorchFunctionMode):
    """Tensors that would start at random stay as they were allocated: for networks all of whose weights a file holds.

    Drawing them takes several times as long as reading them. Unlike on the meta device, what is no weight, such as a
    buffer that no state dict has, becomes what it always does.
    """

    # PyTorch hands over some of its starts as such, which draw out of this mode's reach, and of others what they do.
    _STARTS = frozenset({Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._STARTS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def read_checkpoint(path: str | Path, *, which: Literal["best", "last"] = "best") -> Checkpoint:
    """Read a folder written by ``clipwise train``, or one of its weight files.

    Args:
        path: the folder, or a ``.safetensors`` file inside it.
        which: the weights to take from a folder; ``last`` where there is no ``best`` (a run without validation).

    Raises:
        ValueError: if it is no such folder, was written by a newer version, or its parts do not belong together.
    """
    card = read_card(path)
    path = Path(path)
    folder, weights = (path, None) if path.is_dir() else (path.parent, path)
    config, label_space = card.config, card.label_space
    if weights is None:
        weights = folder / f"{which}.safetensors"
        if which == "best" and not weights.is_file():
            weights = folder / "last.safetensors"
        if not weights.is_file():
            raise ValueError(f"{folder}: no weights yet; the run stopped before its first epoch ended")
    num_classes = sum(label_space.sizes)
    with _WithoutStart():
        model = create_model(config.name, num_classes=num_classes, num_frames=config.num_frames, **config.options)
    state = read_state_dict(weights)
    own = model.state_dict()
    missing = sorted(set(own) - set(state))
    foreign = sorted(set(state) - set(own))
    reshaped = sorted(key for key in set(own) & set(state) if own[key].shape != state[key].shape)
    if missing or foreign or reshaped:
        raise ValueError(
            f"{weights}: not the weights of the {config.name} that {folder / CARD} describes: {len(missing)} tensors "
            f"are missing, {len(foreign)} are not its own, {len(reshaped)} have another shape "
            f"(the first: {(missing + foreign + reshaped)[0]}); keep weights and {CARD} of one run together"
        )
    # Copied once, out of the file, which may be mapped, and into the layout that networks run in.
    kernels = {key for key, value in model.named_parameters(remove_duplicate=False) if value.ndim == 4}
    laid_out = {
        key: value.to(
            own[key].dtype,
            memory_format=torch.channels_last if key in kernels else torch.contiguous_format,
            copy=True,
        )
        for key, value in state.items()
    }
    model.load_state_dict(laid_out, assign=True)
    return Checkpoint(model.eval(), config, label_space, card.views, weights)


def command_line() -> str:
    """The command as the user gave it, without the machine's path to it."""
    program = Path(sys.argv[0]).name
    return shlex.join(["clipwise" if program == "__main__.py" else program, *sys.argv[1:]])


def device_name(device: torch.device | None = None) -> str:
    """The hardware that numbers were made on; the GPU where there is one, unless another device is named."""
    if device.type == "cuda" if device else torch.cuda.is_available():
        return torch.cuda.get_device_name(device)
    # With AMX, products in bf16 are rounded otherwise, and trainings end elsewhere; older torch does not tell.
    amx = hasattr(torch.cpu, "get_capabilities") and torch.cpu.get_capabilities().get("amx_bf16")
    return f"CPU ({torch.backends.cpu.get_cpu_capability()}{' with AMX' if amx else ''}, {os.cpu_count()} cores)"
