"""What makes training fast or small changes nothing else: numbers, files, resuming, several processes.

The compiler is real as far as it decides anything here (what is traced, how often, what is mutated); only its last
part, which writes C++ and takes a minute, is left out. The second half of this file is what several processes run.
"""

import copy
import csv
import json
import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL
from test_distributed import launch
from test_resume import ends_alike, same
from test_training import Interrupt
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.compilers import make_boxed_compiler, nop

import clipwise
from clipwise import create_model, temporalize
from clipwise.config import Config, TrainingConfig, load_config
from clipwise.models.network import VideoNetwork
from clipwise.training.account import RunAccount
from clipwise.training.compiling import CompiledNetwork, compiling_pays
from clipwise.training.recompute import recompute_blocks

STEPS_PER_EPOCH = 3  # 16 training videos in batches of 6: the last of an epoch has 4
PLAIN = [*SMALL, "model.name=tsn_resnet18"]
COMPILED = [*PLAIN, "training.compile=true", "training.ema=0.7", "model.options.dropout=0.5"]


# Activation checkpointing


class Basic(nn.Module):
    """A residual block as torchvision names its parts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)
        return out


class Stage(nn.Module):
    """Blocks in a module of their own, as ConvNeXt's stages hold them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Basic(width), Basic(width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(x)
        return out


def brought_along() -> VideoNetwork:
    layers = [nn.Conv2d(3, 16, 4, 4), Stage(16), nn.Conv2d(16, 32, 2, 2), Stage(32), nn.AdaptiveAvgPool2d(1)]
    return temporalize(nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 3)), "stm", num_frames=4)


NETWORKS: dict[str, tuple[Callable[[], VideoNetwork], int]] = {
    name: (partial(create_model, name, num_classes=3, **options), blocks)
    for name, blocks, options in [
        ("stm_resnet18", 8, {"num_frames": 4, "base_width": 16}),
        ("stc_resnet50", 16, {"num_frames": 4, "base_width": 16}),
        ("trn_resnet50", 16, {"num_frames": 4, "base_width": 16}),
        ("tea_resnet50", 16, {"num_frames": 4, "base_width": 16}),
        ("tsm_mobilenet_v2", 17, {"num_frames": 4, "width": 0.25}),
        ("i3d_resnet18", 8, {"num_frames": 4, "base_width": 16}),
        ("slowfast_resnet50_8x8", 32, {"num_frames": 8, "base_width": 8}),
        ("x3d_s", 27, {"num_frames": 4}),  # its stem of two convolutions and 26 blocks
        ("r2plus1d_18", 9, {"num_frames": 4}),
        ("s3d_torchvision", 9, {"num_frames": 16}),
        ("eco_lite_bninception", 7, {"num_frames": 4}),
        ("tsn_inception_v1", 9, {"num_frames": 4}),
        ("i3d_deepmind", 9, {"num_frames": 8}),
    ]
} | {"brought along": (brought_along, 4)}


def step(model: VideoNetwork, *, bf16: bool = False) -> tuple[Tensor, int]:
    """A training step without an optimiser: the loss, and the numbers kept for the backward pass, weights left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += 0 if tensor.untyped_storage().data_ptr() in own else tensor.numel()
        return tensor

    size = max(32, model.min_size)
    clips = torch.randn(2, model.num_frames, 3, size, size, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        loss = model(clips).float().square().sum()
    loss.backward()
    return loss.detach(), kept


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_computed_twice_changes_no_bit(name: str) -> None:
    build, blocks = NETWORKS[name]
    plain = build().train()
    recomputed = copy.deepcopy(plain)
    recompute_blocks(recomputed)
    assert len(list(recomputed.blocks())) == blocks
    (loss, kept), (again, less) = step(plain), step(recomputed)
    assert torch.equal(loss, again)
    for one, other in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)
    assert same(plain.state_dict(), recomputed.state_dict())  # names, weights, running statistics, counts of batches
    assert less < 0.7 * kept  # Inception's blocks are short, and their outputs wide


def test_copies_recompute_their_own_blocks_and_bf16_does_too() -> None:
    plain = NETWORKS["stm_resnet18"][0]().train()
    recomputed = copy.deepcopy(plain)
    recompute_blocks(recomputed)
    copied = copy.deepcopy(recomputed)
    assert torch.equal(step(plain, bf16=True)[0], step(copied, bf16=True)[0])
    assert same(plain.state_dict(), copied.state_dict())
    assert not same(copied.state_dict(), recomputed.state_dict())
    assert all(parameter.grad is None for parameter in recomputed.parameters())


def test_a_run_that_recomputes_ends_with_the_same_bits(videos: Path, tmp_path: Path) -> None:
    more = ["model.options.dropout=0.5", "training.ema=0.7", "training.accumulate=2", "training.lr_factors={layer1: 0}"]
    for given in ("false", "true"):
        options = [*SMALL, *more, f"training.activation_checkpointing={given}"]
        clipwise.train(videos, tmp_path / given, overrides=options)
    assert ends_alike(tmp_path / "false", tmp_path / "true")


# Compiling


class Backend:
    """The compiler up to where it writes code; counts the graphs that it was given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.debugging import aot_eager

        self.graphs += 1
        return aot_eager(graph, inputs)


