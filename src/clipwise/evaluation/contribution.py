"""How much of a network's accuracy is space and how much is time: Φ and Ψ of the Deep Analysis paper (§6.3, eq. 1).

With S the accuracy in percent of architecture a on backbone b and k frames, and TSN without temporal pooling as the
network that sees no time::

    Φ_a^b(k) = S_TSN^b(k) / max(S_a^b(k), S_TSN^b(k))          the spatial contribution, in [0, 1]
    Ψ_a^b(k) = (S_a^b(k) − S_TSN^b(k)) / (100 − S_TSN^b(k))    the temporal improvement; below 0 it harms

    Φ̄_a = 1/(|B||K|) Σ_b Σ_k Φ_a^b(k)                          and Ψ̄_a likewise, over all backbones B and frames K

``ta`` is a module by itself, ``ta+tp`` the module with temporal pooling; both are held against the same baseline. The
paper leaves its normalisation factors Z open: they are the number of cells, which gives its Table 7 to the digit from
its authors' results (``mini_benchmark.csv``) except that the print has the columns of I3D and S3D exchanged in the rows
without pooling (Φ̄ and Ψ̄ ta; those of Ψ̄ ta+tp stand right). :data:`TABLE_7` is the table as it is printed.

A mean over some of the cells is not that of all, and two such means of different cells cannot be compared. So a mean
is given only where every cell of the grid B × K, of the backbones and frames that occur in a data set, is there for the
module and for the baseline; or, when asked for, over those that are there, with their number.
"""

import csv
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from clipwise.config import flat

__all__ = ["TABLE_7", "Contribution", "Contributions", "Result", "contributions", "read_results"]

# Φ̄, Ψ̄ ta, Ψ̄ ta+tp
TABLE_7: dict[str, dict[str, tuple[float, float, float]]] = {
    "mini-ssv2": {"i3d": (0.53, 0.46, 0.38), "s3d": (0.53, 0.45, 0.38), "tam": (0.52, 0.47, 0.37)},
    "mini-kinetics": {"i3d": (0.97, 0.06, -0.08), "s3d": (0.97, 0.08, -0.10), "tam": (0.96, 0.09, -0.12)},
    "mini-mit": {"i3d": (0.89, 0.04, 0.02), "s3d": (0.91, 0.03, 0.02), "tam": (0.87, 0.04, 0.04)},
}

_COLUMNS = ("dataset", "module", "backbone", "frames", "temporal_pooling")
_NETWORK = re.compile(r"(?P<module>.+?)_(?P<backbone>resnet\d+|inception_v1|mobilenet_v2|bninception)(?P<rest>_.+)?")
# Options that are the recipe's, not the architecture's; `base_width` is the backbone's.
_INDIFFERENT = ("caffe_stride", "dropout", "last_pool")


class Result(NamedTuple):
    """The accuracy of one network on one data set."""

    dataset: str
    module: str
    backbone: str
    """Empty of a network that is no module on a backbone."""
    frames: int
    temporal_pooling: bool
    accuracy: float | None
    """Percent; None where a study has not run it yet."""
    source: str
    """For messages: the file, and the line or row in it."""
    runs: int = 1
    """Seeds of which it is the mean."""
    protocol: str = ""
    """How it was tested, where the file tells; results that were tested otherwise are not compared."""


class Cell(NamedTuple):
    """One backbone and frame count of a module."""

    backbone: str
    frames: int
    baseline: float
    accuracy: float
    phi: float | None
    """None where neither network is right once."""
    psi: float | None
    """None where the baseline is right always."""
    runs: int
    """Results of which ``accuracy`` is the mean."""

    @property
    def name(self) -> str:
        return _cell_name(self.backbone, self.frames)


@dataclass(frozen=True)
class Contribution:
    """Φ̄ and Ψ̄ of a module, with or without temporal pooling, on a data set."""

    dataset: str
    module: str
    temporal_pooling: bool
    phi: float | None
    """None where cells are missing and a mean over the rest was not asked for."""
    psi: float | None
    cells: tuple[Cell, ...]
    """Those that are there, module and baseline."""
    expected: int
    """Cells of the grid."""
    missing: tuple[str, ...]
    """Cells that the module has no result for, such as ``resnet50 at 16 frames``."""

    @property
    def complete(self) -> bool:
        """Whether both have a result in every cell."""
        return len(self.cells) == self.expected


