"""Inception-v1 over clips, with temporal modules, and the trunk that the 3D forms share.

Szegedy et al., *Going deeper with convolutions* (2015), as torchvision has it; over clips: Chen et al., *Deep analysis
of CNN-based spatio-temporal representations for action recognition* (CVPR 2021, [DA]).

    unit    ReLU(BN(conv x)), no bias, BN eps 1e-3
    block   joined along the channels:  1×1  |  1×1, 3×3  |  1×1, 3×3  |  max-pool 3×3 stride 1, 1×1
    trunk   conv1 7×7/2 – pool – conv2 1×1 – conv3 3×3 – pool – 3a 3b – pool – 4a 4b 4c 4d 4e – pool – 5a 5b
    head    mean over the pixels, dropout, one fc per frame, mean over the frames

The four max-pools are 3, 3, 3 and 2 wide, with stride 2, unpadded, in ceil mode. A temporal module stands after conv1,
conv2, conv3 and every block, on the trunk itself, for there is no shortcut. Temporal pooling (kernel 3, stride 2)
follows the second, third and fourth max-pool.

Decided where the paper is silent: for ``stages`` and ``placement`` the three convolutions count as stage 2, and the
blocks 3a, 3b, 4a … 5b as stages 3 to 5; convolutions start as in our ResNets (Kaiming, fan out), TAM as TSM's shift.
Of Szegedy's network differ, as in the ImageNet weights that all start from: BN, a 3×3 for the third branch's 5×5, and
no auxiliary heads.

Weights: torchvision's googlenet, key for key (pytorch/vision, 0413037a, torchvision/models/googlenet.py):
``conv1.conv.weight``, ``conv1.bn.weight``, ``inception3a.branch1.conv.weight``, ``inception3a.branch2.0.conv.weight``,
``fc.weight``; its ``aux1.*`` and ``aux2.*`` are left in the file. It takes its input scaled to [-1, 1]: mean and
standard deviation are 0.5. TAM's stand beside, ``tam1``, ``tam2``, ``tam3``, ``tam3a`` … ``tam5b``, as in [DA]'s code
(IBM/action-recognition-pytorch, c88e74b0, models/twod_models/inception_v1.py), where each is three 1×1 convolutions
(see ``temporal/tam.py``).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from clipwise.models.network import HALVES, ModelEntry, VideoNetwork, pooling_kind
from clipwise.models.placement import placed_in
from clipwise.models.resnet import TemporalModule
from clipwise.models.temporal.tam import TemporalAggregation
from clipwise.models.temporal.tsm import TemporalShift
from clipwise.ops import fold, temporal_pool, unfold

__all__ = ["BLOCKS", "IMAGE_KEYS", "MODELS", "Inception", "Unit", "trunk"]

IMAGE_KEYS = re.compile(
    r"(conv\d|inception\d[a-e]\.branch\d(\.\d)?)\.(conv|bn)\.(weight|bias|running_mean|running_var)"
)

BLOCKS: dict[str, tuple[int, int, int, int, int, int]] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
"""The blocks in running order: channels of 1×1 | 1×1, 3×3 | 1×1, 3×3 | the 1×1 after the pool."""

_POSITIONS = {f"conv{index + 1}": (2, index) for index in range(3)} | {
    f"inception{name}": (int(name[0]), "abcde".index(name[1])) for name in BLOCKS
}

Unit = Callable[[int, int, int], nn.Module]
"""(in_channels, out_channels, kernel) → convolution, BN and ReLU; kernel 7 is the stem's, and strides."""


