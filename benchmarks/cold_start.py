"""Where the time of ``clipwise predict RUN FILE`` goes, from a fresh process to the label.

STM on ResNet-50, 8 frames of 224 × 224, 174 classes, fp32; rendered H.264 files of five seconds, 30 frames a second,
one keyframe. Every run is a process of its own, and they take turns:

python, torch, clipwise   ``python -c`` with nothing, ``import torch`` or ``import clipwise``: the floors, to the end of
                          the process
predict, by file          the verb as a user starts it: to the line with the label, and to the end of the process
phases, by file           the verb again, in a process that imports its parts one after the other, with the time between
                          them taken, and has the functions it calls timed: each without those that it calls itself

The phases of one process add up to its time. ``forward, again`` comes after the label and is no part of it: what the
first forward pass took above it is what only a first one pays (memory, kernels that oneDNN makes).

    python benchmarks/cold_start.py --output benchmarks/results/cold_start_cpu_2cores.json
"""

from __future__ import annotations

import sys
import time

BEGUN = time.monotonic()  # before anything else is imported; on one clock with the process that started this one

# These are the verb's as well, so that its imports are not spared them.
import json  # noqa: E402
import os  # noqa: E402
import platform  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

SIZES = ((320, 240), (1280, 720))
RATE, SECONDS = 30, 5
NETWORK, CLASSES, FRAMES = "stm_resnet50", 174, 8
IMPORTS = ("interpreter", "import command line", "import PyTorch", "import clipwise", "import PyAV")
INDEXING = ("index file",)
LABEL = "label"

Phases = dict[str, float]  # seconds


# In the process that is looked into


class Clock:
    """Seconds by what they went to; of functions that call one another, each has its own alone."""

    def __init__(self, begun: float) -> None:
        self.phases: Phases = {}
        self._last = begun
        self._running: list[str] = []

    def spent(self, on: str) -> None:
        """The time since the last account went to this."""
        now = time.monotonic()
        self.phases[on] = self.phases.get(on, 0.0) + now - self._last
        self._last = now

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            self.spent(self._running[-1] if self._running else phase)
            self._running.append(phase)
            try:
                return function(*arguments, **options)
            finally:
                self.spent(self._running.pop())

        return run


def look_into(started: float, run: str, file: str) -> None:
    """Print the phases of ``clipwise predict`` as the last line of this process, after the verb's own."""
    clock = Clock(BEGUN)
    clock.phases["interpreter"] = BEGUN - started

    from clipwise.cli import application
    from clipwise.cli.app import importing

    with importing():
        verbs = application("predict")
    clock.spent("import command line")
    with importing():
        import torch

        clock.spent("import PyTorch")
        from clipwise import checkpoint
        from clipwise.data import dataset, decode
        from clipwise.inference import predictor
    clock.spent("import clipwise")
    decode._import_av()
    clock.spent("import PyAV")

    passes: list[Callable[[], Any]] = []
    scores = predictor.class_scores

    def forward(*arguments: Any, **options: Any) -> Any:
        passes.append(lambda: scores(*arguments, **options))
        return passes[0]()

    places: tuple[tuple[Any, str, str], ...] = (
        (checkpoint, "read_card", "read model.json"),
        (checkpoint, "create_model", "build network"),
        (checkpoint, "read_state_dict", "open weights"),
        (predictor, "read_checkpoint", "take over weights"),
        (predictor, "Predictor", "lay out network"),
        (decode.VideoFile, "_open", "open file"),
        (decode.VideoFile, "_make_index", "index file"),
        (decode.VideoFile, "read", "decode"),
        (dataset, "crop_resize", "crop and resize"),
    )
    for owner, name, phase in places:
        setattr(owner, name, clock.timed(phase, getattr(owner, name)))
    predictor.class_scores = clock.timed("forward", forward)  # type: ignore[assignment]
    sys.argv = ["clipwise", "predict", run, file, "--top-k", "1"]
    clock.timed("parse, score, print", verbs)(standalone_mode=False)
    total = sum(clock.phases.values())
    passes[0]()
    clock.spent("forward, again")
    print(json.dumps({"phases": clock.phases, LABEL: total, "threads": torch.get_num_threads()}))


# Outside it


