"""The temporal networks as their authors formulate them, with our weights: what ours is measured against.

Each class below takes the parameters that our module has, under the same names, and computes the same function the way
its paper, or the code published with it, does. So a difference in speed is one of formulation alone, and
``clipwise benchmark model --rival`` compares the outputs before it measures anything.

    TSN   frames as one batch of images, separate BatchNorm and ReLU; fc on each frame, then the mean
          (the TSN and TSM code)
    TSM   a tensor of zeros, into which three slices are assigned (the TSM code's out-of-place shift, the one that
          trains)
    TAM   three depthwise 1×1 convolutions, two of them padded and cut along time; the three stacked and summed
          (the Deep Analysis code)
    STM   CSTM: reshaped to (N·H·W, C, T) for a channel-wise conv1d, and back (STM, section 3.1, which states these
          shapes; the TEA code does the same with its shift). CMM: the T - 1 differences of neighbouring frames and a
          frame of zeros, concatenated along time (STM, section 3.2). No code was published with the paper. The
          differences are taken of two slices, as the TEA code does, not frame by frame in a loop: that is the faster
          reading
    STC   two channel groups split off, TSM's shift on one; the temporal convolution a 3×1×1 Conv3d over
          (N, C, T, H, W); both concatenated (STC, section III and figure 3; no code was published)
    STW   three convolutions, of the previous, the current and the next frames, each of a copy padded with zeros
          (STW, equations 1 and 2); TWM reshaped to (N, C, T, H, W) for a 3×1×1 Conv3d, and back (equations 3 to 6; no
          code was published)

Two functions give a network: :func:`as_written` in PyTorch's usual layout, which is what all of this code runs in, and
:func:`channels_last`, the same formulation in the layout that our own networks have: its authors' formulation at its
best is the faster of the two.

    clipwise benchmark model stm_resnet50 --rival benchmarks/authors.py:as_written
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipwise.models.resnet import ResNet
from clipwise.models.temporal.stc import SpatialTemporalChannels
from clipwise.models.temporal.stm import ChannelwiseMotion, ChannelwiseTemporal
from clipwise.models.temporal.stw import SpatioTemporalWeights
from clipwise.models.temporal.tam import TemporalAggregation
from clipwise.models.temporal.tsm import TemporalShift

__all__ = ["as_written", "channels_last"]


def as_written(model: nn.Module) -> nn.Module:
    """The authors' formulation of one of our networks, contiguous (N·T, C, H, W) throughout.

    Raises:
        ValueError: for a network, or a variant of one, of which no such formulation is here.
    """
    return AuthorsNetwork(model, torch.contiguous_format)


def channels_last(model: nn.Module) -> nn.Module:
    """The same in the channels-last layout, which the authors' code does not use and which favours it on a GPU.

    Raises:
        ValueError: see :func:`as_written`.
    """
    return AuthorsNetwork(model, torch.channels_last)


def clips_of(x: Tensor, frames: int) -> Tensor:
    """(N·T, C, H, W) → (N, T, C, H, W)."""
    return x.view(x.shape[0] // frames, frames, *x.shape[1:])


def slice_assigned_shift(x: Tensor, frames: int, fold: int) -> Tensor:
    """(N·T, C, H, W) → the same: the first ``fold`` channels from the next frame, as many from the previous one."""
    clips = clips_of(x, frames)
    out = torch.zeros_like(clips)
    out[:, :-1, :fold] = clips[:, 1:, :fold]
    out[:, 1:, fold : 2 * fold] = clips[:, :-1, fold : 2 * fold]
    out[:, :, 2 * fold :] = clips[:, :, 2 * fold :]
    return out.view(x.shape)


class Shift(nn.Module):
    """TSM before conv1."""

    def __init__(self, frames: int, fold: int) -> None:
        super().__init__()
        self.frames, self.fold = frames, fold

    def forward(self, x: Tensor) -> Tensor:
        return slice_assigned_shift(x, self.frames, self.fold)


class Aggregation(nn.Module):
    """TAM before conv1."""

    def __init__(self, frames: int, channels: int) -> None:
        super().__init__()
        self.frames = frames
        self.conv = nn.Conv1d(channels, channels, 3, groups=channels, bias=False)  # holds the three 1×1 kernels
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        before, now, after = (
            clips_of(F.conv2d(x, tap.unsqueeze(-1), groups=x.shape[1]), self.frames)
            for tap in self.conv.weight.split(1, dim=2)
        )
        before = F.pad(before, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1]
        after = F.pad(after, (0, 0, 0, 0, 0, 0, 0, 1))[:, 1:]
        out: Tensor = self.relu(torch.stack((before, now, after)).sum(0))
        return out.flatten(0, 1)


class TemporalFusion(nn.Conv1d):
    """CSTM's step in time."""

    def __init__(self, frames: int, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.frames = frames

    def forward(self, x: Tensor) -> Tensor:
        _, c, h, w = x.shape
        clips = clips_of(x, self.frames)
        lines = clips.permute(0, 3, 4, 2, 1).contiguous().view(-1, c, self.frames)
        fused = super().forward(lines).view(-1, h, w, c, self.frames)
        return fused.permute(0, 4, 3, 1, 2).contiguous().view(x.shape)


class Motion(nn.Module):
    """CMM."""

    def __init__(self, frames: int, channels: int, reduced: int, stride: int) -> None:
        super().__init__()
        self.frames = frames
        self.reduce = nn.Conv2d(channels, reduced, 1, bias=False)
        self.bn = nn.BatchNorm2d(reduced)
        self.conv = nn.Conv2d(reduced, reduced, 3, padding=1, groups=reduced, bias=False)
        self.restore = nn.Conv2d(reduced, channels, 1, bias=False)
        self.pool = nn.MaxPool2d(stride, stride, ceil_mode=True) if stride > 1 else nn.Identity()

    def forward(self, y: Tensor) -> Tensor:
        reduced = self.bn(self.reduce(y))
        features, reference = clips_of(self.conv(reduced), self.frames), clips_of(reduced, self.frames)
        difference = features[:, 1:] - reference[:, :-1]
        last = torch.zeros_like(reference[:, :1])
        motion = torch.cat((difference, last), dim=1)
        restored: Tensor = self.pool(self.restore(motion.flatten(0, 1)))
        return restored


class Collaborative(nn.Module):
    """STC in place of conv2."""

    def __init__(self, frames: int, ours: SpatialTemporalChannels) -> None:
        super().__init__()
        assert ours.spatial is not None
        assert ours.temporal is not None
        assert ours.temporal_gate is not None
        assert ours.spatial_gate is not None
        self.frames, self.stride, self.fold = frames, ours.stride, ours.groups[0][0]
        self.sizes = ours.sizes
        self.spatial = plain(ours.spatial)
        self.temporal = nn.Conv1d(*reversed(ours.temporal.weight.shape[:2]), 3, bias=False)
        self.temporal_gate = nn.ModuleDict({"conv": plain(ours.temporal_gate.conv)})
        self.spatial_gate = nn.ModuleDict({"conv": plain(ours.spatial_gate.conv)})
        self.light = ours.temporal_gate.reduce is not None
        if self.light:
            assert ours.spatial_gate.reduce is not None
            self.temporal_gate["reduce"] = plain(ours.temporal_gate.reduce)
            self.spatial_gate["reduce"] = plain(ours.spatial_gate.reduce)

    def forward(self, y: Tensor) -> Tensor:
        first, second = y[:, : self.sizes[0]].contiguous(), y[:, self.sizes[0] :].contiguous()

        spatial = clips_of(self.spatial(slice_assigned_shift(first, self.frames, self.fold)), self.frames)
        context = spatial.mean((3, 4)).transpose(1, 2)  # (N, C, T)
        if self.light:
            context = torch.relu(self.temporal_gate["reduce"](context))
        gate = torch.sigmoid(self.temporal_gate["conv"](context)).transpose(1, 2)
        spatial = spatial * gate[..., None, None]

        volume = clips_of(second, self.frames).transpose(1, 2).contiguous()  # (N, C, T, H, W)
        kernel = self.temporal.weight[..., None, None]
        temporal = F.conv3d(volume, kernel, stride=(1, self.stride, self.stride), padding=(1, 0, 0))
        context = temporal.mean(2)
        if self.light:
            context = torch.relu(self.spatial_gate["reduce"](context))
        temporal = temporal * torch.sigmoid(self.spatial_gate["conv"](context)).unsqueeze(2)

        return torch.cat((spatial, temporal.transpose(1, 2)), dim=2).flatten(0, 1)


class Weights(nn.Conv2d):
    """STW in place of conv2; its weight holds STFM's three convolutions one after the other."""

    def __init__(self, frames: int, channels: int, stride: int) -> None:
        super().__init__(channels, channels, 3, stride, padding=1, bias=False)
        self.frames = frames
        self.twm = nn.Conv1d(channels, 1, 3, bias=False)
        self.pool = (
            nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        )

    def forward(self, y: Tensor) -> Tensor:
        clips = clips_of(y, self.frames)
        zeros = torch.zeros_like(clips[:, :1])
        before = torch.cat((zeros, clips[:, :-1]), dim=1).flatten(0, 1)
        after = torch.cat((clips[:, 1:], zeros), dim=1).flatten(0, 1)
        quarter = y.shape[1] // 4
        kernels = self.weight.split((quarter, y.shape[1] - 2 * quarter, quarter))
        fused = torch.cat(
            [
                F.conv2d(x, kernel, None, self.stride, self.padding)
                for x, kernel in zip((before, y, after), kernels, strict=True)
            ],
            dim=1,
        )
        volume = clips.transpose(1, 2).contiguous()  # (N, C, T, H, W)
        weights = torch.sigmoid(F.conv3d(volume, self.twm.weight[..., None, None], padding=(1, 0, 0)))
        motion = (volume - volume * weights).transpose(1, 2).contiguous().flatten(0, 1)
        out: Tensor = fused + self.pool(motion)
        return out


class Block(nn.Module):
    """A residual block; a bottleneck where ours has a conv3."""

    def __init__(self, ours: nn.Module, frames: int) -> None:
        super().__init__()
        parts = dict(ours.named_children())
        self.conv1, self.bn1, self.bn2 = plain(parts["conv1"]), plain(parts["bn1"]), plain(parts["bn2"])
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = authors_conv2(parts["conv2"], frames)
        self.bottleneck = "conv3" in parts
        if self.bottleneck:
            self.conv3, self.bn3 = plain(parts["conv3"]), plain(parts["bn3"])
        shortcut = parts.get("downsample")
        self.downsample = None if shortcut is None else nn.Sequential(*map(plain, shortcut.children()))
        self.tsm = self.tam = self.cstm = self.cmm = None
        for module in parts.values():
            if type(module) is TemporalShift:
                self.tsm = Shift(frames, module.groups[0][0])
            elif type(module) is TemporalAggregation:
                self.tam = Aggregation(frames, module.conv.weight.shape[0])
            elif type(module) is ChannelwiseTemporal:
                self.cstm = TemporalFusion(frames, module.weight.shape[0])
            elif type(module) is ChannelwiseMotion:
                reduced, channels = module.reduce.weight.shape[:2]
                self.cmm = Motion(frames, channels, reduced, parts["conv2"].stride[0])

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for before in (self.tsm, self.tam):
            if before is not None:
                x = before(x)
        y = self.relu(self.bn1(self.conv1(x)))
        s = self.bn2(self.conv2(y if self.cstm is None else self.cstm(y)))
        if self.bottleneck:
            s = self.relu(s)
        if self.cmm is not None:
            s = s + self.cmm(y)
        if self.bottleneck:
            s = self.bn3(self.conv3(s))
        out: Tensor = self.relu(s + shortcut)
        return out


class AuthorsNetwork(nn.Module):
    """One of our ResNets, every temporal part of it as its authors formulate it; the weights are copies of ours.

    ``memory_format`` says in which layout it expects its frames.
    """

    def __init__(self, model: nn.Module, memory_format: torch.memory_format) -> None:
        super().__init__()
        if not isinstance(model, ResNet) or model.temporal_pooling is not None:
            raise ValueError(
                f"the authors' formulation is here of ResNets without temporal pooling, got {type(model).__name__}; "
                "of tsn, tsm, tam, stm, stc, stc_light and stw"
            )
        self.memory_format = memory_format
        self.num_frames = model.num_frames
        self.conv1, self.bn1 = plain(model.conv1), plain(model.bn1)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        for stage in range(1, 5):
            blocks = [Block(block, model.num_frames) for block in getattr(model, f"layer{stage}")]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(model.dropout.p)
        self.fc = copy.deepcopy(model.fc)
        try:
            self.load_state_dict(model.state_dict())
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip()
            raise ValueError(f"no formulation of the authors' is here for this variant: {first}") from error
        self.to(device=model.fc.weight.device, dtype=model.fc.weight.dtype)
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=memory_format)
        self.train(model.training)

    def forward(self, clips: Tensor) -> Tensor:
        """(N, T, 3, H, W) → (N, num_classes) logits."""
        x = clips.flatten(0, 1)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        logits: Tensor = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        return clips_of(logits, self.num_frames).mean(1)


def plain(layer: nn.Module) -> nn.Module:
    """A copy of one of torch's own layers; anything else has a formulation of its own, or none."""
    if type(layer) not in (nn.Conv1d, nn.Conv2d, nn.BatchNorm2d):
        raise ValueError(f"no formulation of the authors' is here for {type(layer).__name__}")
    return copy.deepcopy(layer)


def authors_conv2(ours: nn.Module, frames: int) -> nn.Module:
    """The counterpart of a block's second convolution."""
    if type(ours) is SpatialTemporalChannels:
        return Collaborative(frames, ours)
    if type(ours) is SpatioTemporalWeights:
        return Weights(frames, ours.out_channels, ours.stride[0])
    return plain(ours)
