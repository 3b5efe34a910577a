"""X3D-S, M and L (Feichtenhofer, *X3D: expanding architectures for efficient video recognition*, CVPR 2020).

One 3D network, thin (24 channels in its stem) and without stride in time:

    stem    1×3×3, stride (1, 2, 2), to C; then channel-wise 5×1×1, BN, ReLU
    stage   of C, 2C, 4C and 8C channels, each opened by a block of stride 2 in space
    block   with D = 2.25 × its output's channels:
            x → ReLU(shortcut + BN(1×1×1) · swish(SE(BN(channel-wise 3×3×3, stride s))) · ReLU(BN(1×1×1, → D)) x)
            SE in every other block, from a stage's first; the shortcut projects 1×1×1 where the block strides
    SE      x · σ(fc2(ReLU(fc1(mean over T, H, W of x)))), with biases; fc1 to D/16, rounded to a multiple of 8, ≥ 8
    head    1×1×1 to 2.25·8C, BN, ReLU; mean over T, H, W; linear to 2048, no bias, ReLU; dropout; fc

    S   blocks 3, 5, 11, 7    13 frames of 160²         M   the same, 16 frames of 224²
    L   blocks 5, 10, 25, 15  16 frames of 312²

Counts: all convolutions, SE's and the head's among them, at these sizes with 400 classes. S 1.96 G, M 4.73 G and
L 18.37 G, with 3.79, 3.79 and 6.15 M parameters, are what PySlowFast's MODEL_ZOO.md (at c6b7655f) prints: 1.96, 4.73,
18.37 G and 3.8, 3.8, 6.2 M. PyTorchVideo's table (docs/source/model_zoo.md at 93bd0fa0) has 2.96 G for S and 6.72 G
for M at the test crops of 182² and 256²; the convolutions alone come to 2.72 and 6.18 G there.

Decided: the head takes the mean over the whole map at any size; the authors' code slides the window of its training
size and averages the softmax. The last BN of each residual branch starts at zero, as the authors train it (from
random weights; there is no ImageNet start). Colours are normalised by mean 0.45 and deviation 0.225, as theirs.

Weights: :func:`from_pyslowfast`, :func:`from_mmaction2`.
"""

import re
from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn

from clipwise.models.conv3d import Conv3d
from clipwise.models.network import ModelEntry, VideoNetwork
from clipwise.models.slowfast import BLOCK_PARTS

__all__ = ["MODELS", "X3D", "from_mmaction2", "from_pyslowfast"]

_EXPANSION = 2.25
_HEAD_WIDTH = 2048


def _squeezed(channels: int) -> int:
    """Channels between SE's two layers: a sixteenth to the nearest multiple of 8, but never over a tenth less."""
    exact = channels / 16
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * exact else rounded + 8


class _SqueezeExcitation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = _squeezed(channels)
        self.fc1 = Conv3d(channels, squeezed, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = Conv3d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, C, T, H, W)."""
        gate: Tensor = self.fc2(self.relu(self.fc1(x.mean((2, 3, 4), keepdim=True)))).sigmoid()
        return x * gate


class _Stem(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_xy = Conv3d(3, width, (1, 3, 3), (1, 2, 2), padding=(0, 1, 1), bias=False)
        self.conv_t = Conv3d(width, width, (5, 1, 1), padding=(2, 0, 0), groups=width, bias=False)
        self.bn = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, T, H, W) → (N, width, T, H/2, W/2)."""
        out: Tensor = self.relu(self.bn(self.conv_t(self.conv_xy(x))))
        return out


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        inner = int(_EXPANSION * out_channels)
        self.conv1 = Conv3d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(inner)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = Conv3d(inner, inner, 3, (1, stride, stride), padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm3d(inner)
        self.se = _SqueezeExcitation(inner) if squeeze else nn.Identity()
        self.swish = nn.SiLU()
        self.conv3 = Conv3d(inner, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                Conv3d(in_channels, out_channels, 1, (1, stride, stride), bias=False), nn.BatchNorm3d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, out_channels, T, H/stride, W/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.swish(self.se(self.bn2(self.conv2(y))))))
        out: Tensor = self.relu(y + shortcut)
        return out


