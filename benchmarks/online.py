"""How well networks that follow a video frame by frame recognise: single clips, and events in long recordings.

Two parts, on `overhead_adl` (actions of one person under a ceiling camera, cut into clips; `clips.csv` names the
recording of each):

clips       what `clipwise analyze online` measures, on the clips of the split: offline, sliding window, causal
recordings  the clips of each recording, joined in their order into one video file of its own; each network follows it
            as one stream, and its smoothed scores become events. Counted are those of the classes that begin and end
            (falling, lying down, sitting down, standing up); walking and resting are background

An event is right if it has the class of a true one and begins within a second of it; each true event counts once.
**as found**: it begins where the smoothed score reached the threshold, which is some time after the action began.
**dated back**: by the class's usual delay, which moves what is written down, not when it is told.

No training saw the split's recordings. Smoothing, thresholds, shortest duration and delays of a recording are those
that were best on the split's *other* recordings. The frames looked at lie as far apart as in training: T segments of a
clip of median length, unless --stride says otherwise. Of a causal network it is chosen likewise whether the consensus
or each frame's own scores count, and whether twice as many frames are looked at.

With --moved each two-sided network's weights are also tested in a causal network as they are, without training.

What joined recordings are not: the clips' labels are good to about half a second, and between some clips the original
recording went on, so that the joined one jumps there.

    python benchmarks/online.py --data ../shared/data/overhead_adl --weights last --moved \\
        --output benchmarks/results/online_overhead_adl.json runs/studies/overhead_adl/stm_seed{0,1,2} \\
        runs/studies/overhead_adl_causal/stm_causal_seed{0,1,2}
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

TRANSITIONS = ("falling", "lying_down", "sitting_down", "standing_up")
NEAR = 1.0  # seconds within which an event must begin
DATINGS = ("as found", "dated back")
TOGETHER = 8  # frames that go through the network at once; the answers are those of one at a time
GOAL = 6.0  # points of mean-class accuracy that the causal network may lose


class Truth(NamedTuple):
    label: str
    start: float
    end: float


class Recording(NamedTuple):
    name: str
    path: Path
    frames: int
    fps: float
    truth: tuple[Truth, ...]  # all classes, in order, neighbours of one class joined


class Look(NamedTuple):
    """How a network follows a recording."""

    stride: int  # frames between those looked at
    consensus: bool  # of a causal network: the mean over the last T frames, or each frame's own scores


class Parameters(NamedTuple):
    look: Look
    smoothing: float  # seconds, exponential
    threshold: float
    release: float  # of the threshold
    min_seconds: float


SETTINGS = {
    "smoothing": (0.0, 0.3, 0.6, 1.2),
    "threshold": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "release": (0.5, 0.8),
    "min_seconds": (0.0, 0.6, 1.2),
}
Scores = tuple[NDArray[np.float64], NDArray[np.float32]]  # (K,) seconds, (K, C)


class Found(NamedTuple):
    """An event; ``told`` is when it is known, ``start`` and ``min_seconds`` later."""

    label: str
    start: float
    told: float
    end: float


# Recordings


def join_recordings(data: Path, split: str, folder: Path, only: int | None) -> list[Recording]:
    """One H.264 file for each recording of the split, in ``folder``."""
    from clipwise.data.decode import open_frames

    with (data / "clips.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    by_recording: dict[str, list[dict[str, str]]] = {}
    for row in sorted(rows, key=lambda row: Path(row["path"]).stem):
        by_recording.setdefault(row["recording"], []).append(row)
    recordings = []
    for name, clips in list(by_recording.items())[:only]:
        path = folder / f"{name}.mp4"
        counts, fps = write_joined(path, [data / clip["path"] for clip in clips])
        ends = np.cumsum(counts) / fps
        truth: list[Truth] = []
        for clip, start, end in zip(clips, [0.0, *ends], ends.tolist(), strict=False):
            if truth and truth[-1].label == clip["class"]:
                truth[-1] = truth[-1]._replace(end=end)
            else:
                truth.append(Truth(clip["class"], float(start), end))
        with open_frames(path) as frames:
            if frames.num_frames != sum(counts):
                raise SystemExit(f"{path}: {frames.num_frames} frames were written, {sum(counts)} were meant to be")
        recordings.append(Recording(name, path, sum(counts), fps, tuple(truth)))
    return recordings


def write_joined(path: Path, clips: Sequence[Path]) -> tuple[list[int], float]:
    """Decode clips and encode them anew as one; returns the frames of each, and frames a second."""
    import av

    counts: list[int] = []
    rates = set()
    with av.open(str(path), "w") as output:
        stream = None
        for clip in clips:
            with av.open(str(clip)) as source:
                own = source.streams.video[0]
                rates.add(own.average_rate)
                counts.append(0)
                for frame in source.decode(own):
                    if stream is None:
                        # Hardly visible loss; keyframes as a camera sends them.
                        stream = output.add_stream("libx264", rate=own.average_rate, options={"crf": "16", "g": "50"})
                        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
                    frame.pts, frame.time_base, frame.pict_type = sum(counts), 1 / own.average_rate, 0
                    output.mux(stream.encode(frame))
                    counts[-1] += 1
        output.mux(stream.encode())
    if len(rates) > 1:
        raise SystemExit(f"{path.stem}: clips of different rates cannot be joined: {sorted(rates)}")
    return counts, float(rates.pop())


def training_stride(data: Path, num_frames: int) -> int:
    """Frames between two of the T that training takes of a clip of median length."""
    with (data / "clips.csv").open(newline="", encoding="utf-8") as file:
        frames = [int(row["frames"]) for row in csv.DictReader(file) if row["split"] == "train"]
    return max(1, round(float(np.median(frames)) / num_frames))


def moved(checkpoint: Path, which: str, folder: Path) -> Path:
    """A checkpoint of the causal network with a two-sided network's weights: its kernels moved back one frame."""
    from clipwise import create_model
    from clipwise.checkpoint import read_checkpoint, write_card, write_weights

    trained = read_checkpoint(checkpoint, which=which)  # type: ignore[arg-type]
    config = dataclasses.replace(trained.config, options={**trained.config.options, "causal": True})
    sizes = {"num_classes": len(trained.classes), "num_frames": config.num_frames}
    model = create_model(config.name, **sizes, **config.options)
    model.load_state_dict(trained.model.state_dict())
    stem, seed, number = checkpoint.resolve().name.partition("_seed")
    made = folder / f"{stem}_moved{seed}{number}"
    made.mkdir()
    write_card(made, config, trained.label_space, trained.views)
    write_weights(model, made / f"{which}.safetensors")
    return made


