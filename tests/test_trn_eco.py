"""TRN and ECO: published counts, the definitions written out, random draws, image weights."""

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from clipwise.models.complexity import count_macs, count_parameters
from clipwise.models.registry import create_model
from clipwise.models.weights import load_weights


def on_meta(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return create_model(name, **options)


def trn(num_frames: int = 4) -> Any:
    model = create_model("trn_resnet50", num_classes=3, num_frames=num_frames, base_width=16).eval()
    torch.nn.init.normal_(model.reduce.weight)
    torch.nn.init.normal_(model.reduce.bias)
    return model


def test_trn_has_the_published_counts() -> None:
    """MMAction2's 26.64 M; the convolutions are those of TSN."""
    model = on_meta("trn_resnet50", num_classes=174)
    assert count_parameters(model) / 1e6 == pytest.approx(26.64, abs=0.0051)
    assert count_macs(model) == count_macs(on_meta("tsn_resnet50", num_classes=174))


def test_trn_is_the_expectation_of_the_authors_sum() -> None:
    """A classifier for each number of frames, three relations of each, every choice equally likely."""
    model, clip = trn(), torch.randn(1, 4, 3, 32, 32)
    f = model.reduce(super(type(model), model).forward_features(clip))[0].clamp(min=0)
    expected = model.fc.bias.clone()
    for i, k in enumerate((4, 3, 2)):
        classifier = model.fc.weight[:, 256 * i : 256 * (i + 1)]
        scores = [
            classifier @ model.relations[i].linear(torch.cat([f[t] for t in frames])).clamp(min=0)
            for frames in combinations(range(4), k)
        ]
        choices = [torch.stack(choice).sum(0) for choice in combinations(scores, min(3, len(scores)))]
        expected = expected + torch.stack(choices).mean(0)
    torch.testing.assert_close(model(clip)[0], expected, rtol=1e-4, atol=1e-4)


def test_trn_draws_three_relations_from_torchs_generator() -> None:
    model, features = trn(5).relations[2].train(), torch.rand(2, 5, 256)
    assert model.linear.in_features == 3 * 256
    relations = [
        model.linear(features[:, list(frames)].flatten(1)).clamp(min=0) for frames in combinations(range(5), 3)
    ]
    sums = [sum(choice) for choice in combinations(relations, 3)]
    drawn = []
    for seed in (0, 0, 1, 2, 3):
        torch.manual_seed(seed)
        drawn.append(model(features))
        assert any(torch.allclose(drawn[-1], one, atol=1e-4) for one in sums)
    assert torch.equal(drawn[0], drawn[1])
    assert len({float(one.sum().detach()) for one in drawn}) > 1


def test_trn_in_evaluation_leaves_chance_alone() -> None:
    model, clip = trn(), torch.randn(1, 4, 3, 32, 32)
    state = torch.get_rng_state()
    assert torch.equal(model(clip), model(clip))
    assert torch.equal(state, torch.get_rng_state())


def test_trn_of_many_frames_takes_a_hundred_relations_of_each_kind() -> None:
    relations = on_meta("trn_resnet50", num_classes=3, num_frames=16).relations
    assert [len(kind.spread) for kind in relations] == [1, 16, *[100] * 13]
    assert sum(len(kind.every) for kind in relations) == 65_519


@pytest.mark.parametrize("frames", [1, 17])
def test_trn_says_how_many_frames_it_relates(frames: int) -> None:
    with pytest.raises(ValueError, match=f"2 to 16 frames, got num_frames={frames}"):
        create_model("trn_resnet50", num_classes=3, num_frames=frames)


def test_eco_has_the_published_counts() -> None:
    """47.5 M, 32 and 64 G; ECO-En Lite, four nets, 150 M and 267 G."""
    for frames, gmacs in ((8, 32), (16, 64)):
        model = on_meta("eco_bninception", num_classes=400, num_frames=frames)
        assert count_parameters(model) / 1e6 == pytest.approx(47.5, rel=5e-4)
        assert round(count_macs(model) / 1e9) == gmacs
    four = [on_meta("eco_lite_bninception", num_classes=400, num_frames=frames) for frames in (16, 20, 24, 32)]
    assert sum(map(count_parameters, four)) / 1e6 == pytest.approx(150, rel=5e-4)
    assert sum(map(count_macs, four)) / 1e9 == pytest.approx(267, rel=2e-3)


def caffe_state() -> dict[str, torch.Tensor]:
    """BN-Inception's ImageNet file: Caffe's layer names, the statistics of shape (1, C)."""
    state = {"last_linear.weight": torch.randn(1000, 1024), "last_linear.bias": torch.randn(1000)}

    def layer(name: str, in_channels: int, out_channels: int, kernel: int) -> int:
        state[f"{name}.weight"] = (
            torch.randn(out_channels, in_channels, kernel, kernel) / (in_channels * kernel**2) ** 0.5
        )
        state[f"{name}.bias"] = torch.randn(out_channels)
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}_bn.{tensor}"] = torch.rand(1, out_channels) + 0.5
        return out_channels

    layer("conv1_7x7_s2", 3, 64, 7)
    layer("conv2_3x3_reduce", 64, 64, 1)
    channels = layer("conv2_3x3", 64, 192, 3)
    for block, one, reduced, three, double_reduced, double, project in (
        ("3a", 64, 64, 64, 64, 96, 32),
        ("3b", 64, 64, 96, 64, 96, 64),
        ("3c", 0, 128, 160, 64, 96, 0),
        ("4a", 224, 64, 96, 96, 128, 128),
        ("4b", 192, 96, 128, 96, 128, 128),
        ("4c", 160, 128, 160, 128, 160, 128),
        ("4d", 96, 128, 192, 160, 192, 128),
        ("4e", 0, 128, 192, 192, 256, 0),
        ("5a", 352, 192, 320, 160, 224, 128),
        ("5b", 352, 192, 320, 192, 224, 128),
    ):
        name = f"inception_{block}"
        if one:
            layer(f"{name}_1x1", channels, one, 1)
            layer(f"{name}_pool_proj", channels, project, 1)
        layer(f"{name}_3x3", layer(f"{name}_3x3_reduce", channels, reduced, 1), three, 3)
        layer(f"{name}_double_3x3_1", layer(f"{name}_double_3x3_reduce", channels, double_reduced, 1), double, 3)
        layer(f"{name}_double_3x3_2", double, double, 3)
        channels = one + three + double + (project or channels)
    return state


