"""torchvision's video networks R3D-18, MC3-18, R(2+1)D-18 and S3D, in its layout, so that its public weights load.

Tran et al., *A closer look at spatiotemporal convolutions for action recognition* (CVPR 2018), kernels written
time × height × width::

    r3d_18       stem 3×7×7; every 3×3×3 is one convolution; stages 3, 4 and 5 stride 2 in time and space
    mc3_18       stem and stage 2 as above; 1×3×3 from stage 3 on, without stride in time
    r2plus1d_18  each 3×3×3, O × I, becomes 1×3×3, M × I, BN, ReLU, 3×1×1, O × M with as many weights:
                 M = ⌊27·I·O / (9·I + 3·O)⌋;   stem 1×7×7 (45), BN, ReLU, 3×1×1 (64), BN, ReLU

torchvision takes M once for a block, from its first convolution, and uses it for the second too: where a block widens,
the second pair has a fifth fewer weights than the 3×3×3 it stands for. No max-pool follows the stem; the features are
the mean over T, H and W.

Xie et al., *Rethinking spatiotemporal feature learning* (ECCV 2018)::

    s3d_torchvision  Inception-v1; each k×k×k becomes 1×k×k, BN, ReLU, k×1×1, BN, ReLU, no biases, BN eps 0.001;
                     stem 7×7×7 separated so, stride 2 in time too; the last two of four max-pools stride 2 in time

Its head averages windows of 2×7×7 before it classifies, so the first and the last time step count half. Where the map
is smaller than a window – images below 209 pixels, clips below 13 frames – torchvision's network fails, and this one
takes the window as large as the map. Kernels start as Kaiming's, as in the other three, and BN's momentum is PyTorch's
0.1, not the 0.001 there, with which a short training leaves the running statistics where they began. Deep Analysis's
S3D on Inception-v1 (``s3d_inception_v1``) is another network.

Weights: keys and shapes are those of pytorch/vision, ``torchvision/models/video/resnet.py`` at d075d13 and ``s3d.py``
at cae3e71, but for S3D's ``classifier.1``, a convolution there and ``fc`` here; its file is renamed as it is read.
They are meant for 16 frames of 112 pixels (S3D: 128 frames of 224 pixels, at 15 a second).
"""

import re
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipwise.models.conv3d import Conv3d
from clipwise.models.network import ModelEntry, VideoNetwork

__all__ = ["MODELS", "TorchvisionResNet", "TorchvisionS3D"]

_EVERYTHING_BUT_THE_HEAD = re.compile(r"(?!fc\.).+\.(weight|bias|running_mean|running_var)")


def _full(inputs: int, outputs: int, middle: int, stride: int) -> nn.Module:
    return Conv3d(inputs, outputs, 3, stride, padding=1, bias=False)


def _space_only(inputs: int, outputs: int, middle: int, stride: int) -> nn.Module:
    return Conv3d(inputs, outputs, (1, 3, 3), (1, stride, stride), padding=(0, 1, 1), bias=False)


def _separated(inputs: int, outputs: int, middle: int, stride: int) -> nn.Module:
    return nn.Sequential(
        Conv3d(inputs, middle, (1, 3, 3), (1, stride, stride), padding=(0, 1, 1), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        Conv3d(middle, outputs, (3, 1, 1), (stride, 1, 1), padding=(1, 0, 0), bias=False),
    )


_Convolution = Callable[[int, int, int, int], nn.Module]

_NETWORKS: dict[str, tuple[_Convolution, ...]] = {
    "r3d_18": (_full,) * 4,
    "mc3_18": (_full, _space_only, _space_only, _space_only),
    "r2plus1d_18": (_separated,) * 4,
}


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, convolution: _Convolution) -> None:
        super().__init__()
        middle = 27 * inputs * outputs // (9 * inputs + 3 * outputs)
        self.conv1 = nn.Sequential(
            convolution(inputs, outputs, middle, stride), nn.BatchNorm3d(outputs), nn.ReLU(inplace=True)
        )
        self.conv2 = nn.Sequential(convolution(outputs, outputs, middle, 1), nn.BatchNorm3d(outputs))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            strides = (1 if convolution is _space_only else stride, stride, stride)
            self.downsample = nn.Sequential(Conv3d(inputs, outputs, 1, strides, bias=False), nn.BatchNorm3d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, C', T', H', W'): strides as the block's."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.conv2(self.conv1(x)) + shortcut)
        return out