class X3D(VideoNetwork):
    """A thin 3D network of channel-wise convolutions.

    Args:
        blocks: residual blocks of each stage.
        num_classes: outputs of ``fc``.
        num_frames: T of a clip; every T will do.
        dropout: probability before ``fc``.
        base_width: channels of the stem, 24 in the paper's S, M and L.

    Raises:
        ValueError: for a width that cannot be built, or see :class:`VideoNetwork`.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        *,
        num_classes: int,
        num_frames: int,
        dropout: float = 0.5,
        base_width: int = 24,
    ) -> None:
        super().__init__(num_classes=num_classes, num_frames=num_frames, dropout=dropout)
        if base_width < 8 or base_width % 8:
            raise ValueError(f"base_width must be a multiple of 8, got {base_width}")
        self.stem = _Stem(base_width)
        channels = base_width
        for stage, count in enumerate(blocks):
            width = base_width * 2**stage
            layer = nn.Sequential()
            for index in range(count):
                layer.append(_Block(channels, width, 2 if index == 0 else 1, squeeze=index % 2 == 0))
                channels = width
            self.add_module(f"layer{stage + 1}", layer)
        inner = int(_EXPANSION * channels)
        self.conv5 = Conv3d(channels, inner, 1, bias=False)
        self.bn5 = nn.BatchNorm3d(inner)
        self.relu = nn.ReLU(inplace=True)
        self.lin5 = Conv3d(inner, _HEAD_WIDTH, 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, _Block):
                nn.init.zeros_(module.bn3.weight)
        self._make_head(_HEAD_WIDTH)

    def forward_features(self, clips: Tensor) -> Tensor:
        """(N, T, 3, H, W) → (N, 1, 2048)."""
        self.check_clips(clips)
        x = self.stem(clips.transpose(1, 2))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        x = self.relu(self.bn5(self.conv5(x)))
        features: Tensor = self.relu(self.lin5(x.mean((2, 3, 4), keepdim=True)))
        return features.flatten(1).unsqueeze(1)


_PARTS = {**BLOCK_PARTS, "branch2.se.fc1": "se.fc1", "branch2.se.fc2": "se.fc2"}
_HEAD = {"conv_5": "conv5", "conv_5_bn": "bn5", "lin_5": "lin5", "projection": "fc"}
_STEM = {"conv_xy": "conv_xy", "conv": "conv_t", "bn": "bn"}


def from_pyslowfast(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """PySlowFast's state dict of an X3D under this network's keys; a key without counterpart keeps its name.

    Names and shapes: facebookresearch/SlowFast, slowfast/models/ video_model_builder.py at ad73dcfa, resnet_helper.py
    at bac7b672, operators.py and stem_helper.py at 673ded3f, head_helper.py at adc55ca3. The tensors are under
    ``model_state`` of a checkpoint such as the zoo's ``x3d_m.pyth``.
    """

    def renamed(key: str) -> str:
        if (match := re.fullmatch(r"s1\.pathway0_stem\.(\w+)\.(\w+)", key)) and match[1] in _STEM:
            return f"stem.{_STEM[match[1]]}.{match[2]}"
        if (match := re.fullmatch(r"s([2-5])\.pathway0_res(\d+)\.(.+)\.(\w+)", key)) and match[3] in _PARTS:
            return f"layer{int(match[1]) - 1}.{match[2]}.{_PARTS[match[3]]}.{match[4]}"
        if (match := re.fullmatch(r"head\.(\w+)\.(\w+)", key)) and match[1] in _HEAD:
            return f"{_HEAD[match[1]]}.{match[2]}"
        return key

    return {renamed(key): value for key, value in state.items()}


_MMACTION2_STEM = {"conv1_s.conv": "conv_xy", "conv1_t.conv": "conv_t", "conv1_t.bn": "bn"}


def from_mmaction2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MMAction2's state dict of an X3D under this network's keys; a key without counterpart keeps its name.

    Names and shapes: open-mmlab/mmaction2, mmaction/models/ backbones/x3d.py at ed914c0d, heads/x3d_head.py at
    56515c49. Its head has a linear layer where this network has a 1×1×1 convolution.
    """

    def renamed(key: str) -> str:
        if (match := re.fullmatch(r"backbone\.(conv1_[st]\.\w+)\.(\w+)", key)) and match[1] in _MMACTION2_STEM:
            return f"stem.{_MMACTION2_STEM[match[1]]}.{match[2]}"
        if match := re.fullmatch(r"backbone\.(layer\d\.\d+)\.(?:conv([123])|downsample)\.(conv|bn)\.(\w+)", key):
            part = match[3] + match[2] if match[2] else f"downsample.{0 if match[3] == 'conv' else 1}"
            return f"{match[1]}.{part}.{match[4]}"
        if match := re.fullmatch(r"backbone\.(layer\d\.\d+)\.se_module\.(fc[12])\.(\w+)", key):
            return f"{match[1]}.se.{match[2]}.{match[3]}"
        if match := re.fullmatch(r"backbone\.conv5\.(conv|bn)\.(\w+)", key):
            return f"{match[1]}5.{match[2]}"
        if match := re.fullmatch(r"cls_head\.fc([12])\.(weight|bias)", key):
            return f"{('lin5', 'fc')[int(match[1]) - 1]}.{match[2]}"
        return key

    own = {renamed(key): value for key, value in state.items()}
    if "lin5.weight" in own:
        own["lin5.weight"] = own["lin5.weight"][:, :, None, None, None]
    return own


_BLOCKS_S_M = (3, 5, 11, 7)
_BLOCKS_L = (5, 10, 25, 15)
MODELS = {
    name: ModelEntry(
        partial(X3D, blocks),
        "Feichtenhofer 2020, X3D",
        options_of=(X3D.__init__,),
        num_frames=frames,
        size=size,
        mean=(0.45, 0.45, 0.45),
        std=(0.225, 0.225, 0.225),
    )
    for name, blocks, frames, size in (
        ("x3d_s", _BLOCKS_S_M, 13, 160),
        ("x3d_m", _BLOCKS_S_M, 16, 224),
        ("x3d_l", _BLOCKS_L, 16, 312),
    )
}
