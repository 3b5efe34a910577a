"""ResNet-18/34/50/101/152 over clips, with one slot per residual block for a temporal module.

He et al., *Deep residual learning for image recognition* (2016), in torchvision's v1.5 form: the stride of a
bottleneck is in its 3×3. The state-dict keys are torchvision's (``conv1.weight``, ``layer1.0.conv1.weight``,
``fc.weight``), so an ImageNet file loads without renaming; a temporal module's parameters stand beside them under
the module's own name (``layer1.0.cmm.reduce.weight``). ``caffe_stride=True`` puts the stride on the first 1×1.

A block has four places, and a temporal module fills those it needs (:class:`Slot`)::

    x ──┬─ before ─ conv1·bn1·relu ─ y ─ inner ─ conv2·bn2·relu ─ s ─ merge(s, y) ─ conv3·bn3 ─ + ─ relu ─ after
        └────────────────────────────────── shortcut ──────────────────────────────────────────┘

A basic block has no conv3: its bn2 has no ReLU, and ``merge`` stands before the addition.

Temporal pooling (Deep Analysis, section 3) halves the frames after stages 2, 3 and 4.

The head is dropout and one ``fc`` per frame; the clip's logits are the mean of its frames'. ``fc`` starts at
N(0, 0.001), bias 0.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from clipwise.models.conv3d import Conv3d
from clipwise.models.network import VideoNetwork
from clipwise.models.placement import block_positions
from clipwise.ops import fold, temporal_pool, unfold

__all__ = [
    "LAYERS",
    "BasicBlock",
    "Block",
    "BlockSpec",
    "Bottleneck",
    "ResNet",
    "Slot",
    "TemporalModule",
    "check_resnet",
    "resnet_depths",
    "start_convolutions",
]

LAYERS: dict[int, tuple[str, tuple[int, int, int, int]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
"""Of each depth: the kind of block, and how many there are in stages 2 to 5."""


def resnet_depths() -> tuple[int, ...]:
    """The depths that can be built."""
    return tuple(LAYERS)


@dataclass(frozen=True)
class BlockSpec:
    """What a temporal module may know of the residual block that it is built for."""

    stage: int
    """2 to 5, the papers' conv2_x to conv5_x."""
    index: int
    """Position within the stage, from 0."""
    in_channels: int
    """Channels of the residual branch's input."""
    width: int
    """Channels between conv1 and conv2: a bottleneck's inner width, a basic block's output."""
    stride: int
    """Spatial stride of conv2."""
    num_frames: int
    """T where the block stands; temporal pooling may have halved it."""
    out_channels: int
    """Channels of the block's output."""


class TemporalModule(nn.Module):
    """A module that a block applies to clips: ``forward`` maps (N, T, C, H, W) to the same shape."""

    key: str
    """The name under which a block holds it, hence the prefix of its state-dict keys."""


@dataclass(frozen=True)
class Slot:
    """What a temporal module puts into one residual block; a place left None stays as in the image network."""

    before: TemporalModule | None = None
    """On the residual branch's input; the shortcut keeps x."""
    inner: TemporalModule | None = None
    """After conv1-BN-ReLU."""
    conv2: nn.Module | None = None
    """In place of conv2: maps (N, T, width, H, W) to (N, T, width, H/stride, W/stride), without bias or BN."""
    merge: TemporalModule | None = None
    """Joins the second convolution's normalised output s with its input y: ``forward(s, y)``, shaped as s."""
    after: TemporalModule | None = None
    """On the block's output."""


