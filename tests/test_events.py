"""From scores over time to events: what the rules say at every turn."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from clipwise.data.labels import Head, LabelSpace
from clipwise.inference.events import Event, EventFinder, Smoothing

CLASSES = ("fall", "sit", "idle")
SETS = LabelSpace((Head("label", ("a", "b", "c")),), multi_label=True)
HEADS = LabelSpace((Head("verb", ("take", "put")), Head("noun", ("cup", "pan", "egg"))))


def of_fall(score: float) -> NDArray[np.float64]:
    return np.array([score, (1 - score) / 2, (1 - score) / 2])


def found(finder: EventFinder, scores: list[float], step: float = 0.5) -> list[Event]:
    """All that is given for the scores of "fall" at pictures ``step`` seconds apart, and at the end."""
    given = [event for number, score in enumerate(scores) for event in finder.update(step * number, of_fall(score))]
    return given + finder.finish(step * len(scores))


def test_an_event_begins_at_the_upper_threshold_and_ends_below_the_lower() -> None:
    finder = EventFinder(CLASSES, start=0.6, end=0.5)
    begun, ended = found(finder, [0.55, 0.625, 0.875, 0.5, 0.49, 0.59])
    assert begun == Event(0.5, None, "fall", 0.625)
    assert ended == Event(0.5, 2.0, "fall", (0.625 + 0.875 + 0.5) / 3)


def test_a_score_that_trembles_about_the_threshold_is_one_event() -> None:
    trembling = [0.51, 0.49] * 10
    assert len(found(EventFinder(CLASSES), trembling)) == 2
    assert len(found(EventFinder(CLASSES, end=0.5), trembling)) == 20


def test_another_class_takes_over_only_from_the_threshold_on() -> None:
    finder = EventFinder(CLASSES, start=0.4, end=0.2)
    assert [event.label for event in finder.update(0, np.array([0.5, 0.3, 0.2]))] == ["fall"]
    assert finder.update(1, np.array([0.3, 0.39, 0.31])) == []  # higher, but it would not begin an event by itself
    ended, begun = finder.update(2, np.array([0.3, 0.45, 0.25]))
    assert (ended.label, ended.end, begun.label, begun.start) == ("fall", 2, "sit", 2)
    assert finder.current == begun


def test_background_takes_over_and_is_not_reported() -> None:
    finder = EventFinder(CLASSES, start=0.4, end=0.1, background=["idle"])
    finder.update(0, np.array([0.5, 0.3, 0.2]))
    (ended,) = finder.update(1, np.array([0.3, 0.2, 0.5]))
    assert (ended.label, ended.end) == ("fall", 1)
    assert finder.current is None
    assert finder.finish(2) == []


def test_what_may_be_too_short_is_given_once_it_is_not_with_its_true_start() -> None:
    finder = EventFinder(CLASSES, min_seconds=1.0)
    assert finder.update(0.0, of_fall(0.75)) == []
    assert finder.current is None
    assert finder.update(0.5, of_fall(0.75)) == []
    assert finder.update(1.0, of_fall(0.75)) == [Event(0.0, None, "fall", 0.75)]
    assert finder.current is not None
    assert found(EventFinder(CLASSES, min_seconds=1.0), [0.75, 0.1, 0.1]) == []
    # Only the picture that ends it shows that it lasted so long.
    begun, ended = found(EventFinder(CLASSES, min_seconds=1.0), [0.75, 0.75, 0.1])
    assert (begun.end, ended.end) == (None, 1.0)


def test_what_is_known_late_is_told_of_as_earlier() -> None:
    """Not before the first picture, and what lasts to the end ends there."""
    scores = [0.9, 0.1, 0.1, 0.1, 0.9, 0.9, 0.1, 0.1, 0.9]
    plain = found(EventFinder(CLASSES), scores)
    late = found(EventFinder(CLASSES, delay=1.25), scores)
    assert [(event.start, event.end) for event in plain] == [
        *[(0.0, None), (0.0, 0.5)],
        *[(2.0, None), (2.0, 3.0)],
        *[(4.0, None), (4.0, 4.5)],
    ]
    assert [(event.start, event.end) for event in late] == [
        *[(0.0, None), (0.0, 0.0)],
        *[(0.75, None), (0.75, 1.75)],
        *[(2.75, None), (2.75, 4.5)],
    ]
    assert [event.score for event in late] == [event.score for event in plain]
    # How long it must last is judged as it was seen.
    assert len(found(EventFinder(CLASSES, delay=1.25, min_seconds=1.0), scores)) == 2
    finder = EventFinder(CLASSES, delay=1.0)
    finder.update(7.0, of_fall(0.9))
    assert finder.current == Event(7.0, None, "fall", 0.9)
    for delay in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="the delay must be 0 or more seconds"):
            EventFinder(CLASSES, delay=delay)


def test_times_written_as_decimals_last_what_they_say() -> None:
    finder = EventFinder(CLASSES, min_seconds=0.2)
    finder.update(0.1, of_fall(0.9))
    assert 0.3 - 0.1 < 0.2
    assert len(finder.update(0.3, of_fall(0.9))) == 1


def test_label_sets_have_events_side_by_side() -> None:
    finder = EventFinder(SETS, start=0.5, end=0.4, background=["c"])
    assert [event.label for event in finder.update(0, np.array([0.9, 0.1, 0.9]))] == ["a"]
    assert [event.label for event in finder.update(1, np.array([0.8, 0.95, 0.9]))] == ["b"]
    assert [event.label for event in finder.lasting] == ["b", "a"]
    assert [(event.label, event.end) for event in finder.update(2, np.array([0.3, 0.95, 0.0]))] == [("a", 2)]
    assert [event.label for event in finder.finish(3)] == ["b"]


def test_each_head_has_its_events() -> None:
    finder = EventFinder(HEADS)
    finder.update(0, np.array([0.9, 0.1, 0.6, 0.2, 0.2]))
    events = finder.update(1, np.array([0.9, 0.1, 0.1, 0.2, 0.7]))
    assert [(event.label, event.start, event.end) for event in events] == [("noun:cup", 0, 1), ("noun:egg", 1, None)]
    assert {event.label for event in finder.lasting} == {"verb:take", "noun:egg"}


@pytest.mark.parametrize("space", [LabelSpace.of(CLASSES), SETS, HEADS])
@pytest.mark.parametrize("min_seconds", [0.0, 0.7])
def test_of_any_scores_events_are_what_the_pictures_say(space: LabelSpace, min_seconds: float) -> None:
    rng = np.random.default_rng(3)
    times = np.cumsum(rng.exponential(0.2, 400))
    noise = rng.normal(0, 1.0, (400, len(space.classes)))
    walk = np.array([sum(0.9**age * noise[now - age] for age in range(min(now + 1, 60))) for now in range(400)])
    if space.multi_label:
        scores = 1 / (1 + np.exp(-walk))
    else:
        powers = np.split(np.exp(walk), np.cumsum(space.sizes)[:-1], axis=1)
        scores = np.concatenate([part / part.sum(1, keepdims=True) for part in powers], axis=1)
    finder = EventFinder(space, start=0.6, end=0.45, min_seconds=min_seconds)
    given = [event for time, row in zip(times, scores, strict=True) for event in finder.update(time, row)]
    given += finder.finish(times[-1] + 0.1)
    begun, ended = ([event for event in given if (event.end is None) == open_] for open_ in (True, False))
    assert len(ended) > 10
    assert sorted((event.start, event.label) for event in begun) == sorted((e.start, e.label) for e in ended)
    for event in ended:
        assert event.end is not None
        assert event.end - event.start >= min_seconds - 1e-6
        own = scores[(times >= event.start) & (times < event.end), space.classes.index(event.label)]
        assert own[0] >= 0.6
        assert own.min() >= 0.45
        assert event.score == pytest.approx(own.mean())
    # One at a time: of all classes; of each head; of each class by itself.
    heads = [name.partition(":")[0] if space is HEADS else name if space is SETS else "" for name in space.classes]
    for track in set(heads):
        names = [name for name, head in zip(space.classes, heads, strict=True) if head == track]
        spans = sorted((event.start, event.end or 0) for event in ended if event.label in names)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))


def test_a_new_stream_may_begin_at_any_time_after_the_end_of_one() -> None:
    finder = EventFinder(CLASSES)
    finder.update(100, of_fall(0.9))
    finder.finish(100.5)
    assert finder.update(0, of_fall(0.9))[0].start == 0


@pytest.mark.parametrize("times", [[1.0], [0.25, 0.5, 1.0], [0.01, 0.02, 0.9, 0.95, 1.0]])
def test_exponential_smoothing_does_not_depend_on_how_often_it_is_fed(times: list[float]) -> None:
    smooth = Smoothing(1.0)
    smooth(0.0, np.array([0.0, 1.0]))
    for time in times:
        value = smooth(time, np.array([1.0, 0.0]))
    np.testing.assert_allclose(value, [1 - math.exp(-1), math.exp(-1)])


def test_a_window_is_the_mean_of_the_pictures_in_it() -> None:
    rng = np.random.default_rng(0)
    times, scores = np.cumsum(rng.exponential(0.1, 300)), rng.random((300, 4))
    smooth = Smoothing(0.5, "window")
    for number, time in enumerate(times):
        inside = scores[: number + 1][times[: number + 1] > time - 0.5]
        np.testing.assert_allclose(smooth(time, scores[number]), inside.mean(0))


@pytest.mark.parametrize("kind", ["exponential", "window"])
def test_smoothing_of_no_seconds_and_after_a_reset_is_the_picture_itself(kind: str) -> None:
    first, second = np.array([0.2, 0.8]), np.array([0.7, 0.3])
    for seconds in (0.0, 2.0):
        smooth = Smoothing(seconds, kind)  # type: ignore[arg-type]
        smooth(5.0, first)
        if seconds:
            smooth.reset()
        np.testing.assert_array_equal(smooth(5.0 if not seconds else 0.0, second), second)


@pytest.mark.parametrize(
    ("seconds", "scores", "message"),
    [
        (1.0, [0.2, math.nan, 0.2], "must be finite; class 1 has nan"),
        (1.0, [3.2, -1.0, 0.2], "probabilities, not logits; got -1 to 3.2"),
        (1.0, [0.5, 0.5], "there are 3 classes, and a score for each is needed; got 2"),
        (math.nan, [0.2, 0.2, 0.6], "time must be finite"),
        (-1.0, [0.2, 0.2, 0.6], "in the order of their times; got -1.0 s after 0.0 s"),
    ],
)
def test_what_is_no_score_or_no_time_is_refused(seconds: float, scores: list[float], message: str) -> None:
    finder = EventFinder(CLASSES)
    finder.update(0.0, of_fall(0.1))
    with pytest.raises(ValueError, match=message):
        finder.update(seconds, np.array(scores))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0.0}, r"must lie in \(0, 1\], got 0"),
        ({"start": 0.5, "end": 0.6}, r"must lie in \[0, 0.5\], its start; got 0.6"),
        ({"min_seconds": -1}, "min_seconds must be 0 or more"),
        ({"background": ["idel"]}, "no class 'idel' that could be background; the network's are: fall, sit, idle"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EventFinder(CLASSES, **options)  # type: ignore[arg-type]
