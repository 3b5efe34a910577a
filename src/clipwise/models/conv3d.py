"""3D convolution whose gradient is right for short clips too."""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Conv3d"]


class Conv3d(nn.Conv3d):
    """``nn.Conv3d`` whose padding in time is written out where the clip is shorter than the kernel.

    There, PyTorch 2.13 with oneDNN on a CPU computes a wrong weight gradient in bfloat16, or crashes: with 2 frames
    under a kernel of 3 it is off by 30 orders of magnitude. The result is the same otherwise. A map smaller than the
    kernel has the same fault, in 2D too; the networks meet none from 32 pixels on.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, C', T', H', W')."""
        pad = self.padding[0]
        if isinstance(pad, str) or not pad or x.shape[2] >= self.kernel_size[0]:
            return super().forward(x)
        padded = F.pad(x, (0, 0, 0, 0, int(pad), int(pad)))
        space = (0, *(int(side) for side in self.padding[1:]))
        return F.conv3d(padded, self.weight, self.bias, self.stride, space, self.dilation, self.groups)
