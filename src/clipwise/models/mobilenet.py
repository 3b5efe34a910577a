"""MobileNetV2 over clips, plain (TSN) and with temporal shift (TSM).

Sandler et al., *MobileNetV2: Inverted residuals and linear bottlenecks*, CVPR 2018; Lin, Gan, Han, *TSM: Temporal
shift module for efficient video understanding*, 2019, which runs it on phones.

An inverted residual with input x of C channels, expansion t and stride s:

    h   = ReLU6(BN(conv 1×1 of x))                       C → t·C; not where t = 1, in the first block
    h  <- ReLU6(BN(depthwise 3×3 of h, stride s))
    y   = BN(conv 1×1 of h)                              t·C → C'
    out = x + y where s = 1 and C = C', else y

TSM shifts the input of the first 1×1, an eighth of the channels each way as in ``tsm_resnet50``, in the blocks that
have both an expansion and a shortcut, ten of seventeen; the shortcut keeps x.

Counts: 3,504,872 parameters with 1000 classes, as torchvision's; 299.5 MMACs of convolutions for an image of 224² (the
300.8 M one reads elsewhere add the fc), 2.396 G for eight. MMAction2 prints 3.269 G and 2.736 M (400 classes) for TSM
on it: those are eight images of 256², 3.129 G in convolutions, and two operations for each value that a BN puts out.

Weights: the keys are torchvision's (``features.1.conv.0.0.weight``), so its ImageNet file loads, ``classifier.1`` being
``fc`` here. Others' names for the same tensors (:func:`from_mit`, :func:`from_mmaction2`), the shift's directions being
the same:
- mit-han-lab/temporal-shift-module, archs/mobilenet_v2.py, commit d6da93d: a block's layers stand in one row, 1×1
  ``conv.0``, BN ``conv.1``, 3×3 ``conv.3``, BN ``conv.4``, 1×1 ``conv.6``, BN ``conv.7`` (without expansion 3×3
  ``conv.0``, ``conv.1``, 1×1 ``conv.3``, ``conv.4``); where it shifts, ``conv.0`` is ``conv.0.net``.
- open-mmlab/mmaction2, mmaction/models/backbones/mobilenet_v2.py, commit 06c11e3: the stem is ``conv1``, the last 1×1
  ``conv2``, the blocks ``layer1.0`` to ``layer7.0`` with ``conv.0.conv``, ``conv.0.bn`` and so on, the last 1×1 and its
  BN too being one such pair; where it shifts, ``conv.0.conv`` is ``conv.0.net.conv``.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from clipwise import ops
from clipwise.models.network import ModelEntry, VideoNetwork
from clipwise.models.temporal.tsm import TemporalShift

__all__ = ["MODELS", "MobileNetV2", "from_mit", "from_mmaction2", "tsm_mobilenet_v2", "tsn_mobilenet_v2"]

# Expansion t, channels, blocks, stride of the first: table 2 of the paper.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _scaled(channels: int, width: float) -> int:
    """The nearest multiple of 8 to ``channels · width``, but never a tenth below it: torchvision's rounding."""
    rounded = max(8, int(channels * width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels * width else rounded


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


class _InvertedResidual(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, stride: int, expansion: int, shift: Callable[[int], nn.Module] | None
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.conv = nn.Sequential(
            *([] if expansion == 1 else [_conv(in_channels, hidden, 1)]),
            _conv(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = stride == 1 and in_channels == out_channels
        self.tsm = shift(in_channels) if shift and self.shortcut and expansion > 1 else None

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Folded (N·T, C, H, W) → (N·T, C', H/stride, W/stride)."""
        branch = x if self.tsm is None else ops.fold(self.tsm(ops.unfold(x, frames)))
        y: Tensor = self.conv(branch)
        return x + y if self.shortcut else y


class MobileNetV2(VideoNetwork):
    """MobileNetV2 over clips.

    Args:
        num_classes: outputs of ``fc``.
        num_frames: T of a clip, any number.
        shift: makes the module, from its channels, that the residual blocks with expansion apply to their input in
            time; None for none.
        dropout: probability before ``fc``.
        width: the paper's width multiplier; channels are rounded to multiples of 8, the last 1280 shrink never.

    Raises:
        ValueError: for a count, probability or width that cannot be built.
    """

    image_keys = re.compile(r"features\.[\d.]+(conv\.[\d.]+)?(weight|bias|running_mean|running_var)")

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int,
        shift: Callable[[int], nn.Module] | None,
        dropout: float = 0.5,
        width: float = 1.0,
    ) -> None:
        super().__init__(num_classes=num_classes, num_frames=num_frames, dropout=dropout)
        if width <= 0:
            raise ValueError(f"width must be greater than 0, got {width}")
        channels = _scaled(32, width)
        self.features = nn.ModuleList([_conv(3, channels, 3, 2)])
        for expansion, plain_channels, count, first_stride in _STAGES:
            for index in range(count):
                out_channels = _scaled(plain_channels, width)
                stride = first_stride if index == 0 else 1
                self.features.append(_InvertedResidual(channels, out_channels, stride, expansion, shift))
                channels = out_channels
        last = _scaled(1280, max(1.0, width))
        self.features.append(_conv(channels, last, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        self._make_head(last)

    def forward_features(self, clips: Tensor) -> Tensor:
        """(N, T, 3, H, W) → (N, T, 1280): each frame's pooled features."""
        self.check_clips(clips)
        x = ops.fold(clips).contiguous(memory_format=torch.channels_last)
        for part in self.features:
            x = part(x, clips.shape[1]) if isinstance(part, _InvertedResidual) else part(x)
        return ops.unfold(self.avgpool(x).flatten(1), clips.shape[1])

    def from_image(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """torchvision's state dict under this network's keys: its head ``classifier.1`` is ``fc``."""
        return {re.sub(r"^classifier\.1\.", "fc.", key): value for key, value in state.items()}

    def stages(self) -> Iterator[tuple[str, nn.Module]]:
        """The stem, the paper's seven rows of blocks, the last 1×1, the pooling and the head."""
        yield "features.0", self.features[0]
        first = 1
        for _, _, count, _ in _STAGES:
            last = first + count - 1
            yield f"features.{first}" + (f"-{last}" if count > 1 else ""), self.features[first : last + 1]
            first = last + 1
        yield f"features.{first}", self.features[first]
        yield "avgpool", self.avgpool
        yield "fc", self.fc


def tsn_mobilenet_v2(*, num_classes: int, num_frames: int, dropout: float = 0.5, width: float = 1.0) -> MobileNetV2:
    """MobileNetV2 frame by frame."""
    return MobileNetV2(num_classes=num_classes, num_frames=num_frames, shift=None, dropout=dropout, width=width)


def tsm_mobilenet_v2(
    *, num_classes: int, num_frames: int, dropout: float = 0.5, width: float = 1.0, causal: bool = False
) -> MobileNetV2:
    """MobileNetV2 with temporal shift; ``causal`` as in :func:`~clipwise.models.temporal.tsm.tsm`."""
    shift = partial(TemporalShift, causal=causal)
    network = MobileNetV2(num_classes=num_classes, num_frames=num_frames, shift=shift, dropout=dropout, width=width)
    network.causal = causal
    return network


_ROW = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}
_ROW_UNEXPANDED = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}


def from_mit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MIT's state dict of the image network, without ``base_model.`` and ``.net``, under this network's keys; a key
    without counterpart keeps its name.
    """

    def renamed(key: str) -> str:
        match = re.fullmatch(r"features\.(\d+)\.conv\.(\d)\.(\w+)", key)
        places = _ROW_UNEXPANDED if match and match[1] == "1" else _ROW
        return f"features.{match[1]}.conv.{places[match[2]]}.{match[3]}" if match and match[2] in places else key

    return {renamed(key): value for key, value in state.items()}


def from_mmaction2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MMAction2's state dict under this network's keys; a key without counterpart keeps its name."""
    pair = {"conv": "0", "bn": "1"}

    def renamed(key: str) -> str:
        if match := re.fullmatch(r"backbone\.conv([12])\.(conv|bn)\.(\w+)", key):
            return f"features.{0 if match[1] == '1' else 18}.{pair[match[2]]}.{match[3]}"
        if match := re.fullmatch(r"backbone\.layer(\d)\.(\d)\.conv\.(\d)\.(?:net\.)?(conv|bn)\.(\w+)", key):
            stage, index, part, kind = int(match[1]), int(match[2]), int(match[3]), match[4]
            last = 1 if stage == 1 else 2
            # torchvision's last convolution of a block and its BN are no pair.
            place = f"{part}.{pair[kind]}" if part < last else str(last + (kind == "bn"))
            before = sum(count for _, _, count, _ in _STAGES[: stage - 1])
            return f"features.{1 + before + index}.conv.{place}.{match[5]}"
        return re.sub(r"^cls_head\.fc_cls\.", "fc.", key)

    return {renamed(key): value for key, value in state.items()}


MODELS = {
    "tsn_mobilenet_v2": ModelEntry(tsn_mobilenet_v2, "Sandler et al. 2018, MobileNetV2", image_backbone="mobilenet_v2"),
    "tsm_mobilenet_v2": ModelEntry(tsm_mobilenet_v2, "Lin et al. 2019, TSM", image_backbone="mobilenet_v2"),
}
