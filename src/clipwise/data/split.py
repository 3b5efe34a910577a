"""Dividing a manifest into train, val and test: every class in its share, no person or recording in two of them.

Videos that belong together (a group, and all segments of one file) are one piece; pieces are dealt out so that

    sum over splits s and classes k of (n_sk - w_s N_k)² / (w_s N_k)

is small, where N_k videos show class k, n_sk of them are in split s, and w_s is the share wanted; all videos together
count as one more class. A class missing from a split costs more than anything else. The largest pieces are dealt
first, each to where it costs least, then single pieces are moved and pairs exchanged while that helps; of several
starts, drawn by the seed, the best is kept. (Exact division is a knapsack problem in as many dimensions as classes.)

Classes that fewer pieces show than there are splits cannot be in each. They are refused, or kept in train alone. Where
that leaves a split too little, as with a long tail of classes of which every person shows some, the pieces are dealt
out anew, so that as few classes as possible are missing anywhere while each split's size stays near its share.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipwise.data.decode import open_frames
from clipwise.data.isolation import run_isolated
from clipwise.data.table import Table

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Division", "Twin", "divide", "groups_of", "near_duplicates", "part_to_divide"]

_MISSING = 1e9  # what a class missing from a split costs
_EMPTY = 1e18  # what a split without videos costs
_LEEWAY = 0.25  # of a split's wanted size, within which it may lie off that for the sake of classes that are missing
_WORK = 3_000_000  # steps of the search over all starts
_STARTS = 32


@dataclass(frozen=True)
class Division:
    """Which split each video is in.

    splits, wanted: names of the splits and their shares. of_row: the split of each video.
    pieces: how many pieces could be dealt out. counts: class → videos in each split.
    uneven: class → why it is further from its share than single videos would allow, in words.
    rare: classes that are in train alone, since too few groups show them.
    missing: other classes → the splits that have none of them; empty unless ``rare_to_train`` allowed for it.
    """

    splits: tuple[str, ...]
    wanted: tuple[float, ...]
    of_row: tuple[str, ...]
    pieces: int
    counts: dict[str, tuple[int, ...]]
    uneven: dict[str, str]
    rare: tuple[str, ...]
    missing: dict[str, tuple[str, ...]]


def groups_of(table: Table, group_by: str | None) -> list[str]:
    """The group of each video: a column's cell, or what a regular expression's first group finds in the path.

    Without ``group_by`` each file is a group. Raises ValueError for what is neither a column nor an expression with
    a group, and for videos without a group.
    """
    if group_by is None:
        return list(table.files)
    if group_by.strip().lower() in table.columns:
        found: list[str | None] = [cell or None for cell in table.column(group_by)]
        remedy = "fill in the column"
    else:
        columns = f"the columns are {', '.join(table.header)}"
        try:
            pattern = re.compile(group_by)
        except re.error as error:
            raise ValueError(
                f"group_by {group_by!r} is no column ({columns}), nor a regular expression: {error}"
            ) from None
        if not pattern.groups:
            raise ValueError(
                f"group_by {group_by!r} is no column ({columns}); as a regular expression on the path it needs a group "
                r"in parentheses that gives the key, such as _g(\d+)_"
            )
        matches = [pattern.search(item.name) for item in table.manifest]
        found = [match[1] if match and match[1] else None for match in matches]
        remedy = "widen the expression"
    without = [name for name, group in zip(table.names, found, strict=True) if group is None]
    if without:
        more = f" and {len(without) - 5} more" if len(without) > 5 else ""
        raise ValueError(
            f"{table.manifest.source}: {len(without)} of {len(table)} videos have no group by {group_by!r}: "
            f"{', '.join(without[:5])}{more}; {remedy}"
        )
    return [group for group in found if group is not None]


def part_to_divide(table: Table, only: str, *, val: float, test: float) -> Table:
    """The rows of the split ``only``, of which shares become val and test while all other rows stay as they are.

    Raises ValueError where there is no such split, and where val or test is there already: what has been measured on it
    would no longer be comparable.
    """
    part = table.select(only)
    there = [name for name, share in (("val", val), ("test", test)) if share and name in table.manifest.splits]
    if there:
        raise ValueError(
            f"{table.manifest.source}: has a split {there[0]} already, and --only {only} would add to it; ask for none "
            f"(--{there[0]} 0), or divide everything anew (--resplit)"
        )
    return part


def divide(
    table: Table,
    *,
    val: float = 0.2,
    test: float = 0.0,
    group_by: str | None = None,
    seed: int = 0,
    rare_to_train: bool = False,
    rest: str = "train",
) -> Division:
    """Divides a manifest; the same for the same manifest and seed, anywhere.

    Args:
        table: the manifest.
        val, test: shares, in [0, 1); a split with share 0 is not made.
        group_by: see :func:`groups_of`.
        seed: draws the order in which pieces are dealt out.
        rare_to_train: put a class that fewer groups show than there are splits into train, instead of refusing. Where
            these classes would take so many groups to train that others are missing elsewhere, or a split is far from
            its share, the division is taken in which the fewest classes are missing from a split.
        rest: the name of the split that val and test leave, which is called train here.

    Raises ValueError for shares that leave nothing for train, for fewer groups than splits, and, without
    ``rare_to_train``, for a class that cannot be in every split because too few groups show it, and where no division
    was found in which every class is in every split.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and 0 < val + test < 1):
        raise ValueError(f"val and test are shares whose sum is above 0 and below 1, got {val:g} and {test:g}")
    shares = {rest: 1 - val - test, **{name: share for name, share in (("val", val), ("test", test)) if share}}
    splits, wanted = tuple(shares), tuple(shares.values())

    groups = groups_of(table, group_by)
    piece_of_row = _pieces(groups, table.files)
    pieces = max(piece_of_row) + 1
    if pieces < len(splits):
        from clipwise.cli.app import counted

        raise ValueError(
            f"{table.manifest.source}: {counted(pieces, 'group' if group_by else 'file')} cannot be divided into "
            f"{_and(splits)}; group by something finer, ask for fewer splits, or add videos"
        )
    showing: dict[str, Counter[int]] = defaultdict(Counter)  # class → piece → videos
    for piece, classes in zip(piece_of_row, table.classes, strict=True):
        for name in classes:
            showing[name][piece] += 1
    names = sorted(showing)
    rare = tuple(name for name in names if len(showing[name]) < len(splits))
    if rare and not rare_to_train:
        raise ValueError(_too_few(table, rare, showing, splits, group_by))

    counts: list[list[tuple[int, int]]] = [[] for _ in range(pieces)]
    for number, name in enumerate(names):
        for piece, count in showing[name].items():
            counts[piece].append((number, count))
    for piece, count in Counter(piece_of_row).items():
        counts[piece].append((len(names), count))  # all videos: one more class
    totals = [sum(showing[name].values()) for name in names] + [len(table)]
    rare_numbers = frozenset(number for number, name in enumerate(names) if name in set(rare))
    where = _search(counts, _Costs(totals, wanted, rare_numbers), seed)
    if rare_to_train:
        lenient = _Costs(totals, wanted, rare_numbers, lenient=True)
        if lenient.total(_counts(counts, where, lenient)) >= _MISSING:
            other = _search(counts, lenient, seed)
            where = min(where, other, key=lambda split: lenient.total(_counts(counts, split, lenient)))
    of_row = tuple(splits[where[piece]] for piece in piece_of_row)

    in_split: dict[str, list[int]] = {name: [0] * len(splits) for name in names}
    for name in names:
        for piece, count in showing[name].items():
            in_split[name][where[piece]] += count
    rare = tuple(name for name in rare if not any(in_split[name][1:]))
    missing = {
        name: tuple(split for split, count in zip(splits, in_split[name], strict=True) if not count)
        for name in names
        if 0 in in_split[name] and name not in set(rare)
    }
    if missing and not rare_to_train:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        shown = f"{', '.join(list(missing)[:5])}{more}" if more else _and(list(missing))
        raise ValueError(
            f"{table.manifest.source}: no division was found in which every class is in {_and(splits)}: "
            f"{shown} would be missing from one; try another --seed, smaller groups or fewer splits, leave these "
            "classes out, or take the division in which the fewest are missing (--rare-to-train)"
        )
    uneven = {
        name: reason
        for name in names
        if name not in missing
        and name not in set(rare)
        and (reason := _unevenness(in_split[name], wanted, splits, showing[name]))
    }
    by_class = {name: tuple(in_split[name]) for name in names}
    return Division(splits, wanted, of_row, pieces, by_class, uneven, rare, missing)


