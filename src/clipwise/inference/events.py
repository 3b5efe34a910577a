"""Scores over time → events: what began when, how long it lasted, and when nothing that is known was shown.

::

    score of "falling"          start 0.5  - - - -┌──────┐- - - - - - - - -   an event begins at the first picture whose
                                end 0.4   - - -┌──┘- - - └──┐- - - - - - -    smoothed score is at least `start` …
                                          ─────┘            └──────────       … and lasts while it is at least `end`
    event                                         ├─────────┤

Two thresholds (hysteresis), since with one a score that trembles about it would begin and end an event with every
picture. Below them the answer is :data:`NONE`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clipwise.data.labels import LabelSpace

__all__ = ["NONE", "Event", "EventFinder", "Smoothing"]

NONE = "none of these"
"""The answer where no class scores enough."""

_RELEASE = 0.8
"""An event ends below this share of the score at which one begins, unless told otherwise."""
_SLACK = 1e-9
"""Seconds by which differences of times that are written as decimals may miss them."""


@dataclass(frozen=True)
class Event:
    """Something that was shown, from ``start`` up to but not including ``end``."""

    start: float
    """Seconds in the source: time of the first picture whose smoothed score reached the threshold, less the delay."""
    end: float | None
    """Seconds: the time of the first picture that no longer belongs to it, less the delay; None while it lasts."""
    label: str
    """One of the network's classes; of several heads with the head's name before it, ``verb:take``."""
    score: float
    """Mean of the label's smoothed scores over the event's pictures (those so far, while it lasts)."""


class Smoothing:
    """Scores of single pictures → scores that hold over a while; the pictures' times may be irregular.

    ``exponential``, with time constant τ: ``y ← y + (1 − exp(−Δt/τ)) · (s − y)``, Δt the time since the picture before;
    the first gives ``y = s``. So each score counts as if it had held since the picture before, and one of ``a`` seconds
    ago by ``exp(−a/τ)``, however many pictures a second there are: after a step, τ later 63 % of it is seen.

    ``window``: the plain mean of all pictures later than ``t − seconds``, the newest included, each counting alike.

    Args:
        seconds: τ, or the window's length; 0 leaves the scores as they are.
        kind: ``exponential`` or ``window``.

    Raises:
        ValueError: for seconds that are negative or not finite, or another kind.
    """

    def __init__(self, seconds: float, kind: Literal["exponential", "window"] = "exponential") -> None:
        if not 0 <= seconds < math.inf:
            raise ValueError(f"smoothing must be 0 (none) or more seconds, got {seconds}")
        if kind not in ("exponential", "window"):
            raise ValueError(f"smoothing is exponential or window, got {kind!r}")
        self.seconds = seconds
        self.kind = kind
        self.reset()

    def reset(self) -> None:
        """Forget: the next picture is the first."""
        self._time: float | None = None
        self._value: NDArray[np.float64] | None = None  # the mean; of a window the sum
        self._window: deque[tuple[float, NDArray[np.float64]]] = deque()

    def __call__(self, seconds: float, scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """(C,) scores of the picture at ``seconds`` → (C,) smoothed scores.

        Raises:
            ValueError: for scores that are not finite, a time that is not, or one before the last picture's. (Of two
                pictures of the same time the second does not change an exponential mean.)
        """
        seconds = _checked_time(seconds, self._time)
        scores = _checked_scores(scores)
        before, self._time = self._time, seconds
        if not self.seconds:
            return scores
        if self.kind == "window":
            self._window.append((seconds, scores))
            total = scores.copy() if self._value is None else self._value + scores
            while self._window[0][0] <= seconds - self.seconds + _SLACK and len(self._window) > 1:
                total -= self._window.popleft()[1]
            self._value = total
            return total / len(self._window)
        if before is None or self._value is None:
            self._value = scores
        else:
            self._value = self._value - math.expm1((before - seconds) / self.seconds) * (scores - self._value)
        return self._value


@dataclass
class _Held:
    """An event that lasts."""

    label: int
    start: float
    total: float = 0.0
    pictures: int = 0
    told: bool = False


class EventFinder:
    """Smoothed scores, picture after picture → events.

    An event of a class **begins** at the first picture at which the class scores at least ``start`` and more than all
    others; it **ends** at the first picture at which it scores less than ``end``, or at which another class scores at
    least ``start`` and more than it: that one takes over, and its event begins at the same time.

    Of a network that names one class there is one event at a time. Of several heads there is one at a time for each
    head, its label ``verb:take``. Where a video has a set of labels, each class has events of its own, whatever the
    others score.

    Each event that is reported is given exactly twice: when it has lasted ``min_seconds`` (``end`` None, but with the
    time at which it really began), and when it ends; both at once if the end is what shows that it lasted so long. What
    ends sooner is never given. A short event that is not given still ended the one that it took over from.

    Args:
        classes: the network's :class:`LabelSpace`; a sequence of names stands for a network that names one of them.
        start: score in (0, 1] from which on an event begins.
        end: score in [0, start] below which it ends; 0.8 · ``start`` when None.
        min_seconds: events that last less are not reported.
        background: classes that are no event, such as "nobody": theirs are found like the others', so that they end
            what they take over from, but not reported.
        delay: seconds by which the network's answers are late: events are told of as so much earlier, though not before
            the first picture. What lasts until the stream ends has that end.

    Raises:
        ValueError: for thresholds or seconds out of range, or a background class that the network does not know.
    """

    def __init__(
        self,
        classes: LabelSpace | Sequence[str],
        *,
        start: float = 0.5,
        end: float | None = None,
        min_seconds: float = 0.0,
        background: Sequence[str] = (),
        delay: float = 0.0,
    ) -> None:
        space = classes if isinstance(classes, LabelSpace) else LabelSpace.of(classes)
        if not 0 < start <= 1:
            raise ValueError(f"the score at which an event begins must lie in (0, 1], got {start}")
        if end is None:
            end = _RELEASE * start
        if not 0 <= end <= start:
            raise ValueError(f"the score below which an event ends must lie in [0, {start:g}], its start; got {end}")
        if not 0 <= min_seconds < math.inf:
            raise ValueError(f"min_seconds must be 0 or more, got {min_seconds}")
        if not 0 <= delay < math.inf:
            raise ValueError(f"the delay must be 0 or more seconds, got {delay}")
        unknown = [name for name in background if name not in space.classes]
        if unknown:
            known = ", ".join(space.classes[:12]) + (" …" if len(space.classes) > 12 else "")
            raise ValueError(f"no class {unknown[0]!r} that could be background; the network's are: {known}")
        self.classes = space.classes
        self.start = start
        self.end = end
        self.min_seconds = min_seconds
        self.delay = delay
        self._background = {self.classes.index(name) for name in background}
        sizes = [1] * len(self.classes) if space.multi_label else space.sizes
        # Of the classes in each slice at most one holds at a time.
        self._slices = [slice(stop - size, stop) for size, stop in zip(sizes, np.cumsum(sizes).tolist(), strict=True)]
        self._held: list[_Held | None] = [None] * len(sizes)
        self._time: float | None = None
        self._first = -math.inf  # time of the first picture

    @property
    def lasting(self) -> tuple[Event, ...]:
        """The events that have been given and not ended yet, the highest score first."""
        events = [self._event(held, None) for held in self._held if held is not None and held.told]
        return tuple(sorted(events, key=lambda event: -event.score))

    @property
    def current(self) -> Event | None:
        """The first of :attr:`lasting`; None is "none of these"."""
        lasting = self.lasting
        return lasting[0] if lasting else None

    def update(self, seconds: float, scores: NDArray[np.floating[Any]]) -> list[Event]:
        """The events that began (``end`` None) or ended with the picture at ``seconds``, of (C,) smoothed scores.

        Raises:
            ValueError: for scores that are not finite, not probabilities or not one for each class, for a time that is
                not finite or lies before the last picture's.
        """
        seconds = _checked_time(seconds, self._time)
        scores = _checked_scores(scores)
        if len(scores) != len(self.classes):
            raise ValueError(
                f"there are {len(self.classes)} classes, and a score for each is needed; got {len(scores)}"
            )
        if scores.min() < -1e-3 or scores.max() > 1 + 1e-3:
            low, high = scores.min(), scores.max()
            raise ValueError(f"scores must be probabilities, not logits; got {low:g} to {high:g}")
        if self._time is None:
            self._first = seconds
        self._time = seconds
        events: list[Event] = []
        for number, part in enumerate(self._slices):
            best = part.start + int(scores[part].argmax())
            begins = bool(scores[best] >= self.start)
            held = self._held[number]
            if held is not None:
                score = scores[held.label]
                if score < self.end or (begins and scores[best] > score):
                    events += self._ended(held, seconds, seconds - self.delay)
                    held = None
            if held is None and begins:
                held = _Held(best, seconds)
            self._held[number] = held
            if held is not None:
                held.total += float(scores[held.label])
                held.pictures += 1
                events += self._begun(held, seconds)
        return events

    def finish(self, seconds: float) -> list[Event]:
        """The stream ends at ``seconds``, and all events with it; the next picture may have any time.

        Raises:
            ValueError: for a time that is not finite or lies before the last picture's.
        """
        seconds = _checked_time(seconds, self._time)
        events = [event for held in self._held if held is not None for event in self._ended(held, seconds, seconds)]
        self._held = [None] * len(self._slices)
        self._time = None
        return events

    def _begun(self, held: _Held, seconds: float) -> list[Event]:
        if held.told or held.label in self._background or seconds - held.start < self.min_seconds - _SLACK:
            return []
        held.told = True
        return [self._event(held, None)]

    def _ended(self, held: _Held, seconds: float, end: float) -> list[Event]:
        begun = self._begun(held, seconds)
        return [*begun, self._event(held, end)] if held.told else []

    def _event(self, held: _Held, end: float | None) -> Event:
        start = max(self._first, held.start - self.delay)
        return Event(
            start, None if end is None else max(start, end), self.classes[held.label], held.total / held.pictures
        )


def _checked_time(seconds: float, before: float | None) -> float:
    if not math.isfinite(seconds):
        raise ValueError(f"a picture's time must be finite, got {seconds}")
    if before is not None and seconds < before:
        raise ValueError(f"pictures must come in the order of their times; got {seconds} s after {before} s")
    return float(seconds)


def _checked_scores(scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    checked = np.array(scores, np.float64)
    if checked.ndim != 1 or not checked.size:
        raise ValueError(f"scores must be (classes,), of one picture; got shape {checked.shape}")
    if not np.isfinite(checked).all():
        bad = int(np.flatnonzero(~np.isfinite(checked))[0])
        raise ValueError(
            f"scores must be finite; class {bad} has {checked[bad]}. Networks that diverged give such values"
        )
    return checked
