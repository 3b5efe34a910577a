"""GST: grouped spatial-temporal aggregation (Luo and Yuille, *Grouped spatial-temporal aggregation for efficient action
recognition*, ICCV 2019).

Replaces conv2. With y of C channels, α = 3/4:

    GST         concatenation of   conv 3×3   of y's first half     C/2 → αC
                                   conv 3×3×3 of y's second half    C/2 → (1-α)C
    GST-Large   the same, both convolutions of all of y

Both have the block's stride in space, none in time, and no bias; the block's BN2 and ReLU follow.

The authors write α = 4 for the same split, a quarter of the outputs being temporal.

Weights: the 3×3 starts from the image network's ``conv2.weight[:αC, :C/2]`` (of GST-Large ``[:αC]``), as the authors'
does; the 3×3×3 has Kaiming's start. Theirs (chenxuluo/GST-video, ``GST.py`` at 2429abe) are ``conv2.weight`` with a
third axis of length 1, here ``conv2.spatial.weight`` without it, and ``Tconv.weight``, here ``conv2.temporal.weight``;
their other convolutions have axes of length 1 too.
"""

from functools import partial

import torch
from torch import Tensor, nn

from clipwise import ops
from clipwise.models.conv3d import Conv3d
from clipwise.models.network import ModuleEntry
from clipwise.models.resnet import BlockSpec, Slot

__all__ = ["MODULES", "GroupedSpatialTemporal", "gst"]


class GroupedSpatialTemporal(nn.Module):
    """A 2D and a 3D convolution side by side, in place of a block's 3×3.

    Args:
        channels: C.
        stride: of the convolution that it replaces.
        spatial: output channels of the 2D convolution; the 3D one makes the others.
        halves: whether each convolution sees half of the channels or all.
    """

    def __init__(self, channels: int, stride: int, *, spatial: int, halves: bool) -> None:
        super().__init__()
        seen = channels // 2 if halves else channels
        self.sizes = (seen, channels - seen) if halves else None
        self.spatial = nn.Conv2d(seen, spatial, 3, stride, padding=1, bias=False)
        self.temporal = Conv3d(seen, channels - spatial, 3, (1, stride, stride), padding=1, bias=False)

    def forward(self, y_NTCHW: Tensor) -> Tensor:
        """(N, T, C, H, W) → (N, T, C, H/stride, W/stride)."""
        first, second = (y_NTCHW, y_NTCHW) if self.sizes is None else y_NTCHW.split(self.sizes, dim=2)
        spatial = self.spatial(ops.fold(first))
        temporal = self.temporal(second.transpose(1, 2)).transpose(1, 2)
        return ops.unfold(torch.cat((spatial, ops.fold(temporal)), dim=1), y_NTCHW.shape[1])

    def from_image_conv(self, weight: Tensor) -> dict[str, Tensor]:
        """The entries of this module's state dict that the replaced convolution's (C, C, 3, 3) weight gives."""
        out_channels, in_channels = self.spatial.weight.shape[:2]
        return {"spatial.weight": weight[:out_channels, :in_channels]}


def gst(block: BlockSpec, *, alpha: float = 0.75, inputs: str = "halves") -> Slot:
    """GST in place of conv2.

    Args:
        alpha: share of the output channels that the 2D convolution makes, between 0 and 1.
        inputs: ``halves``, one for each convolution, or ``all`` for both (GST-Large).

    Raises:
        ValueError: for another value, or an ``alpha`` that leaves one of the convolutions without outputs.
    """
    if inputs not in ("halves", "all"):
        raise ValueError(f"inputs must be 'halves' or 'all', got {inputs!r}")
    spatial = round(alpha * block.width) if 0 < alpha < 1 else 0
    if not 0 < spatial < block.width:
        raise ValueError(
            f"{alpha = } splits no channels: each convolution needs at least one of {block.width}; take a value "
            f"between {1 / block.width:.3g} and {1 - 1 / block.width:.3g}"
        )
    return Slot(conv2=GroupedSpatialTemporal(block.width, block.stride, spatial=spatial, halves=inputs == "halves"))


MODULES = {
    "gst": ModuleEntry(gst, "Luo and Yuille 2019, GST"),
    "gst_large": ModuleEntry(partial(gst, inputs="all"), "Luo and Yuille 2019, GST"),
}
