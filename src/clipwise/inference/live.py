"""A source's pictures through a network while they come: three threads and two queues.

::

    capture ──packets──> decode, crop and resize ──pictures──> network ──scores──> whoever iterates
             at most 64                            at most N            at most 4

A live source does not wait. Where a queue is full its **oldest** pictures are left out and counted, so that what comes
out is never older than the queue is long: with N pictures waiting and s seconds for each, about (N + 1) · s. Packets
can only be left out up to the next one that needs none before it (a keyframe). Any other source waits instead, and
nothing is left out; the network then takes a full queue at once, which is faster.

What happened to the source (:class:`Notice`) travels through the same queues and is never left out: it comes out
between the pictures where it happened. So does an error, after everything that was recognised before it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipwise.inference.sources import Notice, Picture, Source

__all__ = ["Live", "Looked", "Stage", "Tally"]

_PACKETS = 64
"""Packets that may wait for the decoder: about two seconds, as many as servers send at once on connecting."""
_RESULTS = 4
"""Results that may wait for whoever iterates."""
_KEYLESS = 600
"""After leaving out so many packets for want of a keyframe there is none (intra-refresh): any will do."""
_REMEMBERED = 10_000
"""Times of so many pictures are kept of each stage."""
_BLINK = 0.1
"""Seconds after which whoever iterates looks up, to notice that nothing comes."""
_GRACE = 1.0
"""Seconds that the capturing thread gets to end."""
_ASKED = 0.1
"""Seconds from one question of FFmpeg's whether to go on waiting to the next."""

T = TypeVar("T")


class Network(Protocol):
    """What :class:`Live` needs of a :class:`clipwise.inference.stream_predictor.StreamPredictor`."""

    def prepare(self, picture: NDArray[np.uint8]) -> Tensor: ...

    def push(self, pictures: Tensor) -> NDArray[np.float32]: ...

    def reset(self) -> None: ...


class Pacing(Protocol):
    """What it needs of a :class:`clipwise.inference.stream_predictor.Pace`."""

    def takes(self, seconds: float) -> bool: ...


@dataclass(frozen=True)
class Looked:
    """A picture that went through."""

    seconds: float
    """Its time in the source."""
    lasts: float
    """Seconds to the next, as far as known: as many as it came after the one before."""
    scores: NDArray[np.float32] | None
    """(C,); None of a picture that the network does not look at, which comes only where pictures are kept."""
    captured: float
    """When its packet came, on the clock of ``time.monotonic()``."""
    picture: NDArray[np.uint8] | None
    """(H, W, 3), where pictures are kept."""


class Stage:
    """How long pictures spent in one stage; of the last 10,000."""

    def __init__(self) -> None:
        self._seconds = np.zeros(_REMEMBERED)  # all at once, so that a long stream's memory stays what it is
        self._count = 0

    def add(self, seconds: float) -> None:
        self._seconds[self._count % _REMEMBERED] = seconds
        self._count += 1

    def milliseconds(self) -> dict[str, float] | None:
        """Median and 95th percentile; None before the first picture."""
        if not self._count:
            return None
        median, high = np.percentile(self._seconds[: self._count], [50, 95]) * 1e3
        return {"median": round(float(median), 3), "p95": round(float(high), 3)}


@dataclass
class Tally:
    """What became of the source's pictures: captured = looked at + left out + dropped + undecodable, once all are
    through."""

    captured: int = 0
    looked_at: int = 0
    left_out: int = 0
    """By ``--stride`` or ``--rate``."""
    dropped: int = 0
    """Because there was no time for them."""
    stages: dict[str, Stage] = field(
        default_factory=lambda: {name: Stage() for name in ("capture", "decode", "infer", "latency")}
    )
    """``capture``: reading a packet, which of a live source includes waiting for it. ``decode``: a picture, with crop
    and resize. ``infer``: a picture through the network. ``latency``: from its capture to its scores, with all waiting
    in between."""