class Block(nn.Module):
    """What both kinds of residual block share."""

    conv1: nn.Conv2d
    bn1: nn.Module
    relu: nn.ReLU
    conv2: nn.Module
    bn2: nn.Module
    downsample: nn.Sequential | None

    def _fill(self, slot: Slot) -> None:
        self._keys: dict[str, str] = {}
        for place in (field.name for field in fields(slot)):
            module = getattr(slot, place)
            if isinstance(module, TemporalModule):
                self.add_module(module.key, module)
                self._keys[place] = module.key

    def temporal(self, place: str) -> nn.Module | None:
        """The temporal module at a place of :class:`Slot`, other than conv2."""
        return getattr(self, self._keys[place]) if place in self._keys else None

    @property
    def sees_time(self) -> bool:
        """Whether a frame meets others here."""
        return bool(self._keys) or type(self.conv2) is not nn.Conv2d

    def before_time(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) → the shortcut, and the branch up to where frames meet: conv1's input if that is where, else
        what it gives. One tensor where the two are the same."""
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.temporal("before") is None:
            return shortcut, self._first(x)
        return (x,) if self.downsample is None else (shortcut, x)

    def _first(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        return y

    def _branches(self, parts: tuple[Tensor, ...], frames: int) -> tuple[Tensor, Tensor]:
        """What :meth:`before_time` gave → the shortcut, and y = ReLU(BN1(conv1 x))."""
        shortcut, y = parts[0], parts[-1]
        if self.temporal("before") is not None:
            y = self._first(self._apply_at("before", y, frames))
        return shortcut, y

    def _apply_at(self, place: str, x: Tensor, frames: int) -> Tensor:
        module = self.temporal(place)
        return x if module is None else fold(module(unfold(x, frames)))

    def _conv2(self, y: Tensor, frames: int) -> Tensor:
        if type(self.conv2) is nn.Conv2d:
            plain: Tensor = self.conv2(y)
            return plain
        return fold(self.conv2(unfold(y, frames)))

    def _merge(self, s: Tensor, y: Tensor, frames: int) -> Tensor:
        module = self.temporal("merge")
        return s if module is None else fold(module(unfold(s, frames), unfold(y, frames)))


class BasicBlock(Block):
    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        strides: tuple[int, int],
        downsample: nn.Sequential | None,
        slot: Slot,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, strides[0], padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = slot.conv2 or nn.Conv2d(width, width, 3, strides[1], padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample
        self._fill(slot)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Folded (N·T, C, H, W) → (N·T, width, H/stride, W/stride)."""
        return self.over_time(self.before_time(x), frames)

    def over_time(self, parts: tuple[Tensor, ...], frames: int) -> Tensor:
        """What :meth:`before_time` gave → (N·T, width, H/stride, W/stride)."""
        shortcut, y = self._branches(parts, frames)
        s = self.bn2(self._conv2(self._apply_at("inner", y, frames), frames))
        out = self.relu(self._merge(s, y, frames) + shortcut)
        return self._apply_at("after", out, frames)


