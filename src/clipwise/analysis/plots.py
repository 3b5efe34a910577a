"""Pictures of results: confusion matrix, accuracy within pairs of classes, strips of frames.

Drawn without a display and without pyplot's global state, so they may be drawn in any thread. Colours are
told apart by the colour-blind. The file's ending gives the format: .png, .svg, .pdf.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipwise.files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_INK, _QUIET = "#222222", "#777777"
_NUMBERS_UP_TO = 20  # classes: with more, a cell's number would be smaller than the eye reads


def confusion_matrix(path: str | os.PathLike[str], confusion: ArrayLike, classes: Sequence[str], title: str) -> None:
    """Draw C×C counts, confusion[label][predicted], each row as shares of that class's videos.

    Numbers (percent) are shown for up to 20 classes; the picture grows with more
    classes so that every name stays legible. A class without videos is a hatched row.

    Raises ValueError unless the counts are C×C for C class names, at least one, none negative.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    number = len(classes)
    if number == 0 or counts.shape != (number, number):
        raise ValueError(f"confusion must be C × C for C class names; got {counts.shape} for {number}")
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise ValueError("confusion counts videos: finite, none negative")
    from matplotlib.patches import Rectangle

    videos = counts.sum(1, keepdims=True)
    shares = 100 * np.divide(counts, videos, out=np.zeros_like(counts), where=videos > 0)

    # Inches. A cell never gets smaller than a line of its name in 5 points.
    cell = float(np.clip(6.5 / number, 0.085, 0.8))
    font = float(np.clip(cell * 72 * 0.75, 5, 10))
    names = [_shortened(name, int(3.3 * 72 / (font * 0.56))) for name in classes]
    margin = 0.35 + max(map(len, names)) * font * 0.56 / 72
    side = cell * number
    right, top = 0.9, 0.55
    bottom = margin
    width, height = max(margin + side + right, 4.5), top + side + bottom
    figure = _figure(width, height)
    axes = figure.add_axes((margin / width, bottom / height, side / width, side / height))

    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest", aspect="auto")
    axes.set_xticks(range(number), names, rotation=90, fontsize=font, color=_INK)
    axes.set_yticks(range(number), names, fontsize=font, color=_INK)
    axes.tick_params(length=0, pad=2)
    axes.set_xticks(np.arange(number + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(number + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#DDDDDD" if number > _NUMBERS_UP_TO else "white", linewidth=min(1, cell * 3))
    axes.tick_params(which="minor", length=0)
    for label in np.flatnonzero(videos[:, 0] == 0):
        axes.add_patch(
            Rectangle((-0.5, label - 0.5), number, 1, hatch="////", facecolor="#F2F2F2", edgecolor="#BBBBBB", lw=0)
        )
    if number <= _NUMBERS_UP_TO:
        for label, predicted in zip(*np.nonzero(counts), strict=True):
            share = shares[label, predicted]
            axes.text(
                *(predicted, label, f"{share:.0f}"),
                ha="center",
                va="center",
                fontsize=min(font + 1, 10),
                color="white" if share > 55 else _INK,
            )
    axes.set_xlabel("predicted", color=_QUIET, fontsize=max(font, 8))
    axes.set_ylabel("true class", color=_QUIET, fontsize=max(font, 8))
    for spine in axes.spines.values():
        spine.set_color("#BBBBBB")
    bar_height = min(side, 3.0)
    bar = figure.add_axes(
        (
            (margin + side + 0.15) / width,
            (bottom + side - bar_height) / height,
            0.14 / width,
            bar_height / height,
        )
    )
    figure.colorbar(image, cax=bar, ticks=(0, 25, 50, 75, 100))
    bar.tick_params(labelsize=8, length=2, colors=_QUIET)
    bar.set_ylabel("% of the class's videos", fontsize=8, color=_QUIET)
    bar.spines[:].set_visible(False)
    _title(figure, title)
    _save(figure, path)


def pair_accuracy(
    path: str | os.PathLike[str],
    pairs: Sequence[tuple[str, str]],
    results: Mapping[str, Sequence[float]],
    title: str,
) -> None:
    """Draw, for each pair of classes and each network, the accuracy in percent, and the networks' means.

    `results` maps a network's name to one accuracy per pair. The dashed line at 50 % is what guessing
    reaches.

    Raises ValueError for no pair, no network, more than six networks, another number of accuracies than of
    pairs, or one outside 0 to 100.
    """
    if not pairs or not 1 <= len(results) <= len(_COLOURS):
        raise ValueError(
            f"at least one pair and 1 to {len(_COLOURS)} networks can be drawn; got {len(pairs)} and {len(results)}"
        )
    for network, accuracies in results.items():
        if len(accuracies) != len(pairs) or not all(0 <= accuracy <= 100 for accuracy in accuracies):
            raise ValueError(
                f"{network} needs {len(pairs)} accuracies, one per pair, in 0 to 100; got {list(accuracies)}"
            )

    labels = [_pair_label(*(name.replace("_", " ") for name in pair)) for pair in pairs]
    thickness = 0.8 / len(results)
    # One row for each pair and, a little apart, one for the means.
    rows = np.append(np.arange(len(pairs), dtype=float), len(pairs) + 0.25)
    width, height = 8.0, 1.25 + (len(pairs) + 1.25) * max(0.46, 0.21 * len(results))
    figure = _figure(width, height)
    axes = figure.add_axes((2.75 / width, 0.5 / height, (width - 3.15) / width, (height - 1.35) / height))
    for place, (network, accuracies) in enumerate(results.items()):
        values = np.append(accuracies, np.mean(accuracies))
        at = rows - 0.4 + thickness * (place + 0.5)
        axes.barh(at, values, height=thickness * 0.92, color=_COLOURS[place], label=network)
        for row, value in zip(at, values, strict=True):
            axes.text(
                *(value + 1, row, f"{value:.0f}"),
                va="center",
                fontsize=9,
                color=_INK,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            )
    axes.axvline(50, color=_INK, linewidth=1.1, linestyle=(0, (4, 3)))
    axes.text(50, -0.52, "chance", ha="center", va="bottom", fontsize=9, color=_INK)
    axes.axhline(len(pairs) - 0.375, color="#BBBBBB", linewidth=0.8)
    axes.set_yticks(rows, [*labels, "mean"], fontsize=10, color=_INK)
    axes.get_yticklabels()[-1].set_fontweight("bold")
    axes.set_ylim(rows[-1] + 0.5, -0.5)
    axes.set_xlim(0, 105)
    axes.set_xticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)], fontsize=9, color=_QUIET)
    axes.set_xlabel("videos of the pair told apart correctly", fontsize=9, color=_QUIET)
    axes.tick_params(length=0)
    axes.xaxis.grid(True, color="#E6E6E6")
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    _title(figure, title)
    figure.legend(
        loc="upper left",
        bbox_to_anchor=(2.66 / width, 1 - 0.42 / height),
        ncols=len(results),
        frameon=False,
        fontsize=10,
        handlelength=1.2,
        columnspacing=1.6,
    )
    _save(figure, path)


