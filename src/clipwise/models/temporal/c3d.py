"""C3D in the 2D framework (Tran et al., *Learning spatiotemporal features with 3D convolutional networks*, ICCV 2015;
in this form the baseline of GST and STC).

Replaces conv2:   3×3×3, C → C, the block's stride in space and none in time, zero padding, no bias.

The other convolutions stay 2D. The STC paper's Table II quotes 42.5 M parameters and 62.5 G from the GST paper; this
definition has 46.50 M and 62.29 G.

Weights: the image network's ``conv2.weight`` is inflated, repeated three times along time and divided by three, so
that a clip of identical frames gives the image network's output wherever no padding in time is seen.
"""

from torch import Tensor, nn

from clipwise.models.conv3d import Conv3d
from clipwise.models.network import ModuleEntry
from clipwise.models.resnet import BlockSpec, Slot

__all__ = ["MODULES", "SpaceTimeConv", "c3d"]


class SpaceTimeConv(Conv3d):
    """A 3×3×3 convolution in place of a block's 3×3; its weight has the image network's key."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels, channels, 3, (1, stride, stride), padding=1, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, y_NTCHW: Tensor) -> Tensor:
        """(N, T, C, H, W) → (N, T, C, H/stride, W/stride)."""
        return super().forward(y_NTCHW.transpose(1, 2)).transpose(1, 2)


def c3d(block: BlockSpec) -> Slot:
    """A 3×3×3 convolution in place of conv2."""
    return Slot(conv2=SpaceTimeConv(block.width, block.stride))


MODULES = {"c3d": ModuleEntry(c3d, "Tran et al. 2015, C3D")}