class TorchvisionResNet(VideoNetwork):
    """R3D-18, MC3-18 or R(2+1)D-18.

    Args:
        name: ``"r3d_18"``, ``"mc3_18"`` or ``"r2plus1d_18"``.
        num_classes: outputs of ``fc``.
        num_frames: T of a clip; the forward pass refuses another.
        dropout: probability before ``fc``; torchvision has none.

    Raises:
        ValueError: for a frame count, class count or probability out of range.
    """

    image_keys = _EVERYTHING_BUT_THE_HEAD

    def __init__(self, name: str, *, num_classes: int, num_frames: int, dropout: float = 0.5) -> None:
        super().__init__(num_classes=num_classes, num_frames=num_frames, dropout=dropout)
        if name == "r2plus1d_18":
            self.stem = nn.Sequential(
                Conv3d(3, 45, (1, 7, 7), (1, 2, 2), padding=(0, 3, 3), bias=False),
                nn.BatchNorm3d(45),
                nn.ReLU(inplace=True),
                Conv3d(45, 64, (3, 1, 1), padding=(1, 0, 0), bias=False),
                nn.BatchNorm3d(64),
                nn.ReLU(inplace=True),
            )
        else:
            self.stem = nn.Sequential(
                Conv3d(3, 64, (3, 7, 7), (1, 2, 2), padding=(1, 3, 3), bias=False),
                nn.BatchNorm3d(64),
                nn.ReLU(inplace=True),
            )
        channels = 64
        for stage, convolution in enumerate(_NETWORKS[name]):
            width = 64 * 2**stage
            stage_blocks = nn.Sequential(
                _BasicBlock(channels, width, 2 if stage else 1, convolution), _BasicBlock(width, width, 1, convolution)
            )
            self.add_module(f"layer{stage + 1}", stage_blocks)
            channels = width
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self._make_head(channels)

    def forward_features(self, clips: Tensor) -> Tensor:
        """(N, T, 3, H, W) → (N, 1, 512): the clip's features."""
        self.check_clips(clips)
        x = self.stem(clips.transpose(1, 2))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        features: Tensor = self.avgpool(x).flatten(2).transpose(1, 2)
        return features


def _unit(
    inputs: int, outputs: int, size: tuple[int, int, int] = (1, 1, 1), stride: tuple[int, int, int] = (1, 1, 1)
) -> nn.Sequential:
    return nn.Sequential(
        Conv3d(inputs, outputs, size, stride, padding=(size[0] // 2, size[1] // 2, size[2] // 2), bias=False),
        nn.BatchNorm3d(outputs, eps=0.001),
        nn.ReLU(inplace=True),
    )


def _pair(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        _unit(inputs, outputs, (1, size, size), (1, stride, stride)),
        _unit(outputs, outputs, (size, 1, 1), (stride, 1, 1)),
    )


class _InceptionBlock(nn.Module):
    def __init__(self, inputs: int, b0: int, b1_middle: int, b1: int, b2_middle: int, b2: int, b3: int) -> None:
        super().__init__()
        self.branch0 = _unit(inputs, b0)
        self.branch1 = nn.Sequential(_unit(inputs, b1_middle), _pair(b1_middle, b1, 3))
        self.branch2 = nn.Sequential(_unit(inputs, b2_middle), _pair(b2_middle, b2, 3))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, 1, padding=1), _unit(inputs, b3))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, C', T, H, W): the four branches side by side."""
        return torch.cat((self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)), dim=1)


