"""Inception-v1 over clips, 2D and 3D: published counts, the network written out a second time, weights, real videos."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from clipwise.models.complexity import count_macs
from clipwise.models.deepmind_i3d import _pad_same, _SamePool, from_deepmind
from clipwise.models.network import VideoNetwork
from clipwise.models.registry import create_model, model_entry
from clipwise.models.weights import load_weights


@cache
def macs(name: str, num_frames: int, temporal_pooling: bool, last_pool: str | None = None) -> int:
    options: dict[str, Any] = {} if last_pool is None else {"last_pool": last_pool}
    with torch.device("meta"):
        return count_macs(
            create_model(name, num_classes=2, num_frames=num_frames, temporal_pooling=temporal_pooling, **options)
        )


def test_counts_with_the_last_pool_that_all_other_rows_have() -> None:
    assert macs("i3d_inception_v1", 32, False) == 134_993_359_872
    assert macs("i3d_inception_v1", 64, False) == 270_219_686_912


def randomised(model: VideoNetwork) -> VideoNetwork:
    """In evaluation mode, with BN statistics and a head that are not what they start from."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean = torch.randn(module.num_features) / 4
            module.running_var = torch.rand(module.num_features) + 0.5
            nn.init.normal_(module.bias, std=0.2)
    nn.init.normal_(model.fc.weight)
    return model.eval()


BLOCK_NAMES = ["3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"]
BRANCH_NAMES = ["branch1", "branch2.0", "branch2.1", "branch3.0", "branch3.1", "branch4.1"]


def googlenet(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """torchvision's googlenet without auxiliary heads, from its state dict alone: (B, 3, H, W) → (B, classes)."""

    def unit(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.conv.weight"]
        mean, var, scale, bias = (
            state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        y = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2).movedim(1, -1)
        return ((y - mean) / (var + 0.001).sqrt() * scale + bias).relu().movedim(-1, 1)

    def pool(x: Tensor, size: int) -> Tensor:
        return F.max_pool2d(x, size, 2, ceil_mode=True)

    x = pool(unit(x, "conv1", 2), 3)
    x = pool(unit(unit(x, "conv2"), "conv3"), 3)
    for block in BLOCK_NAMES:
        name = f"inception{block}"
        if block in ("4a", "5a"):
            x = pool(x, 3 if block == "4a" else 2)
        one = unit(x, f"{name}.branch1")
        two = unit(unit(x, f"{name}.branch2.0"), f"{name}.branch2.1")
        three = unit(unit(x, f"{name}.branch3.0"), f"{name}.branch3.1")
        four = unit(F.max_pool2d(x, 3, 1, padding=1), f"{name}.branch4.1")
        x = torch.cat((one, two, three, four), 1)
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def test_tsn_is_googlenet_on_each_frame() -> None:
    model = randomised(create_model("tsn_inception_v1", num_classes=5, num_frames=3))
    clips = torch.randn(2, 3, 3, 57, 75)
    with torch.no_grad():
        expected = torch.stack([googlenet(model.state_dict(), clip).mean(0) for clip in clips])
        torch.testing.assert_close(model(clips), expected, rtol=1e-4, atol=1e-4)


def test_aggregation_that_passes_the_frame_on_leaves_tsn() -> None:
    """So each module stands behind a ReLU and on nothing but the trunk."""
    tsn = randomised(create_model("tsn_inception_v1", num_classes=5, num_frames=3))
    tam = create_model("tam_inception_v1", num_classes=5, num_frames=3).eval()
    tam.load_state_dict(tsn.state_dict(), strict=False)
    clips = torch.randn(1, 3, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(tam(clips), tsn(clips), rtol=1e-2)
        for name, weight in tam.named_parameters():
            if name.startswith("tam"):
                weight.copy_(torch.tensor([0.0, 1.0, 0.0]))
        torch.testing.assert_close(tam(clips), tsn(clips), rtol=1e-4, atol=1e-4)


def modules_of(**options: Any) -> set[str]:
    with torch.device("meta"):
        model = create_model("tam_inception_v1", num_classes=5, **options)
    return {name for name, _ in model.named_children() if name.startswith("tam")}


def test_placement_counts_from_the_input() -> None:
    every = {"tam1", "tam2", "tam3"} | {f"tam{name}" for name in BLOCK_NAMES}
    assert modules_of() == every
    assert modules_of(placement="top") == {"tam4b", "tam4c", "tam4d", "tam4e", "tam5a", "tam5b"}
    assert modules_of(placement="bottom") == every - modules_of(placement="top")
    assert modules_of(stages=[2, 5], placement="first") == {"tam1", "tam5a"}


def test_inflated_layers_equal_the_2d_ones_inside_a_still_clip(tmp_path: Path) -> None:
    """Layer by layer, since the 3D networks pad their max-pools and the 2D ones do not."""
    image = randomised(create_model("tsn_inception_v1", num_classes=1000))
    save_file(image.state_dict(), tmp_path / "image.safetensors")
    # S3D adds a BN, which as it starts divides by √1.001, twice along a branch.
    for name, tolerance in (("i3d_inception_v1", 1e-4), ("s3d_inception_v1", 2e-3)):
        model = create_model(name, num_classes=5, weights=tmp_path / "image.safetensors").eval()
        for layer, channels in (("conv1", 3), ("conv2", 64), ("conv3", 64), ("inception3a", 192), ("inception5b", 832)):
            x = torch.randn(1, channels, 15, 11)
            with torch.no_grad():
                expected = getattr(image, layer)(x)
                # Seven frames: the middle one alone is out of the padding's reach of a kernel of 7.
                result = getattr(model, layer)(x[:, :, None].repeat(1, 1, 7, 1, 1))[:, :, 3]
            torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["tsn", "tam", "i3d", "s3d"])
def test_googlenets_file_fills_the_image_part(name: str, tmp_path: Path) -> None:
    """The names are torchvision's, written out here; its auxiliary heads and its head of 1000 stay in the file."""
    image = create_model("tsn_inception_v1", num_classes=1000).state_dict()
    layers = ["conv1", "conv2", "conv3", *(f"inception{block}.{b}" for block in BLOCK_NAMES for b in BRANCH_NAMES)]
    entries = [
        "conv.weight",
        *(f"bn.{x}" for x in ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]),
    ]
    assert set(image) == {f"{layer}.{entry}" for layer in layers for entry in entries} | {"fc.weight", "fc.bias"}
    extra = {"aux1.conv.conv.weight": torch.ones(128, 512, 1, 1), "aux1.fc2.weight": torch.ones(1000, 1024)}
    save_file(image | extra, tmp_path / "googlenet.safetensors")
    model = create_model(f"{name}_inception_v1", num_classes=5)
    assert model_entry(f"{name}_inception_v1").image_backbone == "googlenet"
    report = load_weights(model, tmp_path / "googlenet.safetensors", name=name)
    assert set(report.left) == {*extra, "fc.weight", "fc.bias"}
    new = {key for key in report.new if not key.startswith(("tam", "fc.")) and "_t." not in key}
    assert new == set()


@pytest.mark.parametrize("name", ["i3d_inception_v1", "s3d_inception_v1"])
def test_last_pool_needs_two_frames_unless_padded(name: str) -> None:
    with pytest.raises(ValueError, match=r"at least 2, got 1; or take last_pool='padded'"):
        create_model(name, num_classes=5, num_frames=1)
    with pytest.raises(ValueError, match="'unpadded' or 'padded', got 'same'"):
        create_model(name, num_classes=5, last_pool="same")
    clips = torch.randn(1, 4, 3, 57, 75)
    for last_pool, steps in (("unpadded", 3), ("padded", 4)):
        model = create_model(name, num_classes=5, num_frames=4, last_pool=last_pool)
        assert model.forward_features(clips).shape == (1, steps, 1024)
    model = create_model(name, num_classes=5, num_frames=1, last_pool="padded")
    assert model(clips[:, :1]).shape == (1, 5)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "before", "after"),
    [(224, 7, 2, 2, 3), (225, 7, 2, 3, 3), (112, 3, 2, 0, 1), (57, 3, 2, 1, 1), (5, 2, 2, 0, 1), (8, 2, 2, 0, 0)],
)
def test_same_padding_is_tensorflows(size: int, kernel: int, stride: int, before: int, after: int) -> None:
    """The numbers are TensorFlow's; each axis on its own."""
    for axis in (2, 3, 4):
        shape, kernels, strides = [1, 1, 1, 1, 1], [1, 1, 1], [1, 1, 1]
        shape[axis], kernels[axis - 2], strides[axis - 2] = size, kernel, stride
        padded = _pad_same(torch.ones(shape), tuple(kernels), tuple(strides)).flatten()
        assert padded.tolist() == [0.0] * before + [1.0] * size + [0.0] * after