def bn_inception(state: dict[str, torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The network as its file describes it, on BGR images: the double-3×3 branch of 3c before its last convolution,
    and the pooled features."""
    f = torch.nn.functional

    def layer(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        x = f.conv2d(x, weight, state[f"{name}.bias"], stride, padding=weight.shape[-1] // 2)
        scale, bias, mean, var = (
            state[f"{name}_bn.{key}"][0] for key in ("weight", "bias", "running_mean", "running_var")
        )
        return f.batch_norm(x, mean, var, scale, bias).clamp(min=0)

    x = f.max_pool2d(layer("conv1_7x7_s2", x, 2), 3, 2, ceil_mode=True)
    x = f.max_pool2d(layer("conv2_3x3", layer("conv2_3x3_reduce", x)), 3, 2, ceil_mode=True)
    tapped = x
    for block in ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        name, stride = f"inception_{block}", 2 if block in ("3c", "4e") else 1
        double = layer(f"{name}_double_3x3_1", layer(f"{name}_double_3x3_reduce", x))
        tapped = double if block == "3c" else tapped
        parts = [
            layer(f"{name}_3x3", layer(f"{name}_3x3_reduce", x), stride),
            layer(f"{name}_double_3x3_2", double, stride),
        ]
        if stride == 2:
            parts.append(f.max_pool2d(x, 3, 2, ceil_mode=True))
        else:
            pooled = f.max_pool2d(x, 3, 1, padding=1) if block == "5b" else f.avg_pool2d(x, 3, 1, padding=1)
            parts = [layer(f"{name}_1x1", x), *parts, layer(f"{name}_pool_proj", pooled)]
        x = torch.cat(parts, 1)
    return tapped, x.mean(dim=(2, 3))


def eco(state: dict[str, torch.Tensor], folder: Path, name: str = "eco_bninception") -> tuple[Any, Any]:
    save_file(state, folder / "bn_inception.safetensors")
    model = create_model(name, num_classes=3, num_frames=3).eval()
    return model, load_weights(model, folder / "bn_inception.safetensors", name=name)


def test_ecos_2d_part_is_bn_inception_and_its_3d_part_a_preactivation_resnet(tmp_path: Path) -> None:
    state = caffe_state()
    model, report = eco(state, tmp_path)
    assert set(report.left) == {"last_linear.weight", "last_linear.bias"}
    assert all(key.startswith(("res", "bn.", "fc.")) for key in report.new)
    clip = torch.randn(1, 3, 3, 64, 64)
    tapped, pooled = bn_inception(state, clip[0].flip(1))
    features = model.forward_features(clip)
    torch.testing.assert_close(features[0, 0, :1024], pooled.mean(0), rtol=1e-3, atol=1e-3)
    r = model.res3a(tapped.transpose(0, 1)[None])
    for block in (model.res3b, model.res4a, model.res4b, model.res5a, model.res5b):
        a = block.bn1(r).clamp(min=0)
        shortcut = r if block.conv1.stride[0] == 1 else block.down(a)
        r = shortcut + block.conv2(block.bn2(block.conv1(a)).clamp(min=0))
    torch.testing.assert_close(features[0, 0, 1024:], model.bn(r).clamp(min=0).mean((0, 2, 3, 4)), rtol=1e-3, atol=1e-3)


def test_eco_lite_takes_its_part_of_the_file(tmp_path: Path) -> None:
    state = caffe_state()
    model, report = eco(state, tmp_path, "eco_lite_bninception")
    assert all(key.startswith(("res", "bn.", "fc.")) for key in report.new)
    assert torch.equal(model.tap[1].conv.weight, state["inception_3c_double_3x3_1.weight"])
    assert {key.split("_")[1] for key in report.left if key.startswith("inception")} == {
        "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b",
    }  # fmt: skip
    own = model.state_dict()
    save_file(own, tmp_path / "own.safetensors")
    again = create_model("eco_lite_bninception", num_classes=3, num_frames=3, weights=tmp_path / "own.safetensors")
    assert torch.equal(again.conv1.conv.weight, own["conv1.conv.weight"])  # turned round once, not twice


@pytest.mark.parametrize("frames", [1, 3, 5])
def test_eco_takes_any_frames_and_odd_sizes(frames: int) -> None:
    model = create_model("eco_bninception", num_classes=3, num_frames=frames).eval()
    with torch.no_grad():
        assert model(torch.randn(1, frames, 3, 57, 75)).isfinite().all()
