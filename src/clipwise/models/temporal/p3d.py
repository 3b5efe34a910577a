"""P3D in the 2D framework (Qiu, Yao, Mei: *Learning spatio-temporal representation with pseudo-3D residual networks*,
ICCV 2017; in this form the baseline of GST and STC).

Replaces conv2:   tconv(conv2(y)),   conv2 3×3 with the block's stride, tconv 3×1×1, C → C, no bias.

The paper's P3D-A, one after the other. Decided where it and its re-implementations differ: no BN or ReLU between the
two (the paper's BN there would add 7,552 parameters to ResNet-50's 27.64 M, and no MACs), and tconv starts as TSM's
shift (an eighth of the channels from either side), so that ImageNet features survive and time counts from the start.
The STC paper's Table II quotes 29.4 M and 37.8 G from the GST paper; this definition has 27.64 M and 37.63 G.

Weights: ``conv2.weight`` is the image network's; ``conv2.temporal.weight`` is new.
"""

from torch import Tensor, nn

from clipwise import ops
from clipwise.models.network import ModuleEntry
from clipwise.models.resnet import BlockSpec, Slot
from clipwise.models.temporal.layers import TemporalConv

__all__ = ["MODULES", "PseudoSpaceTimeConv", "p3d"]


class PseudoSpaceTimeConv(nn.Conv2d):
    """A 3×3 convolution and one along time after it, in place of a block's 3×3."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels, channels, 3, stride, padding=1, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.temporal = TemporalConv(channels)
        self.temporal.start_as_shift(previous=channels // 8, next_=channels // 8)

    def forward(self, y_NTCHW: Tensor) -> Tensor:
        """(N, T, C, H, W) → (N, T, C, H/stride, W/stride)."""
        spatial = super().forward(ops.fold(y_NTCHW))
        out: Tensor = self.temporal(ops.unfold(spatial, y_NTCHW.shape[1]))
        return out


def p3d(block: BlockSpec) -> Slot:
    """A 3×3 and a 3×1×1 convolution in place of conv2."""
    return Slot(conv2=PseudoSpaceTimeConv(block.width, block.stride))


MODULES = {"p3d": ModuleEntry(p3d, "Qiu et al. 2017, P3D")}
