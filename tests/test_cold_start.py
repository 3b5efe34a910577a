"""A fresh process: what it must not import, and networks that are read without being started at random first."""

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from conftest import PATIENCE
from safetensors.torch import load_file, save_file

import clipwise
from clipwise import cli
from clipwise.checkpoint import Checkpoint, read_card, read_checkpoint, write_card, write_weights
from clipwise.cli.app import importing
from clipwise.config import ModelConfig, ViewsConfig
from clipwise.data.labels import LabelSpace
from clipwise.inference.predictor import Predictor
from clipwise.models.network import channels_last
from clipwise.models.registry import create_model

# By themselves or with all that they hold; none is needed to use a network.
HEAVY = {"pytorch_lightning", "torchmetrics", "kornia", "torchvision", "timm", "matplotlib", "pandas", "scipy", "sympy"}
HEAVY |= {"PIL", "yaml", "tensorboard", "triton", "torch._dynamo", "torch._inductor", "clipwise.training"}
HEAVY |= {"clipwise.studies", "clipwise.analysis", "clipwise.data.sets"}


def in_a_fresh_process(code: str, *arguments: str | Path) -> Any:
    """What a script prints in its last line, as JSON."""
    script = f"import json, sys\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def parts(modules: list[str]) -> set[str]:
    """Modules and all packages that they lie in."""
    return {".".join(name.split(".")[: depth + 1]) for name in modules for depth in range(name.count(".") + 1)}


# Imports. What PyTorch brings differs from version to version and is not counted.


def test_importing_clipwise_imports_nothing_else() -> None:
    modules = in_a_fresh_process("import clipwise\nprint(json.dumps([*sys.modules]))")
    ours = {name for name in modules if name.startswith("clipwise")}
    assert ours == {"clipwise"}
    assert not {"torch", "numpy", "av", "pydantic", "typer", "rich"} & parts(modules)


def test_a_network_needs_neither_training_nor_video_nor_the_command_line() -> None:
    modules = in_a_fresh_process(
        """
import torch
before = {*sys.modules}
import clipwise
clipwise.create_model("stm_resnet18", num_classes=3, base_width=16).eval()(torch.zeros(1, 8, 3, 32, 32))
print(json.dumps(sorted({*sys.modules} - before)))
"""
    )
    assert not (HEAVY | {"av", "pydantic", "typer", "rich", "clipwise.cli"}) & parts(modules)


def test_predict_imports_its_own_verb_and_no_more_than_it_needs(run: Path, videos: Path) -> None:
    modules = in_a_fresh_process(
        """
import torch
before = {*sys.modules}
from clipwise.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
print(json.dumps(sorted({*sys.modules} - before)))
""",
        "predict",
        run,
        videos / "moves_left/moves_left_00000.mp4",
    )
    assert {name for name in modules if name.startswith("clipwise.cli.")} == {
        "clipwise.cli.app",
        "clipwise.cli.predict",
        "clipwise.cli.stream_options",
    }
    assert "av" in modules
    assert not (HEAVY | {"rich"}) & parts(modules)


def test_every_file_of_the_command_line_belongs_to_the_verb_it_defines() -> None:
    command = typer.main.get_command(cli.application())
    listed = {verb: {f"clipwise.cli.{file}" for file in files} for verb, files in cli._VERBS.items()}
    assert set(command.commands) == set(listed)  # type: ignore[attr-defined]
    for verb, one in command.commands.items():  # type: ignore[attr-defined]
        defined = {inner.callback.__module__ for inner in getattr(one, "commands", {verb: one}).values()}
        assert defined == listed[verb]
    files = {f"clipwise.cli.{file.stem}" for file in Path(cli.__file__).parent.glob("*.py")}
    shared = {"clipwise.cli.__init__", "clipwise.cli.app", "clipwise.cli.stream_options"}
    assert files == shared.union(*listed.values())


# The collector


def test_the_collector_rests_while_pytorch_is_imported_and_passes_over_it_later() -> None:
    found = in_a_fresh_process(
        """
import gc
from clipwise.cli.app import importing
before = [one["collections"] for one in gc.get_stats()]
with importing():
    import torch
after = [one["collections"] for one in gc.get_stats()]
class Cycle: pass
cycle = Cycle(); cycle.itself = cycle; del cycle
print(json.dumps([before == after, gc.isenabled(), gc.get_freeze_count() > 100_000, gc.collect() > 0]))
"""
    )
    assert found == [True, True, True, True]


