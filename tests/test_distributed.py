"""Several processes train what one trains, take every decision together, and leave none waiting.

Real processes, started by ``torchrun``: the second half of this file is what they run.
"""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PATIENCE, SMALL
from safetensors.torch import load_file
from torch import nn

import clipwise
from clipwise.checkpoint import write_weights
from clipwise.data.dataset import DrawSampler
from clipwise.data.decode import DecodeError
from clipwise.data.manifest import Manifest
from clipwise.models.registry import create_model
from clipwise.training.task import DivergedError

# 15 videos of which one cannot be read, in batches of 14: in an epoch's last step the second process has no clip.
# Without BatchNorm's statistics and dropout nothing depends on who computes what.
SAME = [
    *SMALL,
    "training.batch_norm=frozen",
    "model.options.dropout=0",
    "training.batch_size=14",
    "training.lr=0.001",
    "training.ema=0.6",
    "data.on_error=skip",
    "data.max_failed=0.2",
]
UNREADABLE = "moves_left"


def same(data: str | Path) -> list[str]:
    """SAME, from weights whose BatchNorms do not stand at mean 0 and variance 1, as a new network's do."""
    return [*SAME, f"model.weights={Path(data).with_name('start.safetensors')}"]


def launch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Two processes of ``torchrun``, each on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=PATIENCE)


@pytest.fixture(scope="module")
def data(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "videos"
    shutil.copytree(videos, folder)
    training = [item for item in Manifest.read(folder) if item.split == "train"]
    lines = (folder / "manifest.csv").read_text().splitlines()
    (folder / "manifest.csv").write_text("\n".join(line for line in lines if training[0].name not in line) + "\n")
    next(Path(item.path) for item in training if UNREADABLE in item.name).write_bytes(b"")
    torch.manual_seed(0)
    model = create_model("stm_resnet18", num_classes=4, num_frames=4, base_width=16)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 1.5)
    write_weights(model, folder.with_name("start.safetensors"))
    return folder


