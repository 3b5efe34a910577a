"""A temporal network at the speed of one without: the goals of this project, measured in one run on one machine.

On a GPU, ResNet-50, batch 32, 8 frames of 224×224, bf16; inference deployed, eager and compiled; the training step
compiled; batch 1 as CUDA graphs. On a CPU (``--cpu``) one clip, 2 threads. Every network runs by turns with TSN, in one
process, and STM with its authors' formulation (``benchmarks/authors.py``) too, in both layouts; ratios are taken round
by round, and are of each one's fastest form. The measuring itself is that of ``clipwise benchmark model``.

The file is written after each group of networks, so that a run that is killed keeps what it has. ``--groups`` measures
some anew, in a file that is there already. A group begins only within ``--limit`` seconds; those left out are named in
the file, and a second run on the same machine finds most of the compiler's work done.

    python benchmarks/speed.py --output benchmarks/results/speed_h200.json
    python benchmarks/speed.py --cpu --output benchmarks/results/speed_cpu_2threads.json

For each goal that is not reached, and can be told from kernels, their times are saved beside the file:
``speed_h200_<goal>.txt``.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from clipwise.allocator import keep_freed_memory
from clipwise.benchmark.networks import (
    OURS,
    Condition,
    Contender,
    Subject,
    check_forms,
    compare_outputs,
    load_rival,
    measure,
    prepare,
    ratio,
    rows_of,
    settings_for,
    subject_of,
)
from clipwise.benchmark.timing import account
from clipwise.files import write_json

AUTHORS = Path(__file__).with_name("authors.py")
TSN, STM = "tsn", "stm"
DEPLOYED = ("deployed", "deployed+compiled")
KERNELS = ("deployed+kernels+compiled",)
GRAPHS = (
    "cuda-graph",
    "deployed+compiled+cuda-graph",
    "deployed+kernels+cuda-graph",
    "deployed+kernels+compiled+cuda-graph",
)


@dataclass(frozen=True)
class Entry:
    """A network of a group, and the forms it runs in."""

    module: str
    forms: tuple[str, ...]
    authors: str = ""
    """A function of ``authors.py``; ours without."""
    dtype: str = "bf16"


@dataclass(frozen=True)
class Group:
    """Networks that run by turns."""

    name: str
    entries: tuple[Entry, ...]
    mode: str = "infer"
    batch: int = 32


def against_tsn(module: str) -> Group:
    return Group(f"{module} inference", (Entry(TSN, DEPLOYED + KERNELS), Entry(module, DEPLOYED + KERNELS)))


_TRAINED = (Entry(TSN, ("compiled",)), Entry(STM, ("compiled",)))
_AUTHORS = "channels_last"

GPU = (
    Group(
        "stm inference",
        (Entry(TSN, DEPLOYED + KERNELS), Entry(STM, DEPLOYED + KERNELS), Entry(STM, ("eager", "compiled"), _AUTHORS)),
    ),
    Group("stm training", (*_TRAINED, Entry(STM, ("eager", "compiled"), _AUTHORS)), mode="train"),
    *map(against_tsn, ("tsm", "stc", "stw", "tam")),
    Group("stm latency", (Entry(TSN, GRAPHS), Entry(STM, GRAPHS)), batch=1),
    Group("stm inference as written", (Entry(STM, DEPLOYED), Entry(STM, ("eager", "compiled"), "as_written"))),
    Group(
        "stm training as written",
        (*_TRAINED[1:], Entry(STM, ("eager", "compiled"), "as_written")),
        mode="train",
    ),
)
"""What decides most goals goes first; what is compiled for one group serves the later ones."""

CPU = (
    Group(
        "stm inference",
        (
            *(Entry(module, DEPLOYED, dtype=dtype) for module in (TSN, STM) for dtype in ("fp32", "bf16")),
            Entry(STM, ("eager",), "as_written", "fp32"),
            Entry(TSN, ("eager",), dtype="fp32"),
            Entry(STM, ("eager",), dtype="fp32"),
        ),
        batch=1,
    ),
    Group(
        "others' inference",
        tuple(
            Entry(module, ("deployed",), dtype=dtype)
            for dtype in ("fp32", "bf16")
            for module in (TSN, "tsm", "tam", "stc", "stc_light", "stw")
        ),
        batch=1,
    ),
)


@dataclass(frozen=True)
class Goal:
    """A figure to reach, and how it follows from a group's contenders."""

    name: str
    groups: tuple[str, ...]
    """Where it may be measured; the hardest of these figures counts."""
    figure: Callable[[Sequence[Contender]], dict[str, Any] | None]
    least: float | None = None
    most: float | None = None
    profiled: str = STM
    """The module whose kernels show the limit."""

    def judged(self, value: float) -> bool:
        return value >= self.least if self.least is not None else self.most is not None and value <= self.most


