"""What a manifest holds: videos by split and class, their lengths, sizes and rates, in numbers and as a picture.

Of each file the list of its packets is read and the first frame decoded; ``clipwise data check`` looks closer.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipwise.data.check import FileTask, Span, inspect_all
from clipwise.data.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Stats", "collect", "draw"]

_BARS = 40  # classes of a head drawn one by one
_ORDER = ("train", "val", "test")


@dataclass(frozen=True)
class Stats:
    """Numbers about a manifest.

    splits: split → videos; those without one are in ``""``.
    heads: head → class → split → videos. A video with several labels counts once for each of them.
    frames, seconds, fps: of each video (or segment) that can be read, the latter two where they are known.
    sizes: (width, height) → videos. codecs: codec → videos. unreadable: name → reason.
    """

    source: Path
    videos: int
    files: int
    splits: dict[str, int]
    heads: dict[str, dict[str, dict[str, int]]]
    frames: tuple[int, ...]
    seconds: tuple[float, ...]
    fps: tuple[float, ...]
    sizes: dict[tuple[int, int], int]
    codecs: dict[str, int]
    unreadable: dict[str, str]

    @property
    def classes(self) -> dict[str, dict[str, int]]:
        """Class → split → videos; of several heads, the classes of all, as ``verb:take``."""
        several = len(self.heads) > 1
        return {
            f"{head}:{name}" if several else name: counts
            for head, of in self.heads.items()
            for name, counts in of.items()
        }

    def imbalance(self, split: str | None = None, head: str | None = None) -> float | None:
        """Videos of the largest class over those of the smallest, in one split or all, of one head or all.

        None if a class has none.
        """
        of_class = self.classes if head is None else self.heads[head]
        counts: list[int] = [sum(of.values()) if split is None else of[split] for of in of_class.values()]
        return max(counts) / min(counts) if counts and all(counts) else None

    def ranked(self, head: str) -> list[tuple[str, dict[str, int]]]:
        """A head's classes that have videos, the largest first."""
        with_videos = [entry for entry in self.heads[head].items() if any(entry[1].values())]
        return sorted(with_videos, key=lambda entry: (-sum(entry[1].values()), entry[0]))

    def empty(self, head: str) -> int:
        """How many classes of a head have no videos."""
        return len(self.heads[head]) - len(self.ranked(head))

    def rates(self) -> dict[float, int]:
        """Frames a second, to a hundredth → videos, the most frequent first."""
        return dict(Counter(round(fps, 2) for fps in self.fps).most_common())

    def as_json(self) -> dict[str, Any]:
        """All of it; of lengths and rates the total, mean and quartiles."""

        def named(counts: dict[str, int]) -> dict[str, int]:
            return {split or "none": count for split, count in counts.items()}

        return {
            "source": str(self.source),
            "videos": self.videos,
            "files": self.files,
            "splits": named(self.splits),
            "classes": {name: named(counts) for name, counts in self.classes.items()},
            "imbalance": self._imbalances(None) if len(self.heads) == 1 else dict(map(self._of_head, self.heads)),
            "frames": _summary(self.frames),
            "seconds": _summary(self.seconds),
            "fps": _summary(self.fps),
            "rates": {f"{rate:g}": count for rate, count in self.rates().items()},
            "sizes": {f"{width}x{height}": count for (width, height), count in self.sizes.items()},
            "codecs": self.codecs,
            "unreadable": self.unreadable,
        }

    def _imbalances(self, head: str | None) -> dict[str, float | None]:
        return {
            "all": self.imbalance(head=head),
            **{split: self.imbalance(split, head) for split in self.splits if split},
        }

    def _of_head(self, head: str) -> tuple[str, dict[str, float | None]]:
        return head, self._imbalances(head)


def _summary(values: Sequence[float]) -> dict[str, float] | None:
    """None where there are none."""
    if not values:
        return None
    marks = dict(zip(("min", "q1", "median", "q3", "max"), np.quantile(values, (0, 0.25, 0.5, 0.75, 1)), strict=True))
    marks |= {"mean": np.mean(values), "total": np.sum(values)}
    return {key: round(float(value), 4) for key, value in marks.items()}