@pytest.fixture(scope="module")
def told(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What either of two processes saw; ``folder`` is where they trained."""
    folder = tmp_path_factory.mktemp("distributed")
    done = launch(__file__, data, folder)
    assert done.returncode == 0, done.stderr
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) | {"folder": folder} for rank in range(2)]


@pytest.fixture(scope="module")
def one(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run by one process, each step's clips in one part."""
    folder = tmp_path_factory.mktemp("one") / "run"
    clipwise.train(data, folder, overrides=same(data))
    return folder


def differences(one: Path, other: Path) -> Iterator[float]:
    """For each tensor, how far the two are apart, as a share of its largest number."""
    first, second = (load_file(folder / "last.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for key, value in first.items():
        yield float((value - second[key]).abs().max() / value.abs().max().clamp(min=1e-9))


def test_two_processes_end_with_the_weights_of_one(told: list[dict[str, Any]], one: Path) -> None:
    two = told[0]["folder"] / "same"
    assert max(differences(one, two)) < 1e-4
    # And the tolerance tells: the run has moved the weights by much more.
    assert max(differences(one, told[0]["folder"] / "start")) > 1e-2
    account = [json.loads((folder / "run.json").read_text()) for folder in (one, two)]
    assert [origin["processes"] for origin in account] == [1, 2]
    assert [log.loss for log in told[0]["same"].epochs] == pytest.approx(
        [float(line.split(",")[3]) for line in (one / "epochs.csv").read_text().splitlines()[1:]], rel=1e-4
    )


def test_twins_of_two_processes_end_with_the_weights_of_one(
    told: list[dict[str, Any]], data: Path, one: Path, tmp_path: Path
) -> None:
    clipwise.train(data, tmp_path / "run", overrides=[*same(data), "training.twins=true"])
    assert max(differences(tmp_path / "run", told[0]["folder"] / "twins")) < 1e-4
    assert max(differences(tmp_path / "run", one)) > 1e-3


def test_each_video_is_validated_once_and_failures_of_all_are_named(told: list[dict[str, Any]], one: Path) -> None:
    first, second = told[0]["same"], told[1]["same"]
    assert [UNREADABLE in failure.path for failure in first.unreadable] == [True]
    assert first.unreadable == second.unreadable
    assert first.best == second.best is not None
    scores = [
        json.loads((folder / "validation.json").read_text())["scores"] for folder in (told[0]["folder"] / "same", one)
    ]
    assert [entry["video"] for entry in scores[0]] == [entry["video"] for entry in scores[1]]
    assert np.allclose(*([entry["scores"] for entry in part] for part in scores), atol=1e-4)


def test_both_validate_with_the_statistics_that_are_kept(told: list[dict[str, Any]]) -> None:
    folder = told[0]["folder"] / "norms"
    scores = [entry["scores"] for entry in json.loads((folder / "validation.json").read_text())["scores"]]
    assert np.allclose(scores, clipwise.evaluate(folder, which="last", workers=0).evaluation.scores, atol=1e-5)


def test_a_signal_to_one_process_stops_both_and_another_number_resumes(told: list[dict[str, Any]], one: Path) -> None:
    stopped = [told[rank]["stopped"] for rank in range(2)]
    assert [(result.finished, result.step) for result in stopped] == [(False, 3), (False, 3)]
    folder = told[0]["folder"] / "stopped"
    assert clipwise.train(None, folder, resume=True).finished
    assert max(differences(one, folder)) < 1e-4


def test_each_process_draws_its_own(told: list[dict[str, Any]]) -> None:
    drawn = [number for process in told for number in process["drawn"]]
    assert len(set(drawn)) == len(drawn) >= 4


def test_an_error_in_one_process_is_raised_in_both(told: list[dict[str, Any]]) -> None:
    for process in told:
        assert isinstance(process["unreadable"], DecodeError)
        assert UNREADABLE in str(process["unreadable"])
        assert isinstance(process["diverged"], DivergedError)
        assert isinstance(process["died"], ChildProcessError)
        assert "same: exists already" in str(process["occupied"])  # which the first one alone looks at
        assert "multiple of the 2 processes that share it" in str(process["indivisible"])
        assert "sync_batch_norm runs on GPUs only" in str(process["synchronised"])
    left = {path.name for path in told[0]["folder"].iterdir()}
    assert left == {"same", "twins", "norms", "start", "stopped", "0.pickle", "1.pickle"}


def test_the_command_line_says_it_once(data: Path, tmp_path: Path) -> None:
    settings = [part for override in SAME[:-2] for part in ("--set", override)]
    done = launch("-m", "clipwise", "train", data, "--output", tmp_path / "run", *settings)
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1
    assert done.stderr.count("at 14 clips a step of 2 processes") == 1
    assert not list(tmp_path.iterdir())


def test_processes_share_the_batches_of_one() -> None:
    labels = np.arange(11)
    options: dict[str, Any] = {"batch_size": 4, "epochs": 2, "balanced": False, "seed": 3}
    whole = list(DrawSampler(labels, **options))
    shares = [list(DrawSampler(labels, rank=rank, processes=2, **options)) for rank in range(2)]
    assert [sorted(first + second) for first, second in zip(*shares, strict=True)] == [sorted(batch) for batch in whole]


def _tell(data: str, folder: Path) -> dict[str, Any]:
    """What one of the processes runs: the trainings, one after another, and how each ended here."""
    from clipwise.data.dataset import TrainingClips
    from clipwise.training.task import ClassificationTask

    rank = int(os.environ["RANK"])
    seen: dict[str, Any] = {}

    def run(name: str, *more: str, to: str | None = None) -> None:
        try:
            seen[name] = clipwise.train(data, folder / (to or name), overrides=[*same(data), *more])
        except (ValueError, OSError) as error:
            seen[name] = error

    run("same", "training.accumulate=2")
    run("twins", "training.twins=true")
    run("norms", "training.batch_norm=train")
    run("start", "training.lr=0", "training.epochs=1")
    run("occupied", to="same")
    run("unreadable", "data.on_error=raise")
    run("diverged", "training.lr=1e30", "training.gradient_clip=null")
    run("indivisible", "training.batch_size=7")
    run("synchronised", "training.sync_batch_norm=true")

    begin, read = ClassificationTask.on_train_batch_start, TrainingClips.item

    def interrupted(self: ClassificationTask, *arguments: Any) -> None:
        begin(self, *arguments)
        seen.setdefault("drawn", []).append(float(torch.rand(())))
        if rank == 1 and self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    def killed(self: TrainingClips, draw: Any, room: Any) -> Any:
        if rank == 1 and draw.number >= 14:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, draw, room)

    ClassificationTask.on_train_batch_start = interrupted  # type: ignore[method-assign]
    run("stopped")
    ClassificationTask.on_train_batch_start = begin  # type: ignore[method-assign]
    TrainingClips.item = killed  # type: ignore[method-assign]
    run("died", "data.workers=1")
    if rank == 0:
        shutil.rmtree(folder / "died", ignore_errors=True)  # the steps before it, if it came to any
    return seen


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[2])
    (target / f"{os.environ['RANK']}.pickle").write_bytes(pickle.dumps(_tell(sys.argv[1], target)))
