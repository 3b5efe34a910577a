"""TEA and MobileNetV2: published counts, the equations written out, placement, image weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from clipwise import ops
from clipwise.models.complexity import count_macs, count_parameters, describe_stages
from clipwise.models.registry import create_model
from clipwise.models.tea import MotionExcitation
from clipwise.models.weights import load_weights


def on_meta(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return create_model(name, **options)


def stirred(module: torch.nn.Module) -> Any:
    """In evaluation, its normalisations and temporal convolutions far from their start, so that every term counts."""
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            for tensor in (part.weight, part.bias, part.running_mean):
                torch.nn.init.normal_(tensor)
    for tconv in getattr(module, "mta", ()):
        torch.nn.init.normal_(tconv.weight)
    return module.eval()


def relu(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(min=0)


def test_tea_has_the_published_counts() -> None:
    model = on_meta("tea_resnet50", num_classes=174)
    assert count_parameters(model) / 1e6 == pytest.approx(24.46, abs=0.0051)
    assert count_macs(model) / 1e9 == pytest.approx(34.53, abs=0.0051)


def test_motion_excitation_frame_by_frame() -> None:
    me = stirred(MotionExcitation(32))
    y = torch.randn(2, 5, 32, 7, 9)
    r = [me.bn(me.reduce(y[:, t])) for t in range(5)]
    for t in range(5):
        h = me.conv(r[t + 1]) - r[t] if t < 4 else torch.zeros_like(r[t])
        gate = me.restore_bn(me.restore(h.mean(dim=(2, 3), keepdim=True)))
        torch.testing.assert_close(me(y)[:, t], y[:, t] * (0.5 + torch.sigmoid(gate)))


@pytest.mark.parametrize(("layer", "index"), [(1, 0), (2, 0), (2, 1)])
def test_a_tea_block_is_the_papers_equations(layer: int, index: int) -> None:
    """Groups one by one, temporal convolutions tap by tap, on an odd map; an opening block with and without stride."""
    block = stirred(getattr(create_model("tea_resnet50", num_classes=2, base_width=32), f"layer{layer}")[index])
    t, f = 4, torch.nn.functional
    x = torch.randn(2 * t, block.conv1.in_channels, 9, 11)
    z = block.me(ops.unfold(relu(block.bn1(block.conv1(x))), t))
    width = z.shape[2] // 4
    stride, opens = block.convs[0].stride[0], index == 0

    def over_time(group: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(group)
        for now in range(t):
            for tap, then in enumerate((now - 1, now, now + 1)):
                if 0 <= then < t:
                    out[:, now] += group[:, then] * weight[:, 0, tap, None, None]
        return out.flatten(0, 1)

    outs: list[torch.Tensor] = []
    for i in range(3):
        group = z[:, :, i * width : (i + 1) * width]
        if i > 0 and not opens:
            group = group + outs[-1].reshape(group.shape)
        mixed = over_time(group, block.mta[i].weight)
        outs.append(relu(block.bns[i](f.conv2d(mixed, block.convs[i].weight, stride=stride, padding=1))))
    last = over_time(z[:, :, 3 * width :], block.mta[3].weight)
    outs.append(f.avg_pool2d(last, 3, stride, padding=1) if opens else last)
    shortcut = block.downsample(x) if opens else x
    expected = relu(block.bn3(block.conv3(torch.cat(outs, 1))) + shortcut)
    torch.testing.assert_close(block(x, t), expected, rtol=1e-4, atol=1e-4)


def test_teas_temporal_convolutions_start_as_the_authors() -> None:
    """Three times the identity; then half of the channels from the next frame, the other half from the previous."""
    block = create_model("tea_resnet50", num_classes=2).layer3[1]
    clip = torch.randn(1, 5, 104, 3, 3)
    for tconv in block.mta[:3]:
        assert torch.equal(tconv(clip), clip)
    assert torch.equal(block.mta[3](clip), ops.shift(clip, [(52, +1), (52, -1)]))


def test_tea_of_any_number_of_frames_has_the_same_weights() -> None:
    one, other = (create_model("tea_resnet50", num_classes=2, num_frames=t, base_width=16) for t in (3, 8))
    other.load_state_dict(one.state_dict())


def res2net_state() -> dict[str, torch.Tensor]:
    """Keys and shapes of Res2Net-50's ImageNet file, a quarter as wide: 16 planes, groups of 6."""
    state = {
        "conv1.weight": torch.randn(16, 3, 7, 7),
        "fc.weight": torch.randn(1000, 512),
        "fc.bias": torch.randn(1000),
    }

    def bn(key: str, channels: int) -> None:
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"{key}.{name}"] = torch.rand(channels)

    bn("bn1", 16)
    channels = 16
    for layer, count in enumerate((3, 4, 6, 3)):
        planes = 16 * 2**layer
        width = planes * 26 // 64
        for index in range(count):
            key = f"layer{layer + 1}.{index}"
            state[f"{key}.conv1.weight"] = torch.randn(4 * width, channels, 1, 1)
            bn(f"{key}.bn1", 4 * width)
            for i in range(3):
                state[f"{key}.convs.{i}.weight"] = torch.randn(width, width, 3, 3)
                bn(f"{key}.bns.{i}", width)
            state[f"{key}.conv3.weight"] = torch.randn(4 * planes, 4 * width, 1, 1)
            bn(f"{key}.bn3", 4 * planes)
            if index == 0:
                state[f"{key}.downsample.0.weight"] = torch.randn(4 * planes, channels, 1, 1)
                bn(f"{key}.downsample.1", 4 * planes)
            channels = 4 * planes
    return state


