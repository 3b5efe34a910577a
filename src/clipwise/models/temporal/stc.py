"""STC and STC-Light (Hao et al., *Spatio-temporal collaborative module for efficient action recognition*; [STC]).

Replaces conv2. With y of C channels, split αC | (1-α)C, α = 3/4:

    S_T   Y = conv 3×3, stride s, of TSM's shift (an eighth of the αC channels each way)      αC → αC
          Z = σ(conv1d_k3 over T of Y's mean over H, W) · Y                                   temporal recalibration, TR
    T_S   Y = conv over T alone, k = 3, spatial stride s                                      (1-α)C → (1-α)C
          Z = σ(conv 3×3 of Y's mean over T) · Y                                              spatial recalibration, SR

then the concatenation of both, and the block's BN2 and ReLU. No biases.

STC-Light: each gate first reduces its channels by a 1×1 to max(8, channels / r) and a ReLU, r = 4.
STC-Equal (``split="equal"``): the inputs are split half | half, the outputs αC | (1-α)C.
Table II has both, and STC with α = 0, 1/4, 1/2, 3/4 and 1, of which 0 and 1 are T_S and S_T alone (its 32.9 G for
α = 0 is a slip for 24.7). Table III leaves out TR, SR or both, figure 7 the shift or all three.

Causal form (ours): S_T's shift takes t-2 and t-1 (see tsm.py), both convolutions over time t-2, t-1 and t, and SR's
mean over T is that of the last min(t, T) frames. Each frame then has a gate of its own, so SR's 3×3 costs T times as
much: 27.47 instead of 26.66 GMACs.

Weights: S_T's 3×3 starts from the image network's ``conv2.weight[:αC, :αC]`` (of STC-Equal ``[:αC, :C/2]``). What has
no counterpart starts random: Kaiming for T_S's convolution, PyTorch's default for the gates.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipwise import ops
from clipwise.models.network import ModuleEntry
from clipwise.models.resnet import BlockSpec, Slot
from clipwise.models.temporal.layers import Remembering, TemporalConv, shift_groups

__all__ = ["MODULES", "SpatialTemporalChannels", "stc"]


class _TemporalGate(Remembering):
    """TR: a weight in (0, 1) for each frame and channel."""

    def __init__(self, channels: int, reduced: int | None, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.reduce = None if reduced is None else nn.Conv1d(channels, reduced, 1, bias=False)
        self.conv = nn.Conv1d(reduced or channels, channels, 3, padding=0 if causal else 1, bias=False)

    def forward(self, y_NTCHW: Tensor) -> Tensor:
        """(N, T, C, H, W) → (N, T, C, 1, 1)."""
        pooled = y_NTCHW.mean(dim=(3, 4)).transpose(1, 2)
        if self.reduce is not None:
            pooled = torch.relu(self.reduce(pooled))
        if self.memory is not None:
            pooled = self.memory.with_past(pooled.transpose(1, 2), 2).transpose(1, 2)
        elif self.causal:
            pooled = F.pad(pooled, (2, 0))
        return torch.sigmoid(self.conv(pooled)).transpose(1, 2)[..., None, None]


class _SpatialGate(Remembering):
    """SR: a weight in (0, 1) for each position and channel; in the causal form for each frame too."""

    def __init__(self, channels: int, reduced: int | None, window: int | None) -> None:
        super().__init__()
        self.window = window
        self.reduce = None if reduced is None else nn.Conv2d(channels, reduced, 1, bias=False)
        self.conv = nn.Conv2d(reduced or channels, channels, 3, padding=1, bias=False)

    def forward(self, y_NTCHW: Tensor) -> Tensor:
        """(N, T, C, H, W) → (N, 1, C, H, W), in the causal form (N, T, C, H, W)."""
        if self.window is None:
            context = y_NTCHW.mean(dim=1, keepdim=True)
        else:
            context = ops.running_mean(y_NTCHW, self.window, memory=self.memory)
        pooled = ops.fold(context)
        if self.reduce is not None:
            pooled = torch.relu(self.reduce(pooled))
        return ops.unfold(torch.sigmoid(self.conv(pooled)), context.shape[1])


class SpatialTemporalChannels(Remembering):
    """The STC operation that stands in for a block's 3×3 convolution.

    Args:
        channels: C.
        stride: of the convolution that it replaces.
        alpha: share of the output channels that S_T makes.
        equal: split the inputs in halves whatever ``alpha``.
        reduction: STC-Light's r for the gates, or None for STC.
        shift, tr, sr: whether S_T shifts, and which recalibrations there are ([STC] Table III).
        window: of the causal form, the T frames over which SR's mean runs; None for the two-sided form.
    """

    def __init__(
        self,
        channels: int,
        stride: int,
        *,
        alpha: float,
        equal: bool = False,
        reduction: int | None = None,
        shift: bool = True,
        tr: bool = True,
        sr: bool = True,
        window: int | None = None,
    ) -> None:
        super().__init__()
        causal = window is not None
        out_spatial = round(alpha * channels)
        out_temporal = channels - out_spatial
        in_spatial = channels // 2 if equal else out_spatial
        self.sizes = (in_spatial, channels - in_spatial)
        self.stride = stride
        self.groups = shift_groups(in_spatial, in_spatial // 8 if shift else 0, causal=causal)

        def reduced(size: int) -> int | None:
            return None if reduction is None else max(8, size // reduction)

        self.spatial = self.temporal = self.temporal_gate = self.spatial_gate = None
        if out_spatial:
            self.spatial = nn.Conv2d(in_spatial, out_spatial, 3, stride, padding=1, bias=False)
            if tr:
                self.temporal_gate = _TemporalGate(out_spatial, reduced(out_spatial), causal=causal)
        if out_temporal:
            self.temporal = TemporalConv(channels - in_spatial, out_temporal, causal=causal)
            nn.init.kaiming_normal_(self.temporal.weight, mode="fan_out", nonlinearity="relu")
            if sr:
                self.spatial_gate = _SpatialGate(out_temporal, reduced(out_temporal), window)

    def forward(self, y_NTCHW: Tensor) -> Tensor:
        """(N, T, C, H, W) → (N, T, C, H/stride, W/stride)."""
        frames = y_NTCHW.shape[1]
        first, second = y_NTCHW.split(self.sizes, dim=2)
        parts = []
        if self.spatial is not None:
            z = ops.unfold(self.spatial(ops.fold(ops.shift(first, self.groups, memory=self.memory))), frames)
            parts.append(ops.fold(z if self.temporal_gate is None else z * self.temporal_gate(z)))
        if self.temporal is not None:
            z = self.temporal(second[..., :: self.stride, :: self.stride])
            parts.append(ops.fold(z if self.spatial_gate is None else z * self.spatial_gate(z)))
        return ops.unfold(torch.cat(parts, dim=1), frames)

    def from_image_conv(self, weight: Tensor) -> dict[str, Tensor]:
        """The entries of this module's state dict that the replaced convolution's (C, C, 3, 3) weight gives."""
        if self.spatial is None:
            return {}
        out_channels, in_channels = self.spatial.weight.shape[:2]
        return {"spatial.weight": weight[:out_channels, :in_channels]}


def stc(
    block: BlockSpec,
    *,
    alpha: float = 0.75,
    split: str = "alpha",
    reduction: int | None = None,
    shift: bool = True,
    tr: bool = True,
    sr: bool = True,
    causal: bool = False,
) -> Slot:
    """STC in place of conv2.

    Args:
        alpha: share of the channels that are spatial first, 0 to 1.
        split: of the inputs, ``alpha`` as the outputs or ``equal`` halves (STC-Equal).
        reduction: r of the gates (STC-Light), None for full gates.
        shift, tr, sr: the shift, temporal and spatial recalibration, each of which can be left out.
        causal: no frame sees a later one.

    Raises:
        ValueError: for a value out of range, or an alpha other than 0 and 1 that leaves one part without a channel.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    spatial = round(alpha * block.width)
    if alpha not in (0, 1) and spatial in (0, block.width):
        raise ValueError(
            f"{alpha = } splits no channels: {spatial} of {block.width} would be spatial first; take one between "
            f"{1 / block.width:.3g} and {1 - 1 / block.width:.3g}, or say 0 or 1 for one part alone"
        )
    if split == "equal" and alpha in (0, 1):
        raise ValueError(f"split 'equal' gives half of the inputs to either part, and alpha={alpha} has one part only")
    if split not in ("alpha", "equal"):
        raise ValueError(f"split must be 'alpha' or 'equal', got {split!r}")
    if alpha == 1 and not sr:
        raise ValueError("sr belongs to the temporal part, which alpha=1 leaves out already; leave sr as it is")
    if alpha == 0 and not (shift and tr):
        raise ValueError(
            "shift and tr belong to the spatial part, which alpha=0 leaves out already; leave them as they are"
        )
    if reduction is not None and reduction < 1:
        raise ValueError(f"reduction must be at least 1, got {reduction}")
    return Slot(
        conv2=SpatialTemporalChannels(
            block.width,
            block.stride,
            alpha=alpha,
            equal=split == "equal",
            reduction=reduction,
            shift=shift,
            tr=tr,
            sr=sr,
            window=block.num_frames if causal else None,
        )
    )


MODULES = {
    "stc": ModuleEntry(stc, "Hao et al. 2022, STC"),
    "stc_light": ModuleEntry(partial(stc, reduction=4), "Hao et al. 2022, STC"),
}
