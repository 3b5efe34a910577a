"""STM: spatiotemporal and motion encoding (Jiang et al., *STM: SpatioTemporal and motion encoding for action
recognition*, ICCV 2019, [STM]; journal version: Wang et al., *Learning spatiotemporal and motion features in a
unified 2D network for action recognition*).

In a block, with y = ReLU(BN1(conv1 x)) of C channels:

    CSTM    s   = ReLU(BN2(conv2(tconv(y))))       tconv channel-wise over time, k = 3
    CMM     r   = BN(reduce(y))                    1×1, C → C/16, no ReLU
            k   = depthwise 3×3 of r
            H_t = k_{t+1} - r_t,  H_T = 0          equation 2
            m   = restore(H)                       1×1, C/16 → C
    block   out = ReLU(BN3(conv3(s + m)) + shortcut)

A basic block has no ReLU on s and no conv3: out = ReLU(s + m + shortcut).

Decided where the papers are silent or differ:
- tconv starts at [1,0,0] for the first quarter of the channels, [0,1,0] for the middle half and [0,0,1] for the last
  quarter, which is a shift; CMM starts random.
- The journal version writes H with the opposite sign; ``restore`` absorbs it.
- Where conv2 has stride 2, m is max-pooled 2×2 (ceil mode), which gives conv2's size on odd maps too.

Weights: ``conv2`` keeps the image network's key; ``cstm.weight``, ``cmm.reduce``, ``cmm.bn``, ``cmm.conv`` and
``cmm.restore`` are new.
"""

from torch import Tensor, nn

from clipwise import ops
from clipwise.models.network import ModuleEntry
from clipwise.models.resnet import BlockSpec, Slot, TemporalModule
from clipwise.models.temporal.layers import TemporalConv

__all__ = ["MODULES", "ChannelwiseMotion", "ChannelwiseTemporal", "stm"]


class ChannelwiseTemporal(TemporalConv, TemporalModule):
    """CSTM's temporal step; conv2 after it is its spatial one.

    ``channelwise=False`` is the ordinary temporal convolution of [STM] Table 8.
    """

    key = "cstm"

    def __init__(self, channels: int, *, channelwise: bool = True) -> None:
        super().__init__(channels, groups=channels if channelwise else 1)
        self.start_as_shift(previous=channels // 4, next_=channels // 4)


class ChannelwiseMotion(TemporalModule):
    """CMM: differences of neighbouring frames' features, added to conv2's normalised output."""

    key = "cmm"

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        reduced = max(1, channels // 16)
        self.reduce = nn.Conv2d(channels, reduced, 1, bias=False)
        self.bn = nn.BatchNorm2d(reduced)
        self.conv = nn.Conv2d(reduced, reduced, 3, padding=1, groups=reduced, bias=False)
        self.restore = nn.Conv2d(reduced, channels, 1, bias=False)
        self.pool = nn.MaxPool2d(stride, stride, ceil_mode=True) if stride > 1 else nn.Identity()

    def forward(self, s_NTCHW: Tensor, y_NTCHW: Tensor) -> Tensor:
        """s (N, T, C, H/stride, W/stride) and y (N, T, C, H, W) → s + m, shaped as s."""
        frames = y_NTCHW.shape[1]
        reduced = self.bn(self.reduce(ops.fold(y_NTCHW)))
        motion = ops.motion_difference(ops.unfold(self.conv(reduced), frames), ops.unfold(reduced, frames))
        m = self.pool(self.restore(ops.fold(motion)))
        return s_NTCHW + ops.unfold(m, frames)


def stm(block: BlockSpec, *, modules: str = "both", temporal_conv: str = "channelwise") -> Slot:
    """CSTM and CMM in one block.

    Args:
        modules: ``both``, or ``cstm`` or ``cmm`` alone ([STM] Table 5).
        temporal_conv: CSTM's, ``channelwise`` or ``ordinary`` ([STM] Table 8).

    Raises:
        ValueError: for another value.
    """
    if modules not in ("both", "cstm", "cmm"):
        raise ValueError(f"modules must be 'both', 'cstm' or 'cmm', got {modules!r}")
    if temporal_conv not in ("channelwise", "ordinary"):
        raise ValueError(f"temporal_conv must be 'channelwise' or 'ordinary', got {temporal_conv!r}")
    channelwise = temporal_conv == "channelwise"
    return Slot(
        inner=None if modules == "cmm" else ChannelwiseTemporal(block.width, channelwise=channelwise),
        merge=None if modules == "cstm" else ChannelwiseMotion(block.width, block.stride),
    )


MODULES = {"stm": ModuleEntry(stm, "Jiang et al. 2019, STM")}
