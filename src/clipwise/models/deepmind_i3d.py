"""DeepMind's I3D on Inception-v1, for RGB.

Carreira and Zisserman, *Quo vadis, action recognition? A new model and the Kinetics dataset* (CVPR 2017). The trunk is
``inception.py``'s with

    unit     ReLU(BN(conv x)), no bias; BN has eps 1e-3 and a bias but no weight (gamma)
    conv1    7×7×7, stride 2;   every 3×3 is 3×3×3
    pools    1×3×3, stride (1, 2, 2);  the same;  3×3×3, stride 2;  2×2×2, stride 2;  in the blocks 3×3×3, stride 1
    head     mean of 2×7×7, stride 1, dropout, 1×1×1 convolution to the classes, mean over time

and TensorFlow's SAME padding: ⌈size / stride⌉ positions come out, the zeros needed for that stand half before and half
behind, an odd one behind. Where the stride is 1 that is symmetric. What a max-pool sees has passed a ReLU, so its zeros
equal the -∞ that TensorFlow pads with.

The published weights take 64 frames of 224×224, scaled to [-1, 1]: mean and standard deviation are 0.5.

Decided here: for other sizes the head's mean spans all pixels; up to 8 frames leave one time step, which the head then
takes alone. The 1×1×1 convolution is ``fc``, with which every network here ends.

Weights: the layers bear torchvision's googlenet's names, as all our Inceptions; :func:`from_deepmind` renames those of
DeepMind's own (deepmind/kinetics-i3d, 50c8f191, tf_v2/i3d.py), as a PyTorch file holds them:
``Mixed_3b.Branch_1.Conv3d_0b_3x3.conv.weight`` is ``inception3a.branch2.1.conv.weight``. :func:`from_published` knows
other forms of them too.
"""

import re
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from clipwise.models.conv3d import Conv3d
from clipwise.models.inception import BLOCKS, trunk
from clipwise.models.network import HALVES, ModelEntry, VideoNetwork

__all__ = ["MODELS", "DeepMindI3D", "from_deepmind", "from_published"]

_BRANCHES = {
    "Branch_0.Conv3d_0a_1x1": "branch1",
    "Branch_1.Conv3d_0a_1x1": "branch2.0",
    "Branch_1.Conv3d_0b_3x3": "branch2.1",
    "Branch_2.Conv3d_0a_1x1": "branch3.0",
    "Branch_2.Conv3d_0b_3x3": "branch3.1",
    "Branch_2.Conv3d_0a_3x3": "branch3.1",  # so called in Mixed_5b of DeepMind's own files
    "Branch_3.Conv3d_0b_1x1": "branch4.1",
}
_LAYERS = {
    "Conv3d_1a_7x7": "conv1",
    "Conv3d_2b_1x1": "conv2",
    "Conv3d_2c_3x3": "conv3",
    # Their letters begin with the pool before the blocks, so 3a is Mixed_3b.
    **{
        f"Mixed_{name[0]}{chr(ord(name[1]) + 1)}.{theirs}": f"inception{name}.{ours}"
        for name in BLOCKS
        for theirs, ours in _BRANCHES.items()
    },
    "Logits.Conv3d_0c_1x1": "fc",
}


