"""ECO and ECO-Lite (Zolfaghari, Singh, Brox, *ECO: Efficient convolutional network for online video understanding*,
ECCV 2018): the first layers of a 2D network on each frame, a 3D network over what they give.

    m      = BN-Inception up to the second convolution of the double-3×3 branch of block 3c      (T, 96, H/8, W/8)
    r      = conv 3×3×3(m)                                                                       res3a, 96 → 128
    r     <- conv(ReLU(BN(conv(a)))) + shortcut,  a = ReLU(BN(r))         res3b, 4a, 4b, 5a, 5b: 3×3×3, 128, 256, 512
    f3     = mean over T, H, W of ReLU(BN(r))                                                    512
    f2     = mean over T, H, W of the rest of BN-Inception, frame by frame                       1024, ECO alone
    logits = fc([f2, f3]),  of ECO-Lite fc(f3)

res4a and res5a stride 2 in T, H and W, and their shortcut is a 3×3×3 convolution of a; the others' is r. T may be any:
the strides round up.

Where the authors' files are silent or we differ: convolutions start Kaiming (fan out) and theirs Xavier; one dropout
stands before ``fc``, where theirs drops 0.3 of f3 and 0.5 of f2. The stride-2 max-pools of 3c and 4e are padded at the
far side, which gives Caffe's result on even maps and the convolutions' size on odd ones.

Counts: the tables of TSM and STM print 47.5 M parameters, 32 and 64 G for 8 and 16 frames, and 150 M, 267 G for
ECO-En Lite, four ECO-Lite nets of 16, 20, 24 and 32 frames. With Kinetics' 400 classes ours have 47.50 M, 32.21 and
64.41 G, and the four together 150.02 M, 267.30 G. The ensemble itself is a mean of four networks' scores.

Weights: BN-Inception's ImageNet file in the layer names of Caffe (``inception_3a_double_3x3_1.weight``,
``inception_3a_double_3x3_1_bn.running_mean``; bn_inception-52deb4733.pth) loads by its path; the 3D network starts
random. Such a file expects BGR from 0 to 255: mean and std below scale to that, and the first convolution's
channels are turned round on loading. Layers looked up in mzolfaghari/ECO-efficient-video-understanding,
models_ECO_Full/kinetics/deploy.prototxt and models_ECO_Lite/kinetics/deploy.prototxt, commit f864450 (res3a is one
convolution there, and two in zhang-can/ECO-pytorch, whose counts are not those printed).
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipwise import ops
from clipwise.models.conv3d import Conv3d
from clipwise.models.network import ModelEntry, VideoNetwork

__all__ = ["ECO", "MODELS", "eco_bninception", "eco_lite_bninception"]

# Of each block: 1×1; 3×3 reduce, 3×3; double 3×3 reduce, double 3×3; pool projection. 0: no such branch, and stride 2.
_BLOCKS = {
    "3a": (64, 64, 64, 64, 96, 32),
    "3b": (64, 64, 96, 64, 96, 64),
    "3c": (0, 128, 160, 64, 96, 0),
    "4a": (224, 64, 96, 96, 128, 128),
    "4b": (192, 96, 128, 96, 128, 128),
    "4c": (160, 128, 160, 128, 160, 128),
    "4d": (96, 128, 192, 160, 192, 128),
    "4e": (0, 128, 192, 192, 256, 0),
    "5a": (352, 192, 320, 160, 224, 128),
    "5b": (352, 192, 320, 192, 224, 128),
}
_BRANCHES = {
    "1x1": "one",
    "3x3_reduce": "three.0",
    "3x3": "three.1",
    "double_3x3_reduce": "front.0",
    "double_3x3_1": "front.1",
    "double_3x3_2": "last",
    "pool_proj": "project",
}
_STEM = {"conv1_7x7_s2": "conv1", "conv2_3x3_reduce": "conv2_reduce", "conv2_3x3": "conv2"}


class _Unit(nn.Module):
    """Convolution, BN, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N·T, C, H, W) → (N·T, C', H/stride, W/stride)."""
        out: Tensor = self.relu(self.bn(self.conv(x)))
        return out


def _front(in_channels: int, name: str) -> nn.Sequential:
    _, _, _, reduced, channels, _ = _BLOCKS[name]
    return nn.Sequential(_Unit(in_channels, reduced, 1), _Unit(reduced, channels, 3))


class _Inception(nn.Module):
    """A block of BN-Inception; of 3c the double-3×3 branch's first part stands outside, for the 3D network takes it."""

    def __init__(self, in_channels: int, name: str) -> None:
        super().__init__()
        one, reduced, three, _, double, project = _BLOCKS[name]
        stride = 1 if one else 2
        self.one = _Unit(in_channels, one, 1) if one else None
        self.three = nn.Sequential(_Unit(in_channels, reduced, 1), _Unit(reduced, three, 3, stride))
        self.front = None if name == "3c" else _front(in_channels, name)
        self.last = _Unit(double, double, 3, stride)
        self.project = _Unit(in_channels, project, 1) if project else None
        self.pool = nn.MaxPool2d(3, 1, padding=1) if name == "5b" else nn.AvgPool2d(3, 1, padding=1)
        self.out_channels = one + three + double + (project or in_channels)

    def forward(self, x: Tensor, front: Tensor | None = None) -> Tensor:
        """(N·T, C, H, W) → (N·T, C', H, W), or H/2, W/2; ``front`` is given where that part stands outside."""
        if self.front is not None:
            front = self.front(x)
        if self.one is None or self.project is None:
            # x is the output of a ReLU, so that zeros never win.
            return torch.cat((self.three(x), self.last(front), F.max_pool2d(F.pad(x, (0, 2, 0, 2)), 3, 2)), dim=1)
        return torch.cat((self.one(x), self.three(x), self.last(front), self.project(self.pool(x))), dim=1)


class _Residual3D(nn.Module):
    """A pre-activation residual block on (N, C, T, H, W)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm3d(in_channels)
        self.conv1 = Conv3d(in_channels, channels, 3, stride, padding=1)
        self.bn2 = nn.BatchNorm3d(channels)
        self.conv2 = Conv3d(channels, channels, 3, padding=1)
        self.down = Conv3d(in_channels, channels, 3, stride, padding=1) if stride > 1 else None

    def forward(self, r: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, C', T/stride, H/stride, W/stride)."""
        a = self.bn1(r).relu()
        out: Tensor = self.conv2(self.bn2(self.conv1(a)).relu()) + (r if self.down is None else self.down(a))
        return out


class ECO(VideoNetwork):
    """ECO, or ECO-Lite, which has no 2D network beside the 3D one.

    Args:
        num_classes: outputs of ``fc``.
        num_frames: T of a clip, any number.
        lite: ECO-Lite.
        dropout: probability before ``fc``.

    Raises:
        ValueError: for a count or probability out of range.
    """

    image_keys = re.compile(r"(conv1|conv2_reduce|conv2|tap|inception_\d\w)\..*(weight|bias|running_mean|running_var)")

    def __init__(self, *, num_classes: int, num_frames: int, lite: bool, dropout: float = 0.5) -> None:
        super().__init__(num_classes=num_classes, num_frames=num_frames, dropout=dropout)
        self.conv1 = _Unit(3, 64, 7, 2)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2_reduce = _Unit(64, 64, 1)
        self.conv2 = _Unit(64, 192, 3)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception_3a = _Inception(192, "3a")
        self.inception_3b = _Inception(self.inception_3a.out_channels, "3b")
        channels = self.inception_3b.out_channels
        self.tap = _front(channels, "3c")
        self.rest = () if lite else tuple(f"inception_{name}" for name in list(_BLOCKS)[2:])
        for name in self.rest:
            block = _Inception(channels, name.removeprefix("inception_"))
            self.add_module(name, block)
            channels = block.out_channels
        self.res3a = Conv3d(96, 128, 3, padding=1)
        self.res3b = _Residual3D(128, 128, 1)
        self.res4a = _Residual3D(128, 256, 2)
        self.res4b = _Residual3D(256, 256, 1)
        self.res5a = _Residual3D(256, 512, 2)
        self.res5b = _Residual3D(512, 512, 1)
        self.bn = nn.BatchNorm3d(512)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                assert module.bias is not None
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
        self._make_head(512 if lite else channels + 512)

    def forward_features(self, clips: Tensor) -> Tensor:
        """(N, T, 3, H, W) → (N, 1, 1536), the 2D network's 1024 first; of ECO-Lite (N, 1, 512)."""
        self.check_clips(clips)
        x = ops.fold(clips).contiguous(memory_format=torch.channels_last)
        x = self.pool2(self.conv2(self.conv2_reduce(self.pool1(self.conv1(x)))))
        x = self.inception_3b(self.inception_3a(x))
        tapped = self.tap(x)
        parts = []
        for name in self.rest:
            block = getattr(self, name)
            x = block(x, tapped) if name == "inception_3c" else block(x)
        if self.rest:
            parts.append(ops.unfold(x, self.num_frames).mean(dim=(1, 3, 4)))
        r = self.res3a(ops.unfold(tapped, self.num_frames).transpose(1, 2))
        r = self.res5b(self.res5a(self.res4b(self.res4a(self.res3b(r)))))
        parts.append(self.bn(r).relu().mean(dim=(2, 3, 4)))
        return torch.cat(parts, dim=1).unsqueeze(1)

    def from_image(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """BN-Inception's state dict in Caffe's layer names under this network's keys, as far as it has them."""
        own = self.state_dict().keys()
        renamed = {}
        for key, value in state.items():
            layer, _, tensor = key.rpartition(".")
            part = "bn" if layer.endswith("_bn") else "conv"
            layer = layer.removesuffix("_bn")
            if found := re.fullmatch(r"(inception_\d\w)_(\w+)", layer):
                layer = f"{found[1]}.{_BRANCHES.get(found[2], found[2])}"
            layer = _STEM.get(layer, layer).replace("inception_3c.front", "tap")
            name = f"{layer}.{part}.{tensor}"
            if name not in own:
                name = key
            elif name == "conv1.conv.weight":
                value = value.flip(1)
            elif part == "bn" and value.ndim == 2:  # the file that is shared has (1, C)
                value = value[0]
            renamed[name] = value
        return renamed


def eco_bninception(*, num_classes: int, num_frames: int, dropout: float = 0.5) -> ECO:
    """ECO."""
    return ECO(num_classes=num_classes, num_frames=num_frames, lite=False, dropout=dropout)


def eco_lite_bninception(*, num_classes: int, num_frames: int, dropout: float = 0.5) -> ECO:
    """ECO-Lite."""
    return ECO(num_classes=num_classes, num_frames=num_frames, lite=True, dropout=dropout)


# What BN-Inception's file was trained on: mean 128, 117, 104 (R, G, B) of values from 0 to 255, not divided.
_MEAN = (128 / 255, 117 / 255, 104 / 255)
_STD = (1 / 255, 1 / 255, 1 / 255)
_PAPER = "Zolfaghari et al. 2018, ECO"
MODELS = {
    "eco_bninception": ModelEntry(eco_bninception, _PAPER, num_frames=16, mean=_MEAN, std=_STD),
    "eco_lite_bninception": ModelEntry(eco_lite_bninception, _PAPER, num_frames=16, mean=_MEAN, std=_STD),
}
