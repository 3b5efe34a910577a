"""TANet: the temporal *adaptive* module (Liu et al., *TAM: Temporal adaptive module for video recognition*, ICCV 2021).

After conv1-BN-ReLU, on y of C channels; with p = mean of y over H, W, which has one number per frame and channel:

    G    K = softmax(fc(ReLU(BN(fc(p)))))            along time, T → 2T → 3: a kernel per clip and channel
    L    A = σ(conv1d(ReLU(BN(conv1d(p)))))          along time, C → C/4, k = 3, then C/4 → C, k = 1
    out  out_t = Σ_k K_k · (A·y)_{t+k},  k = -1, 0, 1,  zero outside the clip

No biases. The layers keep PyTorch's start, as in the authors' code. K's three products are the clip's own and no
weights, so they count nothing towards the MACs. T is part of the weights (fc T → 2T): a network made for one T cannot
take the weights of another.

Weights: the authors' (liu-zhy/temporal-adaptive-module, ``ops/temporal_module.py`` at 84f6b79) and MMAction2's
(``mmaction/models/common/tam.py`` at a067e27) have the same ``tam.G…`` and ``tam.L…`` as ``tanet.G…`` and ``tanet.L…``
here. The prefix differs since ``tam`` is the aggregation module of the Deep Analysis paper. Around it the authors
write ``layer1.0.net.conv1`` and MMAction2 ``layer1.0.block.conv1.conv`` for ``layer1.0.conv1``.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from clipwise.models.network import ModuleEntry
from clipwise.models.resnet import BlockSpec, Slot, TemporalModule

__all__ = ["MODULES", "TemporalAdaptive", "tanet"]


class TemporalAdaptive(TemporalModule):
    """A convolution along time whose kernel and input weights the clip itself determines.

    Args:
        channels: C.
        num_frames: T.
    """

    key = "tanet"

    def __init__(self, channels: int, num_frames: int) -> None:
        super().__init__()
        self.G = nn.Sequential(
            nn.Linear(num_frames, 2 * num_frames, bias=False),
            nn.BatchNorm1d(2 * num_frames),
            nn.ReLU(inplace=True),
            nn.Linear(2 * num_frames, 3, bias=False),
            nn.Softmax(-1),
        )
        self.L = nn.Sequential(
            nn.Conv1d(channels, channels // 4, 3, padding=1, bias=False),
            nn.BatchNorm1d(channels // 4),
            nn.ReLU(inplace=True),
            nn.Conv1d(channels // 4, channels, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, y_NTCHW: Tensor) -> Tensor:
        """(N, T, C, H, W) → (N, T, C, H, W)."""
        pooled_NCT = y_NTCHW.mean(dim=(3, 4)).transpose(1, 2)
        kernel = self.G(pooled_NCT.flatten(0, 1)).unflatten(0, pooled_NCT.shape[:2])
        previous, now, next_ = kernel[:, None, None, None].unbind(-1)
        attended_NTHWC = y_NTCHW.permute(0, 1, 3, 4, 2) * self.L(pooled_NCT).transpose(1, 2)[:, :, None, None]
        padded = F.pad(attended_NTHWC, (0, 0, 0, 0, 0, 0, 1, 1))
        out_NTHWC: Tensor = padded[:, :-2] * previous + attended_NTHWC * now + padded[:, 2:] * next_
        return out_NTHWC.permute(0, 1, 4, 2, 3)


def tanet(block: BlockSpec) -> Slot:
    """A temporal adaptive module after conv1-BN-ReLU."""
    return Slot(inner=TemporalAdaptive(block.width, block.num_frames))


MODULES = {"tanet": ModuleEntry(tanet, "Liu et al. 2021, TANet")}
