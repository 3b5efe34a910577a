"""TEA on Res2Net-50 (Li et al., *TEA: Temporal excitation and aggregation for action recognition*, CVPR 2020; the
backbone is Gao et al., *Res2Net: A new multi-scale backbone architecture*, 2019, 26 channels × 4 groups).

In a block, with y = ReLU(BN1(conv1 x)) of C = 4·w channels, w = 26, 52, 104, 208:

    ME      r   = BN(reduce(y))                               1×1, C → C/16, no ReLU
            k   = depthwise 3×3 of r
            H_t = k_{t+1} - r_t,  H_T = 0
            z   = y + y·(σ(BN(restore(mean of H over H, W))) - ½)      1×1, C/16 → C
    MTA     z splits into z1 … z4 of w channels each;  t_i channel-wise over time, k = 3, no bias
            o1  = ReLU(BN(conv_1(t_1(z1))))
            o_i = ReLU(BN(conv_i(t_i(z_i + o_{i-1}))))        i = 2, 3
            o4  = t_4(z4)
    block   out = ReLU(BN3(conv3([o1, o2, o3, o4])) + shortcut)

The first block of a stage adds no o_{i-1}, its three 3×3 convolutions stride, and o4 is average-pooled 3×3 with their
stride (padding counted): Res2Net's own rule.

As the authors' code has it where the paper is silent: t_1 to t_3 start as the identity; t_4 starts as a shift of
*all* of its channels, the first half from the next frame, the second from the previous. The 1×1 and 3×3 convolutions
of ME start as the others, Kaiming (fan out). The authors keep one file for each frame count, here T is free.

Weights: the keys are Res2Net's (``layer1.0.convs.0.weight``, ``layer1.0.bns.0.weight``), so its ImageNet file
(res2net50_26w_4s-06e79181.pth) loads by its path as it is. TEA's own code names the new parts ``me.conv1``, ``me.bn1``,
``me.conv2``, ``me.conv3``, ``me.bn3`` and ``shifts.i.conv.weight``; here they are ``me.reduce``, ``me.bn``,
``me.conv``, ``me.restore``, ``me.restore_bn`` and ``mta.i.weight``, of equal shapes, the taps in the same order.
Names looked up in Phoenix1327/tea-action-recognition, ops/tea50_8f.py, commit 66fb9c2.
"""

import re

import torch
from torch import Tensor, nn

from clipwise import ops
from clipwise.models.network import ModelEntry, VideoNetwork
from clipwise.models.placement import block_positions
from clipwise.models.resnet import check_resnet, start_convolutions
from clipwise.models.temporal.layers import TemporalConv
from clipwise.models.temporal.nonlocal_block import NonLocalBlock, nonlocal_positions

__all__ = ["MODELS", "TEA", "MotionExcitation"]

_BLOCKS = (3, 4, 6, 3)
_SCALE = 4


