"""However a run is stopped, and with whatever options, it ends with the weights of one that was not: bit for bit.

What a run keeps is its mean of the weights where it is asked for, and its gradient does not depend on the parts that a
step is computed in.
"""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL
from safetensors.torch import load_file
from test_training import Interrupt

import clipwise
from clipwise.config import load_config
from clipwise.files import held_alone
from clipwise.models.network import VideoNetwork

STEPS_PER_EPOCH = 3  # 16 training videos in batches of 6
OPTIONS = [
    *SMALL,
    "data.workers=2",
    "model.options.dropout=0.5",
    "augmentation.brightness=0.4",
    "augmentation.greyscale=0.3",
    "training.ema=0.7",
    "training.accumulate=2",
    "training.mixup=0.4",
]
# One that writes half of its second checkpoint, and waits there for what may happen to it.
HALF_WRITTEN = """
import io, sys, time
import torch
import clipwise

save, saved = torch.save, []

def half(state, path):
    saved.append(path)
    if len(saved) < 2:
        return save(state, path)
    whole = io.BytesIO()
    save(state, whole)
    path.write_bytes(whole.getvalue()[: whole.tell() // 2])
    print("half", flush=True)
    time.sleep(600)

torch.save = half
torch.set_num_threads(int(sys.argv[1]))
clipwise.train(*sys.argv[2:4], overrides=sys.argv[4:])
"""


