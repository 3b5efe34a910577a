"""Streams: time and MACs of a frame, and what 100,000 frames leave in memory.

Networks take turns, sixty frames of each in a turn, twelve of a window; frames are on the device already. ``image
network`` is TSN's, one frame; ``causal`` keeps a state; ``sliding`` computes a window of eight frames anew but for what
each gives alone; ``clip`` is the same without a stream. All are deployed.

    python benchmarks/stream.py --output benchmarks/results/stream_cpu_2threads.json
    python benchmarks/stream.py --output benchmarks/results/stream_h200.json      # where there is a GPU: that one

Memory is that of ``clipwise stream RUN - --json``, a process of its own that is fed raw pictures through a pipe:
capture, decode and infer threads, smoothing, events, output. What is read is its resident memory without files it maps.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clipwise import Stream, create_model, deploy
from clipwise.benchmark.timing import account, in_turns, quartiles, seconds_of
from clipwise.checkpoint import write_card, write_weights
from clipwise.config import ModelConfig, ViewsConfig
from clipwise.data.labels import LabelSpace
from clipwise.files import write_json
from clipwise.models.complexity import count_macs
from clipwise.models.network import VideoNetwork, channels_last

FRAMES, CLASSES = 8, 174
MODULES = ("tsm", "tam", "stm", "stc", "stc_light", "stw")
ROUNDS, A_TURN = 9, 60
GOALS = {"cpu": "STM-18 at 112², 2 CPU cores: at least 150 frames/s", "cuda": "STM-50 at 224²: under 1.2 ms"}
SIDE, SAMPLED_EVERY = 64, 10_000  # pixels of a picture, and frames between two looks at the memory


# Time


def stepping(network: VideoNetwork, dtype: torch.dtype, frame: Tensor) -> Callable[[], object]:
    stream = Stream(deploy(network, dtype=dtype), cuda_graph=frame.is_cuda)
    state: list[Any] = [None]

    def step() -> None:
        state[0] = stream(frame, state[0])[1]

    return step


def competitors(backbone: str, size: int, dtype: torch.dtype, device: torch.device) -> dict[str, Callable[[], object]]:
    def network(module: str, **options: Any) -> VideoNetwork:
        made = create_model(f"{module}_{backbone}", num_classes=CLASSES, num_frames=FRAMES, **options)
        return channels_last(made.eval().to(device))

    frame = torch.randn(1, 3, size, size, device=device)
    clip = frame[:, None].expand(-1, FRAMES, -1, -1, -1).contiguous()
    offline = deploy(network("stm"), dtype=dtype, cuda_graph=device.type == "cuda")
    return {
        "image network": stepping(network("tsn"), dtype, frame),
        **{f"{module} causal": stepping(network(module, causal=True), dtype, frame) for module in MODULES},
        "stm sliding": stepping(network("stm"), dtype, frame),
        "stm clip": partial(offline, clip),
    }


def time_of_a_frame(device: torch.device) -> Iterator[dict[str, Any]]:
    on_gpu = device.type == "cuda"
    torch.backends.cudnn.allow_tf32 = False  # float32 means that
    settings = [("resnet50", 224)] if on_gpu else [("resnet18", 112), ("resnet50", 112)]
    for backbone, size in settings:
        for dtype in (torch.bfloat16, torch.float32):
            competing = competitors(backbone, size, dtype, device)
            for step in competing.values():
                seconds_of(step, device, times=5)
            times: dict[str, list[float]] = {name: [] for name in competing}
            for order in in_turns(list(competing), ROUNDS):
                for name in order:
                    turn = A_TURN if "causal" in name or name == "image network" else A_TURN // 5
                    times[name].append(1e3 * seconds_of(competing[name], device, turn) / turn)
            base = quartiles(times["image network"])["median"]
            for name, own in times.items():
                spread = quartiles(own)
                yield {
                    "network": name,
                    "backbone": backbone,
                    "size": size,
                    "dtype": str(dtype).removeprefix("torch."),
                    "milliseconds": spread,
                    "frames_per_second": round(1e3 / spread["median"], 1),
                    "times_the_image_network": round(spread["median"] / base, 3),
                }


def macs_of_a_frame() -> list[dict[str, Any]]:
    def gmacs(network: nn.Module, frames: int = 1) -> float:
        return round(count_macs(network, num_frames=frames) / 1e9, 4)

    tsn = create_model("tsn_resnet50", num_classes=CLASSES)
    rows = [{"network": "tsn_resnet50", "gmacs_a_frame": gmacs(Stream(tsn)), "of_a_clip": gmacs(tsn, FRAMES)}]
    for module in MODULES:
        for causal in (True, False):
            model = create_model(f"{module}_resnet50", num_classes=CLASSES, **({"causal": True} if causal else {}))
            rows.append(
                {
                    "network": f"{module}_resnet50{', causal' if causal else ', sliding'}",
                    "gmacs_a_frame": gmacs(Stream(model)),
                    "of_a_clip": gmacs(model, FRAMES),
                }
            )
    return rows


# Memory


def small_run(folder: Path) -> Path:
    """A folder as ``clipwise train`` leaves it, with a network so small that frames are many."""
    options = {"base_width": 16, "causal": True}
    labels = LabelSpace.of(("none", "some"))
    model = create_model("stm_resnet18", num_classes=2, num_frames=FRAMES, **options)
    folder.mkdir()
    write_card(folder, ModelConfig("stm_resnet18", FRAMES, None, options), labels, ViewsConfig(size=SIDE))
    write_weights(model, folder / "best.safetensors")
    return folder


def private_megabytes(process: int) -> float:
    """Resident memory of a process without the files that it maps."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return (int(fields["RssAnon"].split()[0]) + int(fields["RssShmem"].split()[0])) / 1024


