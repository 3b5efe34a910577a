"""``docs/results.md`` from the files under ``benchmarks/results/``: every figure of the page is read from them.

    python benchmarks/page.py           writes the page
    python benchmarks/page.py --check   ends with 1, and the lines that differ, where the page is out of date

Sections in order: real video, the demo, the studies (``study_<name>[_<data>].json``, by file name, each with
``study_….png`` where that is there), speed (``speed_….json`` of ``benchmarks/speed.py`` or ``clipwise benchmark
model``), reading video, other readers, cold start. A file of another name is listed at the end.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from clipwise.config import flat

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("python", "clipwise", "torch")  # of those that a study tells
METRICS = {"top1": "top-1", "top5": "top-5", "mean_class_accuracy": "mean-class accuracy"}
TIE = 0.05  # a ratio this near to 1 is called a tie
QUICK = 10  # milliseconds; below, handing a clip to another process is no longer small beside reading it

Record = dict[str, Any]
Results = dict[str, Record]  # by file name without its ending, in the order of these names


# Parts of a page


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def prose(*sentences: str) -> str:
    text = " ".join(sentence for sentence in sentences if sentence)
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def commands(*lines: str) -> str:
    return "\n".join(["```", *dict.fromkeys(lines), "```"])


def own_command(name: str, record: Record) -> str:
    return str(record["command"]).replace("--output …", f"--output benchmarks/results/{name}.json")


def span(values: Iterable[float], form: str = ".1f") -> str:
    values = list(values)
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low}–{high}"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def times(value: float) -> str:
    """How many times faster ours is; a loss stands out."""
    shown = f"{value:.2f}" if value < 10 else f"{value:.0f}"
    return f"**{shown}**" if value < 1 else shown


def anchor(heading: str) -> str:
    """What a link to a heading of the page ends with."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def machine(record: Record) -> str:
    device = record["device"]
    return device if isinstance(device, str) else f"{device['processor']}, {count(device['cores'], 'core')}"


# Sections


def real_video(results: Results) -> Iterator[str]:
    records = list(results.values())
    first, runs = records[0], [record["training"] for record in records]
    protocol, schedule = first["protocol"], runs[0]["config"]["training"]
    configs = [flat(run["config"]) for run in runs]
    differing = [f"`{key}`" for key in configs[0] if any(one.get(key) != configs[0][key] for one in configs)]
    rare = min(first["video"]["per_class"], key=lambda row: row["videos"])

    yield "## Real video: actions told apart by order"
    yield prose(
        f"`overhead_adl`: clips under a ceiling camera, {len(first['classes'])} classes,"
        f" {runs[0]['data']['training_videos']} clips to train on and {first['data']['videos']} (other recordings) to"
        f" test on. ResNet-50 from ImageNet weights, {protocol['num_frames']} frames of {protocol['views']['size']} ×"
        f" {protocol['views']['size']}, {schedule['epochs']} epochs, `{first['checkpoint']['weights'].split('/')[-1]}`,"
        f" one view; the configurations differ in {listed(differing)} alone."
        f" {machine(first)}, {schedule['precision']}.",
    )
    yield table(
        [
            "percent",
            *(f"{config['model.name'].split('_')[0].upper()}, seed {config['training.seed']}" for config in configs),
        ],
        [
            *(
                [f"**{METRICS[metric]}**", *(f"**{record['video'][metric]:.1f}**" for record in records)]
                for metric in ("mean_class_accuracy", "top1")
            ),
            *(
                [
                    f"{rows[0]['class']} ({count(rows[0]['videos'], 'video')})",
                    *(f"{row['accuracy']:.1f}" for row in rows),
                ]
                for rows in zip(*(record["video"]["per_class"] for record in records), strict=True)
            ),
        ],
    )
    minutes = [f"{sum(epoch['seconds'] for epoch in run['epochs']) / 60:.0f}" for run in runs]
    yield prose(
        f"Training with validation took {listed(minutes)} minutes, with other work on the machine. The set is small:"
        f" one video of `{rare['class']}` is {100 / rare['videos'] / len(first['classes']):.1f} points of mean-class"
        " accuracy, and other seeds move the figures by some points.",
    )
    yield commands(
        f"clipwise data pack ../shared/data/overhead_adl/clips.csv {runs[0]['data']['source']} --format uint8",
        *(command for record in records for command in (record["training"]["command"], record["command"])),
    )


