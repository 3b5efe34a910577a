"""Parameters and multiply–accumulates of a network.

MACs are those of convolutions alone (no fc, no BN), which is what the Deep Analysis authors count, to the integer.
A temporal convolution counts its taps however it is computed; a shift counts nothing. The papers' "FLOPs" are MACs.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clipwise.models.network import VideoNetwork
from clipwise.models.resnet import TemporalModule
from clipwise.models.temporal.layers import TemporalConv

__all__ = ["Stage", "count_macs", "count_parameters", "describe_stages"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, TemporalConv)


@dataclass(frozen=True)
class Stage:
    """One row of a network's description."""

    name: str
    shape: tuple[int, ...]
    """Of the stage's output for one clip: (T, C, H, W), or (T, C) once pooled."""
    parameters: int
    macs: int


def count_parameters(model: nn.Module) -> int:
    """Learnable parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, size: int = 224, *, num_frames: int | None = None) -> int:
    """MACs of one clip (1, T, 3, ``size``, ``size``) through the network.

    Nothing is computed: a copy of the network runs on the meta device. T is the network's ``num_frames`` unless given.
    """
    meta = _on_meta(model)
    macs = _count(meta)
    _run(meta, size, num_frames)
    return sum(macs.values())


def describe_stages(model: VideoNetwork, size: int = 224) -> list[Stage]:
    """The network's stages in the order they run, with the shape that each one gives for one clip."""
    meta = _on_meta(model)
    macs = _count(meta)
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, module: nn.Module, output: Tensor) -> None:
        if output.ndim == 5:  # temporal modules hold (N, T, C, H, W), 3D networks (N, C, T, H, W)
            output = output[0] if isinstance(module, TemporalModule) else output[0].transpose(0, 1)
        elif output.ndim == 3:
            output = output[0]
        shapes[name] = tuple(output.shape)

    stages = list(meta.stages())
    for name, module in stages:
        last = module[-1] if isinstance(module, nn.ModuleList) else module
        last.register_forward_hook(lambda module, _, output, name=name: note(name, module, output))
    _run(meta, size, None)
    inside = {name: set(module.modules()) for name, module in stages}
    return [
        Stage(
            name,
            shapes[name],
            count_parameters(module),
            sum(value for part, value in macs.items() if part in inside[name]),
        )
        for name, module in stages
        if name in shapes
    ]


def _on_meta(model: nn.Module) -> Any:
    return copy.deepcopy(model).to("meta").eval()


def _count(model: nn.Module) -> dict[nn.Module, int]:
    """A dictionary that fills with each convolution's MACs when the network runs."""
    macs: dict[nn.Module, int] = {}

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        macs[module] = macs.get(module, 0) + output.numel() * weight[0].numel()

    for module in model.modules():
        if isinstance(module, _CONVOLUTIONS):
            module.register_forward_hook(count)
    return macs


def _run(model: nn.Module, size: int, num_frames: int | None) -> None:
    frames: int = num_frames or getattr(model, "num_frames")  # noqa: B009  a Module's attributes are untyped
    with torch.no_grad():
        model(torch.empty(1, frames, 3, size, size, device="meta"))
