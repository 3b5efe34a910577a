"""STW (Cai, *A novel spatio-temporal-wise network for action recognition*).

Replaces conv2. With y = ReLU(BN1(conv1 x)) of C channels:

    STFM   3×3 convolutions with the block's stride of the previous, the current and the next frame,
           to C/4, C/2 and C/4 channels, concatenated; frames outside the clip are zero
    TWM    S = σ(conv 3×1×1 over (T, H, W) of y, C → 1);   y - y·S
    block  STFM + TWM, then BN2 and ReLU

Decided where the paper is silent: STFM's three convolutions are 3×3 and take the place of conv2 (an extra 1×1 would
cost 5 %, and the paper states less than 2 %). In a stride-2 block TWM's output is average-pooled 2×2 (ceil mode,
padding not counted).

A convolution without bias commutes with a shift in time, so STFM is one convolution followed by a shift of its
output channels: no shifted copy of the input is built, and the weight keeps the image network's key and shape
(the first quarter, the middle half and the last quarter of its filters are the three convolutions).

Weights: ``conv2.weight`` is the image network's; ``conv2.twm.weight`` is new.
"""

from torch import Tensor, nn

from clipwise import ops
from clipwise.models.network import ModuleEntry
from clipwise.models.resnet import BlockSpec, Slot
from clipwise.models.temporal.layers import TemporalConv

__all__ = ["MODULES", "SpatioTemporalWeights", "stw"]


class SpatioTemporalWeights(nn.Conv2d):
    """STFM and TWM in parallel, in place of a block's 3×3 convolution."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels, channels, 3, stride, padding=1, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        side = channels // 4
        self.groups_in_time = [(side, -1), (channels - 2 * side, 0), (side, +1)]
        self.twm = TemporalConv(channels, 1)
        self.pool = (
            nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        )

    def forward(self, y_NTCHW: Tensor) -> Tensor:
        """(N, T, C, H, W) → (N, T, C, H/stride, W/stride)."""
        frames = y_NTCHW.shape[1]
        features = ops.shift(ops.unfold(super().forward(ops.fold(y_NTCHW)), frames), self.groups_in_time)
        weighted = y_NTCHW - y_NTCHW * self.twm(y_NTCHW).sigmoid()
        return features + ops.unfold(self.pool(ops.fold(weighted)), frames)


def stw(block: BlockSpec) -> Slot:
    """STFM and TWM in place of conv2."""
    return Slot(conv2=SpatioTemporalWeights(block.width, block.stride))


MODULES = {"stw": ModuleEntry(stw, "Cai, STW")}
