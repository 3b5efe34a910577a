"""Which frames of a video a network sees: index arithmetic only, no input or output.

Frames are counted from 0. A video of n = 20 frames in S = 4 segments (tick = n / S = 5 frames each)::

    frame      0  1  2  3  4 | 5  6  7  8  9 |10 11 12 13 14 |15 16 17 18 19
    train      .  .  .  x  . | .  .  x  .  . | x  .  .  .  . | .  .  .  .  x    one anywhere in each segment
    middle     .  .  x  .  . | .  .  x  .  . | .  .  x  .  . | .  .  x  .  .    int(tick/2 + tick*i)
    first      x  .  .  .  . | x  .  .  .  . | x  .  .  .  . | x  .  .  .  .    int(tick*i)

and densely, T = 4 frames with stride 2: a window of T*stride = 8 frames, with n - 8 + 1 = 13 valid starts::

    start 0    x  .  x  .  x  .  x  .  .  .  .  .  .  .  .  .  .  .  .  .
    start 12   .  .  .  .  .  .  .  .  .  .  .  .  x  .  x  .  x  .  x  .

Every function raises ValueError where a count is below 1. All is integer arithmetic: int() of a formula stands for
the floor of its exact value. Published codes compute ``tick`` in floating point: the same where S is a power of two,
as in all the papers; for other S, where the exact value is a whole number, theirs can be rounded to the frame before.
"""

import hashlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Short = Literal["wrap", "repeat"]


def segments_train(num_frames: int, num_segments: int, rng: np.random.Generator) -> Indices:
    """(T,) one frame drawn uniformly from each of T equal segments [floor(n*i/T), floor(n*(i+1)/T)); sorted.

    Every frame can be drawn. An empty segment (fewer frames than segments) gives frame floor(n*i/T).
    """
    _at_least_one(num_frames=num_frames, num_segments=num_segments)
    bounds = num_frames * np.arange(num_segments + 1, dtype=np.int64) // num_segments
    return rng.integers(bounds[:-1], np.maximum(bounds[1:], bounds[:-1] + 1))


def segments_train_tsm(num_frames: int, num_segments: int, rng: np.random.Generator) -> Indices:
    """(T,) the training draw of the TSM code: i*avg + randint(avg) with avg = n // T; sorted.

    The last n - T*avg frames are never drawn, and a video with fewer frames than segments gives its first
    frame T times: use ``segments_train`` unless a published result is to be repeated.
    """
    _at_least_one(num_frames=num_frames, num_segments=num_segments)
    average = num_frames // num_segments
    if average == 0:
        return np.zeros(num_segments, dtype=np.int64)
    return np.arange(num_segments, dtype=np.int64) * average + rng.integers(average, size=num_segments)


def segments_middle(num_frames: int, num_segments: int) -> Indices:
    """(T,) the middle frame of each segment, int(tick/2 + tick*i); sorted. The single test clip."""
    return uniform_clips(num_frames, num_segments, 1).reshape(-1)


def two_clips(num_frames: int, num_segments: int) -> Indices:
    """(2, T) the middle clip, and that of each segment's first frame, int(tick*i): TSM's and STC's pair."""
    _at_least_one(num_frames=num_frames, num_segments=num_segments)
    first = num_frames * np.arange(num_segments, dtype=np.int64) // num_segments
    return np.stack([segments_middle(num_frames, num_segments), first])


