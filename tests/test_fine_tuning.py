"""A run starts from another's weights: of other frame counts, heads, data sets and orders of classes."""

import json
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from safetensors.torch import load_file

import clipwise
from clipwise.checkpoint import read_checkpoint, write_card, write_weights
from clipwise.config import ModelConfig, ViewsConfig
from clipwise.data.labels import LabelSpace
from clipwise.files import file_sha256
from clipwise.models.registry import create_model, list_models
from clipwise.models.weights import LoadReport, load_weights

NARROW = {"base_width": 16}


def test_more_and_more_frames(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 → 16 → 32 → 64, each from the run before; the folder is named as a user would, from where he stands."""
    monkeypatch.chdir(tmp_path)
    reports: list[LoadReport | None] = []

    class Listen:
        def started(self, start: object) -> None:
            reports.append(start.weights)  # type: ignore[attr-defined]

        def stepped(self, **_: object) -> None: ...

        def failed(self, *_: object) -> None: ...

        def epoch_ended(self, *_: object) -> None: ...

    before = "null"
    for frames in (8, 16, 32, 64):
        more = [f"model.num_frames={frames}", f"model.weights={before}", "training.epochs=1", "training.lr=0.001"]
        clipwise.train(videos, f"run{frames}", overrides=[*SMALL, *more], reporter=Listen())
        before = f"run{frames}"
    assert reports[0] is None
    for frames, report in zip((8, 16, 32), reports[1:], strict=True):
        assert report is not None
        assert (report.derived, report.new, report.left) == ((), (), ())
        source = tmp_path / f"run{frames}/best.safetensors"
        account = json.loads((tmp_path / f"run{frames * 2}/run.json").read_text())
        assert account["weights"] == {"source": f"run{frames}/best.safetensors", "sha256": file_sha256(source)}
    assert read_checkpoint("run64").config.num_frames == 64


def _folder(
    folder: Path, name: str, frames: int, classes: tuple[str, ...], **options: object
) -> dict[str, torch.Tensor]:
    """A folder as a run leaves it, with untrained weights."""
    folder.mkdir()
    model = create_model(name, num_classes=len(classes), num_frames=frames, **options)
    torch.nn.init.normal_(model.fc.weight)
    torch.nn.init.normal_(model.fc.bias)
    write_card(folder, ModelConfig(name, frames, None, dict(options)), LabelSpace.of(classes), ViewsConfig())
    write_weights(model, folder / "last.safetensors")
    return model.state_dict()


@pytest.mark.parametrize("name", [*list_models("*_resnet18"), "tsm_mobilenet_v2", "s3d_inception_v1"])
def test_weights_for_8_frames_start_16_or_are_refused_by_name(name: str, tmp_path: Path) -> None:
    options = NARROW if "resnet18" in name else {}
    state = _folder(tmp_path / "run", name, 8, ("a", "b"), **options)
    model = create_model(name, num_classes=2, num_frames=16, **options)
    if name in ("tanet_resnet18", "tin_resnet18"):
        message = r"trained with 8 frames a clip, and of the weights of .* depend on that, .*(tanet\.G|tin\.offset_net)"
        with pytest.raises(ValueError, match=message):
            load_weights(model, tmp_path / "run", name=name, classes=("a", "b"))
        return
    report = load_weights(model, tmp_path / "run", name=name, classes=("a", "b"))
    assert (report.derived, report.new, report.left) == ((), (), ())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["stm_resnet18", "tanet_resnet18"])
def test_frames_are_not_blamed_for_another_width(name: str, tmp_path: Path) -> None:
    _folder(tmp_path / "run", name, 8, ("a", "b"), base_width=32)
    model = create_model(name, num_classes=2, num_frames=16, **NARROW)
    with pytest.raises(
        ValueError, match=r"tensors have other shapes than .*'s, the first .* network or width"
    ) as error:
        load_weights(model, tmp_path / "run", name=name, classes=("a", "b"))
    assert "8 frames" not in str(error.value)


def test_a_start_from_another_networks_weights_is_said(tmp_path: Path) -> None:
    _folder(tmp_path / "run", "tam_resnet18", 8, ("a", "b"), **NARROW)
    for name, said in (("i3d_resnet18", "the file is of another network, tam_resnet18"), ("tam_resnet18", None)):
        model = create_model(name, num_classes=2, num_frames=8, **NARROW)
        report = load_weights(model, tmp_path / "run", name=name, classes=("a", "b"))
        assert (said in str(report)) if said else report.network is None


def test_frames_that_a_network_cannot_take_are_refused(videos: Path, tmp_path: Path) -> None:
    pooled = [*SMALL, "model.options.temporal_pooling=true", "model.num_frames=12"]
    with pytest.raises(ValueError, match="must be a multiple of 8, got 12; take 8 or 16"):
        clipwise.train(videos, tmp_path / "run", overrides=pooled)


def test_a_head_is_taken_by_the_names_of_its_classes(tmp_path: Path) -> None:
    state = _folder(tmp_path / "run", "tsn_resnet18", 4, ("open", "close", "wave"), **NARROW)
    model = create_model("tsn_resnet18", num_classes=3, num_frames=4, **NARROW)
    report = load_weights(model, tmp_path / "run", name="tsn_resnet18", classes=("close", "open", "wave"))
    assert torch.equal(model.fc.weight, state["fc.weight"][[1, 0, 2]])
    assert torch.equal(model.fc.bias, state["fc.bias"][[1, 0, 2]])
    assert report.reordered
    assert "put into that of the data" in str(report)
    others = ("close", "open", "clap")
    for path in (tmp_path / "run", tmp_path / "run/last.safetensors"):
        with pytest.raises(ValueError, match=r"not the same: .*\(wave\).*\(clap\).*--reset-head"):
            load_weights(model, path, name="tsn_resnet18", classes=others)
    kept = model.fc.weight.clone()
    report = load_weights(model, tmp_path / "run", name="tsn_resnet18", classes=others, reset_head=True)
    assert torch.equal(model.fc.weight, kept)
    assert {"fc.weight", "fc.bias"} <= set(report.new)
    assert {"fc.weight", "fc.bias"} <= set(report.left)


def test_a_new_data_set_gets_a_new_head_when_told_so(run: Path, videos: Path, tmp_path: Path) -> None:
    lines = (videos / "manifest.csv").read_text().splitlines()
    kept = [line for line in lines if "moves_up" not in line]
    manifest = tmp_path / "fewer.csv"
    manifest.write_text("\n".join(line.replace("moves_", f"{videos}/moves_", 1) for line in kept) + "\n")
    start = [*SMALL, f"model.weights={run}", "training.epochs=1"]
    with pytest.raises(ValueError, match=r"is not that of stm_resnet18 with 3 classes.*--reset-head"):
        clipwise.train(manifest, tmp_path / "run", overrides=start)
    clipwise.train(manifest, tmp_path / "run", overrides=[*start, "training.lr=0"], reset_head=True)
    before, after = (load_file(folder / "best.safetensors") for folder in (run, tmp_path / "run"))
    assert after["fc.weight"].shape[0] == 3
    assert torch.equal(before["layer1.0.conv1.weight"], after["layer1.0.conv1.weight"])


@pytest.mark.parametrize("name", ["tsm", "tam", "stm", "stc", "stc_light", "stw"])
def test_a_causal_network_starts_from_the_two_sided_ones_weights(name: str, tmp_path: Path) -> None:
    """Where three frames meet it takes t-2, t-1, t with the kernels for t-1, t, t+1: the same tensors, all of them."""
    state = _folder(tmp_path / "two_sided", f"{name}_resnet18", 4, ("a", "b"), **NARROW)
    causal = create_model(f"{name}_resnet18", num_classes=2, num_frames=4, causal=True, **NARROW)
    report = load_weights(causal, tmp_path / "two_sided", name=f"{name}_resnet18", classes=("a", "b"))
    assert (report.derived, report.new, report.left) == ((), (), ())
    own = causal.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items())
