"""Rendered videos whose class is the *order* of events: the embedded data set.

Classes come in pairs, and the second class of a pair is the first one's frames in reverse:

    moves_left    o....  .o...  ..o..  ...o.  ....o    read from right to left
    moves_right   o....  .o...  ..o..  ...o.  ....o    read from left to right

So the frames of the two classes are the same pictures, and only a network that sees order can tell them
apart. Three things keep it so after encoding, where the encoder's own order might betray the direction:

- Reversal happens before encoding, and both classes of a pair are encoded alike, each video by its own draw.
- Every scene is rendered once in each direction ("twins", in the same split), so nothing about a scene goes
  with a class, not even by chance.
- All kinds of frames (I, P, B) are quantised with the same step, keyframes have a random period and phase,
  and, as the first frame of a file has to be a keyframe, so is the last.

A scene is a function of (seed, pair, index) alone: neither the number of videos, nor the choice of pairs, nor
the number of workers changes it.
"""

from __future__ import annotations

import colorsys
import csv
import multiprocessing
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipwise.data.workers import leave_signals_to_parent

Array = NDArray[np.floating]
Progress = Callable[[int, int], None]

PAIRS: tuple[tuple[str, str], ...] = (
    ("moves_left", "moves_right"),
    ("moves_up", "moves_down"),
    ("approaches", "recedes"),
    ("opens", "closes"),
    ("covers", "uncovers"),
    ("meets", "parts"),
    ("rotates_clockwise", "rotates_counterclockwise"),
    ("drops", "lifts"),
)
"""The pairs of classes; the second class of each is the first one's frames in reverse."""

SUFFIXES = {"h264": ".mp4", "vp9": ".webm", "mpeg4": ".avi"}
"""The codecs that can be asked for, and the container each is written to."""

# ----------------------------------------------------------------------------------------------------
# Drawing. Lengths are in half frames: x runs from -1 (left) to 1 (right), y from -1 (top) to 1 (bottom).
# Arrays are (T, H, W), or broadcast to it.
# ----------------------------------------------------------------------------------------------------


class _Canvas:
    """Pictures (T, H, W, 3), values 0..1, on which shapes are laid, seen by a moving camera."""

    def __init__(self, num_frames: int, size: int, rng: np.random.Generator) -> None:
        self.pixel = 2.0 / size
        axis = ((np.arange(size, dtype=np.float32) + 0.5) * self.pixel - 1.0).astype(np.float32)
        self.x = axis[None, None, :] + _wobble(num_frames, rng, 0.05)
        self.y = axis[None, :, None] + _wobble(num_frames, rng, 0.05)
        self.pictures: Array = np.zeros((num_frames, size, size, 3), np.float32)

    def local(self, x: Array | float, y: Array | float, angle: Array | float = 0.0) -> tuple[Array, Array]:
        """Coordinates seen from a thing at (x, y) that is turned clockwise by `angle` radians."""
        dx, dy = self.x - np.asarray(x, np.float32), self.y - np.asarray(y, np.float32)
        cos, sin = np.asarray(np.cos(angle), np.float32), np.asarray(np.sin(angle), np.float32)
        return dx * cos + dy * sin, dy * cos - dx * sin

    def lay(self, distance: Array, colour: Array) -> None:
        """Paint `colour`, (3,) or (T, H, W, 3), where the signed distance is negative, with smooth edges."""
        alpha = np.clip(0.5 - distance / np.float32(self.pixel), 0.0, 1.0)[..., None]
        self.pictures += alpha * (colour - self.pictures)


def _track(values: NDArray[np.floating]) -> Array:
    """One value per frame, shaped to broadcast over the pictures."""
    return values.astype(np.float32)[:, None, None]