# Scores and events


def looks_of(causal: bool, stride: int, given: bool) -> list[Look]:
    """The ways of following a recording among which is chosen."""
    if not causal:
        return [Look(stride, True)]
    strides = [stride] if given else [stride, max(1, round(stride / 2))]
    return [Look(*one) for one in itertools.product(strides, (True, False))]


def scores_of(predictor: Any, recording: Recording, stride: int) -> Scores:
    """(K,) seconds and (K, C) scores of the frames looked at, the recording being one stream."""
    import torch

    from clipwise.data.decode import open_frames
    from clipwise.evaluation.online import Looks

    predictor.reset()
    scores = []
    with open_frames(recording.path) as frames:
        looked = Looks(stride=stride).of(frames, predictor.num_frames)
        for start in range(0, len(looked), TOGETHER):
            pictures = frames.read(looked[start : start + TOGETHER])
            scores.append(predictor.push(torch.stack([predictor.prepare(picture) for picture in pictures])))
    return looked / recording.fps, np.concatenate(scores)


def events_of(
    seconds: NDArray[np.float64],
    scores: NDArray[np.float32],
    classes: Sequence[str],
    parameters: Parameters,
    duration: float,
) -> list[Found]:
    from clipwise.inference.events import EventFinder, Smoothing

    smoothing = Smoothing(parameters.smoothing)
    finder = EventFinder(
        classes,
        start=parameters.threshold,
        end=parameters.threshold * parameters.release,
        min_seconds=parameters.min_seconds,
        background=[name for name in classes if name not in TRANSITIONS],
    )
    found: list[Found] = []
    for now, row in [*zip(seconds.tolist(), scores, strict=True), (duration, None)]:
        for event in finder.finish(now) if row is None else finder.update(now, smoothing(now, row)):
            if event.end is None:
                found.append(Found(event.label, event.start, now, duration))
            else:
                found[-1] = found[-1]._replace(end=event.end)
    return found


