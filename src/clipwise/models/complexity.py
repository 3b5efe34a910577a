"""Parameters and multiply–accumulates of a network.

MACs are those of convolutions alone (no fc, no BN), which is what the Deep Analysis authors count, to the integer.
A temporal convolution counts its taps however it is computed; a shift counts nothing. The papers' "FLOPs" are MACs.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from clipwise.models.temporal.layers import TemporalConv

__all__ = ["count_macs", "count_parameters"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, TemporalConv)


def count_parameters(model: nn.Module) -> int:
    """Learnable parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, size: int = 224, *, num_frames: int | None = None) -> int:
    """MACs of one clip (1, T, 3, ``size``, ``size``) through the network.

    Nothing is computed: a copy of the network runs on the meta device. T is the network's ``num_frames`` unless given.
    """
    frames: int = num_frames or getattr(model, "num_frames")  # noqa: B009  a Module's attributes are untyped
    meta = copy.deepcopy(model).to("meta").eval()
    total = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        total += output.numel() * weight[0].numel()

    for module in meta.modules():
        if isinstance(module, _CONVOLUTIONS):
            module.register_forward_hook(count)
    with torch.no_grad():
        meta(torch.empty(1, frames, 3, size, size, device="meta"))
    return total