def test_res2nets_image_file_fills_all_but_the_temporal_parts(tmp_path: Path) -> None:
    state = res2net_state()
    save_file(state, tmp_path / "res2net.safetensors")
    model = create_model("tea_resnet50", num_classes=5, base_width=16)
    report = load_weights(model, tmp_path / "res2net.safetensors", name="tea_resnet50")
    assert set(report.left) == {"fc.weight", "fc.bias"}
    assert all(".me." in key or ".mta." in key or key.startswith("fc.") for key in report.new)
    assert torch.equal(model.state_dict()["layer2.1.convs.2.weight"], state["layer2.1.convs.2.weight"])


def test_a_res2net_of_another_depth_is_refused(tmp_path: Path) -> None:
    state = res2net_state()
    save_file({key: value for key, value in state.items() if "layer3.5" not in key}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="give a file of the same backbone"):
        create_model("tea_resnet50", num_classes=5, base_width=16, weights=tmp_path / "other.safetensors")


def test_tea_has_no_downloadable_image_file() -> None:
    with pytest.raises(ValueError, match="tea_resnet50"):
        create_model("tea_resnet50", num_classes=5, base_width=16, weights="imagenet")


def test_mobilenet_has_the_published_counts() -> None:
    """torchvision's 3,504,872 parameters and 300.8 MMACs with its fc; MMAction2's 2.736 M and, at 256² with two
    operations for each value that a BN puts out, 3.269 G."""
    image = on_meta("tsn_mobilenet_v2", num_classes=1000, num_frames=1)
    assert count_parameters(image) == 3_504_872
    assert count_macs(image) + 1280 * 1000 == 300_774_272
    clip = on_meta("tsm_mobilenet_v2", num_classes=400)
    assert count_parameters(clip) / 1e6 == pytest.approx(2.736, abs=5e-4)
    normalised = 0

    def note(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal normalised
        normalised += output.numel()

    macs = count_macs(clip, 256)
    for module in clip.eval().modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(note)
    clip(torch.empty(1, 8, 3, 256, 256, device="meta"))
    assert (macs + 2 * normalised) / 1e9 == pytest.approx(3.269, abs=5e-4)


def test_mobilenet_shifts_where_there_are_a_shortcut_and_an_expansion() -> None:
    model = on_meta("tsm_mobilenet_v2", num_classes=2)
    # Counted from the stem: not the first block of a row, whose channels or stride change, and never block 1.
    shifted = [index for index, part in enumerate(model.features) if getattr(part, "tsm", None) is not None]
    assert shifted == [3, 5, 6, 8, 9, 10, 12, 13, 15, 16]


def test_a_shifted_block_keeps_its_shortcut() -> None:
    block = stirred(create_model("tsm_mobilenet_v2", num_classes=2, num_frames=4).features[5])
    x = torch.randn(8, 32, 5, 7)
    clip = ops.unfold(x, 4)
    shifted = clip.clone()
    shifted[:, :, :8] = 0
    shifted[:, :-1, :4] = clip[:, 1:, :4]
    shifted[:, 1:, 4:8] = clip[:, :-1, 4:8]
    torch.testing.assert_close(block(x, 4), x + block.conv(ops.fold(shifted)))


def test_a_causal_mobilenet_sees_no_later_frame() -> None:
    block = stirred(create_model("tsm_mobilenet_v2", num_classes=2, num_frames=4, width=0.25, causal=True).features[3])
    x = torch.randn(4, 8, 5, 7)
    later = x.clone()
    later[2:] += 1
    assert torch.equal(block(x, 4)[:2], block(later, 4)[:2])


def torchvision_mobilenet_state() -> dict[str, torch.Tensor]:
    """torchvision's keys and shapes, from its definition: `features` of 19 parts, then `classifier.1`."""
    state: dict[str, torch.Tensor] = {}

    def conv(key: str, norm: str, out_channels: int, in_channels: int, kernel: int) -> None:
        state[f"{key}.weight"] = torch.randn(out_channels, in_channels, kernel, kernel)
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{name}"] = torch.rand(out_channels)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(0)

    conv("features.0.0", "features.0.1", 32, 3, 3)
    outs = [16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320]
    for index, (in_channels, out_channels) in enumerate(zip([32, *outs], outs, strict=False), start=1):
        key = f"features.{index}.conv"
        if index == 1:
            conv(f"{key}.0.0", f"{key}.0.1", 32, 1, 3)
            conv(f"{key}.1", f"{key}.2", 16, 32, 1)
            continue
        conv(f"{key}.0.0", f"{key}.0.1", 6 * in_channels, in_channels, 1)
        conv(f"{key}.1.0", f"{key}.1.1", 6 * in_channels, 1, 3)
        conv(f"{key}.2", f"{key}.3", out_channels, 6 * in_channels, 1)
    conv("features.18.0", "features.18.1", 1280, 320, 1)
    return state | {"classifier.1.weight": torch.randn(1000, 1280), "classifier.1.bias": torch.randn(1000)}


@pytest.mark.parametrize("name", ["tsn_mobilenet_v2", "tsm_mobilenet_v2"])
def test_torchvisions_mobilenet_loads_without_remainder(name: str, tmp_path: Path) -> None:
    state = torchvision_mobilenet_state()
    save_file(state, tmp_path / "image.safetensors")
    model = create_model(name, num_classes=5)
    report = load_weights(model, tmp_path / "image.safetensors", name=name)
    assert set(report.left) == set(report.new) == {"fc.weight", "fc.bias"}
    image = create_model(name, num_classes=1000)
    load_weights(image, tmp_path / "image.safetensors", name=name)
    assert torch.equal(image.fc.weight, state["classifier.1.weight"])


def test_mobilenets_stages_are_the_papers_rows() -> None:
    stages = describe_stages(on_meta("tsn_mobilenet_v2", num_classes=1000, num_frames=1))
    assert [stage.shape[1:] for stage in stages[:9]] == [
        (32, 112, 112),
        (16, 112, 112),
        (24, 56, 56),
        (32, 28, 28),
        (64, 14, 14),
        (96, 14, 14),
        (160, 7, 7),
        (320, 7, 7),
        (1280, 7, 7),
    ]
    assert sum(stage.parameters for stage in stages) == 3_504_872


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"name": "tea_resnet50", "base_width": 20}, "base_width must be a multiple of 16, got 20"),
        ({"name": "tsm_mobilenet_v2", "width": 0.0}, "width must be greater than 0, got 0.0"),
    ],
)
def test_wrong_arguments_say_what_is_right(call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(call.pop("name"), num_classes=2, **call)


@pytest.mark.parametrize(
    ("name", "options"), [("tea_resnet50", {"base_width": 16}), ("tsm_mobilenet_v2", {"width": 0.25})]
)
def test_one_frame_and_odd_sizes(name: str, options: dict[str, Any]) -> None:
    model = create_model(name, num_classes=2, num_frames=1, **options).eval()
    assert model(torch.randn(1, 1, 3, 57, 75)).isfinite().all()