def _pieces(groups: Sequence[str], files: Sequence[str]) -> list[int]:
    """A number for each video, the same for those of one group or one file, directly or by way of others."""
    parents = list(range(len(groups)))

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    for keys in (groups, files):
        first: dict[str, int] = {}
        for row, key in enumerate(keys):
            one, other = sorted((root(first.setdefault(key, row)), root(row)))
            parents[other] = one
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(row), len(numbers)) for row in range(len(groups))]


def _too_few(
    table: Table,
    rare: Sequence[str],
    showing: Mapping[str, Counter[int]],
    splits: Sequence[str],
    group_by: str | None,
) -> str:
    from clipwise.cli.app import counted

    unit = "group" if group_by else "file"
    shown = [
        f"{name!r} ({counted(sum(showing[name].values()), 'video')} in {counted(len(showing[name]), unit)})"
        for name in rare[:5]
    ]
    more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
    remedy = f"group by something finer than {group_by!r}" if group_by else "add videos of them"
    return (
        f"{table.manifest.source}: classes that lie in fewer {unit}s than there are splits ({_and(splits)}) cannot be "
        f"in each: {', '.join(shown)}{more}; {remedy}, ask for fewer splits, leave these classes out, or keep them in "
        f"{splits[0]} alone (--rare-to-train)"
    )