def collect(
    table: Table,
    *,
    workers: int = 1,
    timeout: float = 60,
    progress: Callable[[int, int], object] | None = None,
) -> Stats:
    """Reads what there is to know about every file, in processes; ``progress`` gets files done and files in all.

    A file that cannot be read counts as a video of its class and split, and is named in ``unreadable``.
    """
    manifest = table.manifest
    spans: dict[str, dict[Span, list[int]]] = defaultdict(lambda: defaultdict(list))
    of_split: Counter[str] = Counter()
    counts: dict[str, dict[str, Counter[str]]] = {
        head.name: {name: Counter() for name in head.classes} for head in manifest.heads
    }
    for row, (item, file) in enumerate(zip(manifest, table.files, strict=True)):
        spans[file][item.start, item.end, item.fps].append(row)
        of_split[item.split or ""] += 1
        names = manifest.names_of(row)
        # A set of labels has one head.
        heads = [manifest.heads[0]] * len(names) if manifest.multi_label else manifest.heads
        for head, name in zip(heads, names, strict=True):
            counts[head.name][name][item.split or ""] += 1
    splits = sorted(of_split, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))

    tasks = [FileTask(path, tuple(of), "header", False) for path, of in spans.items()]
    frames: list[int] = []
    seconds: list[float] = []
    rates: list[float] = []
    sizes: Counter[tuple[int, int]] = Counter()
    codecs: Counter[str] = Counter()
    unreadable: dict[str, str] = {}
    for done, (number, result) in enumerate(inspect_all(tasks, workers=workers, timeout=timeout), start=1):
        facts, of_span = result["facts"], list(spans[tasks[number].path].values())
        for span, kind, reason in result["problems"]:
            if kind != "incomplete":  # what is there can be read
                rows = [row for rows in of_span for row in rows] if span is None else of_span[span]
                unreadable |= {table.names[row]: reason for row in rows}
        for rows, count in zip(of_span, result.get("frames", ()), strict=False):
            for row in rows if count else ():
                if table.names[row] in unreadable:
                    continue
                frames.append(count)
                codecs[facts["codec"]] += 1
                if "width" in facts:
                    sizes[facts["width"], facts["height"]] += 1
                if facts["fps"]:
                    rates.append(facts["fps"])
                    seconds.append(count / facts["fps"])
        if progress is not None:
            progress(done, len(tasks))
    return Stats(
        manifest.source,
        len(table),
        len(tasks),
        {split: of_split[split] for split in splits},
        {
            head: {name: {split: of[split] for split in splits} for name, of in classes.items()}
            for head, classes in counts.items()
        },
        # In order of size, not in that in which the processes were done.
        tuple(sorted(frames)),
        tuple(sorted(seconds)),
        tuple(sorted(rates)),
        dict(sorted(sizes.items(), key=lambda size: (-size[1], size[0]))),
        dict(sorted(codecs.items(), key=lambda codec: (-codec[1], codec[0]))),
        unreadable,
    )


# The picture


