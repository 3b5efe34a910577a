"""The demonstration: one network with and without temporal modules, on videos that only their order tells apart."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipwise.analysis.plots import frame_strip, pair_accuracy
from clipwise.checkpoint import command_line, device_name, versions
from clipwise.config import load_config
from clipwise.data.manifest import Manifest
from clipwise.data.pack import pack
from clipwise.data.synthetic import PAIRS, synthesize
from clipwise.data.workers import available_cores
from clipwise.evaluation.protocols import Evaluation
from clipwise.evaluation.run import evaluate
from clipwise.files import write_json

if TYPE_CHECKING:
    from clipwise.training.run import Reporter

__all__ = ["DemoResult", "accuracy_in_pairs", "run_demo"]

NETWORKS = {"STM": "stm_resnet18", "TSN": "tsn_resnet18"}


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration found."""

    pairs: tuple[tuple[str, str], ...]
    accuracy: dict[str, tuple[float, ...]]
    """Of each network, percent in each pair."""
    top1: dict[str, float]
    """Over all classes, percent."""
    seconds: float
    picture: Path

    def mean(self, network: str) -> float:
        """Accuracy inside pairs, the mean of the pairs."""
        return float(np.mean(self.accuracy[network]))


def accuracy_in_pairs(
    evaluation: Evaluation, classes: tuple[str, ...], pairs: tuple[tuple[str, str], ...]
) -> tuple[float, ...]:
    """Percent of each pair's videos whose own class scores higher than the pair's other class; chance is 50.

    Equal scores count half, as a coin would: a network that cannot decide must not fall below chance.
    """
    place = {name: index for index, name in enumerate(classes)}
    result = []
    for pair in pairs:
        own: NDArray[np.int64] = np.array([place[name] for name in pair])
        chosen = np.isin(evaluation.labels, own)
        first, second = (evaluation.scores[chosen][:, index] for index in own)
        lead = np.where(evaluation.labels[chosen] == own[0], first - second, second - first)
        result.append(100 * float((np.sign(lead) / 2 + 0.5).mean()))
    return tuple(result)


def run_demo(
    output: str | Path,
    *,
    seed: int = 0,
    videos_per_class: int = 80,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
    display: "Callable[[], AbstractContextManager[Reporter]] | None" = None,
) -> DemoResult:
    """Render videos, train STM and TSN on them, test both, and write ``demo.json`` and two pictures.

    Args:
        output: the folder for all of it.
        seed: of the videos and of training.
        videos_per_class: a quarter of them is for testing.
        overwrite: replace an earlier demonstration.
        say: told what is done.
        display: opened around each training, shows how it goes.

    Raises:
        ValueError: if the folder is in use or cannot be written.
        KeyboardInterrupt: if a training was stopped by Ctrl-C or SIGTERM; there is no result then.
    """
    from clipwise.training.run import train

    start = time.perf_counter()
    output = Path(output)
    data, packed = output / "videos", output / "videos.pack"
    workers = available_cores()
    say("rendering videos in which only the order of events tells the class")
    synthesize(data, videos_per_class=videos_per_class, size=64, seed=seed, workers=workers, overwrite=overwrite)
    manifest = Manifest.read(data)
    pack(manifest, packed, format="uint8", workers=workers, overwrite=overwrite)
    _strips(manifest, output / "videos.png")
    accuracy: dict[str, tuple[float, ...]] = {}
    top1: dict[str, float] = {}
    runs: dict[str, Any] = {}
    for network, name in NETWORKS.items():
        say(f"training {network}")
        run = output / name
        config = load_config("demo", [f"model.name={name}", f"training.seed={seed}"])
        with display() if display else nullcontext() as reporter:
            trained = train(packed, run, recipe=config, overwrite=overwrite, reporter=reporter)
        if not trained.finished:
            raise KeyboardInterrupt
        # bf16 has too few digits for a network that sees hardly any difference between the classes of a pair.
        result = evaluate(run, which="last", precision="fp32")
        accuracy[network] = accuracy_in_pairs(result.evaluation, result.classes, PAIRS)
        top1[network] = result.evaluation.video.figures["top1"]
        runs[network] = result.record
    picture = output / "demo.png"
    pair_accuracy(
        picture,
        PAIRS,
        {network: list(values) for network, values in accuracy.items()},
        "Which way round? Accuracy inside pairs of classes that differ in the order of events alone",
    )
    found = DemoResult(PAIRS, accuracy, top1, time.perf_counter() - start, picture)
    summary = {
        "command": command_line(),
        "seed": seed,
        "seconds": round(found.seconds, 1),
        "device": device_name(),
        "versions": versions(),
        "pairs": [list(pair) for pair in PAIRS],
        "accuracy_in_pairs": {network: [round(value, 2) for value in values] for network, values in accuracy.items()},
        "mean_accuracy_in_pairs": {network: round(found.mean(network), 2) for network in NETWORKS},
        "top1": {network: round(value, 2) for network, value in top1.items()},
        "config_sha256": {network: record["training"]["config_sha256"] for network, record in runs.items()},
    }
    write_json(output / "demo.json", summary)
    return found


def _strips(manifest: Manifest, path: Path) -> None:
    """A picture of one video of each class of the first four pairs."""
    wanted = [name for pair in PAIRS[:4] for name in pair]
    first = {manifest.classes[item.label or 0]: index for index, item in reversed(list(enumerate(manifest)))}
    rows = []
    for name in wanted:
        with manifest.open(first[name]) as frames:
            rows.append((name, frames.read(np.linspace(0, frames.num_frames - 1, 8).astype(np.int64))))
    frame_strip(path, rows)
