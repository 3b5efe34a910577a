"""Pictures of results: confusion matrix, accuracy within pairs of classes or by the order of frames, a study's runs,
throughput against MACs, accuracy by how much of a video has passed, strips of frames.

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
    from matplotlib.axes import Axes
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
    _legend(figure, 2.66 / width, 1 - 0.42 / height, columns=len(results))
    _save(figure, path)


def order_accuracy(
    path: str | os.PathLike[str],
    rows: Sequence[str],
    results: Mapping[str, Mapping[str, Sequence[float]]],
    title: str,
) -> None:
    """Draw accuracies in percent as bars: a panel for each network, a row for each class, a colour for each order.

    `results` maps a network's name and then an order's to one accuracy for each of `rows`; the last row, a mean over
    classes, stands a little apart.

    Raises ValueError for fewer than two rows, no network, another number of accuracies than of rows, or one outside 0
    to 100.
    """
    if len(rows) < 2 or not results:
        raise ValueError(f"at least two rows and one network can be drawn; got {len(rows)} and {len(results)}")
    for network, by_order in results.items():
        for order, accuracies in by_order.items():
            if len(accuracies) != len(rows) or not all(0 <= accuracy <= 100 for accuracy in accuracies):
                raise ValueError(
                    f"{network}, {order}: {len(rows)} accuracies in 0 to 100 are drawn; got {list(accuracies)}"
                )
    names = [_shortened(row.replace("_", " "), 34) for row in rows]
    orders = list(next(iter(results.values())))
    thickness = 0.84 / len(orders)
    at = np.append(np.arange(len(rows) - 1, dtype=float), len(rows) - 0.75)
    # Inches.
    margin, panel, gap = 0.4 + max(map(len, names)) * 0.078, 2.7, 0.5
    width = max(margin + len(results) * (panel + gap) + 0.1, 5.5)
    high = (len(rows) + 0.25) * max(0.42, 0.13 * len(orders))
    height = high + 1.75
    figure = _figure(width, height)
    for place, (network, by_order) in enumerate(results.items()):
        left = margin + place * (panel + gap)
        axes = figure.add_axes((left / width, 0.6 / height, panel / width, high / height))
        for number, (order, accuracies) in enumerate(by_order.items()):
            bars = at - 0.42 + thickness * (number + 0.5)
            axes.barh(bars, accuracies, height=thickness * 0.9, color=_COLOURS[number], label=order)
        axes.axhline(len(rows) - 1.375, color="#BBBBBB", linewidth=0.8)
        axes.set_yticks(at, names if place == 0 else [""] * len(rows), fontsize=10, color=_INK)
        axes.get_yticklabels()[-1].set_fontweight("bold")
        axes.set_ylim(at[-1] + 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])
        axes.set_title(_shortened(network, 36), fontsize=10, color=_INK, loc="left")
        axes.xaxis.grid(True, color="#E6E6E6")
        axes.set_axisbelow(True)
        _plain(axes, "videos of the class that are right" if place == 0 else "")
        axes.tick_params(axis="y", labelsize=10)
    _title(figure, title)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="upper left",
        bbox_to_anchor=(0.1 / width, 1 - 0.45 / height),
        ncols=len(orders),
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


def study_figure(
    path: str | os.PathLike[str],
    results: Mapping[str, Sequence[float]],
    gmacs: Mapping[str, float],
    title: str,
    axis: str,
) -> None:
    """Draw each variant's runs as points on a row with their mean and sample deviation; where variants differ in MACs,
    beside it the means against them.

    `results` maps a variant's label to a figure of each seed, which may be none; `gmacs` to a video's GMACs; `axis`
    says what the figures are.

    Raises ValueError if no variant has a result.
    """
    means = {label: float(np.mean(values)) for label, values in results.items() if values}
    if not means:
        raise ValueError(f"no variant of {', '.join(results) or 'none'} has a result to draw")
    names = {label: _shortened(label, 44) for label in results}
    cost = {label: gmacs[label] for label in means}
    against_macs = len(means) > 1 and max(cost.values()) > 1.02 * min(cost.values())
    # Inches.
    left = 0.35 + max(map(len, names.values())) * 0.076
    row, above, below, wide = 0.34, 0.75, 0.6, 4.6
    body = max(row * len(results), 2.6 if against_macs else 1.0)
    width, height = left + wide + 0.75 + (5.4 if against_macs else 0), above + body + below
    figure = _figure(width, height)
    axes = figure.add_axes((left / width, below / height, wide / width, body / height))
    values = [value for each in results.values() for value in each]
    margin = max(0.06 * (max(values) - min(values)), 1.0)
    low, high = min(values) - margin, max(values) + margin
    for place, (label, each) in enumerate(results.items()):
        if not each:
            axes.text((low + high) / 2, place, "not run", ha="center", va="center", fontsize=9, color=_QUIET)
            continue
        mean = means[label]
        if len(each) > 1:
            spread = float(np.std(each, ddof=1))
            axes.plot([mean - spread, mean + spread], [place] * 2, color=_COLOURS[0], linewidth=5, alpha=0.3, zorder=1)
        axes.plot(each, [place] * len(each), "o", markersize=4.5, color="white", markeredgecolor=_INK, zorder=3)
        axes.plot([mean], [place], "D", markersize=7.5, color=_COLOURS[0], zorder=2)
        axes.text(
            1.015, place, f"{mean:.1f}", transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=_INK
        )
    axes.set_xlim(low, high)
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_yticks(range(len(results)), list(names.values()), fontsize=9, color=_INK)
    axes.xaxis.grid(True, color="#E6E6E6")
    axes.set_axisbelow(True)
    _plain(axes, axis)
    if against_macs:
        axes = figure.add_axes(((left + wide + 1.45) / width, below / height, 4.4 / width, body / height))
        if max(cost.values()) > 5 * min(cost.values()):
            axes.set_xscale("log")
        axes.scatter(list(cost.values()), list(means.values()), marker="D", s=36, color=_COLOURS[0], zorder=3)
        axes.margins(x=0.12, y=0.12)
        axes.grid(True, color="#E6E6E6")
        axes.set_axisbelow(True)
        axes.set_ylabel(axis, fontsize=9, color=_QUIET)
        _plain(axes, "GMACs of a video's views")
        _name_points(axes, [(cost[label], mean, _shortened(label, 24)) for label, mean in means.items()])
    _title(figure, title)
    figure.text(
        0.2 / width,
        1 - 0.45 / height,
        "◆ mean   ○ a seed   shaded: ± sample deviation",
        fontsize=9,
        color=_QUIET,
        va="top",
    )
    _save(figure, path)


def throughput_macs(
    path: str | os.PathLike[str],
    forms: Mapping[str, Sequence[tuple[str, float, float]]],
    title: str,
    axis: str,
) -> None:
    """Draw throughput against MACs: a colour for each form, a point for each network.

    `forms` maps a form's name to (network, GMACs of a clip, clips a second); `axis` says what the latter are.

    Raises ValueError for no point, more than six forms, or a figure that is not above 0.
    """
    points = [point for each in forms.values() for point in each]
    if not points or len(forms) > len(_COLOURS):
        raise ValueError(
            f"at least one network and up to {len(_COLOURS)} forms can be drawn; got {len(points)} and {len(forms)}"
        )
    if not all(gmacs > 0 and speed > 0 for _, gmacs, speed in points):
        raise ValueError(f"MACs and clips a second are above 0; got {points}")
    width, height = 8.0, 5.6
    figure = _figure(width, height)
    axes = figure.add_axes((0.85 / width, 0.6 / height, (width - 1.25) / width, (height - 1.55) / height))
    for place, (form, each) in enumerate(forms.items()):
        axes.scatter(
            [gmacs for _, gmacs, _ in each],
            [speed for _, _, speed in each],
            marker="D",
            s=36,
            color=_COLOURS[place],
            label=form,
            zorder=3,
        )
    axes.margins(x=0.14, y=0.1)
    axes.grid(True, color="#E6E6E6")
    axes.set_axisbelow(True)
    axes.set_ylabel(axis, fontsize=9, color=_QUIET)
    _plain(axes, "GMACs of a clip")
    axes.set_ylim(bottom=0)
    _name_points(axes, [(gmacs, speed, _shortened(name, 30)) for name, gmacs, speed in points])
    _title(figure, title)
    _legend(figure, 0.1 / width, 1 - 0.45 / height, columns=len(forms))
    _save(figure, path)


def earliness_curves(
    path: str | os.PathLike[str],
    shares: Sequence[float],
    results: Mapping[str, Mapping[str, ArrayLike]],
    title: str,
    axis: str,
) -> None:
    """Draw accuracies in percent against how much of the videos has passed: a colour for each network, a line style for
    each way of answering.

    `shares` are S percentages; `results` maps a network's name and then a way's to (R, S) accuracies of R trainings,
    whose mean is drawn and, of several, the sample deviation as a shade. `axis` says what the accuracies are.

    Raises ValueError for no network, more than six, a network with more than three ways, or accuracies that are not
    (R, S) in 0 to 100.
    """
    if not 1 <= len(results) <= len(_COLOURS):
        raise ValueError(f"1 to {len(_COLOURS)} networks can be drawn; got {len(results)}")
    from matplotlib.lines import Line2D

    styles = ("-", (0, (5, 2)), (0, (1, 1.5)))
    width, height = 8.0, 4.75 + 0.23 * sum(map(len, results.values()))
    below = 0.6 + 0.23 * sum(map(len, results.values()))
    figure = _figure(width, height)
    axes = figure.add_axes((0.85 / width, below / height, (width - 1.25) / width, (height - below - 0.6) / height))
    lines: list[tuple[Line2D, str]] = []
    for colour, (network, by_way) in zip(_COLOURS, results.items(), strict=False):
        if len(by_way) > len(styles):
            raise ValueError(f"{network}: up to {len(styles)} ways of answering can be drawn; got {list(by_way)}")
        for style, (way, accuracies) in zip(styles, by_way.items(), strict=False):
            values = np.asarray(accuracies, dtype=np.float64)
            if values.ndim != 2 or values.shape[1] != len(shares) or not ((values >= 0) & (values <= 100)).all():
                raise ValueError(
                    f"{network}, {way}: (trainings, {len(shares)}) accuracies in 0 to 100 are drawn; got {values}"
                )
            mean = values.mean(axis=0)
            (line,) = axes.plot(shares, mean, color=colour, linestyle=style, linewidth=1.8, marker="o", markersize=3.5)
            lines.append((line, f"{_shortened(network, 44)}: {way}"))
            if len(values) > 1:
                spread = values.std(axis=0, ddof=1)
                axes.fill_between(shares, mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0)
    axes.set_ylim(0, 100)
    axes.set_xlim(0, 103)
    axes.set_xticks(list(shares))
    axes.set_yticks(range(0, 101, 20))
    axes.grid(True, color="#E6E6E6")
    axes.set_axisbelow(True)
    axes.set_ylabel(axis, fontsize=9, color=_QUIET)
    _plain(axes, "of each video seen, %")
    figure.legend(
        *zip(*lines, strict=True),
        loc="lower left",
        bbox_to_anchor=(0.7 / width, 0.05 / height),
        frameon=False,
        fontsize=9,
        handlelength=3.2,
    )
    _title(figure, title)
    _save(figure, path)


def _legend(figure: "Figure", left: float, top: float, *, columns: int) -> None:
    """The names of the colours, in a row whose corner is given in shares of the figure."""
    figure.legend(
        loc="upper left",
        bbox_to_anchor=(left, top),
        ncols=columns,
        frameon=False,
        fontsize=10,
        handlelength=1.2,
        columnspacing=1.6,
    )


def _plain(axes: "Axes", axis: str) -> None:
    """Axes without a frame, with small grey numbers."""
    axes.set_xlabel(axis, fontsize=9, color=_QUIET)
    axes.tick_params(length=0, labelsize=9)
    axes.tick_params(axis="x", colors=_QUIET)
    axes.spines[:].set_visible(False)


def _name_points(axes: "Axes", points: Sequence[tuple[float, float, str]]) -> None:
    """Write names beside points, from the highest down, each below those that it would lie upon."""
    axes.autoscale_view()
    pixels = 72 / axes.figure.dpi
    right = axes.get_window_extent().x1 * pixels
    taken: list[tuple[float, float, float]] = []  # begin, end and height of a name, in points
    for x, y, name in sorted(points, key=lambda point: -point[1]):
        at, up = axes.transData.transform((x, y)) * pixels
        long = len(name) * 4.8
        begin = at + 6 if at + 6 + long <= right + 30 else at - 6 - long
        high = up
        for other_begin, other_end, other_high in taken:
            if begin < other_end and other_begin < begin + long:
                high = min(high, other_high - 9)
        taken.append((begin, begin + long, high))
        axes.annotate(
            name,
            (x, y),
            xytext=(begin - at, high - up),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=_INK,
        )


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