def from_deepmind(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with DeepMind's names → one with ours; a key that is none of theirs stays."""
    renamed = {}
    for key, value in state.items():
        layer, *rest = key.rsplit(".", 2)
        if _LAYERS.get(layer) == "fc":
            renamed[f"fc.{rest[-1]}"] = value.flatten(1) if value.ndim > 1 else value
        else:
            renamed[".".join((_LAYERS.get(layer, layer), *rest))] = value
    return renamed


_VARIABLES = {
    "conv_3d/w": "conv.weight",
    "conv_3d/b": "conv.bias",
    "batch_norm/beta": "bn.bias",
    "batch_norm/moving_mean": "bn.running_mean",
    "batch_norm/moving_variance": "bn.running_var",
}
_PORT_BRANCHES = {
    "b0": "Branch_0.Conv3d_0a_1x1",
    "b1a": "Branch_1.Conv3d_0a_1x1",
    "b1b": "Branch_1.Conv3d_0b_3x3",
    "b2a": "Branch_2.Conv3d_0a_1x1",
    "b2b": "Branch_2.Conv3d_0b_3x3",
    "b3b": "Branch_3.Conv3d_0b_1x1",
}


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As :func:`from_deepmind`, and also from TensorFlow's variables and from the best known port's names.

    The port is piergiaj/pytorch-i3d, pytorch_i3d.py at b49fadf. The variables' names, such as
    ``RGB/inception_i3d/Mixed_3b/Branch_0/Conv3d_0a_1x1/conv_3d/w``, are *unverified*: read in others' code that lists
    them, not at their origin.
    """
    named = {}
    for key, value in state.items():
        match = re.fullmatch(r"(?:RGB/)?(?:inception_i3d/)?(.+)/((?:conv_3d|batch_norm)/\w+)(?::0)?", key)
        if match and match[2] in _VARIABLES:
            key = f"{match[1].replace('/', '.')}.{_VARIABLES[match[2]]}"
            # TensorFlow's kernels are (T, H, W, in, out), its statistics (1, 1, 1, 1, C).
            is_kernel = match[2] == "conv_3d/w" and value.ndim == 5
            value = value.permute(4, 3, 0, 1, 2) if is_kernel else value.flatten()
        key = re.sub(r"^logits\.", "Logits.Conv3d_0c_1x1.", key.replace(".conv3d.", ".conv."))
        key = re.sub(r"^(Mixed_\d[b-f])\.(b\d[ab]?)\.", lambda m: f"{m[1]}.{_PORT_BRANCHES.get(m[2], m[2])}.", key)
        named[key] = value
    return from_deepmind(named)


def _pad_same(x_NCTHW: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """(N, C, T, H, W) → the same with TensorFlow's SAME padding for this kernel and stride."""
    pads: list[int] = []
    for size, width, step in zip(x_NCTHW.shape[2:], kernel, stride, strict=True):
        total = max((size - 1) // step * step + width - size, 0)
        pads = [total // 2, total - total // 2, *pads]
    # On a view with the channels innermost, so that a channels-last tensor stays one.
    return F.pad(x_NCTHW.permute(0, 2, 3, 4, 1), (0, 0, *pads)).permute(0, 4, 1, 2, 3)


class _SamePool(nn.Module):
    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W), nowhere negative → (N, C, ⌈T/stride⌉, ⌈H/stride⌉, ⌈W/stride⌉)."""
        return F.max_pool3d(_pad_same(x, self.kernel, self.stride), self.kernel, self.stride)

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, stride={self.stride}"


class _SameUnit(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        stem = kernel == 7
        self.conv = Conv3d(
            in_channels,
            out_channels,
            kernel,
            stride=2 if stem else 1,
            padding=0 if stem else kernel // 2,
            bias=False,
        )
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.bn = nn.BatchNorm3d(out_channels, eps=1e-3)
        self.bn.register_parameter("weight", None)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, C', ⌈T/stride⌉, ⌈H/stride⌉, ⌈W/stride⌉)."""
        if self.conv.stride != (1, 1, 1):
            x = _pad_same(x, self.conv.kernel_size, self.conv.stride)
        out: Tensor = self.relu(self.bn(self.conv(x)))
        return out


class DeepMindI3D(VideoNetwork):
    """I3D with DeepMind's padding and strides, for their published weights.

    Args:
        num_classes: outputs of ``fc``.
        num_frames: T of a clip; the forward pass refuses another.
        dropout: probability before ``fc``.

    Raises:
        ValueError: for a count or probability out of range.
    """

    def __init__(self, *, num_classes: int, num_frames: int, dropout: float = 0.5) -> None:
        super().__init__(num_classes=num_classes, num_frames=num_frames, dropout=dropout)
        pools = [
            _SamePool((1, 3, 3), (1, 2, 2)),
            _SamePool((1, 3, 3), (1, 2, 2)),
            _SamePool((3, 3, 3), (2, 2, 2)),
            _SamePool((2, 2, 2), (2, 2, 2)),
        ]
        self._running: list[str] = []
        for name, layer, _ in trunk(_SameUnit, pools, partial(nn.MaxPool3d, 3, 1, 1)):
            self.add_module(name, layer)
            self._running.append(name)
        self._make_head(1024)

    def forward_features(self, clips: Tensor) -> Tensor:
        """(N, T, 3, H, W) → (N, T', 1024): features of each pair of neighbouring time steps; T' is ⌈T/8⌉ - 1, but 1
        up to 8 frames.
        """
        self.check_clips(clips)
        x = clips.transpose(1, 2)
        for name in self._running:
            x = getattr(self, name)(x)
        steps = x.mean(dim=(3, 4)).transpose(1, 2)
        return steps if steps.shape[1] == 1 else (steps[:, :-1] + steps[:, 1:]) / 2

    def from_image(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """DeepMind's published weights, or a checkpoint of this network, under this network's keys."""
        return from_deepmind(state)


MODELS = {
    "i3d_deepmind": ModelEntry(
        DeepMindI3D,
        "Carreira and Zisserman 2017, I3D",
        options_of=(DeepMindI3D.__init__,),
        num_frames=64,
        mean=HALVES,
        std=HALVES,
    )
}