def memory_over(frames: int, seconds: float | None = None) -> dict[str, Any]:
    """The resident memory of ``clipwise stream`` as it goes through so many frames, or for so many seconds."""
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile("w+") as errors:
        run = small_run(Path(scratch) / "run")
        size = f"{SIDE}x{SIDE}"
        command = [sys.executable, "-m", "clipwise", "stream", str(run), "-", "--size", size, "--fps", "60"]
        process = subprocess.Popen(
            [*command, "--json", "--scores"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        feeder = threading.Thread(target=feed, args=(process.stdin, frames), daemon=True)
        feeder.start()
        every = SAMPLED_EVERY if seconds is None else SAMPLED_EVERY // 10
        seen, samples, ends = 0, {}, float("inf")
        for line in process.stdout:
            if "scores" not in json.loads(line):
                continue
            if seconds is not None and not seen:
                ends = time.monotonic() + seconds
            seen += 1
            if seen % every == 0:
                samples[seen] = round(private_megabytes(process.pid), 2)
            if time.monotonic() > ends:
                break
        process.terminate()
        process.wait()
        if not seen:
            errors.seek(0)
            raise RuntimeError(f"clipwise stream ended before its first picture: {errors.read()[-2000:]}")
    return {"frames": seen, "megabytes_after": samples, "megabytes_per_10000_frames": growth(samples)}


def feed(pipe: Any, frames: int) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8).tobytes() for _ in range(16)]
    try:
        for number in range(frames):
            pipe.write(pictures[number % len(pictures)])
        pipe.close()
    except BrokenPipeError:
        pass


def growth(samples: dict[int, float]) -> float | None:
    """Megabytes for each 10,000 frames: the slope of a line through the samples but the first fifth, in which buffers
    reach their size."""
    settled = list(samples.items())[len(samples) // 5 :]
    if len(settled) < 3:
        return None
    slope = np.polyfit([frames for frames, _ in settled], [held for _, held in settled], 1)[0]
    return round(float(slope) * 10_000, 3)


PARTS = ("macs", "time", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="parts that are in this file and not asked for stay")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="all if left out")
    parser.add_argument("--frames", type=int, default=100_000, help="of the part that looks at memory (%(default)s)")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    earlier = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    record: dict[str, Any] = {
        "command": f"python benchmarks/stream.py --output {arguments.output}",
        **account(device),
        "goal": GOALS[device.type],
        "condition": {
            "num_frames": FRAMES,
            "classes": CLASSES,
            "rounds": ROUNDS,
            "frames_in_a_turn": A_TURN,
            "memory": f"stm_resnet18, base_width 16, causal, {SIDE}², OMP_NUM_THREADS=1",
        },
        **{part: earlier.get(part) for part in PARTS},
    }
    if "macs" in arguments.parts:
        record["macs"] = macs_of_a_frame()
    if "time" in arguments.parts:
        record["time"] = []
        for row in time_of_a_frame(device):
            record["time"].append(row)
            print(json.dumps(row), flush=True)
            write_json(arguments.output, record)
    if "memory" in arguments.parts:
        record["memory"] = memory_over(arguments.frames)
        print(json.dumps(record["memory"]))
    write_json(arguments.output, record)


if __name__ == "__main__":
    main()