def demo(results: Results) -> Iterator[str]:
    records = sorted(results.values(), key=lambda record: int(record["seed"]))
    networks, pairs = list(records[0]["accuracy_in_pairs"]), len(records[0]["pairs"])

    yield "## Rendered video: the demo"
    yield prose(
        f"`make demo` renders encoded videos of {2 * pairs} classes in {pairs} pairs, trains {listed(networks)} (a"
        " narrow ResNet-18) on them and tests them on videos of other scenes, each scene played both ways. Percent"
        " inside pairs; chance is 50.",
    )
    yield table(
        ["seed", *(head for name in networks for head in (name, "lowest and highest pair")), "minutes"],
        [
            [
                record["seed"],
                *(
                    cell
                    for name in networks
                    for cell in (
                        f"{record['mean_accuracy_in_pairs'][name]:.1f}",
                        span(record["accuracy_in_pairs"][name]),
                    )
                ),
                f"{record['seconds'] / 60:.1f}",
            ]
            for record in records
        ],
    )
    yield prose(f"{machine(records[0])}, with other work on the machine by times. Set-up is not counted.")
    yield commands(*(record["command"] for record in records))


def studies(results: Results, pictures: Path, page: Path) -> Iterator[str]:
    titles = {
        name: " on ".join([record["title"], *filter(None, [name.removeprefix(f"study_{record['study']}").strip("_")])])
        for name, record in results.items()
    }
    yield "## Studies"
    yield prose(
        "Made by [`clipwise reproduce`](studies.md), with the last weights of each training, never the best on the"
        " videos that are tested. Percent, mean ± deviation over seeds, beside the figures of the paper or a reference"
        " on the data that the column names. A claim is judged by the seeds that both rows have: it holds where the"
        " difference of the means is on its side and larger than the seeds' deviation. One seed decides nothing; its"
        " difference is told.",
    )
    kinds = ["holds", "within the seeds' deviation", "does not", "one seed alone", "not measured"]
    yield table(
        ["study", "runs", *(f"claims: {kind}" for kind in kinds), "goals reached"],
        [
            [
                f"[{titles[name]}](#{anchor(titles[name])})",
                f"{(done := runs_of(record))} of {done + len(record['missing'])}",
                *([verdict(claim) for claim in record["claims"]].count(kind) for kind in kinds),
                goals_reached(record["goals"]),
            ]
            for name, record in results.items()
        ],
    )
    for name, record in results.items():
        yield f"### {titles[name]}"
        yield from study(record)
        if (picture := pictures / f"{name}.png").is_file():
            yield f"![{titles[name]}]({Path(os.path.relpath(picture, page.parent)).as_posix()})"


def goals_reached(goals: list[Record]) -> str:
    return f"{sum(bool(goal['reached']) for goal in goals)} of {len(goals)}" if goals else "–"


def runs_of(record: Record) -> int:
    return sum(len(variant["runs"]) for variant in record["variants"])


def verdict(claim: Record) -> str:
    difference, deviation = claim["difference"], claim["deviation"]
    if difference is None:
        return "not measured"
    if deviation is None:
        return "one seed alone"
    if abs(difference) <= deviation:
        return "within the seeds' deviation"
    return "holds" if claim["holds"] else "does not"


def study(record: Record) -> Iterator[str]:
    """One study: its table, what became of its claims, and what a reader must know to judge them."""
    from clipwise.studies.report import duration, missing_line  # torch, for studies alone
    from clipwise.studies.report import table as study_table

    yield table(*study_table(record))
    if record["claims"]:
        yield table(["claim", "difference", "holds"], ([*claim_cells(claim)] for claim in record["claims"]))
    if record["goals"]:
        yield table(["goal", "measured", "seeds", "reached"], ([*goal_cells(goal)] for goal in record["goals"]))
    data, runs = record["data"], [run for variant in record["variants"] for run in variant["runs"]]
    unread = sum(run.get("unreadable_videos", 0) for run in runs)
    versions = [f"{package} {number}" for package, number in record["versions"].items() if package in VERSIONS]
    yield prose(
        f"{record['source']}. {record['note']}".strip(),
        f"**Missing:** {missing_line(record)}." if record["missing"] else "",
        f"**{count(unread, 'video')} could not be read in testing; the figures are of the rest.**" if unread else "",
    )
    yield prose(
        f"`{data['source']}`: {data['classes']} classes, {data['training_videos']} videos to train on and"
        f" {data['validation_videos']} to test on;",
        f"recipe {record['recipe']}," if record["recipe"] else "",
        f"{record['backbone']};",
        f"{record['device']}; {', '.join(versions)};"
        f" a training took {duration(statistics.median(run['seconds'] for run in runs) / 3600)} (median)."
        if runs
        else "nothing was run yet.",
    )
    yield commands(*(record["commands"] or [record["command"]]))


