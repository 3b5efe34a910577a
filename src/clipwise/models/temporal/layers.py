"""Layers that several temporal modules are made of."""

import math

import torch
from torch import Tensor, nn

from clipwise import ops
from clipwise.memory import Memory

__all__ = ["Remembering", "TemporalConv", "shift_groups"]


def shift_groups(channels: int, fold: int, *, causal: bool = False) -> list[tuple[int, int]]:
    """TSM's groups for :func:`clipwise.ops.shift`: the first ``fold`` channels take the next frame (the causal form:
    t-2), as many after them the previous one, the rest stay."""
    return [(fold, -2 if causal else +1), (fold, -1), (channels - 2 * fold, 0)]


class Remembering(nn.Module):
    """A module whose causal form reads earlier frames."""

    memory: Memory | None = None
    """Where a stream finds them; None in a clip, before which there are zeros."""


class TemporalConv(Remembering):
    """Convolution over time alone, kernel 3, zero padding, no bias while it trains.

    ``weight`` has conv1d's shape (out, in / groups, 3), its taps in the order previous, current, next.

    Args:
        in_channels, out_channels, groups: as in ``nn.Conv1d``.
        causal: the taps are t-2, t-1 and t. A two-sided convolution's weight serves as it is: its taps move back
            one frame.
    """

    def __init__(
        self, in_channels: int, out_channels: int | None = None, *, groups: int = 1, causal: bool = False
    ) -> None:
        super().__init__()
        self.groups = groups
        self.causal = causal
        self.bias: nn.Parameter | None
        self.weight = nn.Parameter(torch.empty(out_channels or in_channels, in_channels // groups, 3))
        self.register_parameter("bias", None)  # deployment folds a normalisation into it
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def start_as_shift(self, previous: int, next_: int) -> None:
        """Make the first ``previous`` channels take the previous frame, the last ``next_`` the next frame and those
        between stay as they are; in the causal form all of it one frame later. A convolution that mixes channels starts
        with the same map on its diagonal.
        """
        out_channels, per_group, _ = self.weight.shape
        tap = torch.ones(out_channels, dtype=torch.long)
        tap[:previous] = 0
        tap[out_channels - next_ :] = 2
        with torch.no_grad():
            self.weight.zero_()
            channel = torch.arange(out_channels)
            self.weight[channel, channel % per_group, tap] = 1.0

    def forward(self, x_NTCHW: Tensor) -> Tensor:
        """(N, T, C, H, W) → (N, T, C', H, W)."""
        return ops.temporal_conv(x_NTCHW, self.weight, self.bias, causal=self.causal, memory=self.memory)

    def extra_repr(self) -> str:
        out_channels, per_group, kernel = self.weight.shape
        return f"out={out_channels}, in_per_group={per_group}, kernel={kernel}{', causal' if self.causal else ''}"
