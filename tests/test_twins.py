"""Twins Training: the loss is the paper's, over all processes, and nothing of it is left after training."""

import copy
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import PATIENCE, SMALL
from safetensors.torch import load_file
from test_training import Interrupt
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

import clipwise
from clipwise.config import AugmentationConfig, Config, DataConfig, load_config
from clipwise.data.dataset import Draw, TrainingClips, collate
from clipwise.data.failures import FailureAccount
from clipwise.data.labels import Head, LabelSpace
from clipwise.data.manifest import Manifest
from clipwise.models.registry import create_model
from clipwise.processes import Processes
from clipwise.training.task import ClassificationTask
from clipwise.training.twins import correlation_loss

TWINS = [*SMALL, "training.twins=true"]
COLOURS = ["augmentation.brightness=0.4", "augmentation.greyscale=0.3", "model.options.dropout=0.5"]


def by_hand(a: list[list[float]], b: list[list[float]], beta: float) -> float:
    """Equations 8 and 9, sum by sum."""
    clips, classes = range(len(a)), range(len(a[0]))
    loss = 0.0
    for i in classes:
        for j in classes:
            above = sum(a[n][i] * b[n][j] for n in clips)
            below = math.sqrt(sum(a[n][i] ** 2 for n in clips)) * math.sqrt(sum(b[n][j] ** 2 for n in clips))
            loss += (1 - above / below) ** 2 if i == j else beta * (above / below) ** 2
    return loss


def pair(clips: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(clips * 100 + classes)
    a, b = torch.randn(2, clips, classes, dtype=torch.float64, generator=generator)
    return a, b


@pytest.mark.parametrize(("clips", "classes", "beta"), [(4, 3, 0.0039), (2, 5, 1.0), (7, 1, 0.5), (5, 4, 0.0)])
def test_the_loss_is_that_of_equations_8_and_9(clips: int, classes: int, beta: float) -> None:
    a, b = pair(clips, classes)
    assert float(correlation_loss(a, b, beta)) == pytest.approx(by_hand(a.tolist(), b.tolist(), beta), rel=1e-12)


def test_equal_twins_whose_classes_are_orthogonal_cost_nothing() -> None:
    logits = 3 * torch.eye(4)[:, :3]
    assert float(correlation_loss(logits, 0.2 * logits, 1.0)) == 0
    assert float(correlation_loss(logits, -logits, 1.0)) == 3 * 2**2


def test_neither_the_batchs_order_nor_a_classs_scale_matters() -> None:
    a, b = pair(6, 4)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    expected = correlation_loss(a, b, 0.3)
    torch.testing.assert_close(correlation_loss(a[order], b[order], 0.3), expected)
    torch.testing.assert_close(correlation_loss(a * torch.tensor([1.0, 9.0, 0.1, 2.0]), b, 0.3), expected)
    assert not torch.isclose(correlation_loss(a[order], b, 0.3), expected)


def test_the_gradient_is_right() -> None:
    a, b = (side.requires_grad_() for side in pair(5, 3))
    assert torch.autograd.gradcheck(lambda x, y: correlation_loss(x, y, 0.2), (a, b))


@pytest.mark.parametrize("scale", [0.0, 1e-15, 1e-25])
def test_a_class_without_logits_counts_one_and_breaks_nothing(scale: float) -> None:
    a, b = (side.float() for side in pair(5, 3))
    a[:, 1] *= scale
    a.requires_grad_()
    b.requires_grad_()
    loss = correlation_loss(a, b, 0.0)
    loss.backward()
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.isfinite().all()
    assert b.grad.isfinite().all()
    if scale == 0:
        others = [0, 2]
        expected = correlation_loss(a[:, others], b[:, others], 0.0) + 1
        torch.testing.assert_close(loss, expected)
        assert 0 < a.grad[:, 1].norm() <= 2.01


def test_it_is_computed_in_float32_where_the_network_is_not() -> None:
    a, b = (side.bfloat16() for side in pair(64, 20))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = correlation_loss(a, b, 0.0039)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), correlation_loss(a.double(), b.double(), 0.0039), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4, 3), (4, 2)), ((4,), (4,))])
def test_logits_that_are_no_twins_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match=r"of equal shape, got \(4"):
        correlation_loss(torch.ones(shapes[0]), torch.ones(shapes[1]), 0.1)


PROCESS = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from clipwise.training.twins import correlation_loss

rank, folder = int(sys.argv[1]), sys.argv[2]
work = torch.load(f"{folder}/work.pt")
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
results = []
for sizes in work["sizes"]:
    first = sum(sizes[:rank])
    a, b, labels = (work[name][first : first + sizes[rank]] for name in ("a", "b", "labels"))
    network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
    network.load_state_dict(work["weights"])
    parallel = DistributedDataParallel(network)
    logits = parallel(torch.cat((a, b)))
    loss = correlation_loss(*logits.chunk(2), 0.0039)
    if sizes[0] == sizes[1]:  # as one mean of the processes' means is the mean over all clips
        loss = nn.functional.cross_entropy(logits, torch.cat((labels, labels))) + 0.3 * loss
    loss.backward()
    results.append((loss.detach(), [parameter.grad for parameter in network.parameters()]))