def fastest(contenders: Sequence[Contender], module: str, *, authors: bool = False, form: str = "") -> Contender | None:
    found = [
        one
        for one in contenders
        if one.seconds
        and not one.failed
        and one.subject.network.split("_resnet")[0] == module
        and (one.subject.formulation != OURS) == authors
        and (form in one.form if form else authors or one.condition.mode == "train" or one.form != "eager")
    ]
    return min(found, key=lambda one: median(one.seconds), default=None)


def compared(one: Contender | None, other: Contender | None, *, inverse: bool = False) -> dict[str, Any] | None:
    """Clips a second of one over the other's; ``inverse``: seconds a step."""
    if one is None or other is None:
        return None
    return {**(ratio(other, one) if inverse else ratio(one, other)), "of": one.title, "to": other.title}


def over_tsn(module: str) -> Callable[[Sequence[Contender]], dict[str, Any] | None]:
    return lambda contenders: compared(fastest(contenders, module), fastest(contenders, TSN))


def over_authors(contenders: Sequence[Contender]) -> dict[str, Any] | None:
    return compared(fastest(contenders, STM), fastest(contenders, STM, authors=True))


def latency(contenders: Sequence[Contender]) -> dict[str, Any] | None:
    return compared(fastest(contenders, STM), fastest(contenders, TSN), inverse=True)


def clips_a_second(module: str, **which: Any) -> Callable[[Sequence[Contender]], dict[str, Any] | None]:
    def figure(contenders: Sequence[Contender]) -> dict[str, Any] | None:
        one = fastest(contenders, module, **which)
        return one and {"median": round(one.condition.batch / median(one.seconds), 1), "of": one.title}

    return figure


def memory(contenders: Sequence[Contender]) -> dict[str, Any] | None:
    stm, tsn = fastest(contenders, STM), fastest(contenders, TSN)
    if not (stm and tsn and stm.peak_bytes and tsn.peak_bytes):
        return None
    return {"median": round(stm.peak_bytes / tsn.peak_bytes, 3), "of": stm.title, "to": tsn.title}


_INFERENCE = ("stm inference", "stm inference as written")
_TRAINING = ("stm training", "stm training as written")

GPU_GOALS = (
    Goal("TSM inference over TSN", ("tsm inference",), over_tsn("tsm"), least=0.98, profiled="tsm"),
    Goal("STM inference over TSN", ("stm inference",), over_tsn(STM), least=0.90),
    Goal("STC inference over TSN", ("stc inference",), over_tsn("stc"), least=1.00, profiled="stc"),
    Goal("STW inference over TSN", ("stw inference",), over_tsn("stw"), least=0.90, profiled="stw"),
    Goal("TAM inference over TSN", ("tam inference",), over_tsn("tam"), least=0.92, profiled="tam"),
    Goal("STM training step over TSN", ("stm training",), over_tsn(STM), least=0.88),
    Goal("STM inference over its authors' formulation", _INFERENCE, over_authors, least=1.8),
    Goal("STM training over its authors' formulation", _TRAINING, over_authors, least=2.2),
    Goal("TSN deployed, clips/s", ("stm inference",), clips_a_second(TSN), least=3200, profiled=TSN),
    Goal(
        "STM's authors' formulation compiled, clips/s",
        _INFERENCE[:1],
        clips_a_second(STM, authors=True, form="compiled"),
        least=1500,
    ),
    Goal("STM latency at batch 1, CUDA graph, over TSN's", ("stm latency",), latency, most=1.15),
    Goal("STM memory in training over TSN's", ("stm training",), memory, most=1.15),
)

CPU_GOALS = (
    Goal("STM deployed over TSN deployed", ("stm inference",), over_tsn(STM), least=0.88),
    Goal("STM deployed over its authors' formulation, eager fp32", ("stm inference",), over_authors, least=2.5),
)