class TorchvisionS3D(VideoNetwork):
    """torchvision's S3D.

    Args:
        num_classes: outputs of ``fc``.
        num_frames: T of a clip, 5 at least; the forward pass refuses another.
        dropout: probability before ``fc``; torchvision's is 0.2.

    Raises:
        ValueError: for a frame count, class count or probability out of range.
    """

    image_keys = _EVERYTHING_BUT_THE_HEAD

    def __init__(self, *, num_classes: int, num_frames: int, dropout: float = 0.5) -> None:
        super().__init__(num_classes=num_classes, num_frames=num_frames, dropout=dropout)
        if num_frames < 5:
            raise ValueError(
                f"S3D halves the frames three times, so fewer than 5 leave none, got {num_frames = }; take 16 or more"
            )
        self.features = nn.Sequential(
            _pair(3, 64, 7, 2),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1)),
            _unit(64, 64),
            _pair(64, 192, 3),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1)),
            _InceptionBlock(192, 64, 96, 128, 16, 32, 32),
            _InceptionBlock(256, 128, 128, 192, 32, 96, 64),
            nn.MaxPool3d(3, 2, padding=1),
            _InceptionBlock(480, 192, 96, 208, 16, 48, 64),
            _InceptionBlock(512, 160, 112, 224, 24, 64, 64),
            _InceptionBlock(512, 128, 128, 256, 24, 64, 64),
            _InceptionBlock(512, 112, 144, 288, 32, 64, 64),
            _InceptionBlock(528, 256, 160, 320, 32, 128, 128),
            nn.MaxPool3d(2, 2),
            _InceptionBlock(832, 256, 160, 320, 32, 128, 128),
            _InceptionBlock(832, 384, 192, 384, 48, 128, 128),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self._make_head(1024)

    def forward_features(self, clips: Tensor) -> Tensor:
        """(N, T, 3, H, W) → (N, T', 1024): features of each window of two of the T/8 time steps."""
        self.check_clips(clips)
        x = self.features(clips.transpose(1, 2))
        channels, frames, height, width = x.shape[1:]
        # Space before time: PyTorch has no avg_pool3d in bf16 on a CPU.
        x = F.avg_pool2d(x.flatten(1, 2), (min(7, height), min(7, width)), stride=1).mean((2, 3))
        return F.avg_pool1d(x.unflatten(1, (channels, frames)), min(2, frames), stride=1).transpose(1, 2)

    def from_image(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """torchvision's state dict under this network's keys: its classifier is a 1×1×1 convolution."""
        names = {"classifier.1.weight": "fc.weight", "classifier.1.bias": "fc.bias"}
        return {
            names.get(key, key): value.flatten(1) if key == "classifier.1.weight" else value
            for key, value in state.items()
        }

    def stages(self) -> Iterator[tuple[str, nn.Module]]:
        """The parts of ``features`` one by one, and ``fc``."""
        for name, part in self.features.named_children():
            yield f"features.{name}", part
        yield "fc", self.fc


_KINETICS_MEAN, _KINETICS_STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)

MODELS: dict[str, ModelEntry] = {
    name: ModelEntry(
        partial(TorchvisionResNet, name),
        "Tran et al. 2018, A closer look at spatiotemporal convolutions",
        options_of=(TorchvisionResNet.__init__,),
        num_frames=16,
        size=112,
        mean=_KINETICS_MEAN,
        std=_KINETICS_STD,
    )
    for name in _NETWORKS
} | {
    "s3d_torchvision": ModelEntry(
        TorchvisionS3D,
        "Xie et al. 2018, Rethinking spatiotemporal feature learning",
        options_of=(TorchvisionS3D.__init__,),
        num_frames=128,
        mean=_KINETICS_MEAN,
        std=_KINETICS_STD,
    )
}
