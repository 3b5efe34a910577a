"""Clips played backwards, and the label that they then have; whether a clip is played backwards, as the label.

Backwards, "opening something" shows "closing something": where both are classes, each doubles the other's clips
(Price and Damen, "Retro-Actions", ICCV workshops 2019). Most actions backwards show what no class describes, or what
cannot happen, and no single word tells which: "moving something up" ends with the hand still on it, "lifting something
up, then letting it drop" is no fall upwards. So only whole names that are known to be pairs count, and whoever knows
more of a data set names them (``augmentation.reverse_pairs``).
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from clipwise.data.labels import LABEL

if TYPE_CHECKING:
    from clipwise.data.table import Table

__all__ = ["DIRECTIONS", "reverse", "reverse_labels", "reverse_partners", "write_both_directions"]

DIRECTIONS = ("forward", "reversed")
"""The classes of the task that :func:`write_both_directions` makes."""

# Whole names, in lower case, words separated by spaces; {x} and {y} stand for the same words on both sides.
_PAIRS = (
    ("opening", "closing"),
    ("opening {x}", "closing {x}"),
    ("open", "close"),
    ("open {x}", "close {x}"),
    ("opens", "closes"),
    ("folding", "unfolding"),
    ("folding {x}", "unfolding {x}"),
    ("sitting down", "standing up"),
    ("sit down", "stand up"),
    # Something-Something
    ("approaching {x} with your camera", "moving away from {x} with your camera"),
    ("burying {x} in {y}", "digging {x} out of {y}"),
    ("covering {x} with {y}", "uncovering {x}"),
    ("moving {x} closer to {y}", "moving {x} away from {y}"),
    ("moving {x} and {y} closer to each other", "moving {x} and {y} away from each other"),
    ("moving {x} towards the camera", "moving {x} away from the camera"),
    ("turning the camera left while filming {x}", "turning the camera right while filming {x}"),
    ("turning the camera upwards while filming {x}", "turning the camera downwards while filming {x}"),
    # Jester
    ("pulling hand in", "pushing hand away"),
    ("pulling two fingers in", "pushing two fingers away"),
    ("rolling hand backward", "rolling hand forward"),
    ("turning hand clockwise", "turning hand counterclockwise"),
    ("zooming in with {x}", "zooming out with {x}"),
    # clipwise data synthesize
    ("approaches", "recedes"),
    ("covers", "uncovers"),
    ("drops", "lifts"),
    ("meets", "parts"),
    ("moves down", "moves up"),
    ("moves left", "moves right"),
    ("rotates clockwise", "rotates counterclockwise"),
)


def reverse(clip: Tensor) -> Tensor:
    """(T, …) → (T, …): the last frame first. The label goes through :func:`reverse_labels`."""
    return clip.flip(0)


def reverse_labels(classes: Sequence[str], pairs: Sequence[tuple[str, str]] = ()) -> list[int | None]:
    """Return for every class the label that its clips have when played backwards; None: never play them so.

    A class has a partner only where both names of a known pair are in ``classes``; separators, case and camelCase do
    not matter. A class that would have two partners has none.

    Args:
        classes: the list of classes.
        pairs: more pairs, by the names in ``classes``; they go before the known ones. A class paired with itself is
            the same action either way.

    Raises:
        ValueError: for a class listed twice, a pair that is not in the list, or a class in two of ``pairs``.
    """
    index = {name: label for label, name in enumerate(classes)}
    if len(index) < len(classes):
        twice = next(name for label, name in enumerate(classes) if index[name] != label)
        raise ValueError(f"class names must differ for a label to be found by name; got {twice!r} twice")
    partners: list[int | None] = [None] * len(classes)
    for pair in pairs:
        for name in pair:
            if name not in index:
                raise ValueError(f"reverse_pairs: {name!r} is not in the list of classes")
        for one, other in (pair, pair[::-1]):
            if partners[index[one]] not in (None, index[other]):
                raise ValueError(f"reverse_pairs: {one!r} is in two pairs")
            partners[index[one]] = index[other]
    for one_label, other_label in _known_pairs(classes):
        if partners[one_label] is partners[other_label] is None:
            partners[one_label], partners[other_label] = other_label, one_label
    return partners


def reverse_partners(heads: Sequence[Sequence[str]], pairs: Sequence[tuple[str, str]] = ()) -> list[list[int | None]]:
    """:func:`reverse_labels` of each head's classes.

    Of several heads, one without any pair, such as the noun beside the verb, does not change: what is opened is what is
    closed.

    Raises:
        ValueError: as `reverse_labels`, and where no class at all has a partner.
    """
    for pair in pairs:
        if not any(set(pair) <= set(classes) for classes in heads):
            raise ValueError(f"reverse_pairs: {' and '.join(map(repr, pair))} are not in the list of classes")
    of_heads = [reverse_labels(classes, [pair for pair in pairs if set(pair) <= set(classes)]) for classes in heads]
    if not any(partner is not None for partners in of_heads for partner in partners):
        raise ValueError(
            "augmentation.reverse: no class has the class that it is when played backwards in the list; name such "
            "pairs in augmentation.reverse_pairs, or leave reverse out"
        )
    return [
        partners if any(partner is not None for partner in partners) else list(range(len(partners)))
        for partners in of_heads
    ]


def _known_pairs(classes: Sequence[str]) -> list[tuple[int, int]]:
    """The pairs of labels that the known names give, of which none shares a class with another."""
    spelt: dict[str, list[int]] = {}
    for label, name in enumerate(classes):
        spelt.setdefault(_words(name), []).append(label)
    found = {
        (one, other)
        for words, labels in spelt.items()
        for partner in _backwards(words)
        for one in labels
        for other in spelt.get(partner, ())
    }
    times = [sum(label in pair for pair in found) for label in range(len(classes))]
    return [(one, other) for one, other in sorted(found) if times[one] == times[other] == 1]


def _words(name: str) -> str:
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+", name)).lower()


def _backwards(words: str) -> Iterator[str]:
    """The names that a class of these words may bear backwards, from the first side of a pair to the second."""
    for one, other in _PAIRS:
        slots = re.fullmatch(one.replace("{x}", "(?P<x>.+)").replace("{y}", "(?P<y>.+)"), words)
        if slots:
            yield other.format(**slots.groupdict())


# The direction as the label


def write_both_directions(table: Table, output: str | os.PathLike[str], classes: Sequence[str] = ()) -> int:
    """Write a manifest in which each video stands twice, played forwards as ``forward`` and backwards as ``reversed``.

    No single frame tells the two apart, so a network without temporal modules stays at 50 %: the arrow of time (Pickup
    et al., "Seeing the Arrow of Time", CVPR 2014) asked of any set of videos. Segments and all columns are kept, the
    split with them, so that both directions are in the same one; the labels that there were stand in ``class``
    (``classes`` where they were sets, ``verb`` where they were ``label:verb``).

    Args:
        table: the videos.
        output: the CSV.
        classes: take the videos of these classes only; of all where there are none.

    Returns:
        The number of rows written.

    Raises:
        ValueError: for a class that no video shows, a video that is played backwards already, and where nothing can be
            written.
    """
    manifest = table.manifest
    for name, item in zip(table.names, manifest, strict=True):
        if item.reversed:
            raise ValueError(f"{manifest.source}: {name} is played backwards already; give the manifest without it")
    # A column "class" is the label only where there is no column "label".
    labels = [name for name in table.columns if name in (LABEL, "labels") or name.startswith("label:")] or ["class"]
    shown = [set(manifest.names_of(row)) for row in range(len(table))]
    known = sorted(set().union(*shown))
    for name in classes:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known[:5]
            raise ValueError(f"{manifest.source}: no video shows {name!r}; near it: {', '.join(near)}")
    chosen = [row for row, names in enumerate(shown) if not classes or names & set(classes)]
    header = list(table.header)
    for name in labels:
        kept = {LABEL: "class", "labels": "classes"}.get(name, name.removeprefix("label:"))
        while kept != name and kept.lower() in table.columns:
            kept += "_"
        header[table.columns[name]] = kept
    rows = [row for row in chosen for _ in DIRECTIONS]
    columns = {LABEL: list(DIRECTIONS) * len(chosen), "reversed": ["0", "1"] * len(chosen)}
    renamed = dataclasses.replace(table, header=tuple(header))
    renamed.write(output, rows, columns, classes=DIRECTIONS)
    return len(rows)