def _wobble(num_frames: int, rng: np.random.Generator, amplitude: float) -> Array:
    """A small smooth random motion, (T, 1, 1); as likely as its own reversal."""
    time = np.linspace(-1.0, 1.0, num_frames)
    value = np.zeros(num_frames)
    for frequency in (1.0, 2.3, 5.0):
        phase = rng.uniform(0.0, 2.0 * np.pi)
        value += rng.uniform(0.0, amplitude / 2) * np.sin(np.pi * frequency * time + phase) / frequency**0.5
    return _track(value)


def _box(x: Array, y: Array, half_width: Array | float, half_height: Array | float) -> Array:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _shape(kind: str, x: Array, y: Array, radius: Array | float) -> Array:
    """Signed distance (near enough at the edge) to a shape of about `radius` around the origin."""
    if kind == "disc":
        return np.hypot(x, y) - radius
    if kind == "ring":
        return np.abs(np.hypot(x, y) - 0.72 * radius) - 0.28 * radius
    if kind == "square":
        return _box(x, y, 0.85 * radius, 0.85 * radius)
    if kind == "diamond":
        return (np.abs(x) + np.abs(y) - 1.15 * radius) * np.float32(0.7071)
    if kind == "cross":
        return np.minimum(_box(x, y, radius, 0.36 * radius), _box(x, y, 0.36 * radius, radius))
    if kind == "triangle":
        return np.maximum(0.866 * np.abs(x) + 0.5 * y, -y) - 0.55 * radius
    raise AssertionError(kind)


SHAPES = ("disc", "ring", "square", "diamond", "cross", "triangle")


def _pattern(x: Array, y: Array, rng: np.random.Generator, period: float, pixel: float) -> Array:
    """A texture, values 0..1, with features about `period` wide."""
    angle = rng.uniform(0.0, np.pi)
    frequency = np.float32(2.0 * np.pi / period)
    u = (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))) * frequency + rng.uniform(0, 2 * np.pi)
    v = (y * np.float32(np.cos(angle)) - x * np.float32(np.sin(angle))) * frequency + rng.uniform(0, 2 * np.pi)
    sharpness = np.float32(1.0 / (frequency * pixel))
    kind = rng.choice(("stripes", "checks", "dots", "waves"))
    if kind == "stripes":
        wave = np.sin(u) * sharpness
    elif kind == "checks":
        wave = np.sin(u) * np.sin(v) * sharpness
    elif kind == "dots":
        wave = (np.sin(u) + np.sin(v) - 0.9) * sharpness
    else:
        wave = 0.5 * np.sin(u + 1.5 * np.sin(0.5 * v)) + 0.5 * np.sin(0.6 * v)
    mask: Array = np.clip(0.5 + 0.5 * wave, 0.0, 1.0).astype(np.float32)
    return mask


def _mix(mask: Array, first: Array, second: Array) -> Array:
    mixed: Array = first + mask[..., None] * (second - first)
    return mixed


def _colour(rng: np.random.Generator, *away_from: Array) -> Array:
    """A random colour that differs visibly from the given ones."""
    best, best_distance = np.zeros(3, np.float32), -1.0
    for _ in range(20):
        hsv = rng.uniform((0.0, 0.25, 0.2), (1.0, 1.0, 1.0))
        colour = np.array(colorsys.hsv_to_rgb(*hsv.tolist()), np.float32)
        distance = min((float(np.abs(colour - other).sum()) for other in away_from), default=9.0)
        if distance > 0.9:
            return colour
        if distance > best_distance:
            best, best_distance = colour, distance
    return best


