"""SlowFast-R50 (Feichtenhofer et al., *SlowFast networks for video recognition*, ICCV 2019).

Two 3D ResNets see the same clip of T frames: the fast pathway all of them with an eighth of the channels (β = 1/8), the
slow one T/α of them. Kernels and strides are written time × height × width:

    slow input   frames linspace(0, T - 1, T/α), rounded down
    stem         1×7×7 (slow) or 5×7×7 (fast), stride 1×2×2, BN, ReLU; max-pool 1×3×3, stride 1×2×2
    block        ReLU(shortcut + y),  y = BN(conv3(ReLU(BN(conv2(ReLU(BN(conv1 x)))))));  a shortcut projects by 1×1×1
                 conv1 k×1×1, conv2 1×3×3 with the stride, conv3 1×1×1, blocks and widths as in ResNet-50;
                 k = 3 in every fast block; in the slow pathway k = 1 in stages 2 and 3, k = 3 in stages 4 and 5
    lateral      after the stem and stages 2, 3 and 4:  slow ← [slow, ReLU(BN(conv fast))];
                 conv F×1×1, stride α×1×1, doubles the fast channels
    head         [mean over T, H, W of slow, the same of fast] → dropout → fc

    4×16   α = 8, F = 5   (T = 32: 4 slow frames)        8×8   α = 4, F = 7   (8 slow frames)

No stride in time anywhere: both pathways keep their frames to the end. "4×16" names the slow pathway's frames and
stride in the video, so the clip is 32 frames at stride 2.

Decided: F = 7 is the authors' configuration of 8×8 (configs/Kinetics/SLOWFAST_8x8_R50.yaml), and only that gives the
published count. At any size the head takes the mean over the whole map; the authors' code slides a window of its
training size and averages the softmax. The last BN of each residual branch starts at zero, as the authors train it
(from random weights: there is no ImageNet start). Colours are normalised by mean 0.45 and deviation 0.225, as theirs.

Weights: :func:`from_pyslowfast`, :func:`from_caffe2`, :func:`from_pytorchvideo`, :func:`from_mmaction2`. MMAction2's
SlowFast (open-mmlab/mmaction2 at 2335a162, mmaction/models/backbones/resnet3d_slowfast.py) has BN and ReLU in the
lateral connections only with ``lateral_norm=True``; without it, its checkpoints belong to another network.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from clipwise.models.conv3d import Conv3d
from clipwise.models.network import ModelEntry, VideoNetwork
from clipwise.models.placement import block_positions
from clipwise.models.temporal.nonlocal_block import NonLocalBlock, nonlocal_positions

__all__ = [
    "BLOCK_PARTS",
    "MODELS",
    "SlowFast",
    "from_caffe2",
    "from_mmaction2",
    "from_pyslowfast",
    "from_pytorchvideo",
    "name_of",
]

_BLOCKS = (3, 4, 6, 3)
_FAST_SHARE = 8  # 1/β


class _Stem(nn.Module):
    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.conv = Conv3d(3, width, (kernel, 7, 7), (1, 2, 2), padding=(kernel // 2, 3, 3), bias=False)
        self.bn = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, T, H, W) → (N, width, T, H/4, W/4)."""
        out: Tensor = self.pool(self.relu(self.bn(self.conv(x))))
        return out