def compile_with(backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))


def test_a_compiled_run_compiles_once_resumes_to_the_bit_and_writes_the_same_files(
    videos: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the shapes: an epoch's last 4 clips, the check of the weights, and validation."""
    backend = Backend()
    compile_with(backend, monkeypatch)
    clipwise.train(videos, tmp_path / "whole", overrides=COMPILED)
    assert backend.graphs == 1
    stopped = clipwise.train(videos, tmp_path / "stopped", overrides=COMPILED, reporter=Interrupt(STEPS_PER_EPOCH + 1))
    assert not stopped.finished
    assert clipwise.train(None, tmp_path / "stopped", resume=True).finished
    assert ends_alike(tmp_path / "whole", tmp_path / "stopped")
    clipwise.train(videos, tmp_path / "plain", overrides=[*COMPILED, "training.compile=false"])
    states = [torch.load(tmp_path / name / "resume.ckpt", weights_only=True) for name in ("whole", "plain")]
    for part in ("model", "mean"):
        compiled, plain = (state[part] for state in states)
        assert compiled.keys() == plain.keys()
        assert all(torch.allclose(compiled[key], plain[key], rtol=1e-3, atol=1e-4) for key in plain)
    names = [
        {path.name for path in folder.iterdir() if "tfevents" not in path.name} for folder in (tmp_path / "whole", run)
    ]
    assert names[0] == names[1]


def test_where_nothing_can_be_compiled_that_is_said_once_and_the_run_is_the_plain_one(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*_: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nhere")

    clipwise.train(videos, tmp_path / "plain", overrides=PLAIN)
    compile_with(no_compiler, monkeypatch)
    with caplog.at_level(logging.WARNING, logger="clipwise"):
        clipwise.train(videos, tmp_path / "tried", overrides=[*PLAIN, "training.compile=true"])
    [said] = [record.getMessage() for record in caplog.records if record.name.startswith("clipwise")]
    assert "cannot be compiled here" in said
    assert "No working C++ compiler found" in said
    assert "training.compile=false" in said
    assert ends_alike(tmp_path / "plain", tmp_path / "tried")


def test_a_backward_pass_that_cannot_be_compiled_is_found_out_at_the_attempt(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_room(*_: Any) -> Any:
        raise RuntimeError("out of shared memory")

    clipwise.train(videos, tmp_path / "plain", overrides=PLAIN)
    compile_with(aot_autograd(fw_compiler=make_boxed_compiler(nop), bw_compiler=no_room), monkeypatch)
    with caplog.at_level(logging.WARNING, logger="clipwise"):
        clipwise.train(videos, tmp_path / "tried", overrides=[*PLAIN, "training.compile=true"])
    assert "cannot be compiled here" in caplog.text
    assert "out of shared memory" in caplog.text
    assert ends_alike(tmp_path / "plain", tmp_path / "tried")


def test_an_error_of_the_network_is_not_taken_for_the_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_with(Backend(), monkeypatch)
    compiled = CompiledNetwork(create_model("tsn_resnet18", num_classes=3, num_frames=4, base_width=16), {2})
    with pytest.raises(ValueError, match="made for 4 frames a clip, got 3"):
        compiled(torch.zeros(2, 3, 3, 32, 32))


def test_recomputed_blocks_are_compiled_and_their_statistics_move_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend()
    compile_with(backend, monkeypatch)
    plain = create_model("tsn_resnet18", num_classes=3, num_frames=4, base_width=16, dropout=0.0).train()
    recomputed = copy.deepcopy(plain)
    recompute_blocks(recomputed)
    compiled = CompiledNetwork(recomputed, {2})
    for _ in range(2):
        clips = torch.randn(2, 4, 3, 32, 32)
        plain(clips).square().sum().backward()
        compiled(clips).square().sum().backward()
    assert backend.graphs == 1
    for key, value in plain.state_dict().items():
        assert torch.allclose(recomputed.state_dict()[key], value, rtol=1e-4, atol=1e-6)
    for one, other in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-4 * float(one.grad.abs().max()))


def test_of_itself_a_long_run_on_a_gpu_is_compiled() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [compiling_pays("auto", device, steps) for device in (gpu, cpu) for steps in (999, 1000)] == [
        False,
        True,
        False,
        False,
    ]
    assert [compiling_pays(setting, device, 1) for setting in (True, False) for device in (gpu, cpu)] == [
        True,
        True,
        False,
        False,
    ]


# The optimiser's step


def test_fused_steps_are_the_plain_ones_to_rounding_and_resume_to_the_bit(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With clipping that clips, and rates by layer; kernels in the channels-last layout among the parameters."""
    more = [*PLAIN, "training.gradient_clip=0.5", "training.layer_decay=0.8", "training.lr_factors={fc: 5}"]
    clipwise.train(videos, tmp_path / "plain", overrides=more)
    made, plain_sgd = [], torch.optim.SGD

    def fused(*arguments: Any, **options: Any) -> torch.optim.SGD:
        made.append(plain_sgd(*arguments, **{**options, "fused": True}))
        return made[-1]

    monkeypatch.setattr(torch.optim, "SGD", fused)
    clipwise.train(videos, tmp_path / "fused", overrides=more)
    clipwise.train(videos, tmp_path / "stopped", overrides=more, reporter=Interrupt(STEPS_PER_EPOCH + 1))
    clipwise.train(None, tmp_path / "stopped", resume=True)
    assert len(made) == 3
    assert ends_alike(tmp_path / "fused", tmp_path / "stopped")
    states = [torch.load(tmp_path / name / "resume.ckpt", weights_only=True) for name in ("plain", "fused")]
    assert [{group["fused"] for group in state["optimizer"]["param_groups"]} for state in states] == [{None}, {True}]
    for one, other in zip(*(state["model"].values() for state in states), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    moments = [[entry["momentum_buffer"] for entry in state["optimizer"]["state"].values()] for state in states]
    for one, other in zip(*moments, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))


def test_gradients_are_clipped_to_the_norm(videos: Path, tmp_path: Path) -> None:
    more = ["training.momentum=0", "training.weight_decay=0", "training.epochs=1", "training.batch_size=16"]
    more += ["training.reference_batch=16", "training.lr=0.5", "training.schedule=steps", "model.options.dropout=0"]
    for clip in ("0", "1e-3", "null"):
        given = [f"training.gradient_clip={clip}"] if clip != "0" else ["training.lr=0"]
        clipwise.train(videos, tmp_path / clip, overrides=[*PLAIN, *more, *given])
    start, clipped, free = (
        torch.load(tmp_path / clip / "resume.ckpt", weights_only=True) for clip in ("0", "1e-3", "null")
    )
    learnt = [key for key in start["model"] if "running" not in key and "num_batches" not in key]

    def way(end: dict[str, Any]) -> float:
        return float(torch.cat([(end["model"][key] - start["model"][key]).flatten() for key in learnt]).norm()) / 0.5

    assert way(clipped) == pytest.approx(1e-3, rel=1e-2)
    assert way(free) > 1e-2


# Waiting for data


def epochs_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "epochs.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_slow_reader_is_waited_for_and_a_slow_step_is_not(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from clipwise.data.dataset import TrainingClips
    from clipwise.training import run
    from clipwise.training.task import ClassificationTask

    read, train = TrainingClips.__getitem__, ClassificationTask.training_step

    def slow_read(self: TrainingClips, draw: Any) -> Any:
        time.sleep(0.04)
        return read(self, draw)

    def slow_step(self: ClassificationTask, batch: Any, batch_idx: int) -> Any:
        time.sleep(0.4)
        return train(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(run, "_WAITED", 0.3)
        patch.setattr(run, "_WAITING", 0.01)
        patch.setattr(TrainingClips, "__getitem__", slow_read)
        with caplog.at_level(logging.WARNING, logger="clipwise"):
            stopped = clipwise.train(
                videos, tmp_path / "reader", overrides=PLAIN, reporter=Interrupt(STEPS_PER_EPOCH + 1)
            )
            state = torch.load(tmp_path / "reader/resume.ckpt", weights_only=True)
            clipwise.train(None, tmp_path / "reader", resume=True)
    assert not stopped.finished
    _, _, seconds, waited = state["epoch"]  # of an epoch's first batch, of 6 clips
    assert 0.2 <= waited < seconds
    first, second = epochs_of(tmp_path / "reader")
    for line in (first, second):  # of the second epoch, with what its first session waited
        trained = 16 / float(line["clips_per_second"])
        assert 16 * 0.04 <= float(line["waiting"]) * trained < trained
    assert [log.waiting for log in RunAccount.read(tmp_path / "reader").epochs] == [
        float(first["waiting"]),
        float(second["waiting"]),
    ]
    said = [record.getMessage() for record in caplog.records if record.name.startswith("clipwise")]
    assert len(said) == 2  # by each session
    assert "data.workers higher (now 0; this process may use" in said[0]
    assert "data pack --short-side 37" in said[0]
    caplog.clear()
    monkeypatch.setattr(ClassificationTask, "training_step", slow_step)
    clipwise.train(videos, tmp_path / "step", overrides=[*PLAIN, "data.workers=1"])
    assert float(epochs_of(tmp_path / "step")[1]["waiting"]) < 0.3
    assert [record for record in caplog.records if record.name.startswith("clipwise")] == []
    if not torch.cuda.is_available():
        assert {line["peak_gib"] for line in epochs_of(tmp_path / "step")} == {""}


# Runs of earlier versions


def test_a_run_from_before_all_this_reads_and_resumes(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    clipwise.train(videos, folder, overrides=PLAIN, reporter=Interrupt(STEPS_PER_EPOCH + 1))
    config = json.loads((folder / "config.json").read_text())
    for name in ("compile", "activation_checkpointing"):
        del config["training"][name]
    (folder / "config.json").write_text(json.dumps(config))
    rows = epochs_of(folder)
    columns = [name for name in rows[0] if name not in ("waiting", "peak_gib")]
    with (folder / "epochs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    state = torch.load(folder / "resume.ckpt", weights_only=True)
    torch.save({**state, "epoch": state["epoch"][:3]}, folder / "resume.ckpt")
    account = RunAccount.read(folder)
    assert account.config == load_config(None, PLAIN)
    assert [log.waiting for log in account.epochs] == [None]
    assert clipwise.train(None, folder, resume=True).finished
    first, second = RunAccount.read(folder).epochs
    assert first.waiting is None
    assert second.waiting is not None
    assert first == account.epochs[0]
    assert list(epochs_of(folder)[0]) == list(rows[0])
    clipwise.train(videos, tmp_path / "whole", overrides=PLAIN)
    assert ends_alike(folder, tmp_path / "whole")


def test_settings_are_checked() -> None:
    assert load_config(None, ["training.compile=auto"]) == Config()
    assert load_config(None, ["training.compile=true"]).training.compile is True
    with pytest.raises(ValueError, match="compile"):
        load_config(None, ["training.compile=sometimes"])
    with pytest.raises(ValueError, match="compile is true, false or 'auto', got 'sometimes'"):
        TrainingConfig(compile="sometimes")  # type: ignore[arg-type]


# Several processes


def test_two_processes_compile_and_recompute(videos: Path, tmp_path: Path) -> None:
    done = launch(__file__, videos, tmp_path)
    assert done.returncode == 0, done.stderr
    assert ends_alike(tmp_path / "plain", tmp_path / "recomputed")
    plain, compiled = (
        torch.load(tmp_path / name / "resume.ckpt", weights_only=True)["model"] for name in ("plain", "compiled")
    )
    assert plain.keys() == compiled.keys()
    assert all(torch.allclose(value, compiled[key], rtol=0.05, atol=0.01) for key, value in plain.items())
    assert [line["waiting"] != "" for line in epochs_of(tmp_path / "plain")] == [True]
    # The compiler divides the network, so that gradients travel while others are still computed.
    first, second = json.loads((tmp_path / "graphs.json").read_text())
    assert first == second > 0


def _several(videos: str, folder: Path) -> None:
    more = [*PLAIN, "training.precision=bf16", "training.epochs=1"]
    clipwise.train(videos, folder / "plain", overrides=more)
    clipwise.train(videos, folder / "recomputed", overrides=[*more, "training.activation_checkpointing=true"])
    backend = Backend()
    torch.compile = partial(torch.compile, backend=backend)
    both = ["training.activation_checkpointing=true", "training.compile=true"]
    clipwise.train(videos, folder / "compiled", overrides=[*more, *both])
    from clipwise.processes import join

    graphs = join().gather(backend.graphs)
    (folder / "graphs.json").write_text(json.dumps(graphs))


if __name__ == "__main__":
    torch.set_num_threads(1)
    _several(sys.argv[1], Path(sys.argv[2]))