@dataclass(frozen=True)
class _Scene:
    """What an event is drawn with. `progress` (T, 1, 1) goes from about 0 to about 1."""

    canvas: _Canvas
    progress: Array
    rng: np.random.Generator
    ground: Array

    def thing(self, kind: str, x: Array | float, y: Array | float, radius: Array | float, angle: float = 0.0) -> None:
        """A textured shape with an outline."""
        near, far = self.canvas.local(x, y, angle)
        colour = _colour(self.rng, self.ground)
        second = _colour(self.rng, self.ground, colour)
        # The texture belongs to the thing and grows with it.
        scale = np.float32(1.0) / np.asarray(radius, np.float32)
        pixel = self.canvas.pixel * float(np.mean(scale))
        mask = _pattern(near * scale, far * scale, self.rng, self.rng.uniform(0.8, 2.0), pixel)
        distance = _shape(kind, near, far, radius)
        self.canvas.lay(distance - 1.5 * self.canvas.pixel, 0.35 * colour)
        self.canvas.lay(distance, _mix(mask * np.float32(self.rng.uniform(0.0, 0.8)), colour, second))

    def any_thing(self, x: Array | float, y: Array | float, radius: Array | float) -> None:
        self.thing(str(self.rng.choice(SHAPES)), x, y, radius, self.rng.uniform(0.0, 2 * np.pi))

    def between(self, first: float, last: float) -> Array:
        """A quantity that goes from `first` to `last` as the event proceeds."""
        return np.float32(first) + self.progress * np.float32(last - first)


# One function per pair; each draws the first class of the pair.


def _moves_left(scene: _Scene) -> None:
    u = scene.rng.uniform
    height, slope = u(-0.5, 0.5), u(-0.15, 0.15)
    scene.any_thing(scene.between(0.7, -0.7), scene.between(height - slope, height + slope), u(0.24, 0.38))


def _moves_up(scene: _Scene) -> None:
    u = scene.rng.uniform
    across, slope = u(-0.5, 0.5), u(-0.15, 0.15)
    scene.any_thing(scene.between(across - slope, across + slope), scene.between(0.7, -0.7), u(0.24, 0.38))


def _approaches(scene: _Scene) -> None:
    u = scene.rng.uniform
    radius = np.exp(scene.between(np.log(u(0.16, 0.22)), np.log(u(0.7, 0.85))))
    x, y = u(-0.35, 0.35, 2)
    scene.any_thing(scene.between(x, 0.4 * x), scene.between(y, 0.4 * y), radius)


def _opens(scene: _Scene) -> None:
    canvas, rng = scene.canvas, scene.rng
    angle = float(rng.choice((0.0, np.pi / 2))) + rng.uniform(-0.15, 0.15)
    middle_x, middle_y = rng.uniform(-0.2, 0.2, 2)
    half_width, half_height = rng.uniform(0.62, 0.8, 2)
    x, y = canvas.local(middle_x, middle_y, angle)
    frame = _colour(rng, scene.ground)
    inside, leaf = 0.25 * _colour(rng), 0.4 + 0.6 * _colour(rng)  # it is dark behind the doors
    opening = _box(x, y, half_width, half_height)
    canvas.lay(opening - 0.09, frame)
    canvas.lay(opening, inside)
    canvas.lay(_shape(str(rng.choice(SHAPES)), x, y, 0.6 * min(half_width, half_height)), _colour(rng, inside))
    # Two leaves part in the middle and slide into the wall, so they are seen only within the opening.
    gap = scene.between(0.0, 0.92 * half_width)
    leaves = np.maximum(opening, gap - np.abs(x))
    canvas.lay(leaves, 0.5 * leaf)
    mask = _pattern(np.abs(x) - gap, y, rng, rng.uniform(0.25, 0.6), canvas.pixel)
    inset = np.maximum(opening + 0.03, gap + 0.05 - np.abs(x))
    canvas.lay(inset, _mix(0.4 * mask, leaf, _colour(rng, leaf)))


def _covers(scene: _Scene) -> None:
    canvas, rng = scene.canvas, scene.rng
    x, y = rng.uniform(-0.2, 0.2, 2)
    radius = rng.uniform(0.32, 0.42)
    scene.any_thing(x, y, radius)
    # A sheet that is wider than the thing slides over it from any side.
    angle = rng.uniform(0.0, 2 * np.pi)
    near, far = canvas.local(x, y, angle)
    half_height = rng.uniform(1.25, 1.5) * radius
    near = near + scene.between(2.4 * radius, 0.0)
    colour = _colour(rng, scene.ground)
    mask = _pattern(near, far, rng, rng.uniform(0.25, 0.6), canvas.pixel)
    sheet = _box(near, far, 1.3 * radius, half_height)
    canvas.lay(sheet - 2.0 * canvas.pixel, 0.3 * colour)
    canvas.lay(sheet, _mix(0.4 * mask, colour, _colour(rng, colour)))