def pairs_of(found: Sequence[tuple[str, float]], truth: Sequence[Truth]) -> list[tuple[int, int]]:
    """Places of found events and of the true ones that they are, the nearest starts first, each at most once."""
    near = sorted(
        (abs(start - true.start), i, j)
        for i, (label, start) in enumerate(found)
        for j, true in enumerate(truth)
        if label == true.label and abs(start - true.start) <= NEAR
    )
    pairs: list[tuple[int, int]] = []
    for _, i, j in near:
        if all(i != other and j != another for other, another in pairs):
            pairs.append((i, j))
    return pairs


def overlapping(found: Sequence[Found], truth: Sequence[Truth]) -> list[tuple[Found, Truth]]:
    """Each true event with the first found one of its class that has time in common with it."""
    pairs = []
    for true in truth:
        same = [event for event in found if event.label == true.label and event.start < true.end]
        same = [event for event in same if event.end > true.start]
        pairs += [(same[0], true)] if same else []
    return pairs


def true_events(recording: Recording) -> list[Truth]:
    return [true for true in recording.truth if true.label in TRANSITIONS]


def delays_of(found: dict[str, list[Found]], recordings: Sequence[Recording]) -> dict[str, float]:
    """By how much the events of each class begin late, by the median; that of all for a class that was not found."""
    late: dict[str, list[float]] = {label: [] for label in TRANSITIONS}
    for recording in recordings:
        for event, true in overlapping(found[recording.name], true_events(recording)):
            late[event.label].append(event.start - true.start)
    everything = [value for values in late.values() for value in values]
    usual = float(np.median(everything)) if everything else 0.0
    return {label: float(np.median(values)) if values else usual for label, values in late.items()}


def dated(found: Sequence[Found], delays: dict[str, float]) -> list[tuple[str, float]]:
    return [(event.label, event.start - delays[event.label]) for event in found]


class Counts(NamedTuple):
    right: int
    found: int
    true: int

    @property
    def f1(self) -> float:
        return 2 * self.right / (self.found + self.true) if self.found + self.true else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            **self._asdict(),
            "precision": 100 * self.right / self.found if self.found else None,
            "recall": 100 * self.right / self.true if self.true else None,
        }


def counted(found: Sequence[tuple[str, float]], truth: Sequence[Truth], labels: Sequence[str] = TRANSITIONS) -> Counts:
    found = [one for one in found if one[0] in labels]
    truth = [one for one in truth if one.label in labels]
    return Counts(len(pairs_of(found, truth)), len(found), len(truth))


def added(counts: Sequence[Counts]) -> Counts:
    return Counts(*(sum(column) for column in zip(*counts, strict=True)))