def claim_cells(claim: Record) -> Iterator[str]:
    difference, deviation = claim["difference"], claim["deviation"]
    yield claim["text"]
    if difference is None:
        yield "–"
    else:
        spread = f" ± {deviation:.1f}" if deviation is not None else f", seed {claim['seeds'][0]}"
        yield f"{difference:+.1f}".replace("-", "−") + spread
    yield verdict(claim)


def goal_cells(goal: Record) -> Iterator[str]:
    yield goal["text"]
    if goal["value"] is None:
        yield from ("–", "0", "not measured")
    else:
        yield from (f"{goal['value']:.2f}", str(goal["seeds"]), "yes" if goal["reached"] else "**no**")


def speed(results: Results, folder: Path, page: Path) -> Iterator[str]:
    yield "## Speed"
    yield prose(
        "Networks take turns in one process, after warm-up; median (quartiles) over the rounds, ratios round by round."
        " To TSN: clips a second over those of TSN in the same form. To the authors: over those of the authors'"
        " formulation of the same network, with our weights and our outputs, in its fastest form. How each is measured:"
        " [benchmark.md](benchmark.md).",
    )
    for name, record in sorted(results.items(), key=lambda pair: "goals" not in pair[1]):  # the goals go first
        condition, versions = record["condition"], record["versions"]
        libraries = [f"{key} {versions[key]}" for key in ("torch", "triton", "cuda", "cudnn") if versions.get(key)]
        told = f"{record['device']}, {count(record['threads'], 'thread')}; {', '.join(libraries)}"
        if "groups" in record:
            yield f"### {condition['network']} on {record['device']}"
            yield goal_table(record, Path(os.path.relpath(folder, page.parent)).as_posix())
            for group, measured in record["groups"].items():
                yield prose(f"**{heading(group)}** ({measured['mode']}, {condition['clips']}):")
                yield speeds(measured["results"])
            left = "; ".join(f"{group} ({why})" for group, why in record["left_out"].items())
            yield prose(f"**Not measured:** {left}." if left else "", f"{told}.")
        else:
            shape = f"{condition['frames']}×{condition['size']}×{condition['size']}"
            yield f"### {condition['mode']}, {condition['dtype']}, {shape} on {record['device']}"
            yield speeds(record["results"])
            stopped = "**Stopped before its last round.**" if record["interrupted"] else ""
            against = f"Against: {record['against']}." if record["against"] else ""
            yield prose(stopped, against, f"{told}.")
        yield commands(own_command(name, record))


def heading(group: str) -> str:
    module, _, what = group.partition(" ")
    return f"{module.upper()}, {what}"


def goal_table(record: Record, folder: str) -> str:
    def reached(found: Record) -> str:
        kernels = f" ([kernels]({folder}/{found['profile']}))" if "profile" in found else ""
        return "yes" if found["reached"] else f"no{kernels}"

    return table(
        ["goal", "", "measured", "reached", "of"],
        [
            [
                goal,
                found["goal"],
                f"**{quartile(found)}**",
                reached(found),
                found["of"] + (f" / {found['to']}" if "to" in found else ""),
            ]
            for goal, found in record["goals"].items()
        ],
    )


def quartile(found: Record) -> str:
    form = ",.0f" if found["median"] >= 100 else ".2f"
    spread = f" ({found['q1']:{form}}–{found['q3']:{form}})" if "q1" in found else ""
    return f"{found['median']:{form}}{spread}"


