"""What every network of this library is, and how a family of networks registers itself."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from clipwise.data.transforms import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["HALVES", "ModelEntry", "ModuleEntry", "VideoNetwork", "channels_last", "inflate", "pooling_kind"]

HALVES = (0.5, 0.5, 0.5)


class VideoNetwork(nn.Module):
    """Clips in, logits out.

    A subclass builds its layers, calls :meth:`_make_head` last and defines :meth:`forward_features`.

    Args:
        num_classes: outputs of ``fc``.
        num_frames: T of a clip; the forward pass refuses another.
        dropout: probability before ``fc``.
        temporal_pooling: whether the network halves T three times, which not every T allows.

    Raises:
        ValueError: for a count or probability out of range, or a T that cannot be halved three times where it must.
    """

    image_keys: ClassVar[re.Pattern[str]] = re.compile(r"(?!fc\.).*(?<!num_batches_tracked)")
    """The state-dict keys that a weight file must fill: those shared with the image network of this backbone; where
    there is no such image network, everything but the head."""

    min_size: ClassVar[int] = 32
    """Pixels of the shortest side that the network can take."""

    causal: bool = False
    """Whether no frame sees a later one. Such a network takes clips of any length: a longer one means what its stream
    does, in which the T frames before have a say."""

    def __init__(
        self, *, num_classes: int, num_frames: int, dropout: float = 0.5, temporal_pooling: bool = False
    ) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("num_frames", num_frames)):
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} must be at least 1, a whole number, got {value!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        if temporal_pooling and num_frames % 8:
            below, above = num_frames // 8 * 8, (num_frames // 8 + 1) * 8
            raise ValueError(
                f"temporal pooling halves the frames three times, so num_frames must be a multiple of 8, "
                f"got {num_frames}; take {f'{below} or ' if below else ''}{above}, or leave temporal_pooling out"
            )
        self.num_frames = num_frames
        self.num_classes = num_classes
        self.dropout = nn.Dropout(dropout)

    def _make_head(self, channels: int) -> None:
        """Add ``fc``, which starts at N(0, 0.001), bias 0."""
        self.fc = nn.Linear(channels, self.num_classes)
        nn.init.normal_(self.fc.weight, std=0.001)
        nn.init.zeros_(self.fc.bias)

    def check_clips(self, clips: Tensor) -> None:
        """Refuse what is no batch of clips for this network.

        Raises:
            ValueError: if the input is not (N, T, 3, H, W), T is not ``num_frames`` (of a causal network: is 0), or the
                image is too small.
        """
        if clips.ndim != 5 or clips.shape[2] != 3:
            raise ValueError(f"expected clips of shape (N, T, 3, H, W), got {tuple(clips.shape)}")
        frames, height, width = clips.shape[1], clips.shape[3], clips.shape[4]
        if frames != self.num_frames and not (self.causal and frames):
            raise ValueError(
                f"this network was made for {self.num_frames} frames a clip, got {frames}: sample "
                f"{self.num_frames}, or create the model with num_frames={frames}"
            )
        if min(height, width) < self.min_size:
            raise ValueError(
                f"this network needs images of at least {self.min_size}×{self.min_size} pixels, got {height}×{width}: "
                "resize them"
            )

    def forward_features(self, clips: Tensor) -> Tensor:
        """(N, T, 3, H, W) → (N, T', C): pooled features for each time step that is left at the network's end."""
        raise NotImplementedError

    def forward(self, clips: Tensor) -> Tensor:
        """(N, T, 3, H, W) float → (N, num_classes) logits: the mean over the time steps of ``fc`` of each.

        Of a clip longer than ``num_frames``, which a causal network takes, those of the last ``num_frames``.
        """
        return self.classify(self.forward_features(clips))

    def classify(self, features: Tensor) -> Tensor:
        """(N, T', C) of :meth:`forward_features` → (N, num_classes) logits."""
        logits: Tensor = self.fc(self.dropout(features))
        return self.last_frames(logits).mean(dim=1)

    def last_frames(self, values: Tensor) -> Tensor:
        """(N, T', …) → (N, min(T', ``num_frames``), …): those that have a say in a clip's logits."""
        return values[:, -self.num_frames :] if self.causal else values

    def before_time(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) → tensors (B, …): what each frame gives before it meets another; itself, unless a family says
        more."""
        return (images,)

    def over_time(self, parts: tuple[Tensor, ...]) -> Tensor:
        """What :meth:`before_time` gave, (N, T, …) each → (N, T', C), as :meth:`forward_features` of the clips."""
        return self.forward_features(parts[0])

    def from_image(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """An image network's state dict under this network's keys; where names differ, a family overrides this."""
        return state

    def stages(self) -> Iterator[tuple[str, nn.Module]]:
        """The parts in the order they run, for listings; of a ``ModuleList`` the last one's output is the stage's."""
        for name, module in self.named_children():
            if not isinstance(module, nn.ReLU | nn.BatchNorm2d | nn.BatchNorm3d | nn.Dropout):
                yield name, module

    def blocks(self) -> Iterator[nn.Module]:
        """The residual or Inception blocks, and stems of several convolutions: between them alone does a training that
        saves memory keep activations."""
        for _, part in self.stages():
            yield from _blocks(part)


def _blocks(part: nn.Module) -> Iterator[nn.Module]:
    children = list(part.children())
    in_a_row = isinstance(part, nn.Sequential) and all(any(child.children()) for child in children)
    if in_a_row or isinstance(part, nn.ModuleList):
        for child in children:
            yield from _blocks(child)
    elif sum(isinstance(module, nn.Conv2d | nn.Conv3d) for module in part.modules()) > 1:
        yield part


@dataclass(frozen=True)
class ModelEntry:
    """A registered network: how it is built, and what it takes unless told otherwise."""

    build: Callable[..., VideoNetwork]
    """Called with ``num_classes``, ``num_frames`` and the options, all keywords."""
    paper: str
    """Short: authors, year, title's first words."""
    options_of: tuple[Callable[..., Any], ...] = ()
    """Functions whose keyword-only parameters are options too (those of a temporal module)."""
    num_frames: int = 8
    size: int = 224
    """Pixels of a side."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    image_backbone: str | None = None
    """Which ImageNet file starts it (a name of ``weights.imagenet_file``), if one does."""


@dataclass(frozen=True)
class ModuleEntry:
    """A registered temporal module: the function that fills a block's slot, and where it comes from."""

    slot: Callable[..., Any] | None
    """(BlockSpec, **options) → Slot; None adds nothing."""
    paper: str


def channels_last(model: VideoNetwork) -> VideoNetwork:
    """Lay the 2D kernels out as convolutions are fastest with them, in place; 3D kernels stay as they are.

    ``model.to(memory_format=torch.channels_last)`` refuses a network that has 3D kernels.
    """
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return model


def inflate(weight: Tensor, shape: torch.Size) -> Tensor:
    """(O, I, h, w) → (O, I, k, h, w) = ``shape``: a 2D kernel repeated along time and divided by k.

    A clip of identical frames then gives what the 2D network gives, wherever no padding in time is seen
    (Carreira and Zisserman 2017; the Deep Analysis code repeats without dividing).
    """
    return weight.float().unsqueeze(2).expand(shape) / shape[2]


def pooling_kind(temporal_pooling: bool | str) -> str | None:
    """The option as users give it (False, True, ``"max"``, ``"average"``) → the kind of pooling, or None.

    Raises:
        ValueError: for another kind.
    """
    if temporal_pooling is False:
        return None
    kind = "max" if temporal_pooling is True else temporal_pooling
    if kind not in ("max", "average"):
        raise ValueError(f"temporal_pooling must be true (max), 'max', 'average' or false, got {temporal_pooling!r}")
    return kind