class Stable:
    """Contenders that were prepared; each is built and compiled once, whichever groups it runs in."""

    def __init__(self, device: torch.device, *, small: bool) -> None:
        self.device, self.small = device, small
        self.ready: dict[tuple[Any, ...], Contender] = {}
        self.subjects: dict[tuple[str, str], Subject] = {}
        self.agreement: dict[str, Any] = {}

    def condition(self, group: Group, dtype: str) -> Condition:
        if self.small:
            return Condition(group.mode, dtype, min(2, group.batch), 4, 32, self.device)
        return Condition(group.mode, dtype, group.batch, 8, 224, self.device)

    def contenders(self, group: Group) -> list[Contender]:
        found = []
        for entry in group.entries:
            condition = self.condition(group, entry.dtype)
            for form in entry.forms:
                key = (entry.module, entry.authors, form, condition)
                if key not in self.ready or self.ready[key].failed:
                    check_forms((form,), condition)
                    self.ready[key] = prepare(self.subject(entry, condition), form, condition)
                    seconds = self.ready[key].ready_seconds
                    print(f"  {self.ready[key].title}, {entry.dtype}: ready after {seconds:.1f} s", flush=True)
                self.ready[key].seconds.clear()  # of an earlier group
                found.append(self.ready[key])
        return found

    def subject(self, entry: Entry, condition: Condition) -> Subject:
        if (entry.module, entry.authors) not in self.subjects:
            depth, options = ("18", {"base_width": 16}) if self.small else ("50", {})
            subject = subject_of(f"{entry.module}_resnet{depth}", condition, options)
            if entry.authors:
                rival = load_rival(f"{AUTHORS}:{entry.authors}")(subject.model)
                exact = replace(condition, mode="infer", dtype="fp32", batch=min(2, condition.batch))
                with settings_for(exact, ()):
                    clips = exact.clips(torch.channels_last)
                    self.agreement[entry.authors] = compare_outputs(subject.model, rival, clips)
                subject = replace(subject, model=rival, formulation=f"authors.py:{entry.authors}")
            self.subjects[entry.module, entry.authors] = subject
        return self.subjects[entry.module, entry.authors]


def kernels_of(contender: Contender, steps: int = 3) -> str:
    """The kernels that a step's time goes into."""
    from torch.profiler import ProfilerActivity, profile

    cuda = contender.condition.device.type == "cuda"
    step = contender.step
    assert step is not None
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        for _ in range(steps):
            step()
        if cuda:
            torch.cuda.synchronize()
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    table = seen.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=90)
    return f"{contender.title}, {contender.condition.dtype}, batch {contender.condition.batch}; {steps} steps\n{table}"


def judge(goals: Sequence[Goal], group: Group, contenders: Sequence[Contender], record: dict[str, Any]) -> list[Goal]:
    """Note what the group says of the goals; those it shows to be missed are returned."""
    missed = []
    figures = record["groups"][group.name]["goals"] = {}
    for goal in goals:
        if group.name not in goal.groups or (found := goal.figure(contenders)) is None:
            continue
        limit = f"≥ {goal.least:g}" if goal.least is not None else f"≤ {goal.most:g}"
        figures[goal.name] = found | {"goal": limit, "reached": goal.judged(found["median"])}
        if not figures[goal.name]["reached"]:
            missed.append(goal)
        print(f"  {goal.name}: {found['median']:g}, goal {limit}", flush=True)
    return missed