def draw(path: str | os.PathLike[str], stats: Stats, title: str) -> None:
    """Draw classes by split, and how long, how large and how fast the videos are; the file's ending gives the format.

    Each head has a panel. Up to 40 classes have a bar each; more are drawn as one falling line. Classes without videos
    are not drawn but counted above.
    """
    from clipwise.analysis.plots import _INK, _QUIET, _figure, _save, _title

    # Inches, as all lengths here.
    top_space, low, gap, least = 0.95 + 0.19 * (len(stats.heads) - 1), 0.6, 0.75, 4.05 if len(stats.heads) == 1 else 2.6
    ranked = {head: stats.ranked(head) for head in stats.heads}
    tall_of = {head: max(least, 0.24 * len(of) - 0.1) if len(of) <= _BARS else 4.05 for head, of in ranked.items()}
    panels = sum(tall_of.values()) + gap * (len(ranked) - 1)
    width, height = 10.0, low + max(4.05, panels) + top_space
    left, middle = (2.2 if any(len(of) <= _BARS for of in ranked.values()) else 0.85), 6.2
    figure = _figure(width, height)
    high = height - top_space
    top = high
    for place, (head, of) in enumerate(ranked.items()):
        top -= tall_of[head]
        axes = figure.add_axes((left / width, top / height, (middle - left) / width, tall_of[head] / height))
        (_draw_bars if len(of) <= _BARS else _draw_line)(axes, stats, of)
        if len(ranked) > 1:
            axes.set_title(head, fontsize=9, color=_QUIET, loc="right", pad=3)
        if not place:
            _legend(axes, stats)
        top -= gap
    figure.text(0.2 / width, 1 - 0.47 / height, _subtitle(stats), fontsize=9, color=_INK, va="top", linespacing=1.4)

    sizes = {f"{width}×{height}": count for (width, height), count in stats.sizes.items()}
    rates = {f"{rate:g} fps": count for rate, count in stats.rates().items()}
    at, top = middle + 0.95, high
    tall = [0.2 * min(4, len(counts)) for counts in (sizes, rates)]
    lengths = min(1.9, high - low - sum(tall) - 1.25)
    for part, below, paint in (
        (lengths, 0.8, lambda axes: _draw_lengths(axes, stats)),
        (tall[0], 0.45, lambda axes: _draw_few(axes, sizes, "size")),
        (tall[1], 0.0, lambda axes: _draw_few(axes, rates, "frame rate")),
    ):
        if part:
            top -= part
            paint(figure.add_axes((at / width, top / height, (width - at - 0.3) / width, part / height)))
            top -= below
    _title(figure, title)
    _save(figure, path)


def _subtitle(stats: Stats) -> str:
    """How many videos and classes there are; of several heads, a line for each."""
    from clipwise.cli.app import counted

    lines = []
    for head, of in stats.heads.items():
        empty = stats.empty(head)
        ratio = stats.imbalance(head=head)
        without = f"{counted(empty, 'class', 'classes')} {'has' if empty == 1 else 'have'} no videos"
        balance = without if ratio is None else f"largest class : smallest = {ratio:.3g} : 1"
        name = f"{head}: " if len(stats.heads) > 1 else ""
        lines.append(f"{name}{counted(len(of), 'class', 'classes')}, {balance}")
    videos = counted(stats.videos, "video")
    return f"{videos}, {lines[0]}" if len(lines) == 1 else "\n".join([f"{videos}; {lines[0]}", *lines[1:]])


def _draw_bars(axes: Axes, stats: Stats, ranked: Sequence[tuple[str, dict[str, int]]]) -> None:
    from clipwise.analysis.plots import _INK, _QUIET, _shortened

    rows = np.arange(len(ranked))
    done = np.zeros(len(ranked))
    for colour, split in zip(_colours(stats.splits), stats.splits, strict=True):
        values = np.array([counts[split] for _, counts in ranked])
        axes.barh(rows, values, left=done, height=0.72, color=colour, label=split or "no split")
        done += values
    most = int(done.max(initial=1))
    for row, total in zip(rows, done, strict=True):
        axes.text(total + 0.012 * most, float(row), f"{total:.0f}", va="center", fontsize=8, color=_INK)
    axes.set_yticks(rows, [_shortened(name, 30) for name, _ in ranked], fontsize=8.5, color=_INK)
    axes.set_ylim(max(len(ranked), 1) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * most)
    axes.set_xticks(_ticks(most, 5))
    axes.set_xlabel("videos", fontsize=9, color=_QUIET)
    axes.xaxis.grid(True, color="#E6E6E6")
    _quieten(axes)


