"""Non-local blocks (Wang, Girshick, Gupta, He: *Non-local neural networks*, CVPR 2018), to be added to a ResNet over
clips whatever its temporal module.

On a residual block's output x of C channels, over all positions i, j of all frames, embedded Gaussian:

    y_i = Σ_j softmax_j(θ(x_i)ᵀ φ(x_j)) · g(x_j)      θ, φ, g 1×1, C → C/2; φ and g of x max-pooled 2×2 in space
    out = x + BN(W(y))                                 W 1×1, C/2 → C

All four 1×1 have a bias and start at N(0, 0.01), bias 0; the BN's gamma starts at 0, so the block starts as identity.
Attention knows no order: non-local blocks alone do not make a network depend on the order of its frames.

Where: two in stage 3 and three in stage 4, each after the last residual block of an equal share of its stage: of
ResNet-50 (counting from 0) after 1, 3 and 1, 3, 5, of ResNet-101 after 1, 3 and 6, 13, 20, which is where the authors'
code has them (facebookresearch/video-nonlocal-net, ``lib/models/resnet_video.py`` and ``resnet_helper.py`` at 4b5d2dd).
For other depths the same rule is ours: ResNet-34 as ResNet-50, ResNet-152 after 3, 7 and 11, 23, 35; ResNet-18 has two
residual blocks in stage 4, hence two non-local ones. [DA] section 6.3 prints "3 and 2 at stage 2 and 3" and cites the
same authors; its text gives way to theirs.

Decided: the softmax is of the plain product, as in the paper's equation. The authors' code divides the product by
√(C/2), by a setting that is on (``NONLOCAL.USE_SCALE`` in ``lib/core/config.py`` and ``nonlocal_helper.py``, same
commit), which for imported weights can be put into θ.

Weights: all new, under ``nonlocal_block.``: ``theta``, ``phi``, ``g``, ``out`` and ``bn``, for the authors'
``nonlocal_conv4_1_theta`` and so on.
"""

from collections.abc import Callable
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from clipwise import ops
from clipwise.models.placement import Position
from clipwise.models.resnet import BlockSpec, Slot, TemporalModule

__all__ = ["NonLocalBlock", "nonlocal_positions", "with_nonlocal"]


class _Pointwise(nn.Conv2d):
    """A 1×1 convolution with the paper's start, which softmax needs: Kaiming's would saturate it."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]  # it has one


class NonLocalBlock(TemporalModule):
    """Attention over all positions of all frames, added to its input.

    Args:
        channels: C.
    """

    key = "nonlocal_block"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.theta = _Pointwise(channels, channels // 2)
        self.phi = _Pointwise(channels, channels // 2)
        self.g = _Pointwise(channels, channels // 2)
        self.out = _Pointwise(channels // 2, channels)
        self.bn = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.bn.weight)

    def forward(self, x_NTCHW: Tensor) -> Tensor:
        """(N, T, C, H, W) → (N, T, C, H, W), H and W at least 2."""
        frames, size = x_NTCHW.shape[1], x_NTCHW.shape[3:]

        def tokens(features: Tensor) -> Tensor:
            # (N·T, C, H, W) → (N, 1, T·H·W, C), one head.
            return ops.unfold(features, frames).permute(0, 1, 3, 4, 2).flatten(1, 3).unsqueeze(1)

        x = ops.fold(x_NTCHW)
        pooled = self.pool(x)
        y = F.scaled_dot_product_attention(
            tokens(self.theta(x)), tokens(self.phi(pooled)), tokens(self.g(pooled)), scale=1.0
        )
        y_NTCHW = y.squeeze(1).unflatten(1, (frames, *size)).permute(0, 1, 4, 2, 3)
        return ops.unfold(x + self.bn(self.out(ops.fold(y_NTCHW))), frames)


def nonlocal_positions(positions: list[Position]) -> set[Position]:
    """Of a network's residual blocks, as (stage, index in stage), those that a non-local block follows."""
    chosen = set()
    for stage, wanted in ((3, 2), (4, 3)):
        length = sum(position[0] == stage for position in positions)
        number = min(wanted, length)
        chosen |= {(stage, length // number * (share + 1) - 1) for share in range(number)}
    return chosen


def with_nonlocal(
    temporal: Callable[[BlockSpec], Slot] | None,
    placed: Callable[[list[Position]], set[Position]],
    *,
    causal: bool = False,
) -> tuple[Callable[[BlockSpec], Slot], Callable[[list[Position]], set[Position]]]:
    """What :class:`~clipwise.models.resnet.ResNet` takes as ``temporal`` and ``placed``, with non-local blocks added.

    They stand where they belong, whether or not ``placed`` puts the temporal module into the same residual block.

    Raises:
        ValueError: for a ``causal`` module, and, once called, for a network without stages 3 and 4.
    """
    if causal:
        raise ValueError(
            "causal and nonlocal_blocks exclude each other: attention reads every frame of the clip; leave one out"
        )
    modules: set[Position] = set()
    attention: set[Position] = set()

    def place(positions: list[Position]) -> set[Position]:
        modules.update(placed(positions))
        attention.update(nonlocal_positions(positions))
        if not attention:
            have = ", ".join(map(str, sorted({stage for stage, _ in positions})))
            raise ValueError(
                f"non-local blocks stand in stages 3 and 4, and this network has stages {have}; leave them out"
            )
        return modules | attention

    def fill(block: BlockSpec) -> Slot:
        position = (block.stage, block.index)
        slot = temporal(block) if temporal and position in modules else Slot()
        return replace(slot, after=NonLocalBlock(block.out_channels)) if position in attention else slot

    return fill, place