def verdicts(goals: Sequence[Goal], groups: dict[str, Any]) -> dict[str, Any]:
    """Of each goal what counts: the hardest of the groups' figures."""
    found: dict[str, Any] = {}
    for goal in goals:
        figures = [
            groups[name]["goals"][goal.name] | {"group": name}
            for name in goal.groups
            if goal.name in groups.get(name, {}).get("goals", {})
        ]
        if figures:
            hardest = min if goal.least is not None else max
            found[goal.name] = hardest(figures, key=lambda figure: figure["median"])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--cpu", action="store_true", help="the CPU's goals")
    parser.add_argument("--groups", nargs="+", metavar="GROUP", help="of the run, by name; others stay in the file")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each network (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU, with --cpu (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=420, help="seconds after which no group begins (%(default)s)")
    parser.add_argument("--small", action="store_true", help="narrow networks and few pixels: to see that all runs")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    groups, goals = (CPU, CPU_GOALS) if arguments.cpu else (GPU, GPU_GOALS)
    if unknown := set(arguments.groups or ()) - {group.name for group in groups}:
        parser.error(f"no group {sorted(unknown)[0]!r}; there are {', '.join(group.name for group in groups)}")
    if not arguments.cpu and not torch.cuda.is_available():
        parser.error("no GPU is here; --cpu measures the CPU's goals")
    if not arguments.output.parent.is_dir():
        parser.error(f"--output {arguments.output}: no folder {arguments.output.parent}")
    if arguments.cpu:
        keep_freed_memory()  # as the command line does
        torch.set_num_threads(arguments.threads)
    device = torch.device("cpu" if arguments.cpu else "cuda")
    stable = Stable(device, small=arguments.small)
    earlier: dict[str, Any] = {}
    if arguments.groups and arguments.output.is_file():
        earlier = json.loads(arguments.output.read_text(encoding="utf-8"))
        now = account(device)
        if any(earlier[key] != now[key] for key in ("device", "versions", "threads")):
            parser.error(f"{arguments.output} was measured on another machine or with other versions; measure all anew")
        for name in arguments.groups:
            earlier["groups"].pop(name, None)
    chosen = [group for group in groups if not arguments.groups or group.name in arguments.groups]
    options = [word for word in sys.argv[1:] if word != str(arguments.output)]
    options = [word for word in options if word != "--output"] + ["--output", "…"]
    record: dict[str, Any] = {
        "command": f"python benchmarks/speed.py {shlex.join(options[:-1])} …",
        "what": "speed of networks by turns in one process: medians and quartiles over rounds, after warm-up; ratios "
        "round by round, of each one's fastest form, above 1 where the first is faster (latency and memory: below)",
        **account(device),
        "condition": {
            "network": "ResNet-18, narrow" if arguments.small else "ResNet-50",
            "clips": "4×32×32" if arguments.small else "8×224×224",
            "rounds": arguments.rounds,
            "input": "noise on the device; inference in the dtype, training in fp32 under autocast",
            "waited_for": "after each step at batch 1, else after each turn",
            "cudnn_benchmark": "in inference" if device.type == "cuda" else False,
        },
        "goals": {},
        "authors": stable.agreement,
        "groups": earlier.get("groups", {}),
        "left_out": {},
    }
    stable.agreement |= earlier.get("authors", {})
    failed = False
    forms = {form for group in chosen for entry in group.entries for form in entry.forms}
    for group in chosen:
        with settings_for(stable.condition(group, "bf16"), tuple(forms)):
            if time.perf_counter() - begin > arguments.limit:
                record["left_out"][group.name] = f"{arguments.limit:g} seconds were over"
            else:
                print(f"{group.name} ({time.perf_counter() - begin:.0f} s)", flush=True)
                try:
                    run(group, goals, stable, record, arguments.rounds, arguments.output)
                except KeyboardInterrupt:
                    record["left_out"][group.name] = "stopped"
                    failed = True
                except Exception as error:  # another group may well run, and time on a GPU is short
                    traceback.print_exc()
                    record["left_out"][group.name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"[:300]
                    failed = True
            record["goals"] = verdicts(goals, record["groups"])
            record["seconds"] = round(time.perf_counter() - begin)
            write_json(arguments.output, record)
            if record["left_out"].get(group.name) == "stopped":
                break
    for name, found in record["goals"].items():
        print(f"{'reached    ' if found['reached'] else 'NOT reached'}  {name}: {found['median']:g} ({found['goal']})")
    for name, why in record["left_out"].items():
        print(f"left out: {name}: {why}")
    return int(failed)


def run(group: Group, goals: Sequence[Goal], stable: Stable, record: dict[str, Any], rounds: int, output: Path) -> None:
    """Measure one group into the record."""
    contenders = stable.contenders(group)
    if not measure(contenders, rounds):
        raise KeyboardInterrupt
    tsn = next((one.subject.network for one in contenders if one.subject.network.startswith(TSN)), None)
    rows = rows_of(contenders, tsn)
    for row in rows:
        figures = row.get("milliseconds_a_step", {})
        speed = f"{row['clips_per_second']['median']:.1f} clips/s" if figures else row["failed"]
        print(f"  {row['network']} {row['formulation']} {row['form']} {row['dtype']}: {speed}", flush=True)
    record["groups"][group.name] = {"mode": group.mode, **account(stable.device), "results": rows}
    for goal in judge(goals, group, contenders, record):
        profiled = [fastest(contenders, goal.profiled), fastest(contenders, TSN)]
        tables = {one.title: kernels_of(one) for one in profiled if one}
        name = re.sub(r"[^a-z0-9]+", "_", goal.name.lower()).strip("_")
        path = output.with_name(f"{output.stem}_{name}.txt")
        path.write_text("\n\n".join(tables.values()) + "\n", encoding="utf-8")
        record["groups"][group.name]["goals"][goal.name]["profile"] = path.name


if __name__ == "__main__":
    sys.exit(main())
