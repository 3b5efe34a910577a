"""TSM: temporal shift module (Lin, Gan, Han: *TSM: Temporal shift module for efficient video understanding*, 2019).

Before conv1 of a residual branch, with C input channels and fold = C // 8:

    channels 0 … fold         take the next frame
    channels fold … 2·fold    take the previous frame
    the rest                  stay

Frames outside the clip are zero. No parameters, no MACs. In ResNet-101 every other block has it.

Causal form (ours): the first fold takes t-2 in place of the next frame. The authors' online network shifts one fold
only, from t-1, and was never published with its training.

Weights: MIT's and MMAction2's checkpoints wrap conv1 (``layer1.0.conv1.net.weight``); the values carry over as
they are, the directions being the same.
"""

from torch import Tensor

from clipwise import ops
from clipwise.models.network import ModuleEntry
from clipwise.models.resnet import BlockSpec, Slot, TemporalModule
from clipwise.models.temporal.layers import Remembering, shift_groups

__all__ = ["MODULES", "TemporalShift", "tsm"]


class TemporalShift(Remembering, TemporalModule):
    """Shift one part in ``divisor`` of the channels each way."""

    key = "tsm"

    def __init__(self, channels: int, divisor: int = 8, *, causal: bool = False) -> None:
        super().__init__()
        self.groups = shift_groups(channels, channels // divisor, causal=causal)

    def forward(self, x_NTCHW: Tensor) -> Tensor:
        """(N, T, C, H, W) → (N, T, C, H, W)."""
        return ops.shift(x_NTCHW, self.groups, memory=self.memory)


def tsm(block: BlockSpec, *, causal: bool = False) -> Slot:
    """A shift before conv1.

    Args:
        causal: no frame sees a later one.

    Raises:
        ValueError: for a block of fewer than 8 channels, none of which would move.
    """
    if block.in_channels < 8:
        raise ValueError(f"TSM shifts an eighth of the channels, so there must be at least 8, got {block.in_channels}")
    return Slot(before=TemporalShift(block.in_channels, causal=causal))


MODULES = {"tsm": ModuleEntry(tsm, "Lin et al. 2019, TSM")}