def test_zeros_around_a_max_pool_are_never_its_answer() -> None:
    x = torch.rand(1, 2, 5, 6, 7) + 0.1
    result = _SamePool((3, 3, 3), (2, 2, 2))(x)
    edge = F.pad(x, (1, 1, 0, 1, 1, 1), value=-torch.inf)
    torch.testing.assert_close(result, F.max_pool3d(edge, 3, 2))


@pytest.mark.parametrize(("frames", "steps"), [(24, 2), (20, 2), (16, 1), (8, 1), (1, 1)])
def test_deepminds_head_averages_pairs_of_steps(frames: int, steps: int) -> None:
    model = create_model("i3d_deepmind", num_classes=5, num_frames=frames).eval()
    maps: list[Tensor] = []
    model.get_submodule("inception5b").register_forward_hook(lambda _, __, output: maps.append(output))
    with torch.no_grad():
        features = model.forward_features(torch.randn(1, frames, 3, 33, 40))
    expected = F.avg_pool3d(maps[0], (min(2, maps[0].shape[2]), *maps[0].shape[3:]), 1)
    torch.testing.assert_close(features, expected.flatten(2).transpose(1, 2))
    assert features.shape == (1, steps, 1024)


def test_deepminds_names_become_ours_and_ours_stay() -> None:
    model = create_model("i3d_deepmind", num_classes=5)
    own = model.state_dict()
    assert from_deepmind(own).keys() == own.keys()
    theirs = {"Mixed_4f.Branch_3.Conv3d_0b_1x1.bn.bias": torch.ones(1), "Logits.Conv3d_0c_1x1.conv.bias": torch.ones(5)}
    assert list(from_deepmind(theirs)) == ["inception4e.branch4.1.bn.bias", "fc.bias"]
    assert not [name for name in own if name.endswith("bn.weight")]


def test_temporal_pooling_of_either_kind_leaves_an_eighth() -> None:
    results = []
    for kind in ("max", "average"):
        model = randomised(create_model("tam_inception_v1", num_classes=5, num_frames=8, temporal_pooling=kind))
        assert model.forward_features(torch.randn(1, 8, 3, 33, 40)).shape == (1, 1, 1024)
        results.append(model)
    results[1].load_state_dict(results[0].state_dict())
    clips = torch.randn(1, 8, 3, 33, 40)
    assert not torch.allclose(results[0](clips), results[1](clips), rtol=1e-3)