def frame_strip(path: str | os.PathLike[str], rows: Sequence[tuple[str, NDArray[np.uint8]]]) -> None:
    """Draw a contact sheet: each row a label and its frames (T,H,W,3) uint8, time going right.

    Rows may differ in length and size; all are drawn equally high.

    Raises ValueError for no row, or frames of another shape or type.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one row of frames; got none")
    for label, frames in rows:
        if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape or frames.dtype != np.uint8:
            raise ValueError(
                f"{label}: frames must be (T, H, W, 3) uint8, none of them 0; got {frames.shape} {frames.dtype}"
            )
    # Inches. The longest row is as wide as a README, unless that would make its frames too high.
    gap, heading, edge = 0.04, 0.26, 0.12
    lengths = [(len(frames), frames.shape[2] / frames.shape[1]) for _, frames in rows]
    high = min(1.4, *((9.5 - gap * (count - 1)) / (count * aspect) for count, aspect in lengths))
    widths = [count * aspect * high + gap * (count - 1) for count, aspect in lengths]
    width = 2 * edge + max(*widths, 3.0)
    height = 2 * edge + len(rows) * (heading + high) + (len(rows) - 1) * 0.1
    figure = _figure(width, height)
    top = height - edge
    for (label, frames), (_, aspect) in zip(rows, lengths, strict=True):
        figure.text(edge / width, (top - 0.05) / height, label, fontsize=10, color=_INK, va="top")
        top -= heading + high
        for t, frame in enumerate(frames):
            left = edge + t * (aspect * high + gap)
            axes = figure.add_axes((left / width, top / height, aspect * high / width, high / height))
            axes.imshow(frame, aspect="auto", interpolation="antialiased")
            axes.set_axis_off()
        top -= 0.1
    figure.text(1 - edge / width, 1 - (edge + 0.05) / height, "time →", fontsize=9, color=_QUIET, va="top", ha="right")
    _save(figure, path)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor="white")


def _title(figure: "Figure", title: str) -> None:
    """Write the title along the upper edge, smaller where it would not fit."""
    width, height = figure.get_size_inches()
    size = min(13.0, (width - 0.4) * 72 / (0.68 * max(len(title), 1)))
    figure.text(0.2 / width, 1 - 0.2 / height, title, fontsize=size, weight="bold", color=_INK, va="top")


def _pair_label(one: str, other: str) -> str:
    label = f"{one} / {other}"
    return label if len(label) <= 34 else f"{_shortened(one, 32)} /\n{_shortened(other, 34)}"


def _save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    target = Path(path)
    with written_whole(target) as partial:
        figure.savefig(partial, format=target.suffix.removeprefix(".").lower() or "png", dpi=150)


def _shortened(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"