def _meets(scene: _Scene) -> None:
    u = scene.rng.uniform
    angle, first, second = u(0.0, 2 * np.pi), u(0.22, 0.32), u(0.22, 0.32)
    x, y = u(-0.12, 0.12, 2)
    for side, radius in ((1.0, first), (-1.0, second)):
        away = side * scene.between(u(0.75, 0.9), 0.9 * radius)
        scene.any_thing(x + away * np.cos(angle), y + away * np.sin(angle), radius)


def _rotates_clockwise(scene: _Scene) -> None:
    canvas, rng = scene.canvas, scene.rng
    start, turn = rng.uniform(0.0, 2 * np.pi), rng.uniform(0.6, 1.2) * np.pi
    length, width = rng.uniform(0.6, 0.8), rng.uniform(0.1, 0.18)
    middle_x, middle_y = rng.uniform(-0.2, 0.2, 2)
    x, y = canvas.local(middle_x, middle_y, scene.between(start, start + turn))
    colour = _colour(rng, scene.ground)
    tip = _colour(rng, scene.ground, colour)
    if rng.random() < 0.5:  # a dial behind the hand
        canvas.lay(np.hypot(x, y) - length - 0.08, _colour(rng, colour, tip))
    hand = _box(x, y, length, width)
    canvas.lay(hand - 1.5 * canvas.pixel, 0.3 * colour)
    canvas.lay(hand, colour)
    # One end differs from the other, or the hand would look the same after half a turn.
    kind = str(rng.choice(("disc", "square", "triangle", "cross")))
    end = _shape(kind, x - 0.75 * length, y, rng.uniform(1.8, 2.4) * width)
    canvas.lay(end - 1.5 * canvas.pixel, 0.3 * tip)
    canvas.lay(end, tip)


def _drops(scene: _Scene) -> None:
    canvas, rng = scene.canvas, scene.rng
    across, radius = rng.uniform(-0.5, 0.5), rng.uniform(0.22, 0.32)
    floor = rng.uniform(0.6, 0.8)
    fall = scene.progress ** rng.uniform(1.0, 1.5)
    y = np.float32(-0.6) + fall * np.float32(floor - 0.8 * radius + 0.6)
    colour = _colour(rng, scene.ground)
    ground = floor - canvas.y + 0.0 * canvas.x
    mask = _pattern(canvas.x, canvas.y, rng, rng.uniform(0.2, 0.5), canvas.pixel)
    canvas.lay(ground, _mix(0.5 * mask, 0.6 * colour, colour))
    # A rope holds the load: the load with its rope tells the pair, never the direction.
    rope = np.maximum(np.abs(canvas.x - across) - 0.03, canvas.y - y)
    canvas.lay(rope, _colour(rng, scene.ground))
    scene.any_thing(across, y, radius)


_EVENTS: dict[str, Callable[[_Scene], None]] = {
    "moves_left": _moves_left,
    "moves_up": _moves_up,
    "approaches": _approaches,
    "opens": _opens,
    "covers": _covers,
    "meets": _meets,
    "rotates_clockwise": _rotates_clockwise,
    "drops": _drops,
}