class _Bottleneck(nn.Module):
    def __init__(self, in_channels: int, width: int, stride: int, kernel: int, nonlocal_block: bool) -> None:
        super().__init__()
        out_channels = 4 * width
        self.conv1 = Conv3d(in_channels, width, (kernel, 1, 1), padding=(kernel // 2, 0, 0), bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = Conv3d(width, width, (1, 3, 3), (1, stride, stride), padding=(0, 1, 1), bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = Conv3d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                Conv3d(in_channels, out_channels, 1, (1, stride, stride), bias=False), nn.BatchNorm3d(out_channels)
            )
        self.nonlocal_block = NonLocalBlock(out_channels) if nonlocal_block else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, 4·width, T, H/stride, W/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        out: Tensor = self.relu(y + shortcut)
        if self.nonlocal_block is not None:
            out = self.nonlocal_block(out.transpose(1, 2)).transpose(1, 2)
        return out


class _Pathway(nn.Module):
    """A stem and four stages.

    Args:
        width: channels of the stem and of the first stage's blocks.
        lateral: channels that join the stem's output, 0 for none; those that join a stage's grow with its width.
        kernels: along time, of the stem and of each stage's blocks.
        followed: blocks, as (stage from 2, index), that a non-local block follows.
    """

    def __init__(
        self, width: int, lateral: int, kernels: tuple[int, int, int, int, int], followed: set[tuple[int, int]]
    ) -> None:
        super().__init__()
        self.stem = _Stem(width, kernels[0])
        channels = width
        for stage, (count, kernel) in enumerate(zip(_BLOCKS, kernels[1:], strict=True)):
            inner = width * 2**stage
            joined = channels + channels // width * lateral
            blocks = [
                _Bottleneck(
                    joined if index == 0 else 4 * inner,
                    inner,
                    2 if stage and index == 0 else 1,
                    kernel,
                    (stage + 2, index) in followed,
                )
                for index in range(count)
            ]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            channels = 4 * inner
        self.channels = channels


class Lateral(nn.Module):
    """From the fast pathway to the slow one: as many frames as the slow one has, twice the channels."""

    def __init__(self, channels: int, kernel: int, alpha: int) -> None:
        super().__init__()
        self.conv = Conv3d(
            channels, 2 * channels, (kernel, 1, 1), (alpha, 1, 1), padding=(kernel // 2, 0, 0), bias=False
        )
        self.bn = nn.BatchNorm3d(2 * channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, fast: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, 2·C, T/α, H, W)."""
        out: Tensor = self.relu(self.bn(self.conv(fast)))
        return out


class SlowFast(VideoNetwork):
    """A slow and a fast 3D ResNet-50 joined by lateral convolutions.

    Args:
        alpha: frames of the fast pathway for each of the slow one.
        fusion_kernel: frames that a lateral convolution sees.
        num_classes: outputs of ``fc``.
        num_frames: T of a clip, a multiple of ``alpha``.
        dropout: probability before ``fc``.
        nonlocal_blocks: add non-local blocks to the slow pathway, two in stage 3 and three in stage 4.
        base_width: channels of the slow stem, 64 in the paper; the fast one has an eighth.

    Raises:
        ValueError: for a T that ``alpha`` does not divide, a width that cannot be built, or see :class:`VideoNetwork`.
    """

    image_keys = re.compile(r"(?!fc\.|.*nonlocal_block\.).*(?<!num_batches_tracked)")

    def __init__(
        self,
        alpha: int,
        fusion_kernel: int,
        *,
        num_classes: int,
        num_frames: int,
        dropout: float = 0.5,
        nonlocal_blocks: bool = False,
        base_width: int = 64,
    ) -> None:
        super().__init__(num_classes=num_classes, num_frames=num_frames, dropout=dropout)
        if num_frames % alpha:
            below, above = num_frames // alpha * alpha, (num_frames // alpha + 1) * alpha
            raise ValueError(
                f"the slow pathway takes one frame in {alpha}, so num_frames must be a multiple of {alpha}, "
                f"got {num_frames}; take {f'{below} or ' if below else ''}{above}"
            )
        if base_width < 8 or base_width % 8:
            raise ValueError(f"base_width must be a multiple of 8, got {base_width}")
        # torch's own linspace, on the CPU even where the network is built on another device: the peers' indices.
        self.slow_frames: list[int] = (
            torch.linspace(0, num_frames - 1, num_frames // alpha, device="cpu").long().tolist()
        )
        fast_width = base_width // _FAST_SHARE
        positions = block_positions(_BLOCKS)
        followed = nonlocal_positions(positions) if nonlocal_blocks else set()
        self.slow = _Pathway(base_width, 2 * fast_width, (1, 1, 1, 3, 3), followed)
        self.fast = _Pathway(fast_width, 0, (5, 3, 3, 3, 3), set())
        joined = (fast_width, *(4 * fast_width * 2**stage for stage in range(3)))
        self.laterals = nn.ModuleList(Lateral(channels, fusion_kernel, alpha) for channels in joined)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, _Bottleneck):
                nn.init.zeros_(module.bn3.weight)
        self._make_head(self.slow.channels + self.fast.channels)

    def _parts(self) -> Iterator[tuple[str, nn.Module, nn.Module]]:
        """Name, slow part and fast part of the stem and of each stage."""
        for name in ("stem", *(f"layer{stage}" for stage in range(1, 5))):
            yield name, getattr(self.slow, name), getattr(self.fast, name)

    def forward_features(self, clips: Tensor) -> Tensor:
        """(N, T, 3, H, W) → (N, 1, C): both pathways' means over time and space, the slow one's first."""
        self.check_clips(clips)
        slow, fast = clips[:, self.slow_frames].transpose(1, 2), clips.transpose(1, 2)
        for index, (_, slow_part, fast_part) in enumerate(self._parts()):
            slow, fast = slow_part(slow), fast_part(fast)
            if index < len(self.laterals):
                slow = torch.cat((slow, self.laterals[index](fast)), dim=1)
        return torch.cat((slow.mean((2, 3, 4)), fast.mean((2, 3, 4))), dim=1).unsqueeze(1)

    def stages(self) -> Iterator[tuple[str, nn.Module]]:
        """Both pathways' parts and the lateral connections between them, in the order they run."""
        for index, (name, slow_part, fast_part) in enumerate(self._parts()):
            yield f"slow.{name}", slow_part
            yield f"fast.{name}", fast_part
            if index < len(self.laterals):
                yield f"laterals.{index}", self.laterals[index]
        yield "fc", self.fc


_PATHWAYS = ("slow", "fast")
BLOCK_PARTS = {
    "branch1": "downsample.0",
    "branch1_bn": "downsample.1",
    "branch2.a": "conv1",
    "branch2.a_bn": "bn1",
    "branch2.b": "conv2",
    "branch2.b_bn": "bn2",
    "branch2.c": "conv3",
    "branch2.c_bn": "bn3",
}
"""PySlowFast's names in a residual block, and ours."""


def from_pyslowfast(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """PySlowFast's state dict of a SlowFast-R50 under this network's keys; a key without counterpart keeps its name.

    Names and shapes: facebookresearch/SlowFast, slowfast/models/ video_model_builder.py at ad73dcfa, resnet_helper.py
    at bac7b672, stem_helper.py at 673ded3f, head_helper.py at adc55ca3. The tensors are under ``model_state`` of a
    checkpoint; the zoo's SlowFast files are Caffe2 pickles of other names (:func:`from_caffe2`).
    """

    def renamed(key: str) -> str:
        if match := re.fullmatch(r"s1\.pathway([01])_stem\.(.+)", key):
            return f"{_PATHWAYS[int(match[1])]}.stem.{match[2]}"
        if match := re.fullmatch(r"s([1-4])_fuse\.(conv_f2s|bn)\.(\w+)", key):
            return f"laterals.{int(match[1]) - 1}.{match[2].removesuffix('_f2s')}.{match[3]}"
        if (match := re.fullmatch(r"s([2-5])\.pathway([01])_res(\d+)\.(.+)\.(\w+)", key)) and match[4] in BLOCK_PARTS:
            return f"{_PATHWAYS[int(match[2])]}.layer{int(match[1]) - 1}.{match[3]}.{BLOCK_PARTS[match[4]]}.{match[5]}"
        if match := re.fullmatch(r"head\.projection\.(weight|bias)", key):
            return f"fc.{match[1]}"
        return key

    return {renamed(key): value for key, value in state.items()}


def from_caffe2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The blobs of PySlowFast's published SlowFast files under this network's keys; see :func:`from_pyslowfast`.

    ``t_res3_0_branch2b_bn_s`` is ``s3.pathway1_res0.branch2.b_bn.weight`` there. Names: facebookresearch/SlowFast,
    slowfast/utils/c2_model_loading.py at 31d2ea7.
    """
    kinds = {"w": "weight", "b": "bias", "bn_s": "weight", "bn_b": "bias", "bn_rm": "running_mean"}

    def as_pyslowfast(blob: str) -> str:
        match = re.fullmatch(r"(.+?)_(w|b|bn_s|bn_b|bn_rm|bn_riv)", blob)
        if not match:
            return blob
        layer, bn, entry = match[1], match[2].startswith("bn"), kinds.get(match[2], "running_var")
        if layer == "pred":
            return f"head.projection.{entry}"
        if fuse := re.fullmatch(r"t_(?:pool1|res(\d)_\d+_branch2c_bn)_subsample", layer):
            return f"s{fuse[1] or 1}_fuse.{'bn' if bn else 'conv_f2s'}.{entry}"
        pathway, layer = ("1", layer[2:]) if layer.startswith("t_") else ("0", layer)
        if layer in ("conv1", "res_conv1"):
            return f"s1.pathway{pathway}_stem.{'bn' if bn else 'conv'}.{entry}"
        if block := re.fullmatch(r"res(\d)_(\d+)_branch(?:(1)|2([abc]))", layer):
            branch = "branch1" if block[3] else f"branch2.{block[4]}"
            return f"s{block[1]}.pathway{pathway}_res{block[2]}.{branch}{'_bn' if bn else ''}.{entry}"
        return blob

    return from_pyslowfast({as_pyslowfast(blob): value for blob, value in state.items()})


def from_pytorchvideo(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """PyTorchVideo's state dict of a SlowFast-R50 under this network's keys; see :func:`from_pyslowfast`.

    Names and shapes: facebookresearch/pytorchvideo, pytorchvideo/models/ slowfast.py and x3d.py (for the blocks' names)
    at 124e1323, net.py at 173ba051. Its zoo's files, whose tensors are under ``model_state``, are PyTorch's own.
    """

    def as_pyslowfast(key: str) -> str:
        key = key.replace("blocks.6.proj.", "head.projection.")
        key = re.sub(r"^blocks\.([0-4])\.", lambda match: f"s{int(match[1]) + 1}.", key)
        key = key.replace(".multipathway_fusion.conv_fast_to_slow.", "_fuse.conv_f2s.")
        key = key.replace(".multipathway_fusion.norm.", "_fuse.bn.")
        key = re.sub(r"^s1\.multipathway_blocks\.(\d)\.", r"s1.pathway\1_stem.", key).replace(
            "_stem.norm.", "_stem.bn."
        )
        key = re.sub(r"\.multipathway_blocks\.(\d)\.res_blocks\.(\d+)\.", r".pathway\1_res\2.", key)
        key = key.replace(".branch1_conv.", ".branch1.").replace(".branch1_norm.", ".branch1_bn.")
        return re.sub(r"\.branch2\.norm_([abc])\.", r".branch2.\1_bn.", key.replace(".branch2.conv_", ".branch2."))

    return from_pyslowfast({as_pyslowfast(key): value for key, value in state.items()})


def from_mmaction2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MMAction2's state dict of a SlowFast under this network's keys; a key without counterpart keeps its name.

    Names and shapes: open-mmlab/mmaction2, mmaction/models/ backbones/resnet3d_slowfast.py at 07517a2,
    heads/slowfast_head.py at 154f657.
    """

    def renamed(key: str) -> str:
        if match := re.fullmatch(r"backbone\.slow_path\.(conv1|layer\d)_lateral\.(conv|bn)\.(\w+)", key):
            return f"laterals.{0 if match[1] == 'conv1' else match[1][-1]}.{match[2]}.{match[3]}"
        if match := re.fullmatch(r"backbone\.(slow|fast)_path\.conv1\.(conv|bn)\.(\w+)", key):
            return f"{match[1]}.stem.{match[2]}.{match[3]}"
        if match := re.fullmatch(
            r"backbone\.(slow|fast)_path\.(layer\d\.\d+)\.(?:conv([123])|downsample)\.(conv|bn)\.(\w+)", key
        ):
            part = match[4] + match[3] if match[3] else f"downsample.{0 if match[4] == 'conv' else 1}"
            return f"{match[1]}.{match[2]}.{part}.{match[5]}"
        return re.sub(r"^cls_head\.fc_cls\.", "fc.", key)

    return {renamed(key): value for key, value in state.items()}


_FORMS = {"4x16": (8, 5), "8x8": (4, 7)}  # α, F


def name_of(state: Mapping[str, Tensor]) -> str | None:
    """The registered name of the network that has these weights, None if there is none."""
    kernel = state.get("laterals.0.conv.weight")
    if kernel is None or kernel.ndim != 5:
        return None
    return next(
        (f"slowfast_resnet50_{form}" for form, (_, frames) in _FORMS.items() if kernel.shape[2] == frames), None
    )


MODELS = {
    f"slowfast_resnet50_{name}": ModelEntry(
        partial(SlowFast, alpha, fusion_kernel),
        "Feichtenhofer et al. 2019, SlowFast",
        options_of=(SlowFast.__init__,),
        num_frames=32,
        size=256,
        mean=(0.45, 0.45, 0.45),
        std=(0.225, 0.225, 0.225),
    )
    for name, (alpha, fusion_kernel) in _FORMS.items()
}