def evaluate_events(
    streams: dict[Look, dict[str, Scores]], recordings: Sequence[Recording], classes: Sequence[str]
) -> dict[str, Any]:
    """Precision and recall of one network, the parameters for each recording chosen on all others.

    Args:
        streams: its scores of each recording, by its name.
    """
    grid = [Parameters(*one) for one in itertools.product(streams, *SETTINGS.values())]
    found = {
        parameters: {
            one.name: events_of(*streams[parameters.look][one.name], classes, parameters, one.frames / one.fps)
            for one in recordings
        }
        for parameters in grid
    }
    result: dict[str, Any] = {}
    for dating in DATINGS:
        chosen: dict[str, Parameters] = {}
        told: dict[str, dict[str, Any]] = {}
        starts: dict[str, list[tuple[str, float]]] = {}
        for held in recordings:
            others = [one for one in recordings if one is not held]
            ranked = []
            for parameters in grid:
                by_name = found[parameters]
                delays = delays_of(by_name, others) if dating == "dated back" else dict.fromkeys(TRANSITIONS, 0.0)
                score = added([counted(dated(by_name[one.name], delays), true_events(one)) for one in others]).f1
                ranked.append((score, parameters, delays))
            # Of equal ones the first: less smoothing, a lower threshold.
            score, parameters, delays = max(ranked, key=lambda one: one[0])
            chosen[held.name] = parameters
            told[held.name] = {
                **parameters.look._asdict(),
                **{key: value for key, value in parameters._asdict().items() if key != "look"},
                "delays": delays,
                "f1_on_the_others": score,
            }
            starts[held.name] = dated(found[parameters][held.name], delays)
        result[dating] = summed_up(recordings, chosen, told, starts, found)
    return result


def summed_up(
    recordings: Sequence[Recording],
    chosen: dict[str, Parameters],
    told: dict[str, dict[str, Any]],
    starts: dict[str, list[tuple[str, float]]],
    found: dict[Parameters, dict[str, list[Found]]],
) -> dict[str, Any]:
    errors, waits, seen = [], [], 0
    for recording in recordings:
        events, truth = found[chosen[recording.name]][recording.name], true_events(recording)
        delays = told[recording.name]["delays"]
        both = overlapping(events, truth)
        seen += len(both)
        errors += [event.start - delays[event.label] - true.start for event, true in both]
        waits += [event.told - true.start for event, true in both]

    def total(labels: Sequence[str]) -> Counts:
        return added([counted(starts[one.name], true_events(one), labels) for one in recordings])

    every = total(TRANSITIONS)
    return {
        **every.to_dict(),
        "f1": 100 * every.f1,
        "per_class": {label: total([label]).to_dict() for label in TRANSITIONS},
        "overlapping": {
            "what": "true events during which an event of their class lasted, whenever it began",
            "events": seen,
            "recall": 100 * seen / every.true,
            "median_start_error_s": float(np.median(np.abs(errors))) if errors else None,
            "median_start_offset_s": float(np.median(errors)) if errors else None,
            "median_seconds_until_told": float(np.median(waits)) if waits else None,
        },
        "recordings": [
            {
                "recording": one.name,
                "parameters": told[one.name],
                "events": [{"label": label, "start": round(start, 2)} for label, start in starts[one.name]],
                **counted(starts[one.name], true_events(one)).to_dict(),
            }
            for one in recordings
        ],
    }


# All together


def over_members(members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample deviation over trainings, of what :func:`evaluate_events` gives."""
    from clipwise.evaluation.online import mean_and_deviation

    def of(member: dict[str, Any], figure: str) -> float | None:
        value: float | None = member[figure] if figure in member else member["overlapping"][figure]
        return value

    means: dict[str, Any] = {}
    for dating in DATINGS:
        means[dating] = {}
        for figure in ("precision", "recall", "f1", "median_start_error_s", "median_seconds_until_told"):
            values = [of(member[dating], figure) for member in members]
            # Where a training found no event at all, some figures do not exist.
            means[dating][figure] = None if None in values else mean_and_deviation(values)
    return means


def without_causal(group: Any) -> dict[str, Any]:
    """What its members share, but whether they are causal."""
    model = dict(group.members[0].account["checkpoint"]["model"])
    return model | {"options": {key: value for key, value in model["options"].items() if key != "causal"}}


def changes(groups: Sequence[Any]) -> list[dict[str, Any]]:
    """From the offline network to the online answers, in points: the window's beside its own offline clip, the causal
    network's beside the two-sided network of the same name."""
    from clipwise.evaluation.online import mean_and_deviation

    rows = []
    for group in groups:
        alike = [one for one in groups if not one.causal and without_causal(one) == without_causal(group)]
        if not alike:
            continue
        reference = alike[0]
        for answers in group.members[0].answers:
            if answers.way == "offline" and reference is group:
                continue
            row: dict[str, Any] = {"network": group.name, "answers": answers.name, "offline": reference.name}
            for figure in ("top1", "mean_class_accuracy"):
                before = mean_and_deviation(reference.values("offline, clip", figure))["mean"]
                after = mean_and_deviation(group.values(answers.name, figure))["mean"]
                row[figure] = {"offline": before, "online": after, "points": after - before}
            rows.append(row)
    return rows


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]
    )


