"""STW (Cai, *A novel spatio-temporal-wise network for action recognition*).

Replaces conv2. With y = ReLU(BN1(conv1 x)) of C channels:

    STFM   3×3 convolutions with the block's stride of the previous, the current and the next frame,
           to C/4, C/2 and C/4 channels, concatenated; frames outside the clip are zero
    TWM    S = σ(conv 3×1×1 over (T, H, W) of y, C → 1);   y - y·S
    block  STFM + TWM, then BN2 and ReLU

Variants: STFM's shares C/8 : 3C/4 : C/8 and C/16 : 7C/8 : C/16, or an ordinary conv2 of the three frames' mean
(Table 5); STFM alone; TWM alone beside an ordinary conv2, the two summed (Table 6); TWM of STFM's output, or STFM of
TWM's output, which then has the stride (Table 8).

Causal form (ours): the three frames are t-2, t-1 and t in STFM and in S; y itself is frame t's.

Decided where the paper is silent: STFM's three convolutions are 3×3 and take the place of conv2 (an extra 1×1 would
cost 5 %, and the paper states less than 2 %). In a stride-2 block TWM's output is average-pooled 2×2 (ceil mode,
padding not counted).

A convolution without bias commutes with a shift in time, so STFM is one convolution followed by a shift of its
output channels: no shifted copy of the input is built, and the weight keeps the image network's key and shape
(the first quarter, the middle half and the last quarter of its filters are the three convolutions). The mean of three
frames is taken of the convolution's output for the same reason.

Weights: ``conv2.weight`` is the image network's; ``conv2.twm.weight`` is new.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from clipwise import ops
from clipwise.models.network import ModuleEntry
from clipwise.models.resnet import BlockSpec, Slot
from clipwise.models.temporal.layers import Remembering, TemporalConv

__all__ = ["MODULES", "SpatioTemporalWeights", "stw"]


# The shares of the previous, the current and the next frame in STFM's output channels.
_SHARES = {"1:2:1": (1, 2, 1), "1:6:1": (1, 6, 1), "1:14:1": (1, 14, 1)}
_MODULES = ("parallel", "stfm", "twm", "stfm_twm", "twm_stfm")


class SpatioTemporalWeights(Remembering, nn.Conv2d):
    """STFM and TWM in place of a block's 3×3 convolution.

    Args:
        channels: C.
        stride: of the convolution that it replaces.
        modules, fusion, causal: see :func:`stw`.
    """

    def __init__(
        self, channels: int, stride: int, *, modules: str = "parallel", fusion: str = "1:2:1", causal: bool = False
    ) -> None:
        super().__init__(channels, channels, 3, stride, padding=1, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.arrangement = modules
        self.offsets = (-2, -1, 0) if causal else (-1, 0, 1)
        self.groups_in_time: list[tuple[int, int]] | None = None
        if fusion != "average":
            first, _, last = (share * channels // sum(_SHARES[fusion]) for share in _SHARES[fusion])
            sizes = (first, channels - first - last, last)
            self.groups_in_time = list(zip(sizes, self.offsets, strict=True))
        self.twm = None if modules == "stfm" else TemporalConv(channels, 1, causal=causal)
        self.pool = (
            nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        )

    def _fuse(self, features_NTCHW: Tensor) -> Tensor:
        """STFM's step in time, after its convolution: (N, T, C, H, W) → (N, T, C, H, W)."""
        if self.groups_in_time is not None:
            return ops.shift(features_NTCHW, self.groups_in_time, memory=self.memory)
        before, now, after = (
            ops.shift(features_NTCHW, [(self.out_channels, offset)], memory=self.memory) for offset in self.offsets
        )
        mean: Tensor = (before + now + after) / 3
        return mean

    def _kept(self, y_NTCHW: Tensor) -> Tensor:
        """TWM's 1 - S: (N, T, C, H, W) → (N, T, 1, H, W). With it y - y·S is one product."""
        assert self.twm is not None
        kept: Tensor = (-self.twm(y_NTCHW)).sigmoid()
        return kept

    def forward(self, y_NTCHW: Tensor) -> Tensor:
        """(N, T, C, H, W) → (N, T, C, H/stride, W/stride)."""
        return self.arranged(y_NTCHW, lambda images: self._conv_forward(images, self.weight, None))

    def arranged(self, y_NTCHW: Tensor, convolve: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, T, C, H, W) → (N, T, C, H/stride, W/stride), with ``convolve`` in place of this module's own convolution
        of images."""
        frames = y_NTCHW.shape[1]
        x = y_NTCHW * self._kept(y_NTCHW) if self.arrangement == "twm_stfm" else y_NTCHW
        features = ops.unfold(convolve(ops.fold(x)), frames)
        if self.arrangement != "twm":
            features = self._fuse(features)
        if self.bias is not None:  # of an image network's own convolution; frames outside the clip have none
            features = features + self.bias[:, None, None]
        if self.arrangement == "stfm_twm":
            return features * self._kept(features)
        if self.arrangement not in ("parallel", "twm"):
            return features
        if isinstance(self.pool, nn.Identity):
            return torch.addcmul(features, y_NTCHW, self._kept(y_NTCHW))
        return features + ops.unfold(self.pool(ops.fold(y_NTCHW * self._kept(y_NTCHW))), frames)


def stw(block: BlockSpec, *, modules: str = "parallel", fusion: str = "1:2:1", causal: bool = False) -> Slot:
    """STFM and TWM in place of conv2; the tables are named at the top of this file.

    Args:
        modules: ``parallel``, ``stfm`` or ``twm`` alone, or one after the other, ``stfm_twm`` or ``twm_stfm``.
        fusion: how STFM joins the previous, the current and the next frame: by their shares of the output channels,
            ``1:2:1``, ``1:6:1`` or ``1:14:1``, or by their ``average``.
        causal: no frame sees a later one.

    Raises:
        ValueError: for another value, or a fusion without STFM.
    """
    if modules not in _MODULES:
        raise ValueError(f"modules must be one of {', '.join(_MODULES)}, got {modules!r}")
    if fusion not in (*_SHARES, "average"):
        raise ValueError(f"fusion must be one of {', '.join(_SHARES)}, average, got {fusion!r}")
    if modules == "twm" and fusion != "1:2:1":
        raise ValueError(f"{fusion = } concerns STFM, which modules='twm' leaves out; leave one of the two out")
    return Slot(conv2=SpatioTemporalWeights(block.width, block.stride, modules=modules, fusion=fusion, causal=causal))


MODULES = {"stw": ModuleEntry(stw, "Cai, STW")}
