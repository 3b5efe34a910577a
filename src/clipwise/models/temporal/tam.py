"""TAM: the temporal *aggregation* module of the Deep Analysis paper (Chen et al., *Deep analysis of CNN-based
spatio-temporal representations for action recognition*, CVPR 2021; after Fan et al. 2019).

Before conv1, on the residual branch only:   ReLU(tconv(x)),   tconv channel-wise over time, k = 3, no bias.

Where the paper is silent: the convolution starts as TSM's shift (an eighth of the channels from either side), so that
ImageNet features survive the first step.

Causal form (ours): tconv's taps are t-2, t-1 and t.

Weights: the authors hold three 1×1 channel-wise convolutions, ``tam.prev_se.fc1.weight``, ``curr_se``, ``next_se``,
each (C, 1, 1, 1); stacked along the last axis in that order they are ``tam.conv.weight``.

Not the temporal *adaptive* module of another paper with the same acronym.
"""

import re

import torch
from torch import Tensor, nn

from clipwise.models.network import ModuleEntry
from clipwise.models.resnet import BlockSpec, Slot, TemporalModule
from clipwise.models.temporal.layers import TemporalConv

__all__ = ["MODULES", "TemporalAggregation", "from_ibm", "tam"]


class TemporalAggregation(TemporalModule):
    """Channel-wise temporal convolution and ReLU."""

    key = "tam"

    def __init__(self, channels: int, *, causal: bool = False) -> None:
        super().__init__()
        self.conv = TemporalConv(channels, groups=channels, causal=causal)
        self.conv.start_as_shift(previous=channels // 8, next_=channels // 8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x_NTCHW: Tensor) -> Tensor:
        """(N, T, C, H, W) → (N, T, C, H, W)."""
        out: Tensor = self.relu(self.conv(x_NTCHW))
        return out


def tam(block: BlockSpec, *, causal: bool = False) -> Slot:
    """A temporal aggregation module before conv1.

    Args:
        causal: no frame sees a later one.
    """
    return Slot(before=TemporalAggregation(block.in_channels, causal=causal))


def from_ibm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our keys: their three 1×1 convolutions become one of three taps, the rest stays.

    Names and shapes: IBM/action-recognition-pytorch at c88e74b, models/twod_models/temporal_modeling.py.
    """
    renamed = dict(state)
    for key in state:
        if match := re.fullmatch(r"(.*tam\w*)\.prev_se\.fc1\.weight", key):
            taps = [f"{match[1]}.{when}_se.fc1.weight" for when in ("prev", "curr", "next")]
            if all(tap in renamed for tap in taps):
                renamed[f"{match[1]}.conv.weight"] = torch.cat([renamed.pop(tap).flatten(2) for tap in taps], dim=2)
    return renamed


MODULES = {"tam": ModuleEntry(tam, "Chen et al. 2021, Deep Analysis")}
