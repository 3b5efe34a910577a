"""I3D and S3D on Inception-v1, as the Deep Analysis paper trains them.

Chen et al., *Deep analysis of CNN-based spatio-temporal representations for action recognition* (CVPR 2021, [DA]);
after Carreira and Zisserman, *Quo vadis, action recognition?* (2017, I3D), and Xie et al., *Rethinking spatiotemporal
feature learning* (2018, S3D). The trunk is ``inception.py``'s with 3D units:

             I3D                                S3D
    conv1    7×7×7, stride (1, 2, 2), pad 3     3×7×7, stride (1, 2, 2), pad (1, 3, 3)
    1×1      1×1×1                              1×1×1
    3×3      3×3×3                              1×3×3 – BN – ReLU – 3×1×1, with bias – BN – ReLU
    pools    1×3×3 pad (0, 1, 1);  3×3×3 pad 1;  3×3×3 pad 1;  2×2×2 unpadded;  stride 2 in space, floor mode
             and 3×3×3 pad 1, stride 1, in the blocks
    head     mean over the pixels, dropout, one fc per time step that is left, mean over these

With temporal pooling the second, third and fourth max-pool have stride 2 in time too. Without it no stride in time
exists, so the last one, two frames long and unpadded, leaves T-1 steps.

Decided where the paper is silent: five of the published counts (I3D without temporal pooling: mini-Kinetics and
mini-MiT at 32 and 64 frames, mini-SSV2 at 64) belong to a last max-pool of 3×3×3, pad 1, which keeps T steps:
``last_pool="padded"``, as [DA]'s published I3D code has it. All others belong to the default. S3D's 3×1×1 start as the
identity (there: random), so that its units start as the image network's.

DeepMind's own I3D, with strides in time and TensorFlow's padding, is ``deepmind_i3d.py``.

Weights: the keys are those of torchvision's googlenet, whose 2D kernels are inflated; S3D's 1×3×3 take them as they
are. S3D's 3×1×1 are ``conv_t`` and ``bn_t`` beside ``conv`` and ``bn``, as in [DA]'s code
(IBM/action-recognition-pytorch, c88e74b0, models/threed_models/i3d.py and s3d.py), whose checkpoints fit key for key,
I3D's with ``last_pool="padded"``.
"""

from functools import partial

import torch
from torch import Tensor, nn

from clipwise.models.conv3d import Conv3d
from clipwise.models.inception import IMAGE_KEYS, Unit, trunk
from clipwise.models.network import HALVES, ModelEntry, VideoNetwork

__all__ = ["MODELS", "Inception3D"]


class _Unit3D(nn.Module):
    """Convolution, BN, ReLU; the 7 pixels wide one, the stem, strides in space."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        stride = (1, 2, 2) if kernel[1] == 7 else 1
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = Conv3d(in_channels, out_channels, kernel, stride, padding, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.bn = nn.BatchNorm3d(out_channels, eps=1e-3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, C', T, H/stride, W/stride)."""
        out: Tensor = self.relu(self.bn(self.conv(x)))
        return out


class _SeparableUnit(_Unit3D):
    """1×3×3, BN, ReLU, 3×1×1 with bias, BN, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, (1, 3, 3))
        self.conv_t = Conv3d(out_channels, out_channels, (3, 1, 1), padding=(1, 0, 0))
        nn.init.dirac_(self.conv_t.weight)
        self.conv_t.bias = nn.Parameter(torch.zeros(out_channels))
        self.bn_t = nn.BatchNorm3d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, C', T, H, W)."""
        out: Tensor = self.relu(self.bn_t(self.conv_t(super().forward(x))))
        return out


def _i3d_unit(in_channels: int, out_channels: int, kernel: int) -> nn.Module:
    return _Unit3D(in_channels, out_channels, (kernel, kernel, kernel))


def _s3d_unit(in_channels: int, out_channels: int, kernel: int) -> nn.Module:
    if kernel == 3:
        return _SeparableUnit(in_channels, out_channels)
    return _Unit3D(in_channels, out_channels, (min(kernel, 3), kernel, kernel))


class Inception3D(VideoNetwork):
    """An Inception-v1 whose convolutions and max-pools extend over time.

    Args:
        unit: makes its convolutions, I3D's or S3D's.
        num_classes: outputs of ``fc``.
        num_frames: T of a clip; the forward pass refuses another.
        temporal_pooling: whether the second, third and fourth max-pool halve the frames.
        last_pool: ``"unpadded"``, 2×2×2, or ``"padded"``, 3×3×3, which without temporal pooling keeps T steps.
        dropout: probability before ``fc``.

    Raises:
        ValueError: for a value that does not exist or is out of range, or one frame where the last pool takes two.
    """

    image_keys = IMAGE_KEYS

    def __init__(
        self,
        unit: Unit,
        *,
        num_classes: int,
        num_frames: int,
        temporal_pooling: bool = False,
        last_pool: str = "unpadded",
        dropout: float = 0.5,
    ) -> None:
        super().__init__(
            num_classes=num_classes, num_frames=num_frames, dropout=dropout, temporal_pooling=temporal_pooling
        )
        if last_pool not in ("unpadded", "padded"):
            raise ValueError(f"last_pool must be 'unpadded' or 'padded', got {last_pool!r}")
        if last_pool == "unpadded" and num_frames == 1:
            raise ValueError(
                "the last max-pool takes two frames together, so num_frames must be at least 2, got 1; "
                "or take last_pool='padded'"
            )
        stride = (2 if temporal_pooling else 1, 2, 2)
        pools = [
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1)),
            nn.MaxPool3d(3, stride, padding=1),
            nn.MaxPool3d(3, stride, padding=1),
            nn.MaxPool3d(2, stride) if last_pool == "unpadded" else nn.MaxPool3d(3, stride, padding=1),
        ]
        self._running: list[str] = []
        for name, layer, _ in trunk(unit, pools, partial(nn.MaxPool3d, 3, 1, 1)):
            self.add_module(name, layer)
            self._running.append(name)
        self._make_head(1024)

    def forward_features(self, clips: Tensor) -> Tensor:
        """(N, T, 3, H, W) → (N, T', 1024): pooled features; T' is T-1, T when padded, T/8 with temporal pooling."""
        self.check_clips(clips)
        x = clips.transpose(1, 2)
        for name in self._running:
            x = getattr(self, name)(x)
        return x.mean(dim=(3, 4)).transpose(1, 2)


MODELS = {
    name: ModelEntry(
        partial(Inception3D, unit),
        "Chen et al. 2021, Deep Analysis",
        options_of=(Inception3D.__init__,),
        mean=HALVES,
        std=HALVES,
        image_backbone="googlenet",
    )
    for name, unit in (("i3d_inception_v1", _i3d_unit), ("s3d_inception_v1", _s3d_unit))
}
