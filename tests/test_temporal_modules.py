"""GST, C3D, P3D, TIN, TANet, TEINet and non-local blocks: published counts, second formulations, starts from images."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from clipwise import ops
from clipwise.models.complexity import count_macs, count_parameters
from clipwise.models.registry import create_model
from clipwise.models.temporal.nonlocal_block import NonLocalBlock
from clipwise.models.temporal.tin import interlace
from clipwise.models.weights import load_weights

MODULES = ("gst", "gst_large", "c3d", "p3d", "tin", "tanet", "teinet")


def narrow(name: str, num_frames: int = 4, **options: Any) -> torch.nn.Module:
    return create_model(name, num_classes=5, num_frames=num_frames, base_width=16, **options).eval()


def counts(name: str, classes: int = 174, **options: Any) -> tuple[float, float]:
    """Millions of parameters and GMACs."""
    with torch.device("meta"):
        model = create_model(name, num_classes=classes, **options)
    return count_parameters(model) / 1e6, count_macs(model) / 1e9


@pytest.mark.parametrize(
    ("name", "parameters", "gmacs"),
    [
        ("gst_resnet50", 21.04, 29.00),
        ("gst_large_resnet50", 29.52, 40.10),
        ("c3d_resnet50", 46.50, 62.29),
        ("p3d_resnet50", 27.64, 37.63),
        ("tin_resnet50", 23.90, 32.70),
        ("tanet_resnet50", 25.13, 32.71),
    ],
)
def test_published_counts(name: str, parameters: float, gmacs: float) -> None:
    assert counts(name) == (pytest.approx(parameters, abs=0.0051), pytest.approx(gmacs, abs=0.0051))


def test_gst_counts_of_the_table(shared: Path) -> None:
    with (shared / "reference/complexity.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"].startswith("gst")]
    assert len(rows) == 2
    for row in rows:
        expected = (float(row["params_millions"]), float(row["gmacs_convolutions"]))
        assert counts(row["model"]) == pytest.approx(expected, abs=0.0051)


@pytest.mark.parametrize(
    ("name", "published"), [("tin_resnet50", 24.3), ("tanet_resnet50", 25.6), ("teinet_resnet50", 30.4)]
)
def test_published_parameters_for_400_classes(name: str, published: float) -> None:
    """Printed with one decimal, and TIN's 24.36 cut to 24.3."""
    assert counts(name, 400)[0] == pytest.approx(published, rel=0.005)


def test_teinet_macs_are_the_published_33_g() -> None:
    assert counts("teinet_resnet50")[1] == pytest.approx(33, rel=0.005)


def test_nonlocal_counts() -> None:
    assert counts("tsn_resnet50", nonlocal_blocks=True)[0] == pytest.approx(31.22, abs=0.0051)


# Each operation written a second way.