def speeds(rows: list[Record]) -> str:
    """A table of contenders, with the columns that any of them has."""
    ratios = {"to_against": "to TSN", "to_rival": "to the authors"}
    shown = {key: title for key, title in ratios.items() if any(key in row for row in rows)}
    with_memory = any(row.get("peak_memory_bytes") for row in rows)

    def cells(row: Record) -> Iterator[str]:
        yield row["network"] + ("" if row["formulation"] == "clipwise" else f" ({row['formulation']})")
        yield f"{row['form']}, {row['dtype']}"
        yield str(row["batch"])
        if "failed" in row:
            yield from (row["failed"], *["–"] * (1 + len(shown) + with_memory))
            return
        yield quartile(row["milliseconds_a_step"])
        yield f"{row['clips_per_second']['median']:,.1f}"
        yield from (quartile(row[key]) if key in row else "–" for key in shown)
        if with_memory:
            yield f"{row['peak_memory_bytes'] / 1e6:,.0f}" if row["peak_memory_bytes"] else "–"

    head = ["network", "form", "batch", "ms a step", "clips/s", *shown.values(), *["peak MB"] * with_memory]
    return table(head, map(cells, rows))


def reading(results: Results) -> Iterator[str]:
    results = dict(sorted(results.items(), key=lambda pair: -pair[1]["condition"]["cores_allowed"]))
    records, first = list(results.values()), next(iter(results.values()))
    cores = [count(record["condition"]["cores_allowed"], "core") for record in records]
    pooled = {name for goal in first["goals"].values() for name in goal.get("group by group", ())}

    def cells(part: str, name: str, form: str) -> Iterator[str]:
        for record in records:
            for base in ("n1", "n2"):
                yield form.format(**record[part][name][f"{base}_over_ours_wall"])

    yield "## Reading video"
    yield prose(
        "Eight frames spread over each clip. N1 decodes and converts every frame, N2 decodes in order, converts only"
        " the wanted frames and stops after the last; both are told the frame numbers, while ours counts its opening"
        " and its index. Ratios of wall time in alternating runs, median over clips (quartiles)"
        + ("; all frames are bit for bit the same." if all(record["bit_identical"] for record in records) else "."),
    )
    yield table(
        ["clips", *(f"{name}: {base} / ours" for name in cores for base in ("N1", "N2"))],
        [
            *(
                [f"**{name}, the groups marked – ({pool['clips']})**", *cells("pools", name, "**{median:.2f}**")]
                for name, pool in first["pools"].items()
            ),
            *(
                [
                    f"{'– ' * (name in pooled)}{name} ({group['clips']})",
                    *cells("groups", name, "{median:.2f} ({q1:.2f}–{q3:.2f})"),
                ]
                for name, group in first["groups"].items()
            ),
        ],
    )
    unmet = [
        f"{goal.removesuffix(', wall')} ({verdict.get('median', verdict.get('least median')):.2f} with {name})"
        for name, record in zip(cores, records, strict=True)
        for goal, verdict in record["goals"].items()
        if goal.endswith(", wall") and not verdict["met"]
    ]
    tied = [
        name
        for name in first["groups"]
        if all(abs(record["groups"][name]["n2_over_ours_wall"]["median"] - 1) <= TIE for record in records)
    ]
    yield prose(
        "On several cores PyAV by default converts each frame with a pool of threads; on one core only the work that is"
        " spared counts.",
        f"Not reached: {'; '.join(unmet)}." if unmet else "",
        f"Tied with N2 (within {100 * TIE:.0f} %): {listed(tied)}." if tied else "",
        f"{machine(first)}; PyAV {first['versions']['av']}.",
    )
    yield commands(*(own_command(name, record) for name, record in results.items()))


def other_readers(results: Results) -> Iterator[str]:
    parts = {"readers": rivals, "stores": packed, "loader": loader, "memory": memory, "index": kept_index}
    yield "## Against other readers, and packed"
    for name, record in results.items():
        for part, shown in parts.items():
            if record.get(part):  # a file may hold some parts alone
                yield from shown(record)
        again = [part["command"] for part in record.get("measured_again", {}).values()]
        yield commands(*(own_command(name, {"command": line}) for line in dict.fromkeys([record["command"], *again])))


