"""The layers of a deployed network: convolutions that add and clip in the same pass, and residual blocks made of them.

A convolution followed by an addition and a ReLU passes three times over its output where each is an operation of its
own. oneDNN does all three while it writes, and takes a weight that is packed once instead of at every call: on a CPU
that is most of what a compiler would gain, without one. For a compiler or an exporter the same layers are plain
operations, which it fuses itself.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipwise import ops
from clipwise.models.resnet import BasicBlock, Block, Bottleneck
from clipwise.models.temporal.stm import ChannelwiseMotion

__all__ = ["FusedBasicBlock", "FusedBottleneck", "FusedConv", "fuse_block"]


class FusedConv(nn.Module):
    """A 2D convolution, then an optional addition and an optional ReLU.

    Args:
        conv: whose parameters are taken over; zero padding.
        relu: end with a ReLU.
    """

    def __init__(self, conv: nn.Conv2d, *, relu: bool = False) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.relu = relu
        self._packed: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        # What oneDNN packed can be neither copied nor pickled; the copy packs anew.
        return {**self.__dict__, "_packed": None}

    def _apply(self, *args: Any, **options: Any) -> "FusedConv":
        self._packed = None  # of another dtype or device from now on
        moved: FusedConv = super()._apply(*args, **options)
        return moved

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """(B, C, H, W) → (B, C', H', W'). ``add`` has the result's shape, and may be overwritten by it."""
        if _takes_onednn(x):
            return self._in_one_pass(x, add)
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if add is not None:
            y = y + add
        return y.relu() if self.relu else y

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


class _Motion(nn.Module):
    """CMM with its convolutions fused and its BN folded into ``reduce``.

    Args:
        cmm: whose parameters are taken over.
        multiple: channels of zeros fill the reduced channels up to a multiple of this.
    """

    def __init__(self, cmm: ChannelwiseMotion, multiple: int = 1) -> None:
        super().__init__()
        zeros = -cmm.reduce.out_channels % multiple
        self.causal = cmm.causal
        self.reduce = FusedConv(_with_zeros(cmm.reduce, outputs=zeros))
        self.conv: nn.Module = nn.Identity()
        if isinstance(cmm.conv, nn.Conv2d):
            self.conv = FusedConv(_with_zeros(cmm.conv, inputs=zeros, outputs=zeros))
        self.restore = FusedConv(_with_zeros(cmm.restore, inputs=zeros))
        self.pool = cmm.pool

    def difference(self, y: Tensor, frames: int) -> Tensor:
        """Folded y (N·T, C, H, W) → H (N·T, C/16, H, W)."""
        reduced = self.reduce(y)
        convolved = self.conv(reduced)
        return ops.fold(
            ops.motion_difference(ops.unfold(convolved, frames), ops.unfold(reduced, frames), causal=self.causal)
        )

    def forward(self, s: Tensor, y: Tensor, frames: int) -> Tensor:
        """Folded s (N·T, C, H/stride, W/stride), y (N·T, C, H, W) → s + m, which may overwrite s."""
        difference = self.difference(y, frames)
        if isinstance(self.pool, nn.Identity):
            return self.restore(difference, s)  # type: ignore[no-any-return]
        return s.add_(self.pool(self.restore(difference)))


def _with_zeros(conv: nn.Conv2d, *, inputs: int = 0, outputs: int = 0) -> nn.Conv2d:
    """The same convolution with channels of zeros added to its inputs and outputs; a depthwise one stays depthwise."""
    depthwise = conv.groups == conv.in_channels > 1 and conv.weight.shape[1] == 1
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
    wider.weight = nn.Parameter(F.pad(conv.weight, (0, 0, 0, 0, 0, 0 if depthwise else inputs, 0, outputs)))
    if conv.bias is not None:
        wider.bias = nn.Parameter(F.pad(conv.bias, (0, outputs)))
    return wider


class _FusedBlock(nn.Module):
    """What both kinds of residual block share.

    Args:
        block: whose parts are taken over; its BNs are folded where they directly follow a convolution.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.before, self.inner, self.after = (block.temporal(place) for place in ("before", "inner", "after"))
        self.conv1 = FusedConv(block.conv1, relu=True)
        self.conv2 = FusedConv(block.conv2, relu=True) if type(block.conv2) is nn.Conv2d else block.conv2
        self.bn2 = block.bn2
        self.downsample: FusedConv | None = None
        if block.downsample is not None:
            projection = block.downsample[0]
            assert isinstance(projection, nn.Conv2d)
            self.downsample = FusedConv(projection)

    def _second(self, z: Tensor, frames: int, add: Tensor | None = None) -> Tensor:
        """Folded (N·T, C, H, W) → ReLU(BN2(conv2(z)) + add), (N·T, C, H/stride, W/stride)."""
        if isinstance(self.conv2, FusedConv):
            return self.conv2(z, add)  # type: ignore[no-any-return]
        s = self.bn2(_on_clips(self.conv2, z, frames))
        return F.relu(s if add is None else s + add)


def _on_clips(module: nn.Module | None, x: Tensor, frames: int) -> Tensor:
    return x if module is None else ops.fold(module(ops.unfold(x, frames)))


class FusedBasicBlock(_FusedBlock):
    """A basic block whose last convolution adds the shortcut, and CMM's output with it."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__(block)
        cmm = block.temporal("merge")
        self.motion = _Motion(cmm) if isinstance(cmm, ChannelwiseMotion) else None

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Folded (N·T, C, H, W) → (N·T, width, H/stride, W/stride); x may be overwritten."""
        y = self.conv1(_on_clips(self.before, x, frames))
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.motion is not None:
            shortcut = self.motion(shortcut, y, frames)
        return _on_clips(self.after, self._second(_on_clips(self.inner, y, frames), frames, shortcut), frames)


class FusedBottleneck(_FusedBlock):
    """A bottleneck whose last convolution adds the shortcut.

    CMM's ``restore`` is linear after its BN, and so is conv3:  conv3(s + restore(H)) = conv3(s) + (conv3·restore)(H).
    Where nothing pools between them, ``wide`` makes conv3 one convolution of s and H side by side, which saves
    restore's output and the addition. The 1×1 that joins concatenated branches is linear too, and goes into conv3 in
    any block. Otherwise ``restore`` adds to s as it writes.

    Args:
        block: whose parts are taken over.
        wide: fold ``restore`` into conv3, with the reduced channels filled up to a multiple of 8, which GPUs' matrix
            units want.
    """

    def __init__(self, block: Bottleneck, *, wide: bool) -> None:
        super().__init__(block)
        conv3, cmm = block.conv3, block.temporal("merge")
        self.motion = None
        self.wide = False
        if isinstance(cmm, ChannelwiseMotion):
            pools = not isinstance(cmm.pool, nn.Identity)
            self.wide = cmm.fuse is not None or (wide and not pools)
            self.motion = _Motion(cmm, multiple=8 if self.wide else 1)
            if self.wide:
                conv3 = _widened(conv3, cmm.fuse, None if pools else self.motion.restore)
        self.conv3 = FusedConv(conv3, relu=True)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Folded (N·T, C, H, W) → (N·T, 4·width, H/stride, W/stride); x may be overwritten."""
        y = self.conv1(_on_clips(self.before, x, frames))
        shortcut = x if self.downsample is None else self.downsample(x)
        s = self._second(_on_clips(self.inner, y, frames), frames)
        if self.motion is not None:
            s = torch.cat((s, self._beside(y, frames)), dim=1) if self.wide else self.motion(s, y, frames)
        return _on_clips(self.after, self.conv3(s, shortcut), frames)

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
    wide.weight, wide.bias = nn.Parameter(weight), conv3.bias
    return wide


def fuse_block(block: Block, *, wide: bool) -> _FusedBlock:
    """The deployed form of a residual block whose BNs are folded already."""
    if isinstance(block, Bottleneck):
        return FusedBottleneck(block, wide=wide)
    assert isinstance(block, BasicBlock)
    return FusedBasicBlock(block)