torch.save(results, f"{folder}/result{rank}.pt")
dist.destroy_process_group()
"""


def test_two_processes_give_the_loss_and_the_gradients_of_one(tmp_path: Path) -> None:
    """Also where they have unequally many clips, or one has none."""
    sizes = [(4, 4), (6, 2), (8, 0)]
    network = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5))
    a, b = torch.randn(2, 8, 6)
    labels = torch.randint(5, (8,))
    work = {"a": a, "b": b, "labels": labels, "weights": network.state_dict(), "sizes": sizes}
    torch.save(work, tmp_path / "work.pt")
    commands = [[sys.executable, "-c", PROCESS, str(rank), str(tmp_path)] for rank in range(2)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in processes:
        errors = process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == 0, errors
    per_process = [torch.load(tmp_path / f"result{rank}.pt") for rank in range(2)]
    for case, split in enumerate(sizes):
        network.zero_grad()
        logits = network(torch.cat((a, b)))
        loss = correlation = correlation_loss(*logits.chunk(2), 0.0039)
        if split[0] == split[1]:
            loss = F.cross_entropy(logits, torch.cat((labels, labels))) + 0.3 * correlation
        loss.backward()
        losses = torch.stack([results[case][0] for results in per_process])
        torch.testing.assert_close(losses.mean(), loss.detach())
        for results in per_process:
            for parameter, gradient in zip(network.parameters(), results[case][1], strict=True):
                torch.testing.assert_close(gradient, parameter.grad)


def task_of(config: Config, label_space: LabelSpace) -> ClassificationTask:
    model = create_model(
        config.model.name,
        num_classes=len(label_space.classes),
        num_frames=config.model.num_frames,
        **config.model.options,
    )
    account = FailureAccount("raise", 0, 1, remedy="")
    return ClassificationTask(model, label_space, config, account, steps_per_epoch=1, start=0, processes=Processes())


def step(task: ClassificationTask, batch: dict[str, Any]) -> float:
    """Train on one batch, and return its loss."""
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    loader = DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
    pl.Trainer(accelerator="cpu", max_epochs=1, limit_val_batches=0, **quiet).fit(task, loader)
    return task.loss


HEADS = LabelSpace((Head("verb", ("takes", "puts")), Head("noun", ("cup", "plate", "knife"))))
SET = LabelSpace((Head("label", ("runs", "jumps", "sits")),), multi_label=True)
SPACES = {
    "one class": (LabelSpace.of(("a", "b", "c")), torch.tensor([2, 0, 1])),
    "heads": (HEADS, torch.tensor([[0, 2], [1, 1], [1, 0]])),
    "label set": (SET, torch.tensor([[True, False, True], [False, False, False], [True, True, True]])),
}


def batch_of(clips: Tensor, labels: Tensor) -> dict[str, Any]:
    count = len(clips)
    available = torch.full((count,), 9)
    return {"clip": clips, "label": labels, "index": torch.arange(count), "available": available, "failures": []}


def classified(space: LabelSpace, logits: Tensor, labels: Tensor) -> Tensor:
    if space.multi_label:
        return F.binary_cross_entropy_with_logits(logits, labels.float())
    columns = labels.reshape(len(labels), -1)
    parts = logits.split(space.sizes, 1)
    return torch.stack([F.cross_entropy(part, columns[:, head]) for head, part in enumerate(parts)]).mean()


@pytest.mark.parametrize("kind", SPACES)
def test_a_step_is_equation_10_with_one_batch_normalisation_for_both(kind: str) -> None:
    space, labels = SPACES[kind]
    config = load_config(None, [*TWINS, "model.options.dropout=0", "training.twins_lambda=0.7"])
    task = task_of(config, space)
    clips = torch.randint(256, (3, 2, 4, 3, 32, 32), dtype=torch.uint8)
    before = copy.deepcopy(task.model)
    loss = step(task, batch_of(clips, labels))
    logits = before(task.normalise(torch.cat((clips[:, 0], clips[:, 1]))))
    a, b = logits.chunk(2)
    parts = zip(*(side.split(space.sizes, 1) for side in (a, b)), strict=True)
    correlation = torch.stack([correlation_loss(*sides, config.training.twins_beta) for sides in parts]).mean()
    expected = (classified(space, a, labels) + classified(space, b, labels)) / 2 + 0.7 * correlation
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_either_copy_has_its_own_colours() -> None:
    config = load_config(None, [*TWINS, "augmentation.brightness=0.5"])
    task = task_of(config, LabelSpace.of(("a", "b")))
    seen: list[Tensor] = []
    task.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    one = torch.randint(50, 100, (2, 1, 4, 3, 32, 32), dtype=torch.uint8)
    step(task, batch_of(one.repeat(1, 2, 1, 1, 1, 1), torch.tensor([0, 1])))
    brightness = [clip.mean() for clip in seen[0]]
    assert len(set(brightness)) == 4


def items(videos: Path, name: str, *, twins: bool, **augmentation: Any) -> list[dict[str, Any]]:
    manifest = Manifest.read(videos)
    dataset = TrainingClips(
        manifest,
        num_frames=4,
        size=32,
        data=DataConfig(),
        augmentation=AugmentationConfig(**augmentation),
        seed=3,
        twins=twins,
    )
    video = int(np.flatnonzero(manifest.labels == manifest.classes.index(name))[0])
    return [item for number in range(16) if isinstance(item := dataset[Draw(video, number)], dict)]


@pytest.mark.parametrize("name", ["moves_left", "moves_up"])
def test_the_first_twin_is_what_the_clip_would_be_without_its_twin(videos: Path, name: str) -> None:
    options: dict[str, Any] = {"reverse": True}
    alone, both = (items(videos, name, twins=twins, **options) for twins in (False, True))
    for one, two in zip(alone, both, strict=True):
        assert two["clip"].shape == (2, 4, 3, 32, 32)
        assert torch.equal(one["clip"], two["clip"][0])
        assert one["label"] == two["label"]
    different = [not torch.equal(*two["clip"]) for two in both]
    assert sum(different) > 12


def test_twins_share_their_label_and_else_nothing(videos: Path) -> None:
    """With one crop for all, twins differ by flip and reversal alone."""
    still: dict[str, Any] = {"position": "centre", "scales": (1.0,)}

    def relations(name: str, **options: Any) -> set[str]:
        found = set()
        for item in items(videos, name, twins=True, **still, **options):
            a, b = item["clip"]
            found.add("same" if torch.equal(a, b) else "mirrored" if torch.equal(a, b.flip(-1)) else "other")
        return found

    classes = Manifest.read(videos).classes
    lefts = items(videos, "moves_left", twins=True, **still)
    assert {classes[item["label"]] for item in lefts} == {"moves_left", "moves_right"}
    assert relations("moves_left") == {"same"}
    assert relations("moves_up") == {"same", "mirrored"}
    assert relations("moves_up", reverse=True) == {"same", "mirrored"}
    assert relations("moves_left", reverse=True, flip=False) == {"same"}


def test_frames_are_the_same_for_both_twins(videos: Path) -> None:
    for item in items(videos, "moves_up", twins=True, position="centre", scales=(1.0,), flip=False):
        assert torch.equal(*item["clip"])
    batch = collate(items(videos, "moves_up", twins=True)[:3])
    assert batch["clip"].shape == (3, 2, 4, 3, 32, 32)
    assert len(batch["label"]) == 3


@pytest.fixture(scope="module")
def twins_run(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twins") / "run"
    clipwise.train(videos, folder, overrides=[*TWINS, *COLOURS])
    return folder


def test_a_run_with_twins_resumes_as_if_never_stopped(videos: Path, tmp_path: Path, twins_run: Path) -> None:
    stopped = clipwise.train(videos, tmp_path / "run", overrides=[*TWINS, *COLOURS], reporter=Interrupt(4))
    assert not stopped.finished
    clipwise.train(None, tmp_path / "run", resume=True)
    whole, resumed = (load_file(folder / "last.safetensors") for folder in (twins_run, tmp_path / "run"))
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_a_trained_network_shows_no_trace_of_twins(videos: Path, tmp_path: Path, twins_run: Path, run: Path) -> None:
    cards = [json.loads((folder / "model.json").read_text()) for folder in (twins_run, run)]
    assert cards[0]["model"]["options"].pop("dropout") == 0.5
    assert cards[0] == cards[1]
    shapes = [{key: value.shape for key, value in load_file(f / "last.safetensors").items()} for f in (twins_run, run)]
    assert shapes[0] == shapes[1]
    # The same weights under the configuration of a run without twins give the same scores.
    plain = tmp_path / "plain"
    shutil.copytree(run, plain)
    shutil.copy(twins_run / "best.safetensors", plain / "best.safetensors")
    video = next(Path(videos).rglob("*.mp4"))
    one, other = (clipwise.load(folder)(video) for folder in (twins_run, plain))
    assert np.array_equal(one.scores, other.scores)


def test_the_correlation_loss_takes_part(videos: Path, tmp_path: Path) -> None:
    def trained(*overrides: str) -> tuple[float, dict[str, Tensor]]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        result = clipwise.train(videos, folder, overrides=[*TWINS, "training.epochs=1", *overrides])
        return result.epochs[0].loss, load_file(folder / "last.safetensors")

    without, weights = trained("training.twins_lambda=0")
    loss, others = trained("training.twins_lambda=1")
    assert loss > without
    assert not torch.equal(weights["fc.weight"], others["fc.weight"])