def rivals(record: Record) -> Iterator[str]:
    single, versions = record["readers"]["1 process"], record["versions"]
    ffmpeg = versions["av's FFmpeg"]
    requests = [key for key in next(iter(single.values())) if key != "clips"]
    names = [name for name in ("torchcodec", "decord2", "opencv") if name in next(iter(single.values()))[requests[0]]]
    yield prose(
        "From path to RGB frames, opening included; one decoder thread for all, the readers by turns in"
        f" {count(record['condition']['rounds'], 'round')}. How many times faster ours is by CPU time, one process: 8"
        " frames spread over the clip / 32 frames with stride 2; bold where ours is slower.",
        f"{machine(record)}; {', '.join(f'{name} {versions[name]}' for name in names)};"
        f" PyAV {versions['av']} with FFmpeg {ffmpeg}.",
    )
    yield table(
        ["clips", *names],
        [
            [
                f"{group} ({row['clips']})",
                *(
                    " / ".join(times(row[request][name]["ours_is_times_cpu"]["median"]) for request in requests)
                    for name in names
                ),
            ]
            for group, row in single.items()
        ],
    )

    def ratios(name: str) -> dict[tuple[str, str, str, str], Record]:
        return {
            (group, request, processes, clock): row[request][name][f"ours_is_times_{clock}"]
            for processes, groups in record["readers"].items()
            for group, row in groups.items()
            for request in requests
            for clock in ("cpu", "wall")
        }

    def against(name: str) -> str:
        of = ratios(name)
        slower = [value for value in of.values() if value["median"] < 1]
        clearly = sum(value["q3"] < 1 for value in slower)
        worst = min(of, key=lambda key: of[key]["median"])
        return f"{name} in {len(slower)} of {len(of)}" + (
            f" (at worst {of[worst]['median']:.2f}: {', '.join(worst[:3])}, by {worst[3]} time; in {clearly} by the"
            " upper quartile of its rounds, too)"
            if slower
            else ""
        )

    def by_codec(name: str) -> str:
        of: dict[str, list[float]] = {}
        for (group, *_), value in ratios(name).items():
            of.setdefault(group.split()[0].strip(","), []).append(value["median"])
        return f"{name} {listed(f'{statistics.geometric_mean(values):.2f} ({codec})' for codec, values in of.items())}"

    in_a_row = requests[-1]
    floors = {
        group: row[in_a_row]["torchcodec"]["ours_is_times_cpu"]["median"]
        / row[in_a_row]["bare"]["ours_is_times_cpu"]["median"]
        for group, row in single.items()
        if "torchcodec" in names and row[in_a_row]["torchcodec"]["ours_is_times_cpu"]["median"] < 1
    }
    equal = record["agreement"]
    yield prose(
        f"Over both requests, one and two processes, CPU and wall time, ours is slower than"
        f" {listed(against(name) for name in names)}. By codec (all its figures, geometric mean) ours is this many"
        f" times as fast: {'; '.join(map(by_codec, names))}. Frames equal to those of decoding in order:"
        f" {', '.join(name + ' ' + equal[name]['equal'] for name in ('ours', *names))} clips.",
        "A bare loop over PyAV's decoder, told at which keyframe to begin, is itself "
        + listed(f"{times(value)} times as fast as torchcodec on {group}" for group, value in floors.items())
        + ", frames in a row."
        if floors
        else "",
    )


def packed(record: Record) -> Iterator[str]:
    groups, size = record["stores"], record["stores_megabytes"]
    names = [name for name in size if name != "originals"]
    yield prose("Packed, how many times faster than the originals by CPU time (8 frames / 32 with stride 2):")
    yield table(
        ["clips", *names],
        [
            *(
                [
                    group,
                    *(" / ".join(times(row[name]["times_originals"]) for row in requests.values()) for name in names),
                ]
                for group, requests in groups.items()
            ),
            [f"MB (originals {size['originals']:.0f})", *(f"{size[name]:.0f}" for name in names)],
        ],
    )


def loader(record: Record) -> Iterator[str]:
    bare = "read, crop, resize"
    rows = [(row["milliseconds_a_clip"][bare]["median"], row) for row in record["loader"].values()]

    def cost(which: str, rows: list[tuple[float, Record]]) -> str:
        share = span((100 * row["loader_over_bare_steps"] for _, row in rows), ".0f")
        return f"{share} % where these take {which} ({span((took for took, _ in rows), '.0f')})"

    kinds = {
        f"{QUICK} ms a clip or more": [one for one in rows if one[0] >= QUICK],
        "less": [one for one in rows if one[0] < QUICK],
    }
    costs = [cost(which, some) for which, some in kinds.items() if some]
    yield prose(
        f"The loader costs, beside reading, cropping and resizing, {listed(costs)}; handing a clip to another process"
        f" takes {span(row['handing_over_milliseconds'] for _, row in rows)} ms of it.",
    )