class _Block(nn.Module):
    def __init__(
        self, in_channels: int, widths: tuple[int, ...], unit: Unit, branch_pool: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        one, reduce_2, three_2, reduce_3, three_3, pooled = widths
        self.branch1 = unit(in_channels, one, 1)
        self.branch2 = nn.Sequential(unit(in_channels, reduce_2, 1), unit(reduce_2, three_2, 3))
        self.branch3 = nn.Sequential(unit(in_channels, reduce_3, 1), unit(reduce_3, three_3, 3))
        self.branch4 = nn.Sequential(branch_pool(), unit(in_channels, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, …) → (B, C', …): channels in the second dimension, the others as they were."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


def trunk(
    unit: Unit, pools: Sequence[nn.Module], branch_pool: Callable[[], nn.Module]
) -> Iterator[tuple[str, nn.Module, int]]:
    """The layers of an Inception-v1 in running order, 2D or 3D: torchvision's name, the module, its output's channels.

    Args:
        unit: makes a convolution with what follows it.
        pools: the four max-pools between stages.
        branch_pool: makes the max-pool of a block's fourth branch.
    """
    yield "conv1", unit(3, 64, 7), 64
    yield "maxpool1", pools[0], 64
    yield "conv2", unit(64, 64, 1), 64
    yield "conv3", unit(64, 192, 3), 192
    channels = 192
    for name, widths in BLOCKS.items():
        if name[1] == "a":
            number = int(name[0]) - 1
            yield f"maxpool{number}", pools[number - 1], channels
        layer = _Block(channels, widths, unit, branch_pool)
        channels = widths[0] + widths[2] + widths[4] + widths[5]
        yield f"inception{name}", layer, channels


class _Unit2D(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        stride = 2 if kernel == 7 else 1
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N·T, C, H, W) → (N·T, C', H/stride, W/stride)."""
        out: Tensor = self.relu(self.bn(self.conv(x)))
        return out


class Inception(VideoNetwork):
    """A 2D Inception-v1 over clips, with temporal modules between its layers.

    Args:
        num_classes: outputs of ``fc``.
        num_frames: T of a clip; the forward pass refuses another.
        temporal: makes the temporal module for a number of channels, or None for a network without.
        placed: after which of the convolutions (stage 2) and blocks (stages 3 to 5) one stands; all when None.
        temporal_pooling: ``"max"`` or ``"average"`` over time after the second, third and fourth max-pool, or None.
        dropout: probability before ``fc``.

    Raises:
        ValueError: for a count or probability out of range.
    """

    image_keys = IMAGE_KEYS

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int,
        temporal: Callable[[int], TemporalModule] | None = None,
        placed: Callable[[list[tuple[int, int]]], set[tuple[int, int]]] | None = None,
        temporal_pooling: str | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            num_frames=num_frames,
            dropout=dropout,
            temporal_pooling=temporal_pooling is not None,
        )
        self.temporal_pooling = temporal_pooling
        pools = [nn.MaxPool2d(kernel, 2, ceil_mode=True) for kernel in (3, 3, 3, 2)]
        positions = list(_POSITIONS.values())
        chosen = set(positions) if placed is None else placed(positions)
        self._running: list[str] = []
        for name, layer, channels in trunk(_Unit2D, pools, partial(nn.MaxPool2d, 3, 1, 1)):
            self.add_module(name, layer)
            self._running.append(name)
            if temporal is not None and _POSITIONS.get(name) in chosen:
                module = temporal(channels)
                beside = module.key + name.removeprefix("conv").removeprefix("inception")
                self.add_module(beside, module)
                self._running.append(beside)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self._make_head(channels)

    def forward_features(self, clips: Tensor) -> Tensor:
        """(N, T, 3, H, W) → (N, T', 1024): each frame's pooled features; T' is T, or T/8 with temporal pooling."""
        self.check_clips(clips)
        frames = self.num_frames
        x = fold(clips).contiguous(memory_format=torch.channels_last)
        for name in self._running:
            layer: nn.Module = getattr(self, name)
            x = fold(layer(unfold(x, frames))) if isinstance(layer, TemporalModule) else layer(x)
            if self.temporal_pooling is not None and name in ("maxpool2", "maxpool3", "maxpool4"):
                x = fold(temporal_pool(unfold(x, frames), self.temporal_pooling))
                frames //= 2
        return unfold(self.avgpool(x).flatten(1), frames)


def _inception(
    temporal: Callable[[int], TemporalModule] | None,
    *,
    num_classes: int,
    num_frames: int,
    dropout: float = 0.5,
    stages: Sequence[int] = (2, 3, 4, 5),
    placement: str = "all",
    temporal_pooling: bool | str = False,
) -> Inception:
    if temporal is None and (placement != "all" or tuple(stages) != (2, 3, 4, 5)):
        raise ValueError(f"{stages = } and {placement = } place a temporal module, and TSN has none; leave them out")
    return Inception(
        num_classes=num_classes,
        num_frames=num_frames,
        temporal=temporal,
        placed=placed_in(stages, placement),
        temporal_pooling=pooling_kind(temporal_pooling),
        dropout=dropout,
    )


MODELS = {
    f"{module}_inception_v1": ModelEntry(
        partial(_inception, temporal), paper, mean=HALVES, std=HALVES, image_backbone="googlenet"
    )
    for module, temporal, paper in (
        ("tsn", None, "Wang et al. 2016, TSN"),
        ("tsm", TemporalShift, "Lin et al. 2019, TSM, at TAM's places"),
        ("tam", TemporalAggregation, "Chen et al. 2021, Deep Analysis"),
    )
}