@pytest.fixture(scope="module")
def whole(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    clipwise.train(videos, folder, overrides=OPTIONS)
    return folder


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def ends_alike(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same weights, mean of them, momentum and figures."""
    states = [torch.load(folder / "resume.ckpt", weights_only=True) for folder in (one, other)]
    for state in states:
        state["epoch"] = state["epoch"][:2]  # the third is seconds
    return same(*states) and all(
        same(load_file(one / name), load_file(other / name)) for name in ("last.safetensors", "best.safetensors")
    )


def test_two_runs_with_one_seed_end_alike_and_another_seed_elsewhere(videos: Path, tmp_path: Path, whole: Path) -> None:
    clipwise.train(videos, tmp_path / "again", overrides=OPTIONS)
    assert ends_alike(tmp_path / "again", whole)
    clipwise.train(videos, tmp_path / "other", overrides=[*OPTIONS, "training.seed=1"])
    assert not ends_alike(tmp_path / "other", whole)


def test_stopped_within_an_epoch_with_workers_it_ends_alike(videos: Path, tmp_path: Path, whole: Path) -> None:
    stopped = clipwise.train(videos, tmp_path / "run", overrides=OPTIONS, reporter=Interrupt(STEPS_PER_EPOCH + 1))
    assert (stopped.finished, stopped.step) == (False, STEPS_PER_EPOCH + 1)
    assert clipwise.train(None, tmp_path / "run", resume=True, overrides=["data.workers=1"]).finished
    assert ends_alike(tmp_path / "run", whole)


def test_killed_while_it_writes_a_checkpoint_the_one_before_is_intact(
    videos: Path, tmp_path: Path, whole: Path
) -> None:
    folder = tmp_path / "run"
    arguments = [str(torch.get_num_threads()), str(videos), str(folder), *OPTIONS]
    with subprocess.Popen([sys.executable, "-c", HALF_WRITTEN, *arguments], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        try:
            assert run.stdout.readline() == "half\n"
            # While it lives, its folder is its own.
            with pytest.raises(ValueError, match=rf"in use by process {run.pid} on .*, which trains there"):
                clipwise.train(None, folder, resume=True)
        finally:
            os.kill(run.pid, signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    [partial] = folder.glob(".resume.ckpt.*")
    assert partial.stat().st_size > 0
    assert torch.load(folder / "resume.ckpt", weights_only=True)["step"] == STEPS_PER_EPOCH
    assert clipwise.train(None, folder, resume=True).finished
    assert ends_alike(folder, whole)
    assert [path.name for path in folder.parent.glob(".*")] + [path.name for path in folder.glob(".*")] == []


def test_without_locks_a_run_is_kept_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems of clusters have none."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with held_alone(tmp_path / "new" / "run"):
        (tmp_path / "new" / "run").mkdir()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run"]


def test_what_is_kept_is_the_mean_of_the_weights(videos: Path, tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Watch(Interrupt):
        def epoch_ended(self, *_: Any) -> None:
            seen.append(torch.load(tmp_path / "run/resume.ckpt", weights_only=True)["model"])

    more = ["training.batch_size=16", "training.epochs=3", "training.lr=0.05", "training.ema=0.7"]  # a step an epoch
    clipwise.train(videos, tmp_path / "run", overrides=[*SMALL, *more], reporter=Watch(-1))
    assert len(seen) == 3
    kept = load_file(tmp_path / "run/last.safetensors")
    for key, value in kept.items():
        if value.is_floating_point():
            first, second, third = (weights[key] for weights in seen)
            assert torch.allclose(value, 0.49 * first + 0.21 * second + 0.3 * third, rtol=1e-5, atol=1e-6)
    assert not torch.equal(kept["bn1.running_mean"], seen[2]["bn1.running_mean"])
    said = "the exponential mean of weights and BatchNorm statistics, decay 0.7 a step"
    assert json.loads((tmp_path / "run/run.json").read_text())["kept_weights"] == said
    assert json.loads((tmp_path / "run/model.json").read_text())["weights"] == said
    # The validation figures are the kept weights', and the folder is used as any other.
    scores = json.loads((tmp_path / "run/validation.json").read_text())["scores"]
    again = clipwise.evaluate(tmp_path / "run", which="last", workers=0).evaluation
    assert torch.allclose(torch.tensor([entry["scores"] for entry in scores]), torch.tensor(again.scores), atol=1e-5)


@pytest.mark.parametrize("more", [[], ["training.label_smoothing=0.1", "training.mixup=0.4"]])
def test_parts_add_up_to_the_gradient_of_the_whole(videos: Path, tmp_path: Path, more: list[str]) -> None:
    """Batches of 6, 6 and 4 clips: the last has parts of 2, 1 and 1."""
    plain = [*SMALL, *more, "training.batch_norm=frozen", "model.options.dropout=0", "training.lr=0.001"]
    losses = []
    for parts in (1, 3):
        result = clipwise.train(videos, tmp_path / f"{parts}", overrides=[*plain, f"training.accumulate={parts}"])
        losses.append([log.loss for log in result.epochs])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    one, three = (torch.load(tmp_path / f"{parts}/resume.ckpt", weights_only=True) for parts in (1, 3))
    momentum = [state["optimizer"]["state"].values() for state in (one, three)]
    for first, second in zip(*momentum, strict=True):
        scale = float(first["momentum_buffer"].abs().max())
        assert torch.allclose(first["momentum_buffer"], second["momentum_buffer"], rtol=1e-3, atol=1e-4 * scale)


def test_no_more_clips_are_computed_with_at_a_time_than_a_part_has(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For what is accumulated for want of memory must not fail in the check and the validation at the epoch's end."""
    forward, at_a_time = VideoNetwork.forward, []

    def counted(self: VideoNetwork, clips: torch.Tensor) -> torch.Tensor:
        at_a_time.append(len(clips))
        return forward(self, clips)

    monkeypatch.setattr(VideoNetwork, "forward", counted)
    clipwise.train(videos, tmp_path / "run", overrides=[*SMALL, "training.accumulate=3", "training.epochs=1"])
    assert set(at_a_time) == {1, 2}


def test_parts_in_bf16(videos: Path, tmp_path: Path) -> None:
    losses = []
    for parts in (1, 2):
        more = ["training.precision=bf16", "training.batch_norm=frozen", "model.options.dropout=0"]
        more += ["training.lr=0.001", f"training.accumulate={parts}"]
        losses.append(clipwise.train(videos, tmp_path / f"{parts}", overrides=[*SMALL, *more]).epochs[-1].loss)
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.batch_size=32", "training.accumulate=3"], "accumulate must divide batch_size.*3 parts of 32 clips"),
        (["training.twins=true", "training.accumulate=2"], "twins correlate the logits of a whole batch"),
        (["training.ema=1"], "ema is a decay, from 0 .* to below 1"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(None, overrides)


def test_synchronised_batch_norm_is_refused_without_a_gpu(videos: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ValueError, match="sync_batch_norm runs on GPUs only"):
        clipwise.train(videos, tmp_path / "run", overrides=[*SMALL, "training.sync_batch_norm=true"])
    assert list(tmp_path.iterdir()) == []