def memory(record: Record) -> Iterator[str]:
    peaks = record["memory"]["peak_megabytes_every_500"]
    yield prose(
        f"A worker's memory: {peaks[0]:.0f} MB at most in 500 samples, {peaks[-1]:.0f} MB in"
        f" {record['memory']['samples']:,}."
    )


def kept_index(record: Record) -> Iterator[str]:
    yield prose(
        "A segment with a kept packet index, how many times faster: "
        + "; ".join(f"{name}: {one['times_faster']:.2f}" for name, one in record["index"].items())
        + ".",
    )


def cold_start(results: Results) -> Iterator[str]:
    yield "## From a cold start to the label"
    for record in results.values():
        floors, files = record["floors_ms"], record["phases"]
        first = next(iter(files.values()))
        yield prose(
            f"`clipwise predict RUN FILE` in a fresh process, on {listed(files)}: {record['condition']['network']};"
            f" {record['condition']['files']}. {machine(record)}, {count(record['condition']['threads'], 'thread')}."
            " Milliseconds, median over processes that took turns (quartiles); the phases are of processes of their"
            " own, with clocks in them.",
        )
        form = "{median:.0f} ({q1:.0f}–{q3:.0f})".format_map
        yield table(
            ["milliseconds", *files],
            [
                ["**to the label**", *(f"**{form(record['predict_ms'][file]['label'])}**" for file in files)],
                ["to the end of the process", *(form(record["predict_ms"][file]["end"]) for file in files)],
                *(
                    [f"– {phase}", *(form(one["phases_ms"][phase]) for one in files.values())]
                    for phase in first["phases_ms"]
                ),
                *(
                    [f"share of {what}", *(f"{one['shares'][what]['median']:.1%}" for one in files.values())]
                    for what in first["shares"]
                ),
            ],
        )
        unmet = [goal for goal, verdict in record["goals"].items() if not verdict["met"]]
        yield prose(
            f"To the end of a process that does nothing else: `import torch` {form(floors['torch'])} ms,"
            f" `import clipwise`, which imports PyTorch only when it is needed, {form(floors['clipwise'])} ms, Python"
            f" alone {form(floors['python'])} ms.",
            f"Not reached: {'; '.join(unmet)}." if unmet else "",
        )
    yield commands(*(own_command(name, record) for name, record in results.items()))


def streams(results: Results) -> Iterator[str]:
    yield "## A stream, frame by frame"
    for record in results.values():
        yield prose(
            f"{machine(record)}, {count(record['threads'], 'thread')}; everything deployed, frames on the device. The"
            " image network is TSN with one frame; a causal network keeps a state; sliding computes a window of"
            f" {record['condition']['num_frames']} frames for each new one. Goal: {record['goal']}. Milliseconds a"
            " frame, median (quartiles) of alternating turns.",
        )
        settings = dict.fromkeys((row["backbone"], row["size"], row["dtype"]) for row in record["time"])
        rows = {(row["network"], row["backbone"], row["size"], row["dtype"]): row for row in record["time"]}
        names = list(dict.fromkeys(row["network"] for row in record["time"]))
        yield table(
            ["", *(f"{backbone}, {size}², {dtype}" for backbone, size, dtype in settings)],
            [[name, *(frame_time(rows[name, *setting]) for setting in settings)] for name in names],
        )
        yield prose("GMACs of convolutions a frame, ResNet-50 at 224²; a clip without a stream needs the last column.")
        yield table(
            ["network", "a frame", "a clip of 8"],
            [[row["network"], f"{row['gmacs_a_frame']:.3f}", f"{row['of_a_clip']:.2f}"] for row in record["macs"]],
        )
        if memory := record["memory"]:
            yield prose(
                f"The verb `stream` over {memory['frames']:,} raw pictures, a process of its own: resident memory grows"
                f" by {memory['megabytes_per_10000_frames']:.2f} MB in 10,000 frames.",
            )
    yield commands(*(own_command(name, record) for name, record in results.items()))


def frame_time(row: Record) -> str:
    spread = row["milliseconds"]
    return f"{spread['median']:.2f} ({spread['q1']:.2f}–{spread['q3']:.2f}), {row['frames_per_second']:.0f}/s"