def spread(figure: dict[str, float | None] | None, form: str = ".1f") -> str:
    if figure is None:
        return "–"
    deviation = "" if figure["deviation"] is None else f" ± {figure['deviation']:{form}}"
    return f"{figure['mean']:{form}}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--data", type=Path, required=True, help="the folder of clips.csv")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write; a picture goes beside it")
    parser.add_argument("--weights", choices=("best", "last"), default="last", help="of each folder (%(default)s)")
    parser.add_argument("--split", default="val", help="whose clips and recordings (%(default)s)")
    parser.add_argument(
        "--stride", type=int, help="frames between those looked at in recordings; training's if left out"
    )
    parser.add_argument("--moved", action="store_true", help="also two-sided weights in causal networks, untrained")
    parser.add_argument("--work", type=Path, help="keep the joined recordings in this folder")
    parser.add_argument("--recordings", type=int, help="only the first so many, for a trial; at least 2")
    parser.add_argument("--videos", type=int, help="only so many clips, for a trial")
    arguments = parser.parse_args()
    if not arguments.output.absolute().parent.is_dir():
        parser.error(f"--output {arguments.output}: no such folder")
    if arguments.recordings is not None and arguments.recordings < 2:
        parser.error("--recordings: parameters are chosen on the other recordings, so there must be 2 or more")

    from clipwise.analysis.plots import earliness_curves
    from clipwise.checkpoint import command_line, read_card, read_checkpoint
    from clipwise.evaluation.online import SHARES, TABLE_5, Looks, evaluate_online
    from clipwise.files import write_json
    from clipwise.inference.stream_predictor import StreamPredictor

    def told(what: str) -> Any:
        return lambda done, total: print(f"\r{what} {done}/{total}", end="", file=sys.stderr, flush=True)

    by_name: dict[str, dict[str, Any]] = {}
    strides: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as temporary:
        checkpoints = list(arguments.checkpoints)
        if arguments.moved:
            two_sided = [one for one in checkpoints if not read_card(one).config.options.get("causal")]
            checkpoints += [moved(one, arguments.weights, Path(temporary)) for one in two_sided]
        found = evaluate_online(
            checkpoints,
            arguments.data / "clips.csv",
            looks=Looks(multiple=1),
            split=arguments.split,
            which=arguments.weights,
            videos=arguments.videos,
            on_error="raise",
            progress=told("clips"),
        )
        for one in found.record["networks"]:  # those made here lie where nobody will look for them
            weights = Path(one["checkpoint"]["weights"])
            if "_moved" in weights.parent.name:
                one["checkpoint"]["weights"] = f"{weights.parent.name}/{weights.name}"
        names = [network.name for network in found.networks]
        folder = arguments.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        recordings = join_recordings(arguments.data, arguments.split, folder, arguments.recordings)
        for place, (name, checkpoint) in enumerate(zip(names, checkpoints, strict=True)):
            trained = read_checkpoint(checkpoint, which=arguments.weights)
            predictor = StreamPredictor(trained, temperature=1.0)
            strides[name] = arguments.stride or training_stride(arguments.data, predictor.num_frames)
            streams: dict[Look, dict[str, Scores]] = {}
            for look in looks_of(predictor.causal, strides[name], arguments.stride is not None):
                predictor = StreamPredictor(trained, temperature=1.0, consensus=look.consensus)
                streams[look] = {one.name: scores_of(predictor, one, look.stride) for one in recordings}
            told("networks")(place + 1, len(names))
            by_name[name] = evaluate_events(streams, recordings, trained.classes)
    print(file=sys.stderr)

    groups = [
        {
            "name": group.name,
            "members": [member.name for member in group.members],
            "seeds": [member.seed for member in group.members],
            **over_members([by_name[member.name] for member in group.members]),
        }
        for group in found.groups
    ]
    compared = changes(found.groups)
    losses = {
        f"{row['network']} against {row['offline']}": -row["mean_class_accuracy"]["points"]
        for row in compared
        if row["answers"] == "causal, last frame" and "_moved" not in row["network"]  # which are not meant to be used
    }
    why_this_stride = "given"
    if arguments.stride is None:
        why_this_stride = "frames of a training clip of median length, divided by the network's frames"
    lifted = ("versions", "device", "threads")
    record: dict[str, Any] = {
        "what": "networks that follow video frame by frame: accuracy on clips, and events in joined recordings",
        "command": "python benchmarks/" + command_line().replace(str(arguments.output), "…"),
        **{key: found.record[key] for key in lifted},
        "condition": {"weights": arguments.weights, "stride": why_this_stride},
        "clips": {key: value for key, value in found.record.items() if key not in ("command", *lifted)},
        "recordings": {
            "source": found.record["data"]["source"],
            "split": arguments.split,
            "held_out": "no training saw these recordings, and of a run's weights the last are taken unless --weights "
            "best: nothing was chosen on them",
            "parameters": "smoothing, threshold, release, shortest duration and delays of a recording are those of the "
            "highest F1 on the split's other recordings",
            "grid": SETTINGS,
            "within_seconds": NEAR,
            "stride": strides,
            "why_this_stride": why_this_stride,
            "joined": [
                {
                    "recording": one.name,
                    "frames": one.frames,
                    "fps": one.fps,
                    "truth": [[true.label, round(true.start, 2), round(true.end, 2)] for true in one.truth],
                }
                for one in recordings
            ],
            "networks": by_name,
            "groups": groups,
        },
        "offline_to_online": compared,
        "published": {
            "source": "[STM-J] Table 5: top-1, ResNet-50, 8 frames of 224 × 224, GeForce RTX 3090; other videos, so "
            "that only the step from STM-Offline to STM-Online compares with ours",
            "rows": TABLE_5,
        },
        "goals": {
            f"{name}: at most {GOAL:g} points of mean-class accuracy lost": {"points": loss, "met": loss <= GOAL}
            for name, loss in losses.items()
        },
    }
    write_json(arguments.output, record)
    picture = arguments.output.with_suffix(".png")
    curves = {group.name: group.curves("mean_class_accuracy") for group in found.groups}
    earliness_curves(picture, SHARES, curves, "How early a network is right", "mean-class accuracy, %")

    print(
        table(
            ("network", "answers", "offline", "online", "points"),
            [
                (
                    row["network"],
                    row["answers"],
                    *(f"{row['mean_class_accuracy'][what]:.1f}" for what in ("offline", "online")),
                    f"{row['mean_class_accuracy']['points']:+.1f}",
                )
                for row in compared
            ],
        )
    )
    print("mean-class accuracy. [STM-J] Table 5, top-1 on other videos, offline to online:")
    for data in ("Kinetics-400", "Something-Something V1"):
        before, after = (TABLE_5[name][data] for name in ("STM-Offline", "STM-Online"))
        print(f"  {data}: {before} to {after} ({after - before:+.1f})")
    print()
    figures = ("median_start_error_s", "median_seconds_until_told")
    print(
        table(
            ("network", "starts", "precision", "recall", "start error, s", "told after, s"),
            [
                (
                    group["name"],
                    dating,
                    *(spread(group[dating][figure]) for figure in ("precision", "recall")),
                    *(spread(group[dating][figure], ".2f") for figure in figures),
                )
                for group in groups
                for dating in DATINGS
            ],
        )
    )
    for name, verdict in record["goals"].items():
        print(f"{name}: {verdict['points']:.1f}, {'met' if verdict['met'] else 'NOT met'}")
    print(f"written: {arguments.output}, {picture}")


if __name__ == "__main__":
    main()