def _progress(num_frames: int, rng: np.random.Generator) -> Array:
    """How far the event is at each frame, (T, 1, 1): a still lead-in, a motion, a still tail.

    Lead-in and tail, start and end, slow start and slow end are drawn alike, so that a reversed event is
    as likely as a forward one.
    """
    lead, tail = rng.uniform(0.0, 0.15, 2)
    first, last = rng.uniform(0.0, 0.15, 2)
    time = np.clip((np.linspace(0.0, 1.0, num_frames) - lead) / (1.0 - lead - tail), 0.0, 1.0)
    smooth = time * time * (3.0 - 2.0 * time)
    time += rng.uniform(0.0, 1.0) * (smooth - time)
    return _track(first + time * (1.0 - first - last))


def _pair_of(label: str) -> tuple[str, str]:
    for pair in PAIRS:
        if label in pair:
            return pair
    raise ValueError(f"no class {label!r}; there are {', '.join(sorted(name for pair in PAIRS for name in pair))}")


def render(
    label: str, index: int, *, seed: int = 0, size: int = 64, frames: tuple[int, int] = (24, 40)
) -> NDArray[np.uint8]:
    """The pictures of one video before encoding: (T, size, size, 3) RGB, uint8.

    `label` is a class of `PAIRS`; scene `index` of a pair is the same for both classes, in opposite order.
    `frames` is the range the length T is drawn from, both ends included. Raises ValueError for an unknown
    class.
    """
    pair = _pair_of(label)
    # The pair enters by name, so that a choice of pairs leaves the scenes of each as they are.
    rng = np.random.default_rng([seed, zlib.crc32(pair[0].encode()), index])
    num_frames = int(rng.integers(frames[0], frames[1] + 1))
    canvas = _Canvas(num_frames, size, rng)
    dark, light = _colour(rng), _colour(rng)
    ground = 0.3 * dark + 0.7 * light if rng.random() < 0.5 else dark
    light = ground + np.float32(rng.uniform(0.1, 0.45)) * (light - ground)
    canvas.pictures += _mix(_pattern(canvas.x, canvas.y, rng, rng.uniform(0.3, 1.5), canvas.pixel), ground, light)
    for _ in range(rng.integers(0, 4)):  # distractors: small things that pass in any direction
        x, y = (rng.uniform(-0.9, 0.9) + _track(np.linspace(-1, 1, num_frames)) * rng.uniform(-0.4, 0.4) for _ in "xy")
        near, far = canvas.local(x, y, rng.uniform(0.0, 2 * np.pi))
        canvas.lay(_shape(str(rng.choice(SHAPES)), near, far, rng.uniform(0.06, 0.12)), _colour(rng))
    _EVENTS[pair[0]](_Scene(canvas, _progress(num_frames, rng), rng, ground))
    pictures = canvas.pictures * (1.0 + _wobble(num_frames, rng, 0.08)[..., None])  # the light varies
    grain = rng.standard_normal((num_frames, size, size, 1), np.float32)
    pictures = pictures * 255.0 + grain * np.float32(rng.uniform(1.0, 4.0))
    result = np.clip(np.rint(pictures), 0, 255).astype(np.uint8)
    return result if label == pair[0] else np.ascontiguousarray(result[::-1])


# ----------------------------------------------------------------------------------------------------
# Encoding and writing
# ----------------------------------------------------------------------------------------------------


