"""Frame sampling against the published vectors, and the properties a reader would doubt."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipwise.data import sampling

# 1-based, as the TSM code prints them.
MIDDLE_1_BASED = {
    5: [1, 1, 2, 3, 3, 4, 5, 5],
    8: [1, 2, 3, 4, 5, 6, 7, 8],
    9: [1, 2, 3, 4, 6, 7, 8, 9],
    20: [2, 4, 7, 9, 12, 14, 17, 19],
    32: [3, 7, 11, 15, 19, 23, 27, 31],
    64: [5, 13, 21, 29, 37, 45, 53, 61],
    100: [7, 19, 32, 44, 57, 69, 82, 94],
    300: [19, 57, 94, 132, 169, 207, 244, 282],
}
FRAMES = st.integers(1, 1000)
SEGMENTS = st.integers(1, 70)
SEEDS = st.integers(0, 2**32 - 1)
TRAINING = [sampling.segments_train, sampling.segments_train_tsm]


@pytest.mark.parametrize("num_frames", MIDDLE_1_BASED)
def test_middle_clip_is_the_published_one(num_frames: int) -> None:
    assert (sampling.segments_middle(num_frames, 8) + 1).tolist() == MIDDLE_1_BASED[num_frames]


def test_two_clips_are_the_published_ones() -> None:
    assert (sampling.two_clips(30, 8) + 1).tolist() == [
        [2, 6, 10, 14, 17, 21, 25, 29],
        [1, 4, 8, 12, 16, 19, 23, 27],
    ]


def test_dense_clips_are_the_published_ones() -> None:
    clips = sampling.dense_clips(300, 8, 8, 10) + 1
    assert clips[:, 0].tolist() == [1, 27, 53, 79, 105, 132, 158, 184, 210, 237]
    assert clips[0].tolist() == [1, 9, 17, 25, 33, 41, 49, 57]


def test_short_video_wraps_or_repeats() -> None:
    assert (sampling.dense_clips(40, 8, 8, 1)[0] + 1).tolist() == [1, 9, 17, 25, 33, 1, 9, 17]
    repeated = sampling.dense_clips(40, 8, 8, 2, short="repeat")
    assert (repeated[0] + 1).tolist() == [1, 9, 17, 25, 33, 40, 40, 40]
    assert (repeated[0] == repeated[1]).all()
    with pytest.raises(ValueError, match="'loop'"):
        sampling.dense_clips(40, 8, 8, 1, short="loop")  # type: ignore[arg-type]


def test_two_uniform_clips_are_the_middle_and_the_next_frame() -> None:
    clips = sampling.uniform_clips(64, 8, 2)
    assert clips[0].tolist() == sampling.segments_middle(64, 8).tolist()
    assert (clips[1] == clips[0] + 1).all()
    assert (sampling.uniform_clips(64, 8, 10)[:, 0] + 1).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]


def test_the_vectors_here_are_those_of_the_reference(shared: Path) -> None:
    text = (shared / "reference/sampling.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (\d+) \| ([\d ]+) \|$", text, re.M)
    assert {int(n): [int(frame) for frame in frames.split()] for n, frames in table} == MIDDLE_1_BASED
    first, second = ([int(frame) for frame in clip.split()] for clip in re.findall(r"\[(\d[\d ]+)\]", text))
    assert (sampling.two_clips(30, 8) + 1).tolist() == [first, second]
    starts, clip = re.findall(r"1-based: ([\d ]+); first clip of 8: ([\d ]+)\.", text)[0]
    assert (sampling.dense_clips(300, 8, 8, 10)[:, 0] + 1).tolist() == [int(start) for start in starts.split()]
    assert (sampling.dense_clips(300, 8, 8, 10)[0] + 1).tolist() == [int(frame) for frame in clip.split()]


def test_sampling_is_integer_arithmetic() -> None:
    for node in ast.walk(ast.parse(inspect.getsource(sampling))):
        assert not isinstance(node, ast.Div), "a true division"
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), "a floating-point number"
        assert not (isinstance(node, ast.Attribute) and node.attr in ("linspace", "astype", "round")), node.attr


def published(n: int, segments: int, offset: float) -> list[int]:
    """int(tick/2 + o + tick·i) as the published codes compute it, in floating point."""
    tick = n / segments
    return [int(tick / 2 + max(-tick / 2, min(offset, tick / 2 - 1e-4)) + tick * i) for i in range(segments)]


@given(st.integers(1, 5000), st.integers(0, 6), st.integers(1, 12))
def test_frames_are_those_of_the_published_codes_where_t_is_a_power_of_two(n: int, power: int, clips: int) -> None:
    segments = 2**power
    offsets = range(-clips // 2 + 1, clips // 2 + 1)
    assert sampling.uniform_clips(n, segments, clips).tolist() == [published(n, segments, o) for o in offsets]
    assert sampling.two_clips(n, segments)[1].tolist() == [int(n / segments * i) for i in range(segments)]


@given(FRAMES, SEGMENTS)
def test_elsewhere_they_differ_by_rounding_alone(n: int, segments: int) -> None:
    for i, (ours, theirs) in enumerate(
        zip(sampling.segments_middle(n, segments).tolist(), published(n, segments, 0), strict=True)
    ):
        whole = n * (2 * i + 1) % (2 * segments) == 0
        assert ours == theirs or (whole and ours == theirs + 1)


@given(st.integers(1, 3000), st.integers(1, 40), st.integers(1, 9), st.integers(1, 12))
def test_slowfast_clips_are_evenly_spread_over_windows_that_stop_short_of_the_end(
    n: int, frames: int, stride: int, clips: int
) -> None:
    indices = sampling.slowfast_clips(n, frames, stride, clips)
    window, room = frames * stride, max(0, n - frames * stride)
    for clip, row in enumerate(indices.tolist()):
        start = room * clip / clips
        exact = [min(start + at, n - 1) for at in np.linspace(0, window - 1, frames)]
        assert row == pytest.approx(np.floor(np.array(exact) + 1e-9).tolist())
    assert indices[0, 0] == 0
    assert indices.shape == (clips, frames)
    if n >= window and frames > 1:
        assert indices[-1, -1] == room * (clips - 1) // clips + window - 1


@given(st.integers(1, 120), st.integers(1, 20))
def test_every_frame_can_be_drawn_in_training(n: int, segments: int) -> None:
    """By the range of each draw, not by chance: the lowest and highest frame of every segment, end to end."""

    class Extreme:
        def __init__(self, highest: bool) -> None:
            self.highest = highest

        def integers(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
            return high - 1 if self.highest else low

    lowest, highest = (sampling.segments_train(n, segments, Extreme(end)) for end in (False, True))  # type: ignore[arg-type]
    reachable = {frame for low, high in zip(lowest, highest, strict=True) for frame in range(low, high + 1)}
    assert reachable == set(range(n))


@pytest.mark.parametrize("num_frames", [3, 8, 9, 20])
def test_training_draws_every_frame(num_frames: int) -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([sampling.segments_train(num_frames, 8, rng) for _ in range(400)])
    assert set(drawn.flat) == set(range(num_frames))


def test_training_draw_is_uniform_in_each_segment() -> None:
    rng = np.random.default_rng(0)
    last = np.array([sampling.segments_train(20, 4, rng)[3] for _ in range(5000)])
    assert np.bincount(last - 15, minlength=5) == pytest.approx(1000, rel=0.15)


def test_tsm_option_repeats_what_the_tsm_code_does() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([sampling.segments_train_tsm(20, 8, rng) for _ in range(400)])
    assert set(drawn.flat) == set(range(16)), "its tail is never drawn"
    assert sampling.segments_train_tsm(7, 8, rng).tolist() == [0] * 8


def test_every_dense_start_is_drawn_the_last_included() -> None:
    rng = np.random.default_rng(0)
    starts = {int(sampling.dense_train(70, 8, 8, rng)[0]) for _ in range(300)}
    assert starts == set(range(7))
    assert sampling.dense_train(64, 8, 8, rng)[0] == 0


def test_random_clips_follow_the_identity_in_every_process() -> None:
    here = sampling.random_clips(90, 8, 10, "walking/é.mp4")
    code = (
        "from clipwise.data.sampling import random_clips;print(random_clips(90, 8, 10, 'walking/\\u00e9.mp4').tolist())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str(here.tolist())
    assert (here != sampling.random_clips(90, 8, 10, "walking/e.mp4")).any()
    assert len(np.unique(here, axis=0)) > 5


@given(FRAMES, SEGMENTS, SEEDS)
def test_segment_sampling_is_sorted_and_in_range(n: int, segments: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    clips = [draw(n, segments, rng) for draw in TRAINING] + [*sampling.two_clips(n, segments)]
    clips += [*sampling.random_clips(n, segments, 2, str(seed))]
    for clip in clips:
        assert clip.shape == (segments,)
        assert clip.dtype == np.int64
        assert clip.min() >= 0
        assert clip.max() < n
        assert (np.diff(clip) >= 0).all()
    bounds = n * np.arange(segments + 1) // segments
    assert (clips[0] >= bounds[:-1]).all()
    assert (clips[0] < np.maximum(bounds[1:], bounds[:-1] + 1)).all()


@given(FRAMES, SEGMENTS, st.integers(1, 12))
def test_uniform_clips_are_sorted_in_range_and_as_many_as_asked(n: int, segments: int, clips: int) -> None:
    indices = sampling.uniform_clips(n, segments, clips)
    assert indices.shape == (clips, segments)
    assert indices.min() >= 0
    assert indices.max() < n
    assert (np.diff(indices) >= 0).all()


@given(FRAMES, st.integers(1, 40), st.integers(1, 9), st.integers(1, 12), SEEDS)
def test_dense_sampling_is_in_range_and_strided(n: int, frames: int, stride: int, clips: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    fits = n >= frames * stride
    for short in ("wrap", "repeat"):
        indices = sampling.dense_clips(n, frames, stride, clips, short=short)
        indices = np.concatenate([indices, sampling.dense_train(n, frames, stride, rng, short=short)[None]])
        assert indices.shape == (clips + 1, frames)
        assert indices.min() >= 0
        assert indices.max() < n
        if fits or short == "repeat":
            assert (np.diff(indices) >= 0).all()
        if fits:
            assert (np.diff(indices) == stride).all()
            last_start = n - frames * stride
            assert indices[clips - 1, 0] == (last_start if clips > 1 else last_start // 2)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: sampling.segments_train(0, 8, np.random.default_rng(0)), "num_frames"),
        (lambda: sampling.segments_train_tsm(8, 0, np.random.default_rng(0)), "num_segments"),
        (lambda: sampling.segments_middle(-1, 8), "num_frames"),
        (lambda: sampling.two_clips(0, 8), "num_frames"),
        (lambda: sampling.uniform_clips(8, 8, 0), "clips"),
        (lambda: sampling.random_clips(8, 8, 0, "a"), "clips"),
        (lambda: sampling.dense_train(8, 8, 0, np.random.default_rng(0)), "stride"),
        (lambda: sampling.dense_clips(8, 8, 1, 0), "clips"),
        (lambda: sampling.slowfast_clips(8, 8, 1, 0), "clips"),
        (lambda: sampling.slowfast_clips(8, 8, 0, 1), "stride"),
    ],
)
def test_counts_below_one_are_refused(call: Callable[[], object], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got"):
        call()