class _Queue(Generic[T]):
    """Between two threads: holds at most ``most`` items that may be dropped, and any number of others.

    Args:
        most: items; who puts more waits, or, if ``dropping``, the oldest are dropped.
        dropped: called with the number of items dropped.
    """

    def __init__(self, most: int, dropping: bool = False, dropped: Callable[[int], None] = lambda number: None) -> None:
        self._most = most
        self._dropping = dropping
        self._dropped = dropped
        self._items: deque[tuple[T, bool, bool]] = deque()
        self._held = 0  # that may be dropped
        self._keyless = 0  # dropped since the last that could stand alone; 0: the way is free
        self._abandoned = False
        self._changed = threading.Condition()

    def put(self, item: T, *, droppable: bool = True, alone: bool = True) -> None:
        """Append an item; ``alone`` says whether it is of use without those before it."""
        with self._changed:
            if droppable:
                if not self._dropping:
                    self._changed.wait_for(lambda: self._abandoned or self._held < self._most)
                if self._abandoned:
                    return
                if self._dropping and not self._room_for(alone):
                    return
                self._held += 1
            self._items.append((item, droppable, alone))
            self._changed.notify_all()

    def _room_for(self, alone: bool) -> bool:
        """Drop what has to go; False if that is the new item itself."""
        dropped = 0
        if self._held >= self._most:
            kept: deque[tuple[T, bool, bool]] = deque()
            searching = True  # for one to begin anew with
            for entry in self._items:
                if searching and entry[1]:
                    searching = dropped == 0 or not entry[2]
                if searching and entry[1]:
                    dropped += 1
                else:
                    kept.append(entry)
            self._items = kept
            self._held -= dropped
            if searching:
                self._keyless = dropped
        if self._keyless and not alone and self._keyless < _KEYLESS:
            self._keyless += 1
            self._dropped(dropped + 1)
            return False
        self._keyless = 0
        if dropped:
            self._dropped(dropped)
        return True

    def get(self, most: int = 1, timeout: float | None = None) -> list[T]:
        """The next item; or, where those may be dropped, up to ``most``. Empty if none came within ``timeout``."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._items, timeout):
                return []
            items: list[T] = []
            while self._items and len(items) < most and (self._items[0][1] or not items):
                item, droppable, _ = self._items.popleft()
                items.append(item)
                self._held -= droppable
                if not droppable:
                    break
            self._changed.notify_all()
            return items

    def abandon(self) -> None:
        """Let nobody wait to put something: what may be dropped is, from now on."""
        with self._changed:
            self._abandoned = True
            self._items = deque(entry for entry in self._items if not entry[1])
            self._held = 0
            self._changed.notify_all()


@dataclass(frozen=True)
class _Prepared:
    seconds: float
    lasts: float
    captured: float
    pixels: Tensor | None
    picture: NDArray[np.uint8] | None


@dataclass(frozen=True)
class _Ended:
    error: BaseException | None = None


class _Farewell:
    """Lives as long as Python's modules, and at their end lets a thread that was left waiting end before Python does.

    FFmpeg, while it waits, asks ten times a second whether to go on, which PyAV answers with the interpreter's lock in
    hand. A thread that asks for that while Python ends is ended; one that asks a moment later, when there is no
    interpreter any more, makes a segmentation fault of the program's exit.
    """

    def __init__(self) -> None:
        self._wait = partial(time.sleep, 3 * _ASKED)  # this module's names are gone by then

    def __del__(self) -> None:
        self._wait()


_left_behind: list[_Farewell] = []


class Live:
    """Iterate over it for what the network says of a source's pictures, and what happened to the source, in order::

        with Live(open_source("rtsp://camera/1"), load_stream("runs/mine"), Pace(rate=10)) as live:
            for item in live:
                ...

    Args:
        source: of :func:`clipwise.inference.sources.open_source`; it is stopped at the end.
        network: of :func:`clipwise.inference.stream_predictor.load_stream`; forgets what it saw before, and again where
            the source is interrupted.
        pace: which pictures the network looks at.
        queue: pictures that may wait for the network.
        keep: whether pictures come out as well, also those that the network does not look at.

    Attributes:
        tally: what became of the source's pictures.
        end: when the last picture that was decoded ends, in the source.

    Raises:
        ValueError: for a queue without room.
        Any error of one of the threads, from the iteration, after all that came out before it.
    """

    def __init__(self, source: Source, network: Network, pace: Pacing, *, queue: int = 8, keep: bool = False) -> None:
        if queue < 1:
            raise ValueError(f"at least one picture must be able to wait for the network, got a queue of {queue}")
        self.source = source
        self.tally = Tally()
        self.end = 0.0
        self._network = network
        self._pace = pace
        self._keep = keep
        self._at_once = 1 if source.live else queue
        self._lock = threading.Lock()
        self._packets: _Queue[Any] = _Queue(_PACKETS, source.live, self._count_dropped)
        self._pictures: _Queue[_Prepared | Notice | _Ended] = _Queue(queue, source.live, self._count_dropped)
        self._results: _Queue[Looked | Notice | _Ended] = _Queue(_RESULTS)
        self._reading: float | None = None  # since when the capturing thread waits for the source
        self._finished = False
        self._threads = [
            threading.Thread(target=self._guarded, args=(work, output), name=f"clipwise {name}", daemon=True)
            for name, work, output in (
                ("capture", self._capture, self._packets),
                ("decode", self._decode, self._pictures),
                ("infer", self._infer, self._results),
            )
        ]

    def __enter__(self) -> Self:
        self._network.reset()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._results.abandon()
        capture, *others = self._threads
        # One that waits for a camera or a pipe cannot be woken; it ends with its time-out, or the program.
        capture.join(_GRACE)
        if capture.is_alive() and not _left_behind:
            _left_behind.append(_Farewell())
        for thread in others:  # to their ends: Python must not be shut down under a network that computes
            thread.join()

    def stop(self) -> None:
        """Let the iteration end with what has been recognised; any thread may call this."""
        self.source.stop()
        self._packets.abandon()
        self._pictures.abandon()
        # The capturing thread may be waiting for data: the others do not wait for it.
        self._packets.put(_Ended(), droppable=False)

    def __iter__(self) -> Iterator[Looked | Notice | None]:
        """:class:`Looked` for each picture, :class:`Notice` for what happened; None where for a moment nothing did."""
        seconds, told = 0.0, False
        while not self._finished:
            items = self._results.get(timeout=_BLINK)
            if not items:
                since, limit = self._reading, self.source.quiet_after
                if since is None or limit is None or time.monotonic() - since < limit:
                    told = False
                elif not told:
                    told = True
                    yield Notice("quiet", seconds, f"no picture for {limit:g} s; still waiting")
                yield None
            for item in items:
                if isinstance(item, _Ended):
                    self._finished = True
                    if item.error is not None:
                        raise item.error
                    return
                seconds = item.seconds
                yield item

    def _count_dropped(self, number: int) -> None:
        with self._lock:
            self.tally.dropped += number

    def _guarded(self, work: Callable[[], None], output: _Queue[Any]) -> None:
        error: BaseException | None = None
        try:
            work()
        except BaseException as raised:  # it is raised again where the iteration gets to it
            error = raised
        output.put(_Ended(error), droppable=False)

    def _capture(self) -> None:
        packets, stage = self.source.packets(), self.tally.stages["capture"]
        while True:
            self._reading = began = time.monotonic()
            captured = next(packets, None)
            self._reading = None
            if captured is None:
                return
            if captured.droppable:
                stage.add(time.monotonic() - began)
                self.tally.captured += 1
            self._packets.put(captured, droppable=captured.droppable, alone=captured.alone)

    def _decode(self) -> None:
        stage = self.tally.stages["decode"]
        before: float | None = None
        lasts, dropped = self.source.step, 0
        while True:
            (captured,) = self._packets.get()
            if isinstance(captured, _Ended):
                if captured.error is not None:
                    raise captured.error
                return
            began = time.monotonic()
            for item in self.source.decode(captured):
                if isinstance(item, Notice):
                    before = None
                    self._pictures.put(item, droppable=False)
                    continue
                # Where something happened or pictures were dropped in between, that is not how long one lasts.
                if before is not None and item.seconds > before and self.tally.dropped == dropped:
                    lasts = item.seconds - before
                before, dropped = item.seconds, self.tally.dropped
                self.end = before + lasts
                prepared = self._prepared(item, lasts)
                stage.add(time.monotonic() - began)
                if prepared is not None:
                    self._pictures.put(prepared)
                began = time.monotonic()

    def _prepared(self, picture: Picture, lasts: float) -> _Prepared | None:
        wanted = self._pace.takes(picture.seconds)
        if not wanted:
            self.tally.left_out += 1
            if not self._keep:
                return None
        pixels = picture.rgb()
        seen = self._network.prepare(pixels) if wanted else None
        return _Prepared(picture.seconds, lasts, picture.captured, seen, pixels if self._keep else None)

    def _infer(self) -> None:
        while True:
            items = self._pictures.get(self._at_once)
            (first, *_) = items
            if isinstance(first, _Ended):
                if first.error is not None:
                    raise first.error
                return
            if isinstance(first, Notice):
                if first.broken:
                    self._network.reset()
                self._results.put(first, droppable=False)
                continue
            self._look([item for item in items if isinstance(item, _Prepared)])

    def _look(self, pictures: list[_Prepared]) -> None:
        # All that the queue holds, or one by one: for each other number oneDNN would keep programs of its own, and a
        # GPU a recording, of which a long stream would come to have one after the other.
        at_once = self._at_once if len(pictures) == self._at_once else 1
        for first in range(0, len(pictures), at_once):
            self._look_at(pictures[first : first + at_once])

    def _look_at(self, pictures: list[_Prepared]) -> None:
        seen = [picture.pixels for picture in pictures if picture.pixels is not None]
        scores: Iterator[NDArray[np.float32]] = iter(())
        if seen:
            began = time.monotonic()
            scores = iter(self._network.push(torch.stack(seen)))
            now = time.monotonic()
            self.tally.looked_at += len(seen)
        for picture in pictures:
            if picture.pixels is not None:
                self.tally.stages["infer"].add((now - began) / len(seen))
                self.tally.stages["latency"].add(now - picture.captured)
            mine = None if picture.pixels is None else next(scores)
            self._results.put(Looked(picture.seconds, picture.lasts, mine, picture.captured, picture.picture))