class Bottleneck(Block):
    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        strides: tuple[int, int],
        downsample: nn.Sequential | None,
        slot: Slot,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, strides[0], bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = slot.conv2 or nn.Conv2d(width, width, 3, strides[1], padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.downsample = downsample
        self._fill(slot)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Folded (N·T, C, H, W) → (N·T, 4·width, H/stride, W/stride)."""
        return self.over_time(self.before_time(x), frames)

    def over_time(self, parts: tuple[Tensor, ...], frames: int) -> Tensor:
        """What :meth:`before_time` gave → (N·T, 4·width, H/stride, W/stride)."""
        shortcut, y = self._branches(parts, frames)
        s = self.relu(self.bn2(self._conv2(self._apply_at("inner", y, frames), frames)))
        out = self.relu(self.bn3(self.conv3(self._merge(s, y, frames))) + shortcut)
        return self._apply_at("after", out, frames)


def check_resnet(depth: int, base_width: int, caffe_stride: bool) -> None:
    """Refuse a ResNet that cannot be built.

    Raises:
        ValueError: for an unknown depth, another width than a multiple of 16, or a Caffe stride without bottlenecks.
    """
    if depth not in LAYERS:
        raise ValueError(f"no ResNet of {depth = }; there are {', '.join(map(str, LAYERS))}")
    if base_width < 16 or base_width % 16:
        raise ValueError(f"base_width must be a multiple of 16, got {base_width}")
    if caffe_stride and LAYERS[depth][0] == "basic":
        raise ValueError(f"caffe_stride concerns bottlenecks, and ResNet-{depth} has none; leave it out")


def start_convolutions(network: nn.Module) -> None:
    """Kaiming's start for the plain convolutions; subclasses have the start that a module's paper gives them."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d) and type(module) in (nn.Conv2d, Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class ResNet(VideoNetwork):
    """A ResNet over clips whose blocks carry temporal modules.

    Args:
        depth: 18, 34, 50, 101 or 152.
        num_classes: outputs of ``fc``.
        num_frames: T of a clip; the forward pass refuses another.
        temporal: gives the :class:`Slot` of a block, or None for a network without temporal modules.
        placed: which of the blocks get the temporal module; all when None.
        temporal_pooling: ``"max"`` or ``"average"`` over time (kernel 3, stride 2) after stages 2, 3 and 4, or None.
        dropout: probability before ``fc``.
        caffe_stride: stride of a bottleneck on its first 1×1 instead of the 3×3.
        base_width: channels of the stem and of the first stage's blocks, 64 in the papers.

    Raises:
        ValueError: for a depth, frame count, class count or width that cannot be built.
    """

    image_keys = re.compile(r"(layer\d\.\d+\.)?(conv\d|bn\d|downsample\.\d)\.(weight|bias|running_mean|running_var)")

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int,
        num_frames: int,
        temporal: Callable[[BlockSpec], Slot] | None = None,
        placed: Callable[[list[tuple[int, int]]], set[tuple[int, int]]] | None = None,
        temporal_pooling: str | None = None,
        dropout: float = 0.5,
        caffe_stride: bool = False,
        base_width: int = 64,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            num_frames=num_frames,
            dropout=dropout,
            temporal_pooling=temporal_pooling is not None,
        )
        check_resnet(depth, base_width, caffe_stride)
        self.temporal_pooling = temporal_pooling
        self.caffe_stride = caffe_stride
        kind, blocks = LAYERS[depth]
        block: type[BasicBlock | Bottleneck] = BasicBlock if kind == "basic" else Bottleneck
        self.conv1 = nn.Conv2d(3, base_width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)

        positions = block_positions(blocks)
        chosen = set(positions) if placed is None else placed(positions)
        channels, frames = base_width, num_frames
        for stage, count in enumerate(blocks, start=2):
            width = base_width * 2 ** (stage - 2)
            out_channels = width * block.expansion
            layer = nn.ModuleList()
            for index in range(count):
                stride = 2 if stage > 2 and index == 0 else 1
                strides = (1, stride) if kind == "bottleneck" and not caffe_stride else (stride, 1)
                spec = BlockSpec(stage, index, channels, width, strides[1], frames, out_channels)
                slot = temporal(spec) if temporal and (stage, index) in chosen else Slot()
                downsample = None
                if stride != 1 or channels != out_channels:
                    downsample = nn.Sequential(
                        nn.Conv2d(channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
                    )
                layer.append(block(channels, width, strides, downsample, slot))
                channels = out_channels
            self.add_module(f"layer{stage - 1}", layer)
            if temporal_pooling is not None:
                frames //= 2
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        start_convolutions(self)
        self._make_head(channels)

    def blocks(self) -> Iterator[nn.Module]:
        """The residual blocks in order."""
        for stage in range(1, 5):
            yield from getattr(self, f"layer{stage}")

    def forward_features(self, clips: Tensor) -> Tensor:
        """(N, T, 3, H, W) → (N, T', C): each frame's pooled features; T' is T, or T/8 with temporal pooling."""
        self.check_clips(clips)
        return self._through(self._stem(fold(clips)), self._steps(), clips.shape[1])

    def _stem(self, images: Tensor) -> Tensor:
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images.contiguous(memory_format=torch.channels_last)))))
        return x

    def _steps(self) -> list[Any]:
        """The blocks in order, and None where frames are pooled."""
        steps: list[Any] = []
        for stage in range(1, 5):
            steps.extend(getattr(self, f"layer{stage}"))  # `+=` is one that torch 2.11 does not compile
            if self.temporal_pooling is not None and stage < 4:
                steps.append(None)
        return steps

    def _through(self, x: Tensor, steps: Sequence[Any], frames: int) -> Tensor:
        """Folded (N·T, C, H, W) → (N, T', C), through the blocks that are left."""
        for block in steps:
            if block is None:
                assert self.temporal_pooling is not None
                x = fold(temporal_pool(unfold(x, frames), self.temporal_pooling))
                frames //= 2
            else:
                x = block(x, frames)
        return unfold(self.avgpool(x).flatten(1), frames)

    def _first_over_time(self) -> int:
        """The number of steps in which no frame meets another."""
        steps = self._steps()
        return next((index for index, block in enumerate(steps) if block is None or block.sees_time), len(steps))

    def before_time(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) → tensors (B, …): the frames' feature maps where the first of them meet, or where none ever do
        (TSN) their pooled features."""
        steps, first = self._steps(), self._first_over_time()
        x = self._stem(images)
        if first == len(steps):
            return (fold(self._through(x, steps, 1)),)
        for block in steps[:first]:
            x = block(x, 1)
        parts: tuple[Tensor, ...] = (x,) if steps[first] is None else steps[first].before_time(x)
        return parts

    def over_time(self, parts: tuple[Tensor, ...]) -> Tensor:
        """What :meth:`before_time` gave, (N, T, …) each → (N, T', C), as :meth:`forward_features` of the clips."""
        steps, first = self._steps(), self._first_over_time()
        frames, folded = parts[0].shape[1], tuple(fold(part) for part in parts)
        if first == len(steps):
            return parts[0]
        if steps[first] is None:
            return self._through(folded[0], steps[first:], frames)
        return self._through(steps[first].over_time(folded, frames), steps[first + 1 :], frames)
