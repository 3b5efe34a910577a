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

Variants (tables of the journal version, in brackets [STM]'s where it has them):

    modules        CSTM alone; CMM alone beside an ordinary conv2                                   Table 6 (5)
    fusion         concatenation: fuse(s | m) in place of s + m; fuse 1×1, 2C → C, no BN           Table 7 (6)
    degenerate     tconv fixed at [0,1,1]: y_t + y_{t+1}; CMM's 3×3 fixed at its centre, k = r      Table 8
    temporal_conv  ordinary: tconv mixes the channels                                               Table 10 (8)
    spatial_conv   channelwise: conv2 is depthwise                                                  Table 10
    motion_conv    ordinary: CMM's 3×3 mixes the channels                                           Table 10

Causal form (ours): tconv's taps are t-2, t-1 and t, and H_t = k_t - r_{t-1}, H_1 = 0.

Decided where the papers are silent or differ:
- tconv starts at [1,0,0] for the first quarter of the channels, [0,1,0] for the middle half and [0,0,1] for the last
  quarter, which is a shift; CMM starts random.
- The journal version writes H with the opposite sign; ``restore`` absorbs it.
- Where conv2 has stride 2, m is max-pooled 2×2 (ceil mode), which gives conv2's size on odd maps too.
- Kernels that degeneration fixes are no parameters and stand in no state dict.
- Concatenation needs a bottleneck, whose conv3 and BN3 follow it; in a basic block nothing would normalise it.
- A depthwise conv2 and ``fuse`` start random: the image network has no counterpart of either.
- Three counts of Table 10 (13.28 M / 24.05 G with the depthwise conv2, CMM's 23.95 M / 32.95 G and 24.25 M / 33.5 G)
  and Table 4's parameters of STM-18 and STM-34 (11.0 M, 20.5 M) come out of no reading; here they are 12.59 M /
  18.04 G, 24.02 M / 33.03 G, 24.07 M / 33.11 G, 11.36 M and 21.55 M.

Weights: ``conv2`` keeps the image network's key; ``cstm.weight``, ``cmm.reduce``, ``cmm.bn``, ``cmm.conv``,
``cmm.restore`` and ``cmm.fuse`` are new.
"""

import torch
from torch import Tensor, nn

from clipwise import ops
from clipwise.models.network import ModuleEntry
from clipwise.models.resnet import BlockSpec, Slot, TemporalModule
from clipwise.models.temporal.layers import Remembering, TemporalConv

__all__ = ["MODULES", "ChannelwiseMotion", "ChannelwiseSpatial", "ChannelwiseTemporal", "stm"]


class ChannelwiseTemporal(TemporalConv, TemporalModule):
    """CSTM's temporal step; conv2 after it is its spatial one.

    Args:
        channels: C.
        channelwise: each channel has its own three taps; otherwise all channels mix.
        degenerate: the taps are [0, 1, 1] for every channel, and are not learnt.
        causal: the taps are t-2, t-1 and t.
    """

    key = "cstm"

    def __init__(
        self, channels: int, *, channelwise: bool = True, degenerate: bool = False, causal: bool = False
    ) -> None:
        super().__init__(channels, groups=channels if channelwise else 1, causal=causal)
        if degenerate:
            del self.weight
            self.register_buffer("weight", torch.tensor([0.0, 1.0, 1.0]).repeat(channels, 1, 1), persistent=False)
        else:
            self.start_as_shift(previous=channels // 4, next_=channels // 4)


class ChannelwiseSpatial(nn.Module):
    """A depthwise 3×3 as CSTM's spatial step, in place of conv2."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)

    def forward(self, y_NTCHW: Tensor) -> Tensor:
        """(N, T, C, H, W) → (N, T, C, H/stride, W/stride)."""
        return ops.unfold(self.conv(ops.fold(y_NTCHW)), y_NTCHW.shape[1])

    def from_image_conv(self, weight: Tensor) -> dict[str, Tensor]:
        """Nothing: the image network's filters mix the channels."""
        return {}


class ChannelwiseMotion(Remembering, TemporalModule):
    """CMM: differences of neighbouring frames' features, joined to conv2's normalised output.

    Args:
        channels: C.
        stride: of conv2.
        channelwise: the 3×3 is depthwise; otherwise it mixes the C/16 channels.
        concatenate: join by concatenation and a 1×1 instead of a sum.
        degenerate: the 3×3 is fixed at its centre, which leaves its input as it is.
        causal: the difference is to the previous frame instead of the next.
    """

    key = "cmm"

    def __init__(
        self,
        channels: int,
        stride: int,
        *,
        channelwise: bool = True,
        concatenate: bool = False,
        degenerate: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__()
        reduced = max(1, channels // 16)
        self.causal = causal
        self.reduce = nn.Conv2d(channels, reduced, 1, bias=False)
        self.bn = nn.BatchNorm2d(reduced)
        self.conv = (
            nn.Identity()
            if degenerate
            else nn.Conv2d(reduced, reduced, 3, padding=1, groups=reduced if channelwise else 1, bias=False)
        )
        self.restore = nn.Conv2d(reduced, channels, 1, bias=False)
        self.pool = nn.MaxPool2d(stride, stride, ceil_mode=True) if stride > 1 else nn.Identity()
        self.fuse = nn.Conv2d(2 * channels, channels, 1, bias=False) if concatenate else None

    def forward(self, s_NTCHW: Tensor, y_NTCHW: Tensor) -> Tensor:
        """s (N, T, C, H/stride, W/stride) and y (N, T, C, H, W) → s + m, or fuse(s | m), shaped as s."""
        frames = y_NTCHW.shape[1]
        reduced = ops.unfold(self.bn(self.reduce(ops.fold(y_NTCHW))), frames)
        motion = ops.motion(reduced, self.conv, causal=self.causal, memory=self.memory)
        m = self.pool(self.restore(ops.fold(motion)))
        if self.fuse is None:
            return ops.unfold(ops.fold(s_NTCHW) + m, frames)  # of folded ones, whose layout a compiler keeps
        return ops.unfold(self.fuse(torch.cat((ops.fold(s_NTCHW), m), dim=1)), frames)


def stm(
    block: BlockSpec,
    *,
    modules: str = "both",
    fusion: str = "sum",
    temporal_conv: str = "channelwise",
    spatial_conv: str = "ordinary",
    motion_conv: str = "channelwise",
    degenerate: bool = False,
    causal: bool = False,
) -> Slot:
    """CSTM and CMM in one block; the tables are named at the top of this file.

    Args:
        modules: ``both``, or ``cstm`` or ``cmm`` alone.
        fusion: of the two, ``sum`` or ``concatenation`` and a 1×1 (bottlenecks only).
        temporal_conv: CSTM's convolution over time, ``channelwise`` or ``ordinary``.
        spatial_conv: CSTM's 3×3, ``ordinary`` or ``channelwise``.
        motion_conv: CMM's 3×3, ``channelwise`` or ``ordinary``.
        degenerate: fix the kernels of both so that they give the sum and the difference of neighbouring frames.
        causal: no frame sees a later one.

    Raises:
        ValueError: for another value, or one that concerns a part which the others leave out.
    """
    kinds = ("channelwise", "ordinary")
    for option, value, known in (
        ("modules", modules, ("both", "cstm", "cmm")),
        ("fusion", fusion, ("sum", "concatenation")),
        ("temporal_conv", temporal_conv, kinds),
        ("spatial_conv", spatial_conv, kinds),
        ("motion_conv", motion_conv, kinds),
    ):
        if value not in known:
            raise ValueError(f"{option} must be one of {', '.join(known)}, got {value!r}")
    if modules == "cmm" and (temporal_conv, spatial_conv) != ("channelwise", "ordinary"):
        raise ValueError(
            f"{temporal_conv = } and {spatial_conv = } concern CSTM, which modules='cmm' leaves out; leave both at "
            "their defaults, or take modules='cstm' or 'both'"
        )
    if modules == "cstm" and motion_conv != "channelwise":
        raise ValueError(
            f"{motion_conv = } concerns CMM, which modules='cstm' leaves out; take modules='cmm' or 'both'"
        )
    if fusion == "concatenation" and modules != "both":
        raise ValueError(f"fusion joins CSTM and CMM, and {modules = } has one of them; take modules='both'")
    if fusion == "concatenation" and block.out_channels == block.width:
        raise ValueError(
            "fusion='concatenation' needs bottlenecks (ResNet-50 and deeper): in a basic block no BN follows it; "
            "take fusion='sum'"
        )
    if degenerate and "ordinary" in (temporal_conv, motion_conv):
        raise ValueError(
            f"degenerate fixes channel-wise kernels, got {temporal_conv = }, {motion_conv = }; leave either out"
        )
    cstm = ChannelwiseTemporal(
        block.width, channelwise=temporal_conv == "channelwise", degenerate=degenerate, causal=causal
    )
    cmm = ChannelwiseMotion(
        block.width,
        block.stride,
        channelwise=motion_conv == "channelwise",
        concatenate=fusion == "concatenation",
        degenerate=degenerate,
        causal=causal,
    )
    return Slot(
        inner=None if modules == "cmm" else cstm,
        conv2=ChannelwiseSpatial(block.width, block.stride) if spatial_conv == "channelwise" else None,
        merge=None if modules == "cstm" else cmm,
    )


MODULES = {"stm": ModuleEntry(stm, "Jiang et al. 2019, STM")}