def _encode(pictures: NDArray[np.uint8], path: Path, codec: str, fps: int, rng: np.random.Generator) -> None:
    """Write pictures (T, H, W, 3) to `path`, with a keyframe period and phase drawn from `rng`."""
    import av
    from av.video.frame import PictureType

    period = int(rng.integers(8, 49))
    phase = int(rng.integers(period))
    # One step of quantisation for every kind of frame: no picture is finer for the place it has in the file.
    if codec == "h264":
        name = "libx264"
        options = {
            "preset": "veryfast",
            "qp": "18",
            "bf": str(rng.integers(0, 4)),
            "x264-params": "ipratio=1:pbratio=1:scenecut=0:keyint=infinite:mbtree=0",
        }
    elif codec == "vp9":
        name = "libvpx-vp9"
        options = {"crf": "16", "qmin": "16", "qmax": "16", "b": "0", "deadline": "realtime", "cpu-used": "8"}
        options |= {"lag-in-frames": "0", "g": "9999"}
    else:
        name = "mpeg4"
        options = {"qmin": "2", "qmax": "2", "g": "600", "sc_threshold": "1000000000"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(name, rate=fps, options=options)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            # The first frame has to be a keyframe. So that this does not tell it from the last, both are.
            if i in (0, len(pictures) - 1) or i % period == phase:
                frame.pict_type = PictureType.I
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@dataclass(frozen=True)
class _Job:
    label: str
    index: int
    split: str
    path: str  # relative to the data set's folder, "/" between its parts


def _write(job: _Job, root: Path, seed: int, size: int, frames: tuple[int, int], codec: str, fps: int) -> None:
    pictures = render(job.label, job.index, seed=seed, size=size, frames=frames)
    # By class and not by pair: the twins' keyframes have nothing to do with one another.
    rng = np.random.default_rng([seed, zlib.crc32(job.label.encode()), job.index, 1])
    _encode(pictures, root / job.path, codec, fps, rng)


def _run(write: Callable[[_Job], None], jobs: Sequence[_Job], workers: int) -> Iterator[None]:
    if workers == 1:
        for job in jobs:
            write(job)
            yield
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=leave_signals_to_parent)
    try:
        yield from pool.map(write, jobs, chunksize=4)
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process died: it ran out of memory, or it could not start because the script that asks "
            'for workers is not guarded by `if __name__ == "__main__"`; with workers=1 none is started'
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _resolve_pairs(pairs: Sequence[tuple[str, str] | str] | int | None) -> tuple[tuple[str, str], ...]:
    available = ", ".join(f"{first}/{second}" for first, second in PAIRS)
    if pairs is None:
        return PAIRS
    if isinstance(pairs, int):
        if not 1 <= pairs <= len(PAIRS):
            raise ValueError(f"there are 1 to {len(PAIRS)} pairs of classes to choose, got {pairs = }")
        return PAIRS[:pairs]
    if isinstance(pairs, str):
        raise ValueError(f"pairs must be a list of pairs, a number or None, got {pairs!r}; write [{pairs!r}]")
    chosen: list[tuple[str, str]] = []
    for wanted in pairs:
        names = tuple(wanted.split("/")) if isinstance(wanted, str) else tuple(wanted)
        found = [pair for pair in PAIRS if set(names) == set(pair) or (len(names) == 1 and names[0] in pair)]
        if not found:
            raise ValueError(f"no pair of classes {wanted!r}; the pairs are {available}")
        if found[0] in chosen:
            raise ValueError(f"the pair {found[0][0]}/{found[0][1]} is asked for twice; name it once")
        chosen += found
    if not chosen:
        raise ValueError(f"no pair of classes was asked for; the pairs are {available}")
    return tuple(chosen)


def _split(index: int, val_share: float) -> str:
    """Spread validation scenes evenly over the indices: a longer set keeps a shorter one's split."""
    before, after = (int(val_share * i + 0.5 + 1e-9) for i in (index, index + 1))
    return "val" if after > before else "train"