class _Costs:
    """What it costs that ``n`` videos of a class are in a split; the last class is all videos.

    The rare classes stay in train at any price; ``lenient``: at the price of any class that a split lacks.
    """

    def __init__(
        self, totals: Sequence[int], wanted: Sequence[float], rare: frozenset[int], lenient: bool = False
    ) -> None:
        self.splits = len(wanted)
        self.classes = len(totals)
        self._targets = [[share * total for total in totals] for share in wanted]
        self._rare = rare
        self._lenient = lenient

    def __call__(self, split: int, number: int, count: int) -> float:
        target = self._targets[split][number]
        if number == self.classes - 1:
            cost = (count - target) ** 2 / target + (0.0 if count else _EMPTY)
            if self._lenient:
                # In the exchange, a split that is off by its whole size is worth all classes.
                cost += _MISSING * self.classes * max(0.0, abs(count - target) / target - _LEEWAY)
            return cost
        if number in self._rare and not self._lenient:
            return _MISSING * count if split else 0.0
        if number in self._rare and split:
            return 0.0
        # Of two divisions with as many classes missing, that with more of them in train.
        return (count - target) ** 2 / target + (0.0 if count else _MISSING * (1 if split else 1.001))

    def total(self, counts: Sequence[Sequence[int]]) -> float:
        """What a division costs: ``counts[split][class]``."""
        return sum(self(s, k, counts[s][k]) for s in range(self.splits) for k in range(self.classes))


