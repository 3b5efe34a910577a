"""I3D and S3D on ResNet-18/34/50/101/152: the 3D half of the Deep Analysis framework.

Chen et al., *Deep analysis of CNN-based spatio-temporal representations for action recognition* (CVPR 2021), after
Carreira and Zisserman (2017) for I3D and Xie et al. (2018) for S3D. Kernels are written time × height × width::

    stem       3×7×7, stride 1,2,2 – BN – ReLU – max-pool 1×3×3, stride 1,2,2
    I3D        every 3×3 of the image network becomes 3×3×3 – BN
    S3D        every 3×3 becomes 1×3×3 – BN – ReLU – 3×1×1 – BN, as wide in the middle as at its end
               (R(2+1)D without the widened middle)
    block      ReLU(branch(x) + shortcut(x)), the branch's 1×1 being 1×1×1
    head       mean over H and W, dropout, ``fc`` per time step that is left, mean of the logits

Without temporal pooling nothing strides in time, and any T ≥ 1 will do. With it the first blocks of stages 3, 4 and 5
stride 2 in time, in their first 3×3×3 (S3D: its 3×1×1) and in their shortcut, which leaves T/8 steps.

Decided here: squeeze-excitation (Hu et al. 2018) pools over T, H and W, reduces the channels by 16, and gates the
branch's output just before the addition. In S3D the image network's BN follows the 1×3×3, the 3×1×1 starts as the
identity (where it strides, as the mean of three frames) and the BN after it is new, so that in evaluation a bottleneck
without temporal pooling starts as the image network's; in a basic block one ReLU more stands before the addition.
``caffe_stride`` moves a bottleneck's stride in space to its first 1×1, not that in time. Non-local blocks stand where
:mod:`~clipwise.models.temporal.nonlocal_block` has them in the 2D networks.

Weights: the keys are torchvision's ResNet's with 5-D kernels, so an ImageNet file is inflated as it is; beside them
S3D has ``conv2_t.weight`` and ``bn2_t`` (basic blocks also ``conv1_t``, ``bn1_t``), squeeze-excitation ``se`` and a
non-local block ``nonlocal_block``. The authors' files have the same keys, without the last two
(IBM/action-recognition-pytorch at c88e74b, ``models/threed_models/i3d_resnet.py`` and ``s3d_resnet.py``).
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from clipwise.models.conv3d import Conv3d
from clipwise.models.network import ModelEntry, VideoNetwork
from clipwise.models.placement import block_positions, placed_in
from clipwise.models.resnet import LAYERS, ResNet, check_resnet, resnet_depths
from clipwise.models.temporal.nonlocal_block import NonLocalBlock, nonlocal_positions

__all__ = ["MODELS", "ResNet3d"]


class _SqueezeExcitation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, channels // 16)
        self.expand = nn.Linear(channels // 16, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, C, T, H, W): each channel times a gate for the clip."""
        gate = torch.sigmoid(self.expand(torch.relu(self.reduce(x.mean((2, 3, 4))))))
        return x * gate[:, :, None, None, None]


class _Block(nn.Module):
    """A residual block of either kind: convolutions ``conv1``, ``conv2`` … each with its BN."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        bottleneck: bool,
        separated: bool,
        in_time: bool,
        stride: int,
        frame_stride: int,
        caffe_stride: bool,
        squeeze_excitation: bool,
        nonlocal_block: bool,
    ) -> None:
        super().__init__()
        sizes, channels = [3, 3], [in_channels, width, width]
        if bottleneck:
            sizes, channels = [1, 3, 1], [in_channels, width, width, width * 4]
        first_3x3 = sizes.index(3)
        self.convolutions = len(sizes)
        for index, size in enumerate(sizes):
            number, inputs, outputs = index + 1, channels[index], channels[index + 1]
            in_space = stride if index == (0 if caffe_stride else first_3x3) else 1
            over_time = frame_stride if index == first_3x3 else 1
            split = separated and size == 3 and in_time
            frames = size if in_time and not split else 1
            conv = Conv3d(
                inputs,
                outputs,
                (frames, size, size),
                (1 if split else over_time, in_space, in_space),
                padding=(frames // 2, size // 2, size // 2),
                bias=False,
            )
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm3d(outputs))
            if split:
                temporal = Conv3d(outputs, outputs, (3, 1, 1), (over_time, 1, 1), padding=(1, 0, 0), bias=False)
                self.add_module(f"conv{number}_t", temporal)
                self.add_module(f"bn{number}_t", nn.BatchNorm3d(outputs))
        self.se = _SqueezeExcitation(channels[-1]) if squeeze_excitation else None
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != channels[-1]:
            self.downsample = nn.Sequential(
                Conv3d(in_channels, channels[-1], 1, (frame_stride, stride, stride), bias=False),
                nn.BatchNorm3d(channels[-1]),
            )
        self.nonlocal_block = NonLocalBlock(channels[-1]) if nonlocal_block else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, C', T/frame_stride, H/stride, W/stride)."""
        out: Tensor = x
        for number in range(1, self.convolutions + 1):
            out = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(out))
            if hasattr(self, f"conv{number}_t"):
                out = getattr(self, f"bn{number}_t")(getattr(self, f"conv{number}_t")(self.relu(out)))
            if number < self.convolutions:
                out = self.relu(out)
        if self.se is not None:
            out = self.se(out)
        out = self.relu(out + (x if self.downsample is None else self.downsample(x)))
        if self.nonlocal_block is not None:
            out = self.nonlocal_block(out.transpose(1, 2)).transpose(1, 2)
        return out


