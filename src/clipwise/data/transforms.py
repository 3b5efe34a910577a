"""What happens to a clip's pixels between the decoder and the network.

In the worker, on uint8: a `Box` is drawn (`train_box`) or fixed (`evaluation_boxes`), cut out of the decoded
frames and only then resized (`crop_resize`), so that no pixel is resized to be thrown away; `flip` mirrors.
On the device, for the whole batch: `ColourAugment`, then `Normalise`.

Because a mirror image of "swiping left" shows "swiping right", flipping goes with `mirror_labels`.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# The first is called ten times as fast, and no release need keep it.
_resize: Callable[..., Tensor] = getattr(
    torch._C._nn, "_upsample_bilinear2d_aa", torch.ops.aten._upsample_bilinear2d_aa
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Box(NamedTuple):
    """A rectangle of pixels: rows top … top+height-1, columns left … left+width-1."""

    top: int
    left: int
    height: int
    width: int


# TSN's fixed offsets, in quarters (down, right) of the room that is left around the crop: the centre, the
# four corners, the four edge middles and the four points half-way between the centre and a corner.
_CORNER_POSITIONS = (
    *((2, 2), (0, 0), (0, 4), (4, 0), (4, 4)),
    *((0, 2), (2, 0), (2, 4), (4, 2)),
    *((1, 1), (1, 3), (3, 1), (3, 3)),
)


def train_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    position: Literal["corner", "centre", "anywhere"],
    scales: Sequence[float],
    max_distort: int = 1,
) -> Box:
    """Draw the training crop of one clip from frames of `height` × `width` pixels.

    The crop's height and width are each a member of `scales` times the short side, drawn uniformly from the
    pairs whose places in `scales` differ by at most `max_distort` (0: squares only). `position` is "corner"
    (one of the 13 places of TSN's multi-scale crop), "centre", or "anywhere" (uniform over all places).

    Raises ValueError for an empty frame, an unknown position, no scale, or a scale outside (0, 1].
    """
    short = _short_side(height, width)
    if not scales or not all(0 < scale <= 1 for scale in scales):
        raise ValueError(f"scales are shares of the short side, one or more in (0, 1]; got {tuple(scales)}")
    if max_distort < 0:
        raise ValueError(f"max_distort is a distance between places in scales, at least 0; got {max_distort}")
    pairs = [pair for pair in itertools.product(range(len(scales)), repeat=2) if abs(pair[0] - pair[1]) <= max_distort]
    of_height, of_width = pairs[rng.integers(len(pairs))]
    # Rounded down, as TSN does; the small term keeps a product such as 100 × 0.57 = 56.999… at 57.
    crop_height = max(1, int(short * scales[of_height] + 1e-6))
    crop_width = max(1, int(short * scales[of_width] + 1e-6))
    room_down, room_right = height - crop_height, width - crop_width
    if position == "corner":
        down, right = _CORNER_POSITIONS[rng.integers(len(_CORNER_POSITIONS))]
        top, left = room_down * down // 4, room_right * right // 4
    elif position == "centre":
        top, left = room_down // 2, room_right // 2
    elif position == "anywhere":
        top, left = int(rng.integers(room_down + 1)), int(rng.integers(room_right + 1))
    else:
        raise ValueError(f'position must be "corner", "centre" or "anywhere"; got {position!r}')
    return Box(top, left, crop_height, crop_width)


def evaluation_boxes(height: int, width: int, *, crops: int, ratio: float) -> list[Box]:
    """Return the square crops of the test views in frames of `height` × `width` pixels.

    The side is `ratio` times the short side: 224 of 256 is 0.875, the whole short side is 1. One crop is
    central; three lie along the longer side, in the order left (or top), centre, right (or bottom), and are
    central in the other direction. A square frame counts as a wide one; with ratio 1 its three crops
    coincide.

    Raises ValueError for an empty frame, `crops` other than 1 or 3, or a ratio outside (0, 1].
    """
    short = _short_side(height, width)
    if crops not in (1, 3):
        raise ValueError(f"crops per clip must be 1 (centre) or 3 (along the longer side); got {crops}")
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio is the crop's share of the short side, in (0, 1]; got {ratio}")
    side = max(1, round(short * ratio))
    room_down, room_right = height - side, width - side
    if crops == 1:
        return [Box(room_down // 2, room_right // 2, side, side)]
    if width >= height:
        return [Box(room_down // 2, left, side, side) for left in (0, room_right // 2, room_right)]
    return [Box(top, room_right // 2, side, side) for top in (0, room_down // 2, room_down)]


def _short_side(height: int, width: int) -> int:
    if height < 1 or width < 1:
        raise ValueError(f"a frame has at least one row and one column of pixels; got {height} × {width}")
    return min(height, width)


def crop_resize(
    frames: NDArray[np.uint8], box: Box, size: int, *, mirrored: bool = False, out: Tensor | None = None
) -> Tensor:
    """(T,H,W,3) uint8 array → (T,3,size,size) uint8 tensor: cut `box` out, resize it, `flip` it if `mirrored`.

    Bilinear with antialiasing, on uint8 throughout. A box that is already size × size comes back as its
    pixels, unchanged. The result never shares memory with `frames`, and is laid out channels-last (memory
    order T,H,W,3), as decoders write and convolutions like it; `torch.stack` keeps that. It is written to
    `out`, of that shape and layout, where that is given.

    Raises TypeError unless `frames` is uint8, ValueError for another shape, a box that is empty or sticks
    out, or a size below 1.
    """
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        raise TypeError(f"frames must be a uint8 array; got {getattr(frames, 'dtype', type(frames).__name__)}")
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.shape[0] < 1:
        raise ValueError(f"frames must be (T, H, W, 3) with T ≥ 1; got {frames.shape = }")
    if size < 1:
        raise ValueError(f"the size of a crop is at least 1 pixel; got {size}")
    top, left, height, width = box
    inside = top >= 0 and left >= 0 and top + height <= frames.shape[1] and left + width <= frames.shape[2]
    if not inside or height < 1 or width < 1:
        raise ValueError(f"{box} is not inside frames of {frames.shape[1]} × {frames.shape[2]} pixels")
    cut = frames[:, top : top + height, left : left + width]
    if not cut.flags.writeable or any(stride < 0 for stride in cut.strides):
        cut = cut.copy()  # torch takes neither read-only memory (a mapped file) nor reversed axes
    clip = torch.from_numpy(cut).permute(0, 3, 1, 2)
    if mirrored and height * width > size * size:
        resized = flip(crop_resize(frames, box, size))
        return resized if out is None else out.copy_(resized)
    if mirrored:  # the smaller picture; the result is the same, for resizing has no left and right
        clip = flip(clip)
    if out is None:
        out = torch.empty((len(clip), size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    if (height, width) == (size, size):
        return out.copy_(clip)
    # Channels-last uint8 is torch's fast path: measured 3 × as fast as contiguous uint8, 8 to 12 × as float.
    # What F.interpolate(mode="bilinear", antialias=True) calls, which cannot be told where to write.
    return _resize(clip, (size, size), False, out=out)


def flip(clip: Tensor) -> Tensor:
    """(…, W) → (…, W): mirrored left to right. The label goes through `mirror_labels`."""
    return clip.flip(-1)


def mirror_labels(classes: Sequence[str]) -> list[int | None]:
    """Return for every class the label that its clips have after a horizontal flip; None: never flip them.

    Found by name: the whole words left ↔ right and clockwise ↔ counterclockwise (or anticlockwise, each also
    in two words) are exchanged and the resulting name is looked up in `classes`. Words end at whatever is no
    letter and at the humps of camelCase; separators and case are kept, so "Step_2_Left" becomes
    "Step_2_Right". A name without such words keeps its label. A name whose mirrored form is not in the list
    ("pulling it right out") gives None: the clip then shows something that no class describes. So does a name that
    has two mirrored forms in the list, since two flips must give back the label.

    Raises ValueError when a name occurs twice.
    """
    index = {name: label for label, name in enumerate(classes)}
    if len(index) < len(classes):
        twice = next(name for label, name in enumerate(classes) if index[name] != label)
        raise ValueError(f"class names must differ for a label to be found by name; got {twice!r} twice")
    found = [{index[mirrored] for mirrored in _mirrored_names(name) if mirrored in index} for name in classes]
    # Of "counterclockwise" and "anticlockwise" in one list, neither is the partner of "clockwise" more than the other.
    return [
        next(iter(mine)) if len(mine) == 1 and found[min(mine)] == {label} else None for label, mine in enumerate(found)
    ]


_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_COUNTER = re.compile(r"(counter|anti)[ _-]?clockwise", re.IGNORECASE)


def _mirrored_names(name: str) -> Iterator[str]:
    """Yield the names that the mirrored class may bear: one, or one for each spelling of counterclockwise."""
    spans = [match.span() for match in _WORD.finditer(name)]
    # "counter-clockwise" and "CounterClockwise" are one word in two parts.
    for i in reversed(range(len(spans) - 1)):
        if _COUNTER.fullmatch(name, spans[i][0], spans[i + 1][1]):
            spans[i : i + 2] = [(spans[i][0], spans[i + 1][1])]
    parts: list[list[str]] = []
    end = 0
    for start, stop in spans:
        parts += [[name[end:start]], _mirrored_words(name[start:stop])]
        end = stop
    parts.append([name[end:]])
    return map("".join, itertools.product(*parts))


def _mirrored_words(word: str) -> list[str]:
    """Return the word as a mirror shows it, in the same case; each spelling where there are several."""
    lower = word.lower()
    if lower in ("left", "right"):
        return [_in_case_of(word, "right" if lower == "left" else "left")]
    if _COUNTER.fullmatch(word):
        return [_in_case_of(word, "clockwise")]
    if lower == "clockwise":
        return [
            _in_case_of(word, prefix) + separator + second
            for prefix in ("counter", "anti")
            for separator in ("", "-", " ", "_")
            for second in ([word] if word.isupper() else ["clockwise", "Clockwise"])
        ]
    return [word]


def _in_case_of(model: str, word: str) -> str:
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word


class Normalise(nn.Module):
    """Pixels → what the network was trained on: (value − mean) / std per colour channel.

    `mean` and `std` are in units of the full range (1.0 = 255), as ImageNet's are. They move with the module
    but are no part of its state dict: a checkpoint of the network stays the network's.
    """

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
            raise ValueError(f"mean and std are three values each (R, G, B), std above 0; got {mean = }, {std = }")
        deviation = torch.tensor(std, dtype=torch.float64)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", (1 / deviation).float(), persistent=False)
        self.register_buffer("shift", (-torch.tensor(mean, dtype=torch.float64) / deviation).float(), persistent=False)

    def forward(self, clips: Tensor) -> Tensor:
        """(N,T,3,H,W) uint8, or float in [0,1] → (N,T,3,H,W) float32, each frame channels-last in memory."""
        _check_clips(clips)
        # Bytes change layout before they become floats; crops that came channels-last need no move at all.
        pixels = clips.movedim(2, -1).contiguous()
        scale = self.scale / 255 if clips.dtype == torch.uint8 else self.scale
        return torch.addcmul(self.shift, pixels.float(), scale).movedim(-1, 2)


class ColourAugment(nn.Module):
    """Colour jitter and greyscale, one draw per clip: its frames change together, those of other clips not.

    `brightness`, `contrast` and `saturation` b ≥ 0 draw a factor from [max(0, 1−b), 1+b]; `hue` h ≤ 0.5 a
    shift from [−h, h] of the colour circle; `greyscale` is the probability that a clip loses its colours.
    Draws come from torch's global generator. Like dropout, it acts in training mode only; in evaluation mode
    it just scales.
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        greyscale: float = 0.0,
    ) -> None:
        super().__init__()
        if min(brightness, contrast, saturation) < 0:
            raise ValueError(f"a factor's jitter is at least 0; got {brightness = }, {contrast = }, {saturation = }")
        if not 0 <= hue <= 0.5:
            raise ValueError(f"hue is a share of the colour circle, in [0, 0.5]; got {hue}")
        if not 0 <= greyscale <= 1:
            raise ValueError(f"greyscale is a probability, in [0, 1]; got {greyscale}")
        self.steps: nn.Module | None = None
        if max(brightness, contrast, saturation, hue, greyscale) == 0:
            return
        from kornia.augmentation import (
            ColorJitter,
            RandomGrayscale,
            VideoSequential,
        )  # only where colours vary

        self.steps = VideoSequential(
            ColorJitter(brightness, contrast, saturation, hue, p=1.0),
            RandomGrayscale(p=greyscale),
            data_format="BTCHW",
            same_on_frame=True,
        )

    def forward(self, clips: Tensor) -> Tensor:
        """(N,T,3,H,W) uint8, or float in [0,1] → (N,T,3,H,W) float32 in [0,1]."""
        _check_clips(clips)
        pixels = clips.float() / 255 if clips.dtype == torch.uint8 else clips.float()
        if self.steps is None or not self.training:
            return pixels
        with torch.autocast(pixels.device.type, enabled=False):  # 8 bits of bf16 would blur 256 shades
            augmented: Tensor = self.steps(pixels)
        return augmented.clamp(0, 1)


def _check_clips(clips: Tensor) -> None:
    if clips.ndim != 5 or clips.shape[2] != 3:
        raise ValueError(f"clips must be (N, T, 3, H, W); got {tuple(clips.shape)}")
    if clips.dtype != torch.uint8 and not clips.is_floating_point():
        raise TypeError(f"clips must be uint8, or floating point in [0, 1]; got {clips.dtype}")
