"""Whole training runs, one setting after another: clips a second, share of waiting, peak memory, seconds to compile.

The runs are `clipwise train`'s own, reading and augmentation included, on rendered videos that are packed first. Each
epoch has eight steps; what a run shows is the median and the quartiles of its epochs, without the first two, and what
the first one took longer than that is the start: readers, the choice of kernels, compiling. Every other round goes
through the settings backwards.

    python benchmarks/training.py --output benchmarks/results
    python benchmarks/training.py --output /tmp/try --networks tsn_resnet18 --size 64 --batch-size 4 --rounds 1

The file's name says device, batch and clip.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import clipwise
from clipwise.checkpoint import command_line, device_name, versions
from clipwise.data.pack import pack
from clipwise.data.synthetic import synthesize
from clipwise.data.workers import available_cores
from clipwise.files import write_json

STEPS = 8  # an epoch
SETTINGS = {
    "fp32": ["training.precision=fp32", "training.compile=false"],
    "bf16": ["training.compile=false"],
    "bf16, plain SGD": ["training.compile=false"],
    "bf16, cudnn.benchmark": ["training.compile=false"],
    "bf16, recomputed": ["training.compile=false", "training.activation_checkpointing=true"],
    "bf16, compiled": ["training.compile=true"],
    "bf16, compiled, recomputed": ["training.compile=true", "training.activation_checkpointing=true"],
}


@contextmanager
def prepared(setting: str) -> Iterator[None]:
    """What no field of the configuration says."""
    sgd, chosen = torch.optim.SGD, torch.backends.cudnn.benchmark
    if "plain SGD" in setting:
        torch.optim.SGD = lambda *arguments, **options: sgd(*arguments, **{**options, "fused": None})  # type: ignore
    torch.backends.cudnn.benchmark = "cudnn.benchmark" in setting
    torch.compiler.reset()
    try:
        yield
    finally:
        torch.optim.SGD = sgd  # type: ignore[misc]
        torch.backends.cudnn.benchmark = chosen


def measured(data: Path, folder: Path, network: str, setting: str, given: argparse.Namespace) -> dict[str, Any]:
    overrides = [
        f"model.name={network}",
        "model.weights=null",
        f"model.num_frames={given.frames}",
        f"views.size={given.size}",
        "data.validation_split=none",
        f"data.workers={given.workers}",
        f"training.batch_size={given.batch_size}",
        f"training.epochs={given.epochs}",
        *SETTINGS[setting],
    ]
    with prepared(setting):
        epochs = clipwise.train(data, folder, overrides=overrides).epochs
    steady = epochs[2:]
    speeds = [log.clips_per_second for log in steady]
    seconds = [STEPS * given.batch_size / log.clips_per_second for log in epochs]
    return {
        "network": network,
        "setting": setting,
        "clips_per_second": statistics.median(speeds),
        "quartiles": statistics.quantiles(speeds, method="inclusive")[::2] if len(speeds) > 1 else speeds * 2,
        "waiting": statistics.median(log.waiting or 0.0 for log in steady),
        "peak_gib": max((log.peak_gib for log in steady if log.peak_gib), default=None),
        "start_seconds": seconds[0] - statistics.median(seconds[2:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--networks", default="tsn_resnet50,stm_resnet50")
    parser.add_argument("--settings", default="; ".join(SETTINGS), help="separated by ;")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=available_cores())
    given = parser.parse_args()
    if given.epochs < 3:
        parser.error(f"--epochs must be at least 3, for the first two are the start, got {given.epochs}")
    settings = [setting.strip() for setting in given.settings.split(";")]
    if unknown := [setting for setting in settings if setting not in SETTINGS]:
        parser.error(f"no setting {unknown[0]!r}; there are {'; '.join(SETTINGS)}")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = synthesize(
            folder / "videos",
            pairs=1,
            videos_per_class=STEPS * given.batch_size // 2 + 1,  # and one of each class that is not trained on
            size=given.size * 8 // 7 // 2 * 2,
            frames=2 * given.frames,
            val_share=1 / (STEPS * given.batch_size // 2 + 1),
            workers=given.workers,
        )
        pack(
            clipwise.data.manifest.Manifest.read(videos), folder / "videos.pack", format="uint8", workers=given.workers
        )
        for turn in range(given.rounds):
            for network in given.networks.split(","):
                for setting in settings if turn % 2 == 0 else settings[::-1]:
                    run = folder / f"{len(rows)}"
                    rows.append(measured(folder / "videos.pack", run, network, setting, given) | {"round": turn})
                    print(json.dumps(rows[-1]), flush=True)
    device = "cpu" if not torch.cuda.is_available() else re.sub(r"\W+", "_", device_name()).strip("_").lower()
    conditions = {
        "command": command_line(),
        "device": device_name(),
        "cores": available_cores(),
        "workers": given.workers,
        "batch_size": given.batch_size,
        "clip": [given.frames, given.size, given.size],
        "epochs": f"{given.epochs} of {STEPS} steps, the first two left out",
        "versions": versions(),
    }
    file = given.output / f"training_{device}_batch{given.batch_size}_{given.frames}x{given.size}.json"
    given.output.mkdir(parents=True, exist_ok=True)
    write_json(file, {"conditions": conditions, "runs": rows})
    print(file)


if __name__ == "__main__":
    main()