class MotionExcitation(nn.Module):
    """ME: each channel of each frame weighted by how much the next frame differs.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = max(1, channels // 16)
        self.reduce = nn.Conv2d(channels, reduced, 1, bias=False)
        self.bn = nn.BatchNorm2d(reduced)
        self.conv = nn.Conv2d(reduced, reduced, 3, padding=1, groups=reduced, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.restore = nn.Conv2d(reduced, channels, 1, bias=False)
        self.restore_bn = nn.BatchNorm2d(channels)

    def forward(self, y_NTCHW: Tensor) -> Tensor:
        """(N, T, C, H, W) → (N, T, C, H, W)."""
        frames = y_NTCHW.shape[1]
        motion = ops.motion(ops.unfold(self.bn(self.reduce(ops.fold(y_NTCHW))), frames), self.conv)
        gate = self.restore_bn(self.restore(self.pool(ops.fold(motion)))).sigmoid() - 0.5
        return y_NTCHW + y_NTCHW * ops.unfold(gate, frames)


class _Block(nn.Module):
    """A Res2Net bottleneck with ME after conv1 and a temporal convolution before each group's 3×3."""

    def __init__(self, in_channels: int, planes: int, stride: int, opens_stage: bool, nonlocal_block: bool) -> None:
        super().__init__()
        width = planes * 26 // 64
        out_channels = planes * 4
        self.opens_stage = opens_stage
        self.conv1 = nn.Conv2d(in_channels, width * _SCALE, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width * _SCALE)
        self.relu = nn.ReLU(inplace=True)
        self.me = MotionExcitation(width * _SCALE)
        mta = [TemporalConv(width, groups=width) for _ in range(_SCALE)]
        for tconv in mta[:-1]:
            tconv.start_as_shift(previous=0, next_=0)
        mta[-1].start_as_shift(previous=width // 2, next_=width - width // 2)
        with torch.no_grad():  # the authors' halves are the other way round: the next frame first
            mta[-1].weight.copy_(mta[-1].weight.flip(-1))
        self.mta = nn.ModuleList(mta)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, stride, padding=1, bias=False) for _ in range(_SCALE - 1))
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(_SCALE - 1))
        self.pool = nn.AvgPool2d(3, stride, padding=1) if opens_stage else nn.Identity()
        self.conv3 = nn.Conv2d(width * _SCALE, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = (
            nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
            if opens_stage
            else None
        )
        self.nonlocal_block = NonLocalBlock(out_channels) if nonlocal_block else None

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Folded (N·T, C, H, W) → (N·T, 4·planes, H/stride, W/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = ops.unfold(self.relu(self.bn1(self.conv1(x))), frames)
        groups = self.me(y).chunk(_SCALE, dim=2)
        outs: list[Tensor] = []
        # The last group has no 3×3, so that the shorter lists end the loop before it.
        for group, tconv, conv, bn in zip(groups, self.mta, self.convs, self.bns, strict=False):
            mixed = group if self.opens_stage or not outs else group + ops.unfold(outs[-1], frames)
            outs.append(self.relu(bn(conv(ops.fold(tconv(mixed))))))
        outs.append(self.pool(ops.fold(self.mta[-1](groups[-1]))))
        out: Tensor = self.relu(self.bn3(self.conv3(torch.cat(outs, dim=1))) + shortcut)
        if self.nonlocal_block is not None:
            out = ops.fold(self.nonlocal_block(ops.unfold(out, frames)))
        return out


class TEA(VideoNetwork):
    """Res2Net-50 26w×4s with motion excitation and multiple temporal aggregation in every block.

    Args:
        num_classes: outputs of ``fc``.
        num_frames: T of a clip, any number.
        dropout: probability before ``fc``.
        nonlocal_blocks: add non-local blocks, two in stage 3 and three in stage 4.
        base_width: channels of the stem and of the first stage before expansion, 64 in the paper.

    Raises:
        ValueError: for a count, probability or width that cannot be built.
    """

    image_keys = re.compile(
        r"(conv1|bn1|layer\d\.\d+\.(conv\d|bn\d|convs\.\d|bns\.\d|downsample\.\d))"
        r"\.(weight|bias|running_mean|running_var)"
    )

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int,
        dropout: float = 0.5,
        nonlocal_blocks: bool = False,
        base_width: int = 64,
    ) -> None:
        super().__init__(num_classes=num_classes, num_frames=num_frames, dropout=dropout)
        check_resnet(50, base_width, caffe_stride=False)
        self.conv1 = nn.Conv2d(3, base_width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        positions = block_positions(_BLOCKS)
        followed = nonlocal_positions(positions) if nonlocal_blocks else set()
        channels = base_width
        for stage, count in enumerate(_BLOCKS):
            planes = base_width * 2**stage
            layer = nn.ModuleList()
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                layer.append(_Block(channels, planes, stride, index == 0, (stage + 2, index) in followed))
                channels = planes * 4
            self.add_module(f"layer{stage + 1}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        start_convolutions(self)
        self._make_head(channels)

    def forward_features(self, clips: Tensor) -> Tensor:
        """(N, T, 3, H, W) → (N, T, 2048): each frame's pooled features."""
        self.check_clips(clips)
        x = ops.fold(clips).contiguous(memory_format=torch.channels_last)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            for block in getattr(self, f"layer{stage}"):
                x = block(x, self.num_frames)
        return ops.unfold(self.avgpool(x).flatten(1), self.num_frames)


MODELS = {"tea_resnet50": ModelEntry(TEA, "Li et al. 2020, TEA", options_of=(TEA.__init__,))}