def test_a_process_that_has_pytorch_keeps_its_collector() -> None:
    frozen = gc.get_freeze_count()
    with importing():
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


# Networks that are read


def read_as_before(folder: Path) -> torch.nn.Module:
    """Started at random, then filled from the file, then laid out."""
    card = read_card(folder)
    options = {"num_frames": card.config.num_frames, **card.config.options}
    model = create_model(card.config.name, num_classes=len(card.label_space.classes), **options)
    model.load_state_dict(load_file(folder / "best.safetensors"))
    return channels_last(model.eval())


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Every parameter and buffer, whether or not a state dict has it, and how each lies in memory."""
    assert [*dict(one.named_modules())] == [*dict(other.named_modules())]
    assert not any(part.training for part in one.modules())
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(one, kind)()), dict(getattr(other, kind)())
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], rtol=0, atol=0, msg=key)
            assert value.stride() == theirs[key].stride(), key
            assert value.requires_grad == theirs[key].requires_grad, key


NARROW = {"base_width": 16}
MODULES = ("tsn", "tsm", "tam", "stc", "stw", "gst", "c3d", "p3d", "tin", "tanet", "teinet")
NETWORKS: list[tuple[str, dict[str, Any]]] = [
    *((f"{module}_resnet18", NARROW) for module in MODULES),
    ("stm_resnet50", {**NARROW, "fusion": "concatenation"}),
    ("stm_resnet18", {**NARROW, "degenerate": True}),  # its kernels are buffers that no state dict has
    ("trn_resnet50", NARROW),  # so are its frames
    ("tsm_resnet18", {**NARROW, "nonlocal_blocks": True}),
    ("i3d_resnet50", NARROW),
    ("slowfast_resnet50_4x16", NARROW),
    ("x3d_s", {}),
    ("tea_resnet50", NARROW),
    ("tsm_mobilenet_v2", {}),
    ("tam_inception_v1", {}),
]


@pytest.mark.parametrize(("name", "options"), NETWORKS, ids=[" ".join(map(str, network)) for network in NETWORKS])
def test_a_network_that_is_read_is_wholly_the_files(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = create_model(name, num_classes=3, num_frames=8, **options)
    write_weights(model, tmp_path / "best.safetensors")
    config = ModelConfig(name=name, num_frames=8, weights=None, options=options)
    write_card(tmp_path, config, LabelSpace.of(["a", "b", "c"]), ViewsConfig())
    drawn = torch.get_rng_state()
    torch.use_deterministic_algorithms(True)  # fills what is allocated with NaN: a value that is nobody's would show
    try:
        read = read_checkpoint(tmp_path).model
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(torch.get_rng_state(), drawn), "something started at random"
    assert_same(read, read_as_before(tmp_path))


def test_a_prediction_is_what_it_was(run: Path, videos: Path) -> None:
    read = read_checkpoint(run)
    before = Checkpoint(read_as_before(run), read.config, read.label_space, read.views, read.weights)  # type: ignore[arg-type]
    video = videos / "moves_left/moves_left_00000.mp4"
    np.testing.assert_array_equal(clipwise.load(run)(video).scores, Predictor(before)(video).scores)


def test_a_file_in_half_precision_gives_a_network_in_single(run: Path, tmp_path: Path) -> None:
    card = read_card(run)
    write_card(tmp_path, card.config, card.label_space, card.views)
    state = load_file(run / "best.safetensors")
    halved = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    save_file(halved, tmp_path / "best.safetensors")
    read = read_checkpoint(tmp_path).model
    assert {parameter.dtype for parameter in read.parameters()} == {torch.float32}
    assert_same(read, read_as_before(tmp_path))


def test_a_network_outlives_its_file(run: Path, tmp_path: Path) -> None:
    card = read_card(run)
    write_card(tmp_path, card.config, card.label_space, card.views)
    file = tmp_path / "best.safetensors"
    file.write_bytes((run / "best.safetensors").read_bytes())
    read = read_checkpoint(tmp_path).model
    with file.open("r+b") as stream:  # in place, as a copy over it does
        stream.write(bytes(file.stat().st_size))
    file.write_bytes(b"")
    assert_same(read, read_as_before(run))