@dataclass(frozen=True)
class Contributions:
    """Those of all modules on all data sets."""

    rows: tuple[Contribution, ...]
    baseline: str
    baseline_missing: dict[str, tuple[str, ...]]
    """By data set, the cells of the grid that the baseline has no result for; none where there is nothing missing."""
    grids: dict[str, tuple[tuple[str, ...], tuple[int, ...]]]
    """By data set, the backbones and the frames."""
    notes: tuple[str, ...] = field(default=())
    """What a reader of the numbers should know."""

    @property
    def complete(self) -> bool:
        """Whether no cell of any module is missing."""
        return all(row.complete for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with the printed figures of Table 7 where it has that data set and module."""
        return {
            "baseline": self.baseline,
            "datasets": [
                {
                    "dataset": dataset,
                    "backbones": list(backbones),
                    "frames": list(frames),
                    "baseline_missing": list(self.baseline_missing.get(dataset, ())),
                    "modules": [_row_dict(row) for row in self.rows if row.dataset == dataset],
                }
                for dataset, (backbones, frames) in self.grids.items()
            ],
            "notes": list(self.notes),
        }


def _row_dict(row: Contribution) -> dict[str, Any]:
    printed = TABLE_7.get(row.dataset, {}).get(row.module)
    figures = (
        {}
        if printed is None
        else {"psi": printed[2]}
        if row.temporal_pooling
        else {"phi": printed[0], "psi": printed[1]}
    )
    return {
        "module": row.module,
        "temporal_pooling": row.temporal_pooling,
        "phi": row.phi,
        "psi": row.psi,
        **({"table_7": figures} if figures else {}),
        "expected": row.expected,
        "cells": [cell._asdict() for cell in row.cells],
        "missing": list(row.missing),
    }


def contributions(results: Iterable[Result], *, baseline: str = "tsn", partial: bool = False) -> Contributions:
    """Φ and Ψ (eq. 1) of every module in every cell, and their means.

    Several results of one cell, such as seeds, are averaged, which a note tells.

    Args:
        results: in percent; see :func:`read_results`.
        baseline: the module that sees no time; its results without temporal pooling are S_TSN.
        partial: take means over the cells that are there where some are missing.

    Raises:
        ValueError: for no results, an accuracy outside 0 to 100, results that look like shares, results of one data set
            that were tested differently, and where the baseline has no result at all.
    """
    results = list(results)
    if not results:
        raise ValueError("there are no results to compare")
    accuracies = [result.accuracy for result in results if result.accuracy is not None]
    for result in results:
        if result.accuracy is not None and not 0 <= result.accuracy <= 100:
            raise ValueError(f"{result.source}: an accuracy is from 0 to 100 percent, got {result.accuracy}")
    if not accuracies:
        raise ValueError("nothing of these studies was run yet; there are no results to compare")
    if all(accuracy <= 1 for accuracy in accuracies):
        raise ValueError("all accuracies are at most 1, as shares are; give percent, which eq. 1 takes")
    _refuse_other_protocols(results)
    notes: list[str] = []
    means: dict[tuple[str, str, bool], dict[tuple[str, int], tuple[float, int]]] = {}
    by_cell: dict[tuple[str, str, bool, str, int], list[tuple[float, int]]] = {}
    for result in results:
        if result.accuracy is not None:
            key = (result.dataset, result.module, result.temporal_pooling, result.backbone, result.frames)
            by_cell.setdefault(key, []).append((result.accuracy, result.runs))
    for (dataset, module, pooling, backbone, frames), of_cell in by_cell.items():
        runs = sum(number for _, number in of_cell)
        mean = sum(accuracy * number for accuracy, number in of_cell) / runs
        means.setdefault((dataset, module, pooling), {})[backbone, frames] = (mean, runs)
    numbers = sorted({runs for cells in means.values() for _, runs in cells.values()})
    if len(numbers) > 1:
        notes.append(f"cells are means of {numbers[0]} to {numbers[-1]} runs, not of the same number")
    elif numbers[0] > 1:
        notes.append(f"every cell is the mean of {numbers[0]} runs")

    datasets = list(dict.fromkeys(result.dataset for result in results))
    kinds = list(dict.fromkeys((result.module, result.temporal_pooling) for result in results))
    if (baseline, False) not in kinds:
        raise ValueError(
            f"no result of {baseline!r} without temporal pooling, which eq. 1 holds all others against; there is: "
            f"{', '.join(sorted({module for module, _ in kinds}))}; name another baseline with --baseline"
        )
    # The order of Table 7: as in the file, a module by itself before the one with pooling.
    modules = list(dict.fromkeys(module for module, _ in kinds))
    kinds.sort(key=lambda kind: (modules.index(kind[0]), kind[1]))
    grids, rows, baseline_missing = {}, [], {}
    for dataset in datasets:
        here = [result for result in results if result.dataset == dataset]
        backbones = tuple(sorted({result.backbone for result in here}))
        frames_here = tuple(sorted({result.frames for result in here}))
        grids[dataset] = (backbones, frames_here)
        grid = list(product(backbones, frames_here))
        base = means.get((dataset, baseline, False), {})
        lacking = tuple(_cell_name(*cell) for cell in grid if cell not in base)
        if lacking:
            baseline_missing[dataset] = lacking
        for module, pooling in kinds:
            if (module, pooling) == (baseline, False):
                continue
            own = means.get((dataset, module, pooling), {})
            cells = tuple(_cell(*cell, base[cell][0], *own[cell]) for cell in grid if cell in base and cell in own)
            complete = len(cells) == len(grid)
            phis, psis = [cell.phi for cell in cells], [cell.psi for cell in cells]
            for what, values in (("Φ", phis), ("Ψ", psis)):
                undefined = [cell.name for cell, value in zip(cells, values, strict=True) if value is None]
                if undefined:
                    why = "neither network is ever right" if what == "Φ" else f"{baseline} is always right"
                    notes.append(f"{dataset}, {module}: {what} is not defined where {why}: {', '.join(undefined)}")
            rows.append(
                Contribution(
                    dataset,
                    module,
                    pooling,
                    _mean(phis, partial) if complete or partial else None,
                    _mean(psis, partial) if complete or partial else None,
                    cells,
                    len(grid),
                    tuple(_cell_name(*cell) for cell in grid if cell not in own),
                )
            )
    if _columns_exchanged(rows):
        notes.append(
            "Table 7 is printed with the columns of I3D and S3D exchanged in the rows without pooling (Φ̄ and Ψ̄ ta)"
        )
    return Contributions(tuple(rows), baseline, baseline_missing, grids, tuple(notes))


def _cell_name(backbone: str, frames: int) -> str:
    return f"{backbone} at {frames} frames".lstrip()


def _cell(backbone: str, frames: int, baseline: float, accuracy: float, runs: int) -> Cell:
    best = max(accuracy, baseline)
    return Cell(
        backbone,
        frames,
        baseline,
        accuracy,
        baseline / best if best else None,
        (accuracy - baseline) / (100 - baseline) if baseline < 100 else None,
        runs,
    )


def _mean(values: Sequence[float | None], partial: bool) -> float | None:
    there = [value for value in values if value is not None]
    if not there or (len(there) < len(values) and not partial):
        return None
    return math.fsum(there) / len(there)


def _columns_exchanged(rows: Sequence[Contribution]) -> bool:
    """Whether these are Table 7's numbers, I3D's where it prints S3D's."""
    found = {
        (row.dataset, row.module): (row.phi, row.psi)
        for row in rows
        if not row.temporal_pooling and row.phi is not None and row.psi is not None
    }
    other = {"i3d": "s3d", "s3d": "i3d"}
    pairs = [(found.get((dataset, module)), TABLE_7[dataset][other[module]]) for dataset in TABLE_7 for module in other]
    return all(
        own is not None and all(abs(one - two) < 0.0051 for one, two in zip(own, printed[:2], strict=True))
        for own, printed in pairs
    )


def _refuse_other_protocols(results: Sequence[Result]) -> None:
    first: dict[str, Result] = {}
    for result in results:
        known = first.setdefault(result.dataset, result)
        if known.protocol != result.protocol:
            raise ValueError(
                f"{result.source} was tested otherwise than {known.source} ({result.protocol or 'it does not say how'} "
                f"and {known.protocol or 'it does not say how'}); give results of one protocol"
            )


# Reading results


def read_results(paths: Iterable[str | Path], *, metric: str = "top1") -> list[Result]:
    """Results from files of three kinds.

    CSV            a row for each network, columns ``dataset``, ``module``, ``backbone``, ``frames``,
                   ``temporal_pooling`` (0 or 1; 0 where there is no such column) and ``metric``; others are ignored
    ``study.json`` of ``clipwise reproduce``: each variant is a network, its accuracy the mean over its seeds, None
                   where none was run
    other JSON     of ``clipwise evaluate``: one network each, the data set named by the data and its split

    In JSON the module and the backbone are told from the network's name (``stm_resnet50``); options and settings of a
    variant's training that make another network of it stand in its name: ``stm(modules=cstm)``.

    Args:
        paths: the files.
        metric: ``top1``, as in the paper, or another figure that the files have, such as ``mean_class_accuracy``.

    Raises:
        ValueError: for a file that is none of these, a value that is none, and the same weights twice.
    """
    results: list[Result] = []
    weights: dict[str, Path] = {}

    def once(digest: str) -> None:
        if digest in weights:
            raise ValueError(f"{path}: has the weights of {weights[digest]}; give each network once")
        weights[digest] = path

    for path in map(Path, paths):
        if path.suffix.lower() == ".csv":
            results += _from_csv(path, metric)
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise ValueError(f"{path}: neither a CSV (*.csv) nor JSON ({error})") from error
        try:
            if "variants" in record:
                results += _from_study(path, record, metric)
                for digest in dict.fromkeys(run["weights_sha256"] for row in record["variants"] for run in row["runs"]):
                    once(digest)  # rows that differ in testing alone share them
                continue
            if "ensemble" in record:
                raise ValueError(f"{path}: is of an ensemble; eq. 1 is about single networks, give their results")
            results.append(_from_evaluation(path, record, metric))
            once(record["checkpoint"]["sha256"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: not a result of clipwise evaluate or clipwise reproduce, or one without {metric} ({error!r})"
            ) from error
    return results


def _from_csv(path: Path, metric: str) -> list[Result]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    columns = reader.fieldnames or ()
    missing = [name for name in (*_COLUMNS[:-1], metric) if name not in columns]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}; there is: {', '.join(columns)}")
    results = []
    for line, row in rows:
        where = f"{path}, line {line}"
        pooling = row.get("temporal_pooling", "0")
        try:
            frames, accuracy = int(row["frames"]), float(row[metric])
        except (TypeError, ValueError):
            raise ValueError(
                f"{where}: frames must be a whole number and {metric} percent, got {row['frames']!r} and "
                f"{row[metric]!r}"
            ) from None
        if pooling not in ("0", "1"):
            raise ValueError(f"{where}: temporal_pooling must be 0 or 1, got {pooling!r}")
        dataset, module, backbone = (row[name].strip() for name in _COLUMNS[:3])
        results.append(Result(dataset, module, backbone, frames, pooling == "1", accuracy, where))
    return results


def _from_study(path: Path, record: dict[str, Any], metric: str) -> list[Result]:
    """One result for each variant."""
    results = []
    dataset, base = _data_name(record["data"]["source"], None), flat(record["config"])
    for variant in record["variants"]:
        # What differs from the study's configuration, by dotted names: in a run, or else as the variant has it.
        differing = variant["runs"][0]["config"] if variant["runs"] else _differing(variant["training"], base)
        frames = differing.get("model.num_frames", base["model.num_frames"])
        where = f"{path}, {variant['label']}"
        trained = [
            text
            for text in variant["training"]
            if (name := text.partition("=")[0]) in differing and not name.startswith("model.")
        ]
        accuracy = variant["mean"][metric] if variant["runs"] else None
        own_views = dict(text.removeprefix("views.").split("=", 1) for text in variant["views"])
        tested = _protocol(record["config"]["views"] | own_views)
        cell = _cell_of(variant["model"], frames, variant["options"], trained)
        results.append(Result(dataset, *cell, accuracy, where, len(variant["runs"]), tested))
    return results


def _differing(overrides: Iterable[str], base: dict[str, Any]) -> dict[str, Any]:
    import yaml

    values = {name: yaml.safe_load(value) for name, _, value in (text.partition("=") for text in overrides)}
    return {name: value for name, value in values.items() if base.get(name) != value}


def _from_evaluation(path: Path, record: dict[str, Any], metric: str) -> Result:
    model, protocol = record["checkpoint"]["model"], record["protocol"]
    dataset = _data_name(record["data"]["source"], record["data"]["split"])
    cell = _cell_of(model["name"], model["num_frames"], model["options"])
    return Result(dataset, *cell, float(record["video"][metric]), str(path), protocol=_protocol(protocol["views"]))


def _protocol(views: dict[str, Any]) -> str:
    """How a network was tested; what is left out follows from it: its normalisation, and a stride from its frames."""
    return ", ".join(f"{key}={value}" for key, value in views.items() if key not in ("mean", "std", "stride"))


def _data_name(source: str, split: str | None) -> str:
    """Of a data set, wherever the results lie: the last two parts of its path, and the split."""
    return " ".join(["/".join(PurePath(source).parts[-2:]), *([split] if split else [])])


def _cell_of(
    name: str, frames: int, options: dict[str, Any], trained: Sequence[str] = ()
) -> tuple[str, str, int, bool]:
    """Module, backbone, frames and pooling of a network by its name, its options and how it is ``trained`` otherwise
    than others."""
    options = {key: value for key, value in options.items() if value is not None and key not in _INDIFFERENT}
    found = _NETWORK.fullmatch(name)
    module, backbone = (found["module"] + (found["rest"] or ""), found["backbone"]) if found else (name, "")
    backbone = str(options.pop("backbone", backbone))
    width = options.pop("base_width", 64)
    if width != 64:
        backbone += f"(base_width={width})"
    pooling = options.get("temporal_pooling", False)
    if isinstance(pooling, bool):
        options.pop("temporal_pooling", None)
    own = [*(f"{key}={value}" for key, value in sorted(options.items())), *trained]
    if own:
        module += f"({', '.join(own)})"
    return module, backbone, frames, bool(pooling)