def _draw_line(axes: Axes, stats: Stats, ranked: Sequence[tuple[str, dict[str, int]]]) -> None:
    from clipwise.analysis.plots import _QUIET

    most = 1
    for colour, split in zip(_colours(stats.splits), stats.splits, strict=True):
        values = sorted((counts[split] for _, counts in ranked), reverse=True)
        most = max(most, values[0])
        axes.step(np.arange(1, len(values) + 1), values, where="mid", color=colour, label=split or "no split", lw=1.6)
    axes.set_yscale("symlog", linthresh=1, linscale=0.25)  # logarithmic, with room for none
    axes.set_ylim(0, 1.3 * most)
    powers = [10**power for power in range(len(str(most))) if 10**power <= most / 2]
    axes.set_yticks([0, *powers, most])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.tick_params(axis="y", labelsize=8, labelcolor=_QUIET)
    axes.set_xlim(0, len(ranked) + 1)
    axes.set_xticks(_ticks(len(ranked), 6))
    axes.set_xlabel("classes, the largest first", fontsize=9, color=_QUIET)
    axes.set_ylabel("videos", fontsize=9, color=_QUIET)
    axes.grid(True, color="#E6E6E6")
    _quieten(axes)


def _ticks(most: int, number: int) -> list[int]:
    """Whole numbers from 0 to ``most``, which is one of them, about evenly apart."""
    from matplotlib.ticker import MaxNLocator

    even = [int(tick) for tick in MaxNLocator(number, integer=True).tick_values(0, most)]
    step = even[1] - even[0]
    # One that is close to the last would touch its number.
    return [*(tick for tick in even if 0 <= tick <= most - 0.5 * step), most]


def _draw_lengths(axes: Axes, stats: Stats) -> None:
    from clipwise.analysis.plots import _COLOURS, _QUIET

    # Frame folders may have no rate, and then no seconds.
    values, unit = (stats.seconds, "seconds") if len(stats.seconds) == len(stats.frames) else (stats.frames, "frames")
    if values:
        counts, _, _ = axes.hist(
            np.array(values), bins=min(30, max(5, len(set(values)))), color=_COLOURS[4], edgecolor="white", lw=0.5
        )
        axes.set_yticks(_ticks(int(np.max(counts)), 4))
    axes.set_xlim(left=0)
    axes.set_xlabel(f"length in {unit}", fontsize=9, color=_QUIET)
    axes.set_ylabel("videos", fontsize=9, color=_QUIET)
    axes.yaxis.grid(True, color="#E6E6E6")
    axes.tick_params(axis="y", labelsize=8, labelcolor=_QUIET)
    _quieten(axes)


def _draw_few(axes: Axes, counts: dict[str, int], what: str) -> None:
    """The most frequent values as bars, the others as one."""
    from clipwise.analysis.plots import _COLOURS, _INK, _QUIET

    shown = list(counts.items())[: 3 if len(counts) > 4 else 4]
    others = len(counts) - len(shown)
    if others:
        shown.append((f"{others} others", sum(counts.values()) - sum(count for _, count in shown)))
    most = max([1, *(count for _, count in shown)])
    for row, (_, count) in enumerate(shown):
        axes.barh(row, count, height=0.7, color=_COLOURS[4])
        axes.text(count + 0.015 * most, row, f"{count}", va="center", fontsize=8, color=_INK)
    axes.set_yticks(range(len(shown)), [name for name, _ in shown], fontsize=8, color=_INK)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, 1.15 * most)
    axes.set_xticks([])
    axes.set_title(what, fontsize=9, color=_QUIET, loc="left", pad=3)
    _quieten(axes)


def _colours(splits: Iterable[str]) -> list[str]:
    from clipwise.analysis.plots import _COLOURS

    return [_COLOURS[place % len(_COLOURS)] for place, _ in enumerate(splits)]


def _legend(axes: Axes, stats: Stats) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=min(4, len(stats.splits)),
        frameon=False,
        fontsize=9,
        handlelength=1.2,
        columnspacing=1.4,
    )


def _quieten(axes: Axes) -> None:
    from clipwise.analysis.plots import _QUIET

    axes.tick_params(axis="x", labelsize=8, labelcolor=_QUIET)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