def online(results: Results, folder: Path, page: Path) -> Iterator[str]:
    yield "## Offline and online on the same videos"
    for name, record in results.items():
        clips = record["clips"]
        yield prose(
            f"`{clips['data']['source']}`, {clips['data']['videos']} clips of the split {clips['data']['split']}:"
            " mean-class accuracy of a video, mean over the seeds, from the offline network to its online answers.",
        )
        yield table(
            ["network", "answer", "offline", "online", "points"],
            [
                [
                    row["network"],
                    row["answers"],
                    *(f"{row['mean_class_accuracy'][what]:.1f}" for what in ("offline", "online")),
                    f"{row['mean_class_accuracy']['points']:+.1f}",
                ]
                for row in record["offline_to_online"]
            ],
        )
        yield "\n".join(
            f"- {goal}: {'met' if verdict['met'] else '**not met**'}, {verdict['points']:.1f}"
            for goal, verdict in record["goals"].items()
        )
        picture = os.path.relpath(folder / f"{name}.png", page.parent)
        yield f"![accuracy against the share of the video that was seen]({picture})"
        held = record["recordings"]
        yield prose(
            f"Events in {count(len(held['joined']), 'long recording')}, found where their start lies within"
            f" {held['within_seconds']:g} s of the true one; {held['parameters']}. As found: where the smoothed score"
            " reached the threshold; dated back: less the class's usual delay in the other recordings.",
        )
        yield table(
            ["network", "starts", "precision", "recall", "start error, s", "told after, s"],
            [
                [
                    group["name"],
                    dating.replace("_", " "),
                    *(with_deviation(group[dating][figure], ".1f") for figure in ("precision", "recall")),
                    with_deviation(group[dating]["median_start_error_s"], ".2f"),
                    with_deviation(group[dating]["median_seconds_until_told"], ".2f"),
                ]
                for group in held["groups"]
                for dating in (key for key in group if isinstance(group[key], dict) and "f1" in group[key])
            ],
        )
    yield commands(*(own_command(name, record) for name, record in results.items()))


def with_deviation(figure: Record | None, form: str) -> str:
    if figure is None:
        return "–"
    deviation = "" if figure["deviation"] is None else f" ± {figure['deviation']:{form}}"
    return f"{figure['mean']:{form}}{deviation}"


def others(results: Results) -> Iterator[str]:
    yield "## Other files"
    yield "\n".join(f"- `{name}.json`: `{own_command(name, record)}`" for name, record in results.items())


# The page


def read(folder: Path) -> Results:
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}


def make(folder: Path, page: Path) -> str:
    """The page's text from a folder of results; ``page`` is where it will stand, for its links."""
    sections: dict[str, Callable[[Results], Iterator[str]]] = {
        "overhead_adl_": real_video,
        "demo_": demo,
        "study_": lambda results: studies(results, folder, page),
        "speed_": lambda results: speed(results, folder, page),
        "reader_": reading,
        "loader_": other_readers,
        "cold_start_": cold_start,
        "stream_": streams,
        "online_": lambda results: online(results, folder, page),
        "": others,
    }
    parts = [
        "# Results",
        prose(
            "Each figure was measured by a command in this repository; the files under `benchmarks/results/` hold the"
            " command, the configuration with its hash, versions, device, and what was measured. This page is made from"
            " them by `python benchmarks/page.py`.",
        ),
    ]
    left = read(folder)
    for prefix, section in sections.items():
        own = {name: left.pop(name) for name in list(left) if name.startswith(prefix)}
        if own:
            parts += section(own)
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results", help="the folder of JSON files")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results.md", help="the page")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where the page is out of date")
    arguments = parser.parse_args()
    if not arguments.results.is_dir():
        parser.error(f"--results {arguments.results}: no such folder")
    text = make(arguments.results, arguments.output)
    if not arguments.check:
        arguments.output.write_text(text, encoding="utf-8")
        return 0
    stands = arguments.output.read_text(encoding="utf-8") if arguments.output.is_file() else ""
    changes = list(difflib.unified_diff(stands.splitlines(), text.splitlines(), "the page", "the files", "", "", 0, ""))
    if changes:
        more = [f"… and {len(changes) - 40} lines more"] if len(changes) > 40 else []
        print("\n".join([*changes[:40], *more, "out of date: run python benchmarks/page.py"]), file=sys.stderr)
    return int(bool(changes))


if __name__ == "__main__":
    sys.exit(main())