def _search(pieces: Sequence[Sequence[tuple[int, int]]], costs: _Costs, seed: int) -> list[int]:
    """The split of each piece. A piece is (class, videos) for each class it shows."""
    entries = sum(map(len, pieces)) * costs.splits
    exchanges = len(pieces) * entries  # steps to try every pair
    with_pairs = exchanges <= _WORK
    starts = max(1, min(_STARTS, _WORK // (exchanges if with_pairs else entries * 4)))
    random_order = random.Random(f"clipwise split {seed}")
    best: tuple[float, list[int]] | None = None
    for start in range(starts):
        where = _deal(pieces, costs, random_order, with_pairs, vary=start > 0)
        counts = _counts(pieces, where, costs)
        total = costs.total(counts)
        if best is None or total < best[0] - 1e-9:
            best = total, where
    assert best is not None
    return best[1]


def _counts(pieces: Sequence[Sequence[tuple[int, int]]], where: Sequence[int], costs: _Costs) -> list[list[int]]:
    counts = [[0] * costs.classes for _ in range(costs.splits)]
    for piece, split in zip(pieces, where, strict=True):
        for number, count in piece:
            counts[split][number] += count
    return counts


def _deal(
    pieces: Sequence[Sequence[tuple[int, int]]],
    costs: _Costs,
    random_order: random.Random,
    with_pairs: bool,
    vary: bool,
) -> list[int]:
    """One start: deal the pieces out, the largest first (about so, with ``vary``), then move and exchange them while
    that helps."""
    counts = [[0] * costs.classes for _ in range(costs.splits)]
    where = [-1] * len(pieces)

    def change(piece: int, split: int, sign: int) -> float:
        """What it costs to add the piece to a split (or take it away: sign -1)."""
        there = counts[split]
        return sum(costs(split, k, there[k] + sign * n) - costs(split, k, there[k]) for k, n in pieces[piece])

    def put(piece: int, split: int) -> None:
        for target, sign in ((where[piece], -1), (split, 1)):
            if target >= 0:
                for k, n in pieces[piece]:
                    counts[target][k] += sign * n
        where[piece] = split

    order = list(range(len(pieces)))
    random_order.shuffle(order)
    sizes = [-sum(n for _, n in piece) * (random_order.random() if vary else 1) for piece in pieces]
    order.sort(key=sizes.__getitem__)
    for piece in order:
        put(piece, min(range(costs.splits), key=lambda split: change(piece, split, 1)))

    for _ in range(20):
        better = False
        for piece in order:
            now = where[piece]
            away = change(piece, now, -1)
            gains = [(away + change(piece, split, 1), split) for split in range(costs.splits) if split != now]
            gain, split = min(gains)
            if gain < -1e-9:
                put(piece, split)
                better = True
        for place, one in enumerate(order if with_pairs else ()):
            for other in order[:place]:
                a, b = where[one], where[other]
                if a == b:
                    continue
                # Taking one out and putting the other in is one change of a split, so it is done and measured.
                before = change(one, a, -1)
                put(one, b)
                moved = before - change(one, b, -1)
                gain = moved + change(other, b, -1)
                put(other, a)
                gain -= change(other, a, -1)
                if gain < -1e-9:
                    better = True
                else:
                    put(one, a)
                    put(other, b)
        if not better:
            break
    return where


def _unevenness(
    counts: Sequence[int], wanted: Sequence[float], splits: Sequence[str], showing: Counter[int]
) -> str | None:
    """Why a class is off its share by a video or more, and by a hundredth of its videos or more; else None."""
    total = sum(counts)
    off = [(abs(count - share * total), split) for split, (count, share) in enumerate(zip(counts, wanted, strict=True))]
    # The smaller splits tell more: in train the same videos are a smaller share.
    split = max(off[1:])[1] if len(off) > 1 else 0
    if max(off)[0] < max(1, 0.01 * total) - 1e-9:
        return None
    reachable = 1  # bit n is set where some of the groups have n videos together
    for count in showing.values():
        reachable |= reachable << count
    target = wanted[split] * total
    sums = [count for count in range(1, total) if reachable >> count & 1]
    nearest = min(sums, key=lambda count: abs(count - target))
    largest = max(showing.values())
    text = (
        f"{counts[split]} of {total} in {splits[split]} ({counts[split] / total:.0%}, wanted {wanted[split]:.0%}); its "
        f"largest of {len(showing)} groups has {largest}"
    )
    if abs(nearest - target) >= abs(counts[split] - target) - 1e-9:
        return f"{text}, and no choice of groups comes nearer"
    return f"{text}; {nearest} would be possible for it alone, not with the other classes"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# Videos that look alike

TWIN_BITS = 3.0
"""Near-duplicates differ in at most this many of the 64 bits of a frame, on the average over the frames compared."""
_SIDE = 16  # cells of the small pictures that decide
_GREY = 12.0  # grey levels by which their cells may differ, but for one cell in 50 (a logo, a clock)
_STEP = 1.0  # grey levels between neighbours below which they count as equal: the noise of encoding
_STEPS = 16  # fewer neighbours that differ (a black picture, say) tell nothing


class Twin(NamedTuple):
    """Two videos in different splits that look alike; rows of the manifest, and how many of 64 bits differ."""

    one: int
    other: int
    bits: float


class _Task(NamedTuple):
    path: str
    spans: tuple[tuple[float | None, float | None, float | None], ...]


def near_duplicates(
    table: Table,
    splits: Sequence[str],
    *,
    workers: int = 1,
    timeout: float = 60,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[list[Twin], list[int]]:
    """Pairs of videos in different splits whose first, middle and last frames look alike, the likest first; and the
    rows of videos that could not be compared, since they cannot be read or show nothing but one colour.

    Frames are first compared by 64-bit difference hashes (is a cell of 9 × 8 brighter than its left neighbour?), which
    re-encoding and resizing hardly change. What a fixed camera sees all day has nearly one hash, so grey pictures of
    16 × 16 have to agree as well.
    """
    spans: dict[str, dict[tuple[float | None, float | None, float | None], list[int]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row, (item, file) in enumerate(zip(table.manifest, table.files, strict=True)):
        spans[file][item.start, item.end, item.fps].append(row)
    tasks = [_Task(path, tuple(of)) for path, of in spans.items()]
    prints = np.zeros((len(table), 3, 64), np.int8)
    small = np.zeros((len(table), 3, _SIDE, _SIDE), np.uint8)
    done = 0
    with contextlib.closing(run_isolated(_fingerprints, tasks, workers=workers, timeout=timeout)) as outcomes:
        for number, outcome in outcomes:
            for rows, found in zip(spans[tasks[number].path].values(), outcome.value or (), strict=False):
                prints[rows], small[rows] = found
            done += 1
            if progress is not None:
                progress(done, len(tasks))
    known = np.abs(prints).max(2) > 0
    unknown = np.flatnonzero(known.sum(1) < 2).tolist()
    return _alike(prints, small, known, splits), unknown


def _alike(
    prints: NDArray[np.int8], small: NDArray[np.uint8], known: NDArray[np.bool_], splits: Sequence[str]
) -> list[Twin]:
    """Pairs across splits that differ little; ``prints`` (videos, 3, 64) of -1 and 1, 0 where nothing is known,
    ``small`` (videos, 3, 16, 16) grey."""
    flat = prints.reshape(len(prints), -1).astype(np.float32)
    frames = known.astype(np.float32)
    enough, of_row = known.sum(1) >= 2, np.array(splits)
    rows_of = {split: np.flatnonzero((of_row == split) & enough) for split in sorted(set(splits))}
    names = list(rows_of)
    twins = []
    for place, split in enumerate(names):
        for other in names[:place]:
            left, right = rows_of[split], rows_of[other]
            step = max(1, 4_000_000 // max(1, len(right)))
            for begin in range(0, len(left), step):
                part = left[begin : begin + step]
                # Equal signs give 1 and unequal ones -1, so the product tells how many of the bits known differ.
                compared = frames[part] @ frames[right].T
                differing = (64 * compared - flat[part] @ flat[right].T) / 2
                with np.errstate(divide="ignore", invalid="ignore"):
                    bits = np.where(compared >= 2, differing / compared, np.inf)
                for one, two in zip(*np.nonzero(bits <= TWIN_BITS), strict=True):
                    first, second = sorted((int(part[one]), int(right[two])))
                    if _same_greys(small[first], small[second], known[first] & known[second]):
                        twins.append(Twin(first, second, float(bits[one, two])))
    return sorted(twins, key=lambda twin: (twin.bits, twin.one, twin.other))


def _same_greys(one: NDArray[np.uint8], other: NDArray[np.uint8], compared: NDArray[np.bool_]) -> bool:
    """Whether the frames (3, 16, 16) ``compared`` agree but for brightness and a few cells."""
    first, second = (frames[compared].reshape(-1, _SIDE * _SIDE).astype(np.float32) for frames in (one, other))
    difference = first - second
    difference -= np.median(difference, axis=1, keepdims=True)
    return bool((np.quantile(np.abs(difference), 0.98, axis=1) <= _GREY).all())


def _fingerprints(task: _Task, beat: Callable[[], None]) -> list[tuple[NDArray[np.int8], NDArray[np.uint8]]]:
    """For each segment of a file the hashes (3, 64) and grey pictures (3, 16, 16) of its first, middle and last frame;
    zeros for what cannot be read or shows nothing."""
    from PIL import Image

    found = []
    for start, end, fps in task.spans:
        prints, small = np.zeros((3, 64), np.int8), np.zeros((3, _SIDE, _SIDE), np.uint8)
        # What cannot be read is found by `clipwise data check`; whatever a decoder raises, it concerns this file.
        with contextlib.suppress(Exception), open_frames(task.path, start=start, end=end, fps=fps) as frames:
            last = frames.num_frames - 1
            greys = [Image.fromarray(picture).convert("L") for picture in frames.read([0, last // 2, last])]
            small = np.stack([np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BOX)) for grey in greys])
            prints = np.stack([_difference_hash(grey) for grey in greys])
        found.append((prints, small))
        beat()
    return found


def _difference_hash(grey: Image.Image) -> NDArray[np.int8]:
    """(64,) of -1 and 1: 1 where a cell is brighter than its left neighbour; zeros for a picture of hardly more than
    one colour."""
    cells = np.asarray(grey.convert("F").resize((9, 8), 4))  # 4: the mean of what a cell covers
    steps = np.diff(cells, axis=1).ravel()
    if (np.abs(steps) > _STEP).sum() < _STEPS:
        return np.zeros(64, np.int8)
    return np.where(steps > _STEP, 1, -1).astype(np.int8)
