"""TEINet: temporal enhancement and interaction (Liu et al., *TEINet: Towards an efficient architecture for video
recognition*, AAAI 2020).

Before conv1, on the residual branch only, on x of C channels; with p = mean of x over H, W:

    MEM    g_t = σ(restore(after(p_{t+1}) - now(p_t)))     now, after 1×1, C → C/8;  restore 1×1, C/8 → C
           u_t = g_t · x_t,   u_T = x_T
    TIM    tconv(u)                                        channel-wise over time, k = 3, no bias

The authors published no code, and the paper's own text was not at hand: the equations are as other work describes and
re-implements them, where σ before ``restore`` is also found. Decided by the count that the STC paper's Table IV quotes,
30.4 M parameters (with 400 classes, as for its other rows from the same authors) and 33 G: the module stands before
conv1, where the channels are those of the block's input (between conv1 and conv2 it would add 0.5 M, not 6 M), r = 8,
and MEM's 1×1 have biases. That gives 30.36 M and 32.88 G. The last frame, which has no successor, keeps its values;
tconv starts as TSM's shift (an eighth of the channels from either side).

Weights: all new, under ``teinet.``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipwise.models.network import ModuleEntry
from clipwise.models.resnet import BlockSpec, Slot, TemporalModule
from clipwise.models.temporal.layers import TemporalConv

__all__ = ["MODULES", "TemporalEnhancement", "teinet"]


class TemporalEnhancement(TemporalModule):
    """Channels weighted by what changes towards the next frame, then a channel-wise convolution over time."""

    key = "teinet"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.now = nn.Conv1d(channels, channels // 8, 1)
        self.after = nn.Conv1d(channels, channels // 8, 1)
        self.restore = nn.Conv1d(channels // 8, channels, 1)
        self.conv = TemporalConv(channels, groups=channels)
        self.conv.start_as_shift(previous=channels // 8, next_=channels // 8)

    def forward(self, x_NTCHW: Tensor) -> Tensor:
        """(N, T, C, H, W) → (N, T, C, H, W)."""
        pooled_NCT = x_NTCHW.mean(dim=(3, 4)).transpose(1, 2)
        change = F.pad(self.after(pooled_NCT)[..., 1:], (0, 1)) - self.now(pooled_NCT)
        gate = F.pad(torch.sigmoid(self.restore(change))[..., :-1], (0, 1), value=1.0)
        out: Tensor = self.conv(x_NTCHW * gate.transpose(1, 2)[..., None, None])
        return out


def teinet(block: BlockSpec) -> Slot:
    """Temporal enhancement and interaction before conv1.

    Raises:
        ValueError: for a block of fewer than 8 channels.
    """
    if block.in_channels < 8:
        raise ValueError(
            f"TEINet reduces the channels to an eighth, so there must be at least 8, got {block.in_channels}"
        )
    return Slot(before=TemporalEnhancement(block.in_channels))


MODULES = {"teinet": ModuleEntry(teinet, "Liu et al. 2020, TEINet")}