class ResNet3d(VideoNetwork):
    """A ResNet whose 3×3 convolutions also see time.

    Args:
        depth: 18, 34, 50, 101 or 152.
        separated: S3D's pair of convolutions in place of I3D's 3×3×3.
        num_classes: outputs of ``fc``.
        num_frames: T of a clip; the forward pass refuses another.
        dropout: probability before ``fc``.
        temporal_pooling: stride 2 in time in stages 3, 4 and 5; T must then be a multiple of 8.
        stages, placement: which blocks see time (see :mod:`clipwise.models.placement`); the others' kernels are 1×3×3.
        squeeze_excitation: gate the channels of each residual branch.
        nonlocal_blocks: add non-local blocks, two in stage 3 and three in stage 4 (ResNet-18: two).
        caffe_stride: a bottleneck's stride in space on its first 1×1.
        base_width: channels of the stem and of the first stage's blocks, 64 in the paper.

    Raises:
        ValueError: for a depth, frame count, class count or width that cannot be built.
    """

    image_keys = ResNet.image_keys

    def __init__(
        self,
        depth: int,
        separated: bool,
        *,
        num_classes: int,
        num_frames: int,
        dropout: float = 0.5,
        stages: Sequence[int] = (2, 3, 4, 5),
        placement: str = "all",
        temporal_pooling: bool = False,
        squeeze_excitation: bool = False,
        nonlocal_blocks: bool = False,
        caffe_stride: bool = False,
        base_width: int = 64,
    ) -> None:
        super().__init__(
            num_classes=num_classes, num_frames=num_frames, dropout=dropout, temporal_pooling=temporal_pooling
        )
        check_resnet(depth, base_width, caffe_stride)
        self.caffe_stride = caffe_stride
        kind, blocks = LAYERS[depth]
        if caffe_stride and kind == "basic":
            raise ValueError(f"caffe_stride concerns bottlenecks, and ResNet-{depth} has none; leave it out")
        self.conv1 = Conv3d(3, base_width, (3, 7, 7), (1, 2, 2), padding=(1, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(base_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1))
        positions = block_positions(blocks)
        placed = placed_in(stages, placement)(positions)
        if temporal_pooling and not {(stage, 0) for stage in (3, 4, 5)} <= placed:
            raise ValueError(
                f"temporal pooling strides in the first blocks of stages 3, 4 and 5, which {stages = } and "
                f"{placement = } leave without time: frames would be thrown away unseen; leave one of them out"
            )
        followed = nonlocal_positions(positions) if nonlocal_blocks else set()
        channels = base_width
        for stage, count in enumerate(blocks, start=2):
            layer = nn.Sequential()
            width = base_width * 2 ** (stage - 2)
            for index in range(count):
                opens = stage > 2 and index == 0
                block = _Block(
                    channels,
                    width,
                    bottleneck=kind == "bottleneck",
                    separated=separated,
                    in_time=(stage, index) in placed,
                    stride=2 if opens else 1,
                    frame_stride=2 if opens and temporal_pooling else 1,
                    caffe_stride=caffe_stride,
                    squeeze_excitation=squeeze_excitation,
                    nonlocal_block=(stage, index) in followed,
                )
                layer.append(block)
                channels = width * (4 if kind == "bottleneck" else 1)
            self.add_module(f"layer{stage - 1}", layer)
        self.avgpool = nn.AdaptiveAvgPool3d((None, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                if module.kernel_size == (3, 1, 1):
                    nn.init.dirac_(module.weight)
                    if module.stride[0] > 1:  # the mean of three: the identity would drop every other frame
                        with torch.no_grad():
                            module.weight.copy_(module.weight[:, :, 1:2].expand_as(module.weight) / 3)
                else:
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self._make_head(channels)

    def forward_features(self, clips: Tensor) -> Tensor:
        """(N, T, 3, H, W) → (N, T', C): pooled features of each time step; T' is T, or T/8 with temporal pooling."""
        self.check_clips(clips)
        x = self.maxpool(self.relu(self.bn1(self.conv1(clips.transpose(1, 2)))))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        features: Tensor = self.avgpool(x).flatten(2).transpose(1, 2)
        return features


MODELS: dict[str, ModelEntry] = {
    f"{name}_resnet{depth}": ModelEntry(
        partial(ResNet3d, depth, separated),
        "Chen et al. 2021, Deep Analysis",
        options_of=(ResNet3d.__init__,),
        image_backbone=f"resnet{depth}",
    )
    for name, separated in (("i3d", False), ("s3d", True))
    for depth in resnet_depths()
}