def prepare(folder: Path) -> tuple[Path, list[Path]]:
    """A folder as ``clipwise train`` leaves it, and the files."""
    import av
    import torch
    from reader import scene

    from clipwise import create_model
    from clipwise.checkpoint import write_card, write_weights
    from clipwise.config import ModelConfig, ViewsConfig
    from clipwise.data.labels import LabelSpace

    run = folder / "run"
    run.mkdir()
    torch.manual_seed(0)
    write_weights(create_model(NETWORK, num_classes=CLASSES, num_frames=FRAMES), run / "best.safetensors")
    config = ModelConfig(name=NETWORK, num_frames=FRAMES, weights=None)
    write_card(run, config, LabelSpace.of([f"class {number}" for number in range(CLASSES)]), ViewsConfig())
    files = []
    for width, height in SIZES:
        files.append(folder / f"{width}x{height}.mp4")
        with av.open(str(files[-1]), "w") as container:
            stream: Any = container.add_stream("libx264", rate=RATE, options={"g": "250"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.thread_count = 1  # PyAV would cut each picture into as many slices as there are cores
            for image in scene(RATE * SECONDS, width, height, seed=0):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
    return run, files


def ended(*command: str | Path) -> Phases:
    """Seconds to the end of a process that prints nothing."""
    begun = time.monotonic()
    subprocess.run([sys.executable, *command], check=True)
    return {"end": time.monotonic() - begun}


def predicted(run: Path, file: Path) -> Phases:
    """Seconds to the label, the first line that begins with a space, and to the end of the process."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "clipwise", "predict", str(run), str(file), "--top-k", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        label = next(time.monotonic() for line in process.stdout if line.startswith("  "))
        process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return {LABEL: label - begun, "end": time.monotonic() - begun}


def looked_into(run: Path, file: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--into", repr(time.monotonic()), str(run), str(file)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    inside: dict[str, Any] = json.loads(lines[-1])
    return inside


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and quartiles, in milliseconds, and what share of the way to the label imports and indexing are."""
    from reader import quartiles

    phases = {name: quartiles([1e3 * row["phases"][name] for row in rows]) for name in rows[0]["phases"]}
    shares = {
        "PyTorch's import": ("import PyTorch",),
        "all imports": IMPORTS,
        "imports without PyTorch's": tuple(name for name in IMPORTS if name != "import PyTorch"),
        "indexing": INDEXING,
        "opening and indexing": ("open file", *INDEXING),
    }
    return {
        "label_ms": quartiles([1e3 * row[LABEL] for row in rows]),
        "phases_ms": phases,
        "shares": {
            what: quartiles([sum(row["phases"][name] for name in names) / row[LABEL] for row in rows])
            for what, names in shares.items()
        },
    }


def goals(result: dict[str, Any]) -> dict[str, Any]:
    """The medians that the goals speak of: less than half of the way to the label is not dominating it."""
    verdicts: dict[str, Any] = {}
    for what in ("all imports", "imports without PyTorch's", "indexing"):
        shares = {file: one["shares"][what]["median"] for file, one in result["phases"].items()}
        verdicts[f"{what}: less than half of the way to the label"] = {
            "medians": shares,
            "met": all(share < 0.5 for share in shares.values()),
        }
    milliseconds = result["floors_ms"]["clipwise"]["median"]
    verdicts["import clipwise: less than 2000 ms"] = {"median": milliseconds, "met": milliseconds < 2000}
    return verdicts


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--runs", type=int, default=15, help="timed runs of each, by turns (default: %(default)s)")
    arguments = parser.parse_args()
    if not arguments.output.parent.is_dir():
        parser.error(f"--output {arguments.output}: no folder {arguments.output.parent}")

    from reader import processor, quartiles

    from clipwise.checkpoint import versions

    with tempfile.TemporaryDirectory() as folder:
        run, files = prepare(Path(folder))
        kinds: dict[str, Callable[[], dict[str, Any]]] = {
            "python": lambda: ended("-c", ""),
            "torch": lambda: ended("-c", "import torch"),
            "clipwise": lambda: ended("-c", "import clipwise"),
        }
        for file in files:
            kinds[f"predict {file.stem}"] = lambda file=file: predicted(run, file)  # type: ignore[misc]
            kinds[f"phases {file.stem}"] = lambda file=file: looked_into(run, file)  # type: ignore[misc]
        rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
        for turn in range(arguments.runs + 1):
            for kind, measure in kinds.items():
                row = measure()
                if turn:  # the first brings the files into memory
                    rows[kind].append(row)
            print(f"\rround {turn}/{arguments.runs}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
    result: dict[str, Any] = {
        "what": "milliseconds from starting a process to the label of one file, and where they go; medians and "
        "quartiles over fresh processes",
        "condition": {
            "network": f"{NETWORK}, {FRAMES} frames of 224 × 224, {CLASSES} classes, fp32, random weights",
            "files": f"H.264, {SECONDS} s, {RATE} frames a second, one keyframe, rendered",
            "runs": f"{arguments.runs} of each by turns, after one that brings the files into memory",
            "threads": rows[f"phases {files[0].stem}"][0]["threads"],
        },
        "floors_ms": {
            kind: quartiles([1e3 * row["end"] for row in rows[kind]]) for kind in ("python", "torch", "clipwise")
        },
        "predict_ms": {
            file.stem: {
                what: quartiles([1e3 * row[what] for row in rows[f"predict {file.stem}"]]) for what in (LABEL, "end")
            }
            for file in files
        },
        "phases": {file.stem: summary(rows[f"phases {file.stem}"]) for file in files},
        "device": {"processor": processor(), "system": platform.system(), "cores": len(os.sched_getaffinity(0))},
        "versions": versions(),
        "command": f"python benchmarks/cold_start.py --runs {arguments.runs} --output …",
    }
    result["goals"] = goals(result)
    arguments.output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, one in result["phases"].items():
        print(f"{name}: label after {one['label_ms']['median']:.0f} ms")
        for phase, time_of in one["phases_ms"].items():
            print(f"  {phase:22}{time_of['median']:9.1f}   ({time_of['q1']:.1f}–{time_of['q3']:.1f})")
        for what, share in one["shares"].items():
            print(f"  share of {what:28}{share['median']:6.3f}")
    for goal, verdict in result["goals"].items():
        print(f"{goal}: {'met' if verdict['met'] else 'NOT met'}, {verdict}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--into"]:
        look_into(float(sys.argv[2]), *sys.argv[3:5])
    else:
        main()
