"""The layers of a deployed network: convolutions that add and clip in the same pass, and residual blocks made of them.

A convolution followed by an addition and a ReLU passes three times over its output where each is an operation of its
own. oneDNN does all three while it writes, and takes a weight that is packed once instead of at every call: on a CPU
that is most of what a compiler would gain, without one. For a compiler or an exporter the same layers are plain
operations, which it fuses itself.

On a GPU the layers can take the kernels of :mod:`clipwise.kernels` (``with_kernels``): 1×1 convolutions that read their
input shifted in time and add what follows, and temporal steps of one pass each.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipwise import kernels, ops
from clipwise.memory import Memory
from clipwise.models.resnet import BasicBlock, Block, Bottleneck
from clipwise.models.temporal.layers import Remembering, TemporalConv
from clipwise.models.temporal.stm import ChannelwiseMotion
from clipwise.models.temporal.stw import SpatioTemporalWeights
from clipwise.models.temporal.tam import TemporalAggregation
from clipwise.models.temporal.tsm import TemporalShift

__all__ = [
    "FusedBasicBlock",
    "FusedBottleneck",
    "FusedConv",
    "can_fuse",
    "fuse_block",
    "has_hooks",
    "scale_and_shift",
]


class FusedConv(nn.Module):
    """A 2D convolution, then an optional addition and an optional ReLU.

    Args:
        conv: whose parameters are taken over; zero padding.
        relu: end with a ReLU.
        with_kernels: a 1×1 convolution takes the kernel for GPUs.
        beside: how many of the input's channels will be given apart from the others.
    """

    def __init__(self, conv: nn.Conv2d, *, relu: bool = False, with_kernels: bool = False, beside: int = 0) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.relu = relu
        self.kernel = with_kernels and conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.groups == 1
        self.weight_beside: nn.Parameter | None = None
        if self.kernel and beside:
            parts = conv.weight.split((conv.in_channels - beside, beside), dim=1)
            self.weight, self.weight_beside = (nn.Parameter(part.contiguous(), requires_grad=False) for part in parts)
        self._packed: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        # What oneDNN packed can be neither copied nor pickled; the copy packs anew.
        return {**self.__dict__, "_packed": None}

    def _apply(self, *args: Any, **options: Any) -> "FusedConv":
        self._packed = None  # of another dtype or device from now on
        moved: FusedConv = super()._apply(*args, **options)
        return moved

    def forward(self, x: Tensor, add: Tensor | None = None, *, beside: Tensor | None = None) -> Tensor:
        """(B, C, H, W) → (B, C', H', W').

        ``add`` has the result's shape, and may be overwritten by it. ``beside`` holds further channels of the input.
        """
        if self.kernel:
            return self._by_kernel(x, add, beside)
        if beside is not None:
            x = torch.cat((x, beside), dim=1)
        if _takes_onednn(x):
            return self._in_one_pass(x, add)
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if add is not None:
            y = y + add
        return y.relu() if self.relu else y

    def shifted(self, x: Tensor, shifts: list[tuple[int, int]], frames: int, memory: Memory | None = None) -> Tensor:
        """(N·T, C, H, W) → (N·T, C', H', W'), of x shifted in time as :func:`clipwise.ops.shift` does."""
        if self.kernel and memory is None:
            return self._by_kernel(x, None, None, frames, shifts)
        return self(ops.fold(ops.shift(ops.unfold(x, frames), shifts, memory=memory)))  # type: ignore[no-any-return]

    def _by_kernel(
        self,
        x: Tensor,
        add: Tensor | None,
        beside: Tensor | None,
        frames: int = 1,
        shifts: list[tuple[int, int]] | None = None,
    ) -> Tensor:
        return kernels.pointwise(
            x[..., :: self.stride[0], :: self.stride[1]],
            self.weight,
            self.bias,
            frames=frames,
            groups=shifts,
            also=None if beside is None or self.weight_beside is None else (beside, self.weight_beside),
            residual=add,
            relu=self.relu,
        )

    def _in_one_pass(self, x: Tensor, add: Tensor | None) -> Tensor:
        form = (self.padding, self.stride, self.dilation, self.groups)
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *form, list(x.shape))
        last = "relu" if self.relu else None
        if add is None:
            y: Tensor = torch.ops.mkldnn._convolution_pointwise(
                x, self._packed, self.bias, *form, last or "none", [], ""
            )
        else:
            y = torch.ops.mkldnn._convolution_pointwise_.binary(
                add, x, self._packed, self.bias, *form, "add", 1.0, last, [], ""
            )
        return y


def _takes_onednn(x: Tensor) -> bool:
    """Whether to call oneDNN ourselves: in a plain forward pass on a CPU that computes in the tensor's dtype."""
    if x.device.type != "cpu" or not ops.is_plain_inference(x):
        return False
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    return x.dtype == torch.float32 or (
        x.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


class _Motion(Remembering):
    """CMM with its convolutions fused and its BN folded into ``reduce``.

    Args:
        cmm: whose parameters are taken over.
        multiple: channels of zeros fill the reduced channels up to a multiple of this.
        with_kernels: take the kernels for GPUs.
    """

    def __init__(self, cmm: ChannelwiseMotion, *, multiple: int, with_kernels: bool) -> None:
        super().__init__()
        zeros = -cmm.reduce.out_channels % multiple
        self.causal = cmm.causal
        self.reduce = FusedConv(_with_zeros(cmm.reduce, outputs=zeros), with_kernels=with_kernels)
        self.conv: FusedConv | nn.Identity = nn.Identity()
        self.kernel = False
        if isinstance(cmm.conv, nn.Conv2d):
            self.conv = FusedConv(_with_zeros(cmm.conv, inputs=zeros, outputs=zeros))
            self.kernel = with_kernels and cmm.conv.groups == cmm.conv.in_channels
        self.restore = FusedConv(_with_zeros(cmm.restore, inputs=zeros), with_kernels=with_kernels)
        self.pool = cmm.pool

    def difference(self, y: Tensor, frames: int) -> Tensor:
        """Folded y (N·T, C, H, W) → H (N·T, C/16, H, W)."""
        reduced = ops.unfold(self.reduce(y), frames)
        if self.kernel and isinstance(self.conv, FusedConv) and self.memory is None:
            return ops.fold(kernels.motion(reduced, self.conv.weight, causal=self.causal))
        return ops.fold(ops.motion(reduced, self.conv, causal=self.causal, memory=self.memory))

    def forward(self, s: Tensor, y: Tensor, frames: int) -> Tensor:
        """Folded s (N·T, C, H/stride, W/stride), y (N·T, C, H, W) → s + m, which may overwrite s."""
        difference = self.difference(y, frames)
        if isinstance(self.pool, nn.Identity):
            return self.restore(difference, s)  # type: ignore[no-any-return]
        return s.add_(self.pool(self.restore(difference)))


def _with_zeros(conv: nn.Conv2d, *, inputs: int = 0, outputs: int = 0) -> nn.Conv2d:
    """The same convolution with channels of zeros added to its inputs and outputs; a depthwise one stays depthwise."""
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    wider = nn.Conv2d(
        conv.in_channels + inputs,
        conv.out_channels + outputs,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        groups=conv.in_channels + inputs if depthwise else 1,
        bias=conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    weight = F.pad(conv.weight, (0, 0, 0, 0, 0, 0 if depthwise else inputs, 0, outputs))
    wider.weight = nn.Parameter(weight, requires_grad=False)
    if conv.bias is not None:
        wider.bias = nn.Parameter(F.pad(conv.bias, (0, outputs)), requires_grad=False)
    return wider


class FusedTemporalConv(Remembering):
    """A convolution over time, then an optional ReLU.

    Args:
        conv: whose parameters are taken over.
        relu: end with a ReLU.
        with_kernels: a channel-wise one takes the kernel for GPUs.
    """

    def __init__(self, conv: TemporalConv, *, relu: bool = False, with_kernels: bool = False) -> None:
        super().__init__()
        outputs, per_group, taps = conv.weight.shape
        channels = per_group * conv.groups
        self.causal = conv.causal
        self.channelwise = per_group == 1 and outputs == channels
        self.kernel = with_kernels and self.channelwise
        padding = (0 if conv.causal else taps // 2, 0)
        over_time = nn.Conv2d(channels, outputs, (taps, 1), padding=padding, groups=conv.groups, device="meta")
        over_time.weight = nn.Parameter(conv.weight.unsqueeze(-1), requires_grad=False)
        over_time.bias = conv.bias
        self.conv = FusedConv(over_time, relu=relu)

    def forward(self, x_NTCHW: Tensor) -> Tensor:
        """(N, T, C, H, W) → (N, T, C', H, W)."""
        weight, bias, relu = self.conv.weight.squeeze(-1), self.conv.bias, self.conv.relu
        if self.kernel and self.memory is None:
            return kernels.temporal_conv(x_NTCHW, weight, bias, causal=self.causal, relu=relu)
        if (self.memory is not None and self.channelwise) or not _takes_onednn(x_NTCHW):
            y = ops.temporal_conv(x_NTCHW, weight, bias, causal=self.causal, memory=self.memory)
            return y.relu() if relu else y
        x = ops.over_past(x_NTCHW, weight.shape[-1], self.memory) if self.causal else ops.time_as_height(x_NTCHW)
        return ops.height_as_time(self.conv(x), x_NTCHW)


def _fused(module: nn.Module | None, *, with_kernels: bool) -> nn.Module | None:
    """A temporal module with its convolution fused, if it is one and perhaps a ReLU."""
    if isinstance(module, TemporalConv):
        return FusedTemporalConv(module, with_kernels=with_kernels)
    if isinstance(module, TemporalAggregation):
        return FusedTemporalConv(module.conv, relu=True, with_kernels=with_kernels)
    return module


class _FusedSTW(nn.Module):
    """STW in place of conv2, its convolution fused."""

    def __init__(self, stw: SpatioTemporalWeights) -> None:
        super().__init__()
        self.stw = stw
        own = nn.Conv2d(stw.in_channels, stw.out_channels, 3, stw.stride, padding=1, bias=False, device="meta")  # type: ignore[arg-type]
        own.weight = stw.weight
        self.conv = FusedConv(own)

    def forward(self, y_NTCHW: Tensor) -> Tensor:
        """(N, T, C, H, W) → (N, T, C, H/stride, W/stride)."""
        return self.stw.arranged(y_NTCHW, self.conv)


def _second_convolution(module: nn.Module) -> nn.Module:
    """What stands in place of conv2, with its convolutions fused."""
    if type(module) is nn.Conv2d:
        return FusedConv(module, relu=True)
    if isinstance(module, SpatioTemporalWeights):
        return _FusedSTW(module)
    for name, part in module.named_children():
        if type(part) is nn.Conv2d:
            setattr(module, name, FusedConv(part))
        elif isinstance(part, TemporalConv):
            setattr(module, name, FusedTemporalConv(part))
        else:
            _second_convolution(part)
    return module


def scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """What a BN, as it normalises in evaluation, multiplies each channel by and adds then: two of (C,), in float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def _as_convolution(norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A BN, as it normalises in evaluation, as a convolution of each channel alone."""
    scale, shift = scale_and_shift(norm)
    conv = nn.Conv2d(norm.num_features, norm.num_features, 1, groups=norm.num_features, device="meta")
    conv.weight = nn.Parameter(scale.to(norm.weight)[:, None, None, None], requires_grad=False)
    conv.bias = nn.Parameter(shift.to(norm.weight), requires_grad=False)
    return conv


class _FusedBlock(Remembering):
    """What both kinds of residual block share.

    Where a BN follows something else than convolutions (STC's gates, STW's sum), on a CPU it becomes a convolution of
    each channel alone, which oneDNN ends with the addition and the ReLU in the same pass; a GPU's compiler does that of
    itself.

    Args:
        block: whose parts are taken over; its BNs are folded where they directly follow convolutions.
        for_gpu: what is fast on a GPU.
        with_kernels: take the kernels for GPUs.
    """

    def __init__(self, block: Block, *, for_gpu: bool, with_kernels: bool) -> None:
        super().__init__()
        before, inner, self.after = (block.temporal(place) for place in ("before", "inner", "after"))
        self.shifts = before.groups if isinstance(before, TemporalShift) else None
        self.before = None if self.shifts else _fused(before, with_kernels=with_kernels)
        self.inner = _fused(inner, with_kernels=with_kernels)
        self.conv1 = FusedConv(block.conv1, relu=True, with_kernels=with_kernels)
        self.conv2 = _second_convolution(block.conv2)
        self.bn2 = block.bn2
        if isinstance(block.bn2, nn.BatchNorm2d) and not for_gpu:
            self.bn2 = FusedConv(_as_convolution(block.bn2), relu=True)
        self.downsample: FusedConv | None = None
        if block.downsample is not None:
            projection = block.downsample[0]
            assert isinstance(projection, nn.Conv2d)
            self.downsample = FusedConv(projection, with_kernels=with_kernels)

        self.moves_first = before is not None
        self.sees_time = block.sees_time

    def before_time(self, x: Tensor) -> tuple[Tensor, ...]:
        """As :meth:`clipwise.models.resnet.Block.before_time`."""
        y = x if self.moves_first else self.conv1(x)
        if self.downsample is not None:
            return self.downsample(x), y
        return (x,) if self.moves_first else (x, y)

    def _branches(self, parts: tuple[Tensor, ...], frames: int) -> tuple[Tensor, Tensor]:
        """What :meth:`before_time` gave → the shortcut, and y = ReLU(BN1(conv1(x))), x through the module that stands
        before it."""
        shortcut, y = parts[0], parts[-1]
        if self.shifts is not None:
            y = self.conv1.shifted(y, self.shifts, frames, self.memory)
        elif self.before is not None:
            y = self.conv1(_on_clips(self.before, y, frames))
        return shortcut, y

    def _second(self, y: Tensor, frames: int, add: Tensor | None = None) -> Tensor:
        """Folded (N·T, C, H, W) → ReLU(BN2(conv2(y)) + add), (N·T, C, H/stride, W/stride)."""
        y = _on_clips(self.inner, y, frames)
        if isinstance(self.conv2, FusedConv):
            return self.conv2(y, add)  # type: ignore[no-any-return]
        s = _on_clips(self.conv2, y, frames)
        if isinstance(self.bn2, FusedConv):
            return self.bn2(s, add)  # type: ignore[no-any-return]
        s = self.bn2(s)
        return F.relu(s if add is None else s + add)


def _on_clips(module: nn.Module | None, x: Tensor, frames: int) -> Tensor:
    return x if module is None else ops.fold(module(ops.unfold(x, frames)))


class FusedBasicBlock(_FusedBlock):
    """A basic block whose last convolution adds the shortcut, and CMM's output with it."""

    def __init__(self, block: BasicBlock, *, for_gpu: bool, with_kernels: bool) -> None:
        super().__init__(block, for_gpu=for_gpu, with_kernels=with_kernels)
        cmm = block.temporal("merge")
        self.motion = None
        if isinstance(cmm, ChannelwiseMotion):
            self.motion = _Motion(cmm, multiple=1, with_kernels=with_kernels)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Folded (N·T, C, H, W) → (N·T, width, H/stride, W/stride); x may be overwritten."""
        return self.over_time(self.before_time(x), frames)

    def over_time(self, parts: tuple[Tensor, ...], frames: int) -> Tensor:
        """What :meth:`before_time` gave, which may be overwritten → (N·T, width, H/stride, W/stride)."""
        shortcut, y = self._branches(parts, frames)
        if self.motion is not None:
            shortcut = self.motion(shortcut, y, frames)
        return _on_clips(self.after, self._second(y, frames, shortcut), frames)


class FusedBottleneck(_FusedBlock):
    """A bottleneck whose last convolution adds the shortcut.

    CMM's ``restore`` is linear after its BN, and so is conv3:  conv3(s + restore(H)) = conv3(s) + (conv3·restore)(H).
    Where nothing pools between them, conv3 becomes, on a GPU, one convolution of s and H side by side, which saves
    restore's output and the addition. The 1×1 that joins concatenated branches is linear too, and goes into conv3 in
    any block. Otherwise ``restore`` adds to s as it writes. Of a wide conv3 the reduced channels are filled up to a
    multiple of 8, which GPUs' matrix units want.
    """

    def __init__(self, block: Bottleneck, *, for_gpu: bool, with_kernels: bool) -> None:
        super().__init__(block, for_gpu=for_gpu, with_kernels=with_kernels)
        conv3, cmm = block.conv3, block.temporal("merge")
        self.motion = None
        self.wide = False
        if isinstance(cmm, ChannelwiseMotion):
            pools = not isinstance(cmm.pool, nn.Identity)
            self.wide = cmm.fuse is not None or (for_gpu and not pools)
            self.motion = _Motion(cmm, multiple=8 if self.wide else 1, with_kernels=with_kernels)
            if self.wide:
                conv3 = _widened(conv3, cmm.fuse, None if pools else self.motion.restore)
        beside = conv3.in_channels - block.conv3.in_channels
        self.conv3 = FusedConv(conv3, relu=True, with_kernels=with_kernels, beside=beside)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Folded (N·T, C, H, W) → (N·T, 4·width, H/stride, W/stride); x may be overwritten."""
        return self.over_time(self.before_time(x), frames)

    def over_time(self, parts: tuple[Tensor, ...], frames: int) -> Tensor:
        """What :meth:`before_time` gave, which may be overwritten → (N·T, 4·width, H/stride, W/stride)."""
        shortcut, y = self._branches(parts, frames)
        s = self._second(y, frames)
        beside = None
        if self.motion is not None and self.wide:
            beside = self._beside(y, frames)
        elif self.motion is not None:
            s = self.motion(s, y, frames)
        return _on_clips(self.after, self.conv3(s, shortcut, beside=beside), frames)

    def _beside(self, y: Tensor, frames: int) -> Tensor:
        """What a wide conv3 takes beside s: H, or where it is pooled, m."""
        assert self.motion is not None
        difference = self.motion.difference(y, frames)
        if isinstance(self.motion.pool, nn.Identity):
            return difference
        pooled: Tensor = self.motion.pool(self.motion.restore(difference))
        return pooled


def _widened(conv3: nn.Conv2d, fuse: nn.Conv2d | None, restore: FusedConv | None) -> nn.Conv2d:
    """conv3 as a convolution of s and what stands beside it: the product of the 1×1 convolutions that follow either."""
    after = conv3.weight.flatten(1).double()
    on_s = on_m = after
    if fuse is not None:
        on_s, on_m = (after @ part for part in fuse.weight.flatten(1).double().chunk(2, dim=1))
    if restore is not None:
        on_m = on_m @ restore.weight.flatten(1).double()
    weight = torch.cat((on_s, on_m), dim=1)[..., None, None].to(conv3.weight)
    wide = nn.Conv2d(weight.shape[1], weight.shape[0], 1, device=weight.device, dtype=weight.dtype)
    wide.weight, wide.bias = nn.Parameter(weight, requires_grad=False), conv3.bias
    return wide


def can_fuse(block: nn.Module) -> bool:
    """Whether a block is as this library makes it, its BNs folded wherever its fused form has none, without hooks."""
    if type(block) not in (BasicBlock, Bottleneck) or any(map(has_hooks, block.modules())):
        return False
    assert isinstance(block, Block)
    convolutions, folded = [block.conv1], [block.bn1]
    if isinstance(block, Bottleneck):
        convolutions.append(block.conv3)
        folded.append(block.bn3)
    if block.downsample is not None:
        projection, norm = block.downsample
        convolutions.append(projection)  # type: ignore[arg-type]
        folded.append(norm)
    merge = block.temporal("merge")
    if isinstance(merge, ChannelwiseMotion):
        folded.append(merge.bn)
    elif merge is not None:
        return False
    if type(block.conv2) is nn.Conv2d:
        folded.append(block.bn2)
    elif type(block.bn2) not in (nn.Identity, nn.BatchNorm2d):
        return False
    plain = all(type(conv) is nn.Conv2d and conv.padding_mode == "zeros" for conv in convolutions)
    return plain and all(isinstance(norm, nn.Identity) for norm in folded)


def has_hooks(module: nn.Module) -> bool:
    """Whether something looks at, or changes, what goes into or comes out of a module."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def fuse_block(block: Block, *, for_gpu: bool, with_kernels: bool = False) -> FusedBasicBlock | FusedBottleneck:
    """The deployed form of a residual block whose BNs are folded where they directly follow convolutions."""
    if isinstance(block, Bottleneck):
        return FusedBottleneck(block, for_gpu=for_gpu, with_kernels=with_kernels)
    assert isinstance(block, BasicBlock)
    return FusedBasicBlock(block, for_gpu=for_gpu, with_kernels=with_kernels)