def uniform_clips(num_frames: int, num_segments: int, clips: int) -> Indices:
    """(clips, T) the k uniform clips of the Deep Analysis paper: the middle clip moved by -k//2+1 ... k//2 frames.

    A frame never leaves its segment: offsets are held within half a tick. Two clips are the middle and the
    next frame, which is not ``two_clips``. For at most T frames, where the published code draws at random,
    the same formula is used.
    """
    _at_least_one(num_frames=num_frames, num_segments=num_segments, clips=clips)
    # All in units of 1/(2*T) frame, in which a tick is 2*n: segment i lies from 2*n*i to 2*n*(i+1).
    start = 2 * num_frames * np.arange(num_segments, dtype=np.int64)
    moved = num_frames + 2 * num_segments * np.arange(-clips // 2 + 1, clips // 2 + 1, dtype=np.int64)
    # Half a tick itself would be the next segment's first frame, for the last segment one past the end.
    return (start + np.clip(moved, 0, 2 * num_frames - 1)[:, None]) // (2 * num_segments)


def random_clips(num_frames: int, num_segments: int, clips: int, identity: str) -> Indices:
    """(clips, T) the training draw k times; the same for the same ``identity``: an evaluation repeats.

    identity: what names the video wherever the data lies, such as its path as the manifest writes it.
    """
    _at_least_one(num_frames=num_frames, num_segments=num_segments, clips=clips)
    # Python's own hash() of a string changes with every process.
    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    return np.stack([segments_train(num_frames, num_segments, rng) for _ in range(clips)])


def dense_train(
    num_frames: int, num_segments: int, stride: int, rng: np.random.Generator, short: Short = "wrap"
) -> Indices:
    """(T,) every ``stride``-th frame of a window of T*stride frames, its start uniform over all valid ones.

    short: what a video shorter than the window does: "wrap" starts again at its first frame, "repeat" stays
    on its last one.
    """
    starts = _dense_starts(num_frames, num_segments, stride)
    start = rng.integers(starts, size=1, dtype=np.int64)
    return _dense(num_frames, num_segments, stride, start, short).reshape(-1)


def dense_clips(num_frames: int, num_segments: int, stride: int, clips: int, short: Short = "wrap") -> Indices:
    """(clips, T) as ``dense_train``, from k starts spread over the valid ones, both ends included.

    A single clip is the middle one.
    """
    _at_least_one(clips=clips)
    starts = _dense_starts(num_frames, num_segments, stride)
    if clips == 1:
        spread = np.array([(starts - 1) // 2])
    else:
        spread = (starts - 1) * np.arange(clips, dtype=np.int64) // (clips - 1)
    return _dense(num_frames, num_segments, stride, spread, short)


def slowfast_clips(num_frames: int, num_segments: int, stride: int, clips: int) -> Indices:
    """(clips, T) dense clips where PySlowFast takes them; sorted.

    Of a window of w = T*stride frames, T frames evenly spread from its first to its last one, so that they lie a
    little more than ``stride`` apart. Clip k starts at (n - w) * k / clips: the first at the video's start, the last
    before its end. A video shorter than the window stays on its last frame. (PySlowFast's window is of 30 frames a
    second whatever the video's rate; this one is of the video's own frames.)
    """
    _at_least_one(num_frames=num_frames, num_segments=num_segments, stride=stride, clips=clips)
    window = num_segments * stride
    room = max(num_frames - window, 0)
    gaps = max(num_segments - 1, 1)
    # Over the common denominator, so that nothing is rounded before the end.
    starts = room * np.arange(clips, dtype=np.int64)[:, None] * gaps
    within = (window - 1) * np.arange(num_segments, dtype=np.int64) * clips
    indices: Indices = (starts + within) // (clips * gaps)
    return indices.clip(max=num_frames - 1)


def _dense_starts(num_frames: int, num_segments: int, stride: int) -> int:
    """How many starts are valid; one where the video is shorter than the window."""
    _at_least_one(num_frames=num_frames, num_segments=num_segments, stride=stride)
    return max(1, num_frames - num_segments * stride + 1)


def _dense(num_frames: int, num_segments: int, stride: int, starts: Indices, short: Short) -> Indices:
    if short not in ("wrap", "repeat"):
        raise ValueError(f"short must be 'wrap' or 'repeat', got {short!r}")
    indices = starts[:, None] + stride * np.arange(num_segments, dtype=np.int64)
    return indices % num_frames if short == "wrap" else np.minimum(indices, num_frames - 1)


def _at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