def _check_output(output: Path, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: is a file; give a folder to write the videos to")
    if not output.exists() or not any(output.iterdir()):
        return
    if not overwrite:
        raise ValueError(
            f"{output}: exists and is not empty; choose another folder, or --overwrite (overwrite=True in Python)"
        )
    known = {"manifest.csv", "classes.txt", *(name for pair in PAIRS for name in pair)}
    foreign = sorted(entry.name for entry in output.iterdir() if entry.name not in known)
    if foreign:  # overwriting removes a folder: not one that holds somebody's other files
        raise ValueError(
            f"{output}: holds {foreign[0]!r}, which is no part of a rendered data set, so it will not be "
            "overwritten; choose another folder or empty this one"
        )


def synthesize(
    output: str | os.PathLike[str],
    *,
    pairs: Sequence[tuple[str, str] | str] | int | None = None,
    videos_per_class: int = 60,
    size: int = 64,
    frames: tuple[int, int] | int = (24, 40),
    fps: int = 24,
    seed: int = 0,
    val_share: float = 0.25,
    codec: str = "h264",
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Render a data set of encoded videos in which the class is the order of events; return its manifest.csv.

    Writes `<output>/<class>/<class>_00012.mp4`, `<output>/manifest.csv` (path, label, split) and
    `<output>/classes.txt` (one class a line, sorted). It all appears at once when everything is done: a run
    that fails or is interrupted leaves nothing.

    pairs: the pairs of `PAIRS` to render, each as a tuple, as "opens/closes" or by one of its classes; or how
        many of them, from the first on; None for all.
    videos_per_class: video i of both classes of a pair shows the same scene, in opposite order.
    size: height and width in pixels; even, as yuv420 wants, and at least 32.
    frames: a video's length, or the range (shortest, longest) it is drawn from.
    val_share: the share of the scenes in split `val`, the same in each class; the rest is `train`.
    codec: "h264" (.mp4), "vp9" (.webm) or "mpeg4" (.avi).
    workers: processes. With more than one, a script has to be guarded by `if __name__ == "__main__"`.
    overwrite: replace an earlier rendered data set.
    progress: called with (videos done, videos in all) after each video.

    The same arguments give the same pictures before encoding, whatever the workers. Raises ValueError for an
    argument that cannot be met, and for an output folder that is not empty or cannot be written to.
    """
    output = Path(output).absolute()
    chosen = _resolve_pairs(pairs)
    span = (frames, frames) if isinstance(frames, int) else (frames[0], frames[1])
    if size < 32 or size % 2:
        raise ValueError(f"size must be an even number of pixels, at least 32, got {size = }")
    if not 4 <= span[0] <= span[1]:
        raise ValueError(f"frames must be (shortest, longest), with 4 <= shortest <= longest, got {frames = }")
    for name, value, least in (
        ("videos_per_class", videos_per_class, 1),
        ("fps", fps, 1),
        ("seed", seed, 0),
        ("workers", workers, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if codec not in SUFFIXES:
        raise ValueError(f"codec must be one of {', '.join(SUFFIXES)}, got {codec!r}")
    if not 0.0 <= val_share < 1.0:
        raise ValueError(f"val_share must be at least 0 and less than 1, got {val_share}")
    splits = [_split(i, val_share) for i in range(videos_per_class)]
    if val_share > 0 and len(set(splits)) < 2:
        raise ValueError(
            f"{val_share = } of {videos_per_class} videos a class leaves one split empty; ask for more videos"
        )
    _check_output(output, overwrite)

    classes = sorted(name for pair in chosen for name in pair)
    jobs = [
        _Job(label, i, split, f"{label}/{label}_{i:05d}{SUFFIXES[codec]}")
        for label in classes
        for i, split in enumerate(splits)
    ]
    missing = [folder for folder in output.parents if not folder.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise ValueError(f"{output}: cannot be written ({error}); choose a folder you may write to") from error
    try:
        new = scratch / "new"
        new.mkdir()
        for label in classes:
            (new / label).mkdir()
        write = partial(_write, root=new, seed=seed, size=size, frames=span, codec=codec, fps=fps)
        for done, _ in enumerate(_run(write, jobs, workers), start=1):
            if progress is not None:
                progress(done, len(jobs))
        (new / "classes.txt").write_text("".join(f"{label}\n" for label in classes), encoding="utf-8")
        with (new / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("path", "label", "split"))
            writer.writerows((job.path, job.label, job.split) for job in jobs)
        if output.exists():
            output.rename(scratch / "old")
        new.rename(output)
    except BaseException:
        if (scratch / "old").exists() and not output.exists():
            (scratch / "old").rename(output)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for folder in missing:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
    return output / "manifest.csv"