def shifted(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of (N, T, …): the previous, the current and the next frame, zero outside."""
    zero = torch.zeros_like(x[:, :1])
    return torch.cat((zero, x[:, :-1]), 1), x, torch.cat((x[:, 1:], zero), 1)


def strided_conv2(name: str) -> Any:
    """What replaces conv2 in the first block of stage 3, 32 channels, stride 2."""
    return narrow(name).layer2[0].conv2


@pytest.mark.parametrize("name", ["gst_resnet50", "gst_large_resnet50", "gst_resnet18"])
def test_gst_is_two_3d_convolutions_side_by_side(name: str) -> None:
    """In a basic block the second 3×3 is replaced, which has stride 1."""
    conv2 = strided_conv2(name)
    stride = 1 if "18" in name else 2
    y = torch.randn(2, 4, 32, 9, 11)
    clips = y.transpose(1, 2)
    first, second = (clips, clips) if "large" in name else clips.split(16, dim=1)
    flat = F.conv3d(first, conv2.spatial.weight.unsqueeze(2), stride=(1, stride, stride), padding=(0, 1, 1))
    deep = F.conv3d(second, conv2.temporal.weight, stride=(1, stride, stride), padding=1)
    assert (flat.shape[1], deep.shape[1]) == (24, 8)
    torch.testing.assert_close(conv2(y), torch.cat((flat, deep), 1).transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_c3d_is_three_2d_convolutions_of_neighbouring_frames() -> None:
    conv2 = strided_conv2("c3d_resnet50")
    y = torch.randn(2, 4, 32, 9, 11)
    parts = [
        F.conv2d(ops.fold(frames), conv2.weight[:, :, k], stride=2, padding=1) for k, frames in enumerate(shifted(y))
    ]
    torch.testing.assert_close(conv2(y), ops.unfold(sum(parts, torch.zeros(())), 4), rtol=1e-4, atol=1e-5)


def test_p3d_is_a_2d_convolution_and_one_over_time() -> None:
    conv2 = strided_conv2("p3d_resnet50")
    y = torch.randn(2, 4, 32, 9, 11)
    image = ops.unfold(F.conv2d(ops.fold(y), conv2.weight, stride=2, padding=1), 4)
    torch.testing.assert_close(conv2(y), ops.shift(image, [(4, -1), (24, 0), (4, 1)]), rtol=0, atol=0)
    torch.nn.init.normal_(conv2.temporal.weight)
    expected = F.conv3d(image.transpose(1, 2), conv2.temporal.weight[..., None, None], padding=(1, 0, 0))
    torch.testing.assert_close(conv2(y), expected.transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_interlacing_by_whole_frames_is_a_shift() -> None:
    """A delay of one frame takes the previous frame, which is the shift's offset -1."""
    x, ones = torch.randn(2, 5, 8, 3, 4), torch.ones(2, 5, 4)
    delays = torch.tensor([1.0, -1.0, 0.0, 2.0]).expand(2, 4)
    torch.testing.assert_close(interlace(x, delays, ones), ops.shift(x, [(2, -1), (2, 1), (2, 0), (2, -2)]))


def test_interlacing_by_half_a_frame_is_the_mean_of_neighbours() -> None:
    x, ones = torch.randn(2, 5, 8, 3, 4), torch.ones(2, 5, 2)
    previous, now, next_ = shifted(x)
    expected = torch.cat(((previous + now)[:, :, :4] / 2, (now + next_)[:, :, 4:] / 2), 2)
    torch.testing.assert_close(interlace(x, torch.tensor([0.5, -0.5]).expand(2, 2), ones), expected)


def test_tin_is_the_mixture_of_two_whole_shifts() -> None:
    """As the authors compute it: round the delay down, shift by it and by one more, mix; each clip has its own."""
    tin = narrow("tin_resnet50", num_frames=5).layer2[1].tin
    torch.nn.init.normal_(tin.offset_net.fc2.weight)
    torch.nn.init.normal_(tin.weight_net.conv.weight)
    x = torch.randn(3, 5, 128, 3, 4) * 2
    pooled = x[:, :, :32].mean((3, 4)).transpose(1, 2)
    offsets, weights = tin.offset_net(pooled), tin.weight_net(pooled)
    delays = torch.cat((offsets, -offsets), 1)
    assert delays.abs().max() <= 2
    expected = x.clone()
    for n in range(3):
        for c in range(32):
            delay = delays[n, c // 8]
            below = int(delay.floor())
            for t in range(5):
                pair = [x[n, t - d, c] if 0 <= t - d < 5 else torch.zeros(3, 4) for d in (below, below + 1)]
                expected[n, t, c] = weights[n, t, c // 8 % 2] * torch.lerp(pair[0], pair[1], delay - below)
    torch.testing.assert_close(tin(x), expected, rtol=1e-4, atol=1e-5)


def test_tin_learns_its_delays() -> None:
    """Rounding would have no gradient."""
    tin = narrow("tin_resnet50").layer1[0].tin
    tin(torch.randn(2, 4, 16, 5, 5)).square().sum().backward()
    assert tin.offset_net.fc2.bias.grad.abs().min() > 0


def test_tanet_is_a_convolution_with_a_kernel_of_its_own_for_each_clip_and_channel() -> None:
    tanet = narrow("tanet_resnet50", num_frames=5).layer1[0].tanet
    for module in tanet.modules():  # far from their start, so that every term counts
        if isinstance(module, torch.nn.Linear | torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.weight)
    y = torch.randn(2, 5, 16, 3, 4)
    pooled = y.mean((3, 4))
    bn = tanet.G[1]
    kernels = torch.zeros(2, 16, 3)
    for n in range(2):
        attention = torch.sigmoid(tanet.L[3](torch.relu(tanet.L[1](tanet.L[0](pooled[n].T[None])))))[0]
        for c in range(16):
            hidden = tanet.G[0].weight @ pooled[n, :, c]
            hidden = (hidden - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * bn.weight + bn.bias
            kernels[n, c] = (tanet.G[3].weight @ hidden.clamp(min=0)).softmax(0)
            for t in range(5):
                taps = [
                    kernels[n, c, k] * attention[c, t + k - 1] * y[n, t + k - 1, c]
                    for k in range(3)
                    if 0 <= t + k - 1 < 5
                ]
                torch.testing.assert_close(tanet(y)[n, t, c], sum(taps, torch.zeros(3, 4)), rtol=1e-4, atol=1e-5)
    assert kernels.std(dim=(0, 1)).min() > 0.05


def test_teinet_weights_channels_by_the_change_to_the_next_frame() -> None:
    teinet = narrow("teinet_resnet50").layer1[1].teinet
    torch.nn.init.normal_(teinet.conv.weight)
    x = torch.randn(2, 4, 64, 3, 4)
    p = x.mean((3, 4))
    matrix = {part: getattr(teinet, part).weight[..., 0] for part in ("now", "after", "restore")}
    bias = {part: getattr(teinet, part).bias for part in matrix}
    enhanced = x.clone()
    for t in range(3):
        change = p[:, t + 1] @ matrix["after"].T + bias["after"] - p[:, t] @ matrix["now"].T - bias["now"]
        enhanced[:, t] *= torch.sigmoid(change @ matrix["restore"].T + bias["restore"])[..., None, None]
    taps = teinet.conv.weight[:, 0]
    expected = sum(part * taps[:, k, None, None] for k, part in enumerate(shifted(enhanced)))
    torch.testing.assert_close(teinet(x), expected, rtol=1e-4, atol=1e-5)


def attention_block(channels: int) -> NonLocalBlock:
    """A non-local block far from its start, where it is the identity."""
    block = NonLocalBlock(channels).eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return block


def test_a_nonlocal_block_is_plain_attention() -> None:
    block = attention_block(16)
    x = torch.randn(2, 3, 16, 5, 7)
    pooled = F.max_pool3d(x.transpose(1, 2), (1, 2, 2)).transpose(1, 2)

    def positions(part: torch.nn.Conv2d, clips: Tensor) -> Tensor:
        mapped = torch.einsum("oc,ntchw->nothw", part.weight[..., 0, 0], clips) + part.bias[:, None, None, None]
        return mapped.flatten(2)

    theta, phi, g = positions(block.theta, x), positions(block.phi, pooled), positions(block.g, pooled)
    scores = torch.einsum("nci,ncj->nij", theta, phi).exp()
    y = torch.einsum("nij,ncj->nci", scores / scores.sum(2, keepdim=True), g).unflatten(2, (3, 5, 7)).transpose(1, 2)
    expected = x + ops.unfold(block.bn(block.out(ops.fold(y))), 3)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


def test_nonlocal_softmax_survives_half_precision() -> None:
    """The products exceed what a plain exponential could hold."""
    block = attention_block(16)
    x = 30 * torch.randn(1, 2, 16, 6, 6)
    half = block.bfloat16()(x.bfloat16())
    assert half.isfinite().all()
    scores = block.theta(ops.fold(x).bfloat16()).flatten(2).mT @ block.phi(ops.fold(x).bfloat16()).flatten(2)
    assert scores.max() > 100


def positions_of(model: Any, key: str) -> set[tuple[int, int]]:
    return {
        (stage, index)
        for stage in range(2, 6)
        for index, block in enumerate(getattr(model, f"layer{stage - 1}"))
        if hasattr(block, key)
    }


@pytest.mark.parametrize(
    ("depth", "after"),
    [
        (18, {3: (0, 1), 4: (0, 1)}),
        (34, {3: (1, 3), 4: (1, 3, 5)}),
        (50, {3: (1, 3), 4: (1, 3, 5)}),
        (101, {3: (1, 3), 4: (6, 13, 20)}),
        (152, {3: (3, 7), 4: (11, 23, 35)}),
    ],
)
def test_where_nonlocal_blocks_stand(depth: int, after: dict[int, tuple[int, ...]]) -> None:
    """Whether or not the temporal module is in the same residual block."""
    with torch.device("meta"):
        model = create_model(
            f"stm_resnet{depth}", num_classes=2, nonlocal_blocks=True, stages=(2, 4), placement="first"
        )
    assert positions_of(model, "nonlocal_block") == {(stage, i) for stage, indices in after.items() for i in indices}
    assert positions_of(model, "cmm") == {(2, 0), (4, 0)}


def test_nonlocal_blocks_start_as_identity_and_know_no_order() -> None:
    plain, model = narrow("tsn_resnet50"), narrow("tsn_resnet50", nonlocal_blocks=True)
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all("nonlocal_block" in key for key in missing)
    clip = torch.randn(2, 4, 3, 64, 64)
    with torch.no_grad():
        before = plain.forward_features(clip)
        torch.testing.assert_close(model.forward_features(clip), before)
        for block in model.blocks():
            if hasattr(block, "nonlocal_block"):
                torch.nn.init.normal_(block.nonlocal_block.bn.weight, std=30)
        after = model.forward_features(clip)
        assert (after - before).abs().max() > 0.1 * before.abs().max()
        order = torch.tensor([2, 0, 3, 1])
        assert (model.forward_features(clip[:, order]) - after[:, order]).abs().max() < 1e-4 * after.abs().max()
        # Yet each frame's features depend on the others.
        other = model.forward_features(torch.cat((clip[:, :3], torch.randn(2, 1, 3, 64, 64)), 1))
        assert (other - after)[:, :3].abs().max() > 1e-3


# Starts from an image network.


@pytest.fixture
def image(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    torch.manual_seed(3)
    state = create_model("tsn_resnet18", num_classes=1000, base_width=16).state_dict()
    for key, value in state.items():
        if key.endswith("running_mean"):
            value.normal_(std=0.1)
    save_file(state, tmp_path / "image.safetensors")
    return tmp_path / "image.safetensors", state


@pytest.mark.parametrize("module", MODULES)
def test_every_module_starts_from_an_image_network(module: str, image: tuple[Path, dict[str, Tensor]]) -> None:
    path, state = image
    model = narrow(f"{module}_resnet18", nonlocal_blocks=True)
    report = load_weights(model, path, name=f"{module}_resnet18")
    assert set(report.left) == {"fc.weight", "fc.bias"}
    own, wanted = model.state_dict(), state["layer2.1.conv2.weight"]
    if module.startswith("gst"):
        assert torch.equal(own["layer2.1.conv2.spatial.weight"], wanted[:24, : 32 if "large" in module else 16])
        assert "layer2.1.conv2.temporal.weight" in report.new
    elif module == "c3d":
        assert torch.equal(own["layer2.1.conv2.weight"], torch.stack([wanted / 3] * 3, dim=2))
    else:
        assert torch.equal(own["layer2.1.conv2.weight"], wanted)
    parts = ("fc.", "conv2.temporal.", "nonlocal_block.", f"{module}.")
    assert all(any(part in key for part in parts) for key in report.new)


def test_inflated_c3d_sees_still_frames_as_the_image_network_does(image: tuple[Path, dict[str, Tensor]]) -> None:
    """Eight 3×3×3 see eight frames to either side: of 18, the 9th and the 10th see no padding in time."""
    path, _ = image
    still = torch.randn(1, 1, 3, 57, 75).expand(1, 18, 3, 57, 75)
    features = {}
    for name in ("tsn_resnet18", "c3d_resnet18"):
        model = narrow(name, num_frames=18)
        load_weights(model, path, name=name)
        with torch.no_grad():
            features[name] = model.forward_features(still)
    difference = (features["c3d_resnet18"] - features["tsn_resnet18"]).abs().amax((0, 2))
    difference /= features["tsn_resnet18"].abs().max()
    assert difference[8:10].max() < 2e-6
    assert difference[[0, 17]].min() > 0.1


# Shapes, layout, wrong use.


@pytest.mark.parametrize("module", [*MODULES, "nonlocal_block"])
@pytest.mark.parametrize("frames", [1, 3])
def test_modules_keep_shape_and_layout(module: str, frames: int) -> None:
    if module == "nonlocal_block":
        operation: Any = attention_block(64)
    else:
        block = narrow(f"{module}_resnet50", num_frames=frames).layer1[1]
        operation = getattr(block, module, block.conv2)
    channels = 64 if module in ("tin", "teinet", "nonlocal_block") else 16
    x = ops.unfold(torch.randn(2 * frames, channels, 7, 9).contiguous(memory_format=torch.channels_last), frames)
    out = operation(x)
    assert out.shape == x.shape
    torch.testing.assert_close(out, operation(x.contiguous()), rtol=1e-3, atol=1e-4)
    if frames > 1:  # of one frame, PyTorch's convolutions cannot tell the layouts apart
        assert ops.fold(out).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gst_resnet50", {"alpha": 1.0}, r"alpha = 1\.0 splits no channels: each .* one of 16"),
        ("gst_large_resnet50", {"alpha": 0.01}, r"alpha = 0\.01 splits no channels"),
        ("gst_resnet18", {"alpha": -1}, "take a value between 0.0625 and"),
        ("gst_resnet50", {"inputs": "both"}, "inputs must be 'halves' or 'all', got 'both'"),
        ("c3d_resnet50", {"alpha": 0.5}, "has no option alpha; it takes .*nonlocal_blocks"),
        ("tsn_resnet50", {"nonlocal_blocks": 5}, "option nonlocal_blocks takes bool, got 5"),
        ("tsm_resnet50", {"nonlocal_blocks": True, "causal": True}, "attention reads every frame"),
    ],
)
def test_wrong_arguments_say_what_is_right(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        narrow(name, **options)
