"""TIN: temporal interlacing network (Shao, Qian, Liu: *Temporal interlacing network*, AAAI 2020).

Before conv1, on the residual branch only, of the first C/4 of its C input channels; the others stay. With x these
channels and p = mean of x over H, W:

    offsets  o_1, o_2 = 4·(σ(fc2(ReLU(fc1(conv(p))))) - ½)    conv over T, k = 3, C/4 → 1;  fc1 T → T;  fc2 T → 2
    weights  w_1, w_2 = 2·σ(conv(p))                           conv over T, k = 3, C/4 → 2, for each frame

The channels are four equal groups with the delays o_1, o_2, -o_1, -o_2, in frames, and the weights w_1, w_2, w_1, w_2:

    out_t = w(t) · x(t - o),   x between frames interpolated linearly, zero outside the clip

The authors' code rounds the delay down, shifts by it and by one more in a CUDA extension and mixes the two. Here the
same values are a T×T matrix per clip and group, max(0, 1 - |t - s - o|) for frame t of the output and s of the input,
so it is differentiable, runs anywhere and costs no MACs as they are counted here. The two differ in one thing: where o
is a whole number, where linear interpolation has no derivative, theirs is the one from above and this one is zero.

Start: the authors', fc2's bias at 0.5108, a delay of half a frame, and the weights' bias at 0. T is part of the
weights: a network made for one T cannot take the weights of another.

Weights: MMAction2's names (``mmaction/models/backbones/resnet_tin.py`` at 01e3c42): ``conv1.conv.net1.offset_net…`` and
``…weight_net…`` are ``tin.offset_net…`` and ``tin.weight_net…`` here, ``conv1.conv.net2`` is conv1. The authors
(deepcs233/TIN, ``ops/temporal_interlace.py`` at f327255) have ``conv1.net2`` for conv1, ``conv1.net1.biasnet.net``'s
``conv``, ``fc``, ``lastlayer`` for ``tin.offset_net``'s ``conv``, ``fc1``, ``fc2``, and
``conv1.net1.weightnet.net.lastlayer`` for ``tin.weight_net.conv``. Which way a positive delay goes was read in
open-mmlab/mmcv, ``mmcv/ops/csrc/common/cuda/tin_shift_cuda_kernel.cuh`` at 86d50f1.
"""

import torch
from torch import Tensor, nn

from clipwise.models.network import ModuleEntry
from clipwise.models.resnet import BlockSpec, Slot, TemporalModule

__all__ = ["MODULES", "TemporalInterlacing", "interlace", "tin"]


def interlace(x_NTCHW: Tensor, delays: Tensor, weights: Tensor) -> Tensor:
    """(N, T, C, H, W) → (N, T, C, H, W): G equal groups of channels, each delayed by a fraction of frames and weighted.

    Args:
        x_NTCHW: the clips.
        delays: (N, G), in frames; frame t takes the input at t - delay, interpolated linearly, zero outside the clip.
        weights: (N, T, G).
    """
    frame = torch.arange(x_NTCHW.shape[1], device=x_NTCHW.device, dtype=delays.dtype)
    lag = frame.unsqueeze(1) - frame
    mixing_NGTS = (1 - (lag - delays[..., None, None]).abs()).relu() * weights.transpose(1, 2).unsqueeze(-1)
    x_NSHWGC = x_NTCHW.permute(0, 1, 3, 4, 2).unflatten(-1, (delays.shape[1], -1))
    return torch.einsum("ngts,nshwgc->nthwgc", mixing_NGTS, x_NSHWGC).flatten(-2).permute(0, 1, 4, 2, 3)


class _OffsetNet(nn.Module):
    """The delays of the first two groups; the other two have their negatives."""

    def __init__(self, channels: int, num_frames: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, 1, 3, padding=1)
        self.fc1 = nn.Linear(num_frames, num_frames)
        self.fc2 = nn.Linear(num_frames, 2)
        nn.init.constant_(self.fc2.bias, 0.5108)

    def forward(self, pooled: Tensor) -> Tensor:
        """(N, C, T) → (N, 2), in frames, between -2 and 2."""
        hidden = torch.relu(self.fc1(self.conv(pooled).squeeze(1)))
        return 4 * (torch.sigmoid(self.fc2(hidden)) - 0.5)


class _WeightNet(nn.Module):
    """The weights of each frame, for the first and the second of either two groups."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, 2, 3, padding=1)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, pooled: Tensor) -> Tensor:
        """(N, C, T) → (N, T, 2), between 0 and 2."""
        return 2 * torch.sigmoid(self.conv(pooled)).transpose(1, 2)


class TemporalInterlacing(TemporalModule):
    """Delay a quarter of the channels by learnt fractions of frames.

    Args:
        channels: C, a multiple of 16.
        num_frames: T.
    """

    key = "tin"

    def __init__(self, channels: int, num_frames: int) -> None:
        super().__init__()
        self.sizes = (channels // 4, channels - channels // 4)
        self.offset_net = _OffsetNet(channels // 4, num_frames)
        self.weight_net = _WeightNet(channels // 4)

    def forward(self, x_NTCHW: Tensor) -> Tensor:
        """(N, T, C, H, W) → (N, T, C, H, W)."""
        x, rest = x_NTCHW.split(self.sizes, dim=2)
        pooled = x.mean(dim=(3, 4)).transpose(1, 2)
        offsets, weights = self.offset_net(pooled), self.weight_net(pooled)
        x = interlace(x, torch.cat((offsets, -offsets), dim=1), torch.cat((weights, weights), dim=2))
        joined_NTHWC = torch.cat((x.permute(0, 1, 3, 4, 2), rest.permute(0, 1, 3, 4, 2)), dim=-1)
        return joined_NTHWC.permute(0, 1, 4, 2, 3)


def tin(block: BlockSpec) -> Slot:
    """Temporal interlacing before conv1.

    Raises:
        ValueError: for a block whose channels cannot be divided so.
    """
    if block.in_channels % 16:
        raise ValueError(
            "TIN delays four equal groups within a quarter of the channels, so their number must be a multiple of 16, "
            f"got {block.in_channels}"
        )
    return Slot(before=TemporalInterlacing(block.in_channels, block.num_frames))


MODULES = {"tin": ModuleEntry(tin, "Shao et al. 2020, TIN")}
