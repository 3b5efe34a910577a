"""Every network: published counts, sizes of input, dependence on the order of frames, gradients, weights."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from clipwise import ops
from clipwise.checkpoint import write_weights
from clipwise.data.decode import open_frames
from clipwise.data.sampling import segments_middle
from clipwise.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Normalise, crop_resize, evaluation_boxes
from clipwise.models import weights as weights_module
from clipwise.models.complexity import count_macs, count_parameters
from clipwise.models.network import VideoNetwork
from clipwise.models.registry import create_model, list_models, model_entry, model_options
from clipwise.models.temporal.layers import TemporalConv
from clipwise.models.temporal.nonlocal_block import NonLocalBlock
from clipwise.models.temporal.stm import ChannelwiseTemporal
from clipwise.models.weights import load_weights, read_state_dict

OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "cstm only": {"modules": "cstm"},
    "cstm only; ordinary temporal convolution": {"modules": "cstm", "temporal_conv": "ordinary"},
    "cmm only": {"modules": "cmm"},
    "alpha=0": {"alpha": 0.0},
    "alpha=0.25": {"alpha": 0.25},
    "alpha=0.5": {"alpha": 0.5},
    "alpha=0.75": {"alpha": 0.75},
    "alpha=1": {"alpha": 1.0},
    "equal": {"split": "equal"},
    "r=2": {"reduction": 2},
    "r=4": {"reduction": 4},
    "r=8": {"reduction": 8},
    "r=16": {"reduction": 16},
    "32 frames; 256x256": {"num_frames": 32},
    "256x256; 400 classes": {},
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {"modules": part}) for name in list_models("stm_resnet[15][80]") for part in ("cstm", "cmm")),
    ("stc_resnet50", {"split": "equal"}),
    ("stc_resnet50", {"alpha": 0.0}),
    ("stc_resnet50", {"alpha": 1.0}),
]


def small(name: str, num_frames: int = 4, **options: Any) -> torch.nn.Module:
    """A narrow network whose output is far from zero, so that a difference in it shows."""
    torch.manual_seed(1)
    model = create_model(name, num_classes=5, num_frames=num_frames, base_width=16, **options)
    torch.nn.init.normal_(model.fc.weight)
    return model.eval()


def test_published_counts(shared: Path) -> None:
    with (shared / "reference/complexity.csv").open() as file:
        for row in csv.DictReader(file):
            size = 256 if "256x256" in row["options"] else 224
            classes = 400 if "400 classes" in row["options"] else 174
            with torch.device("meta"):
                model = create_model(row["model"], num_classes=classes, **OPTIONS[row["options"]])
            gmacs = count_macs(model, size) / 1e9
            assert gmacs == pytest.approx(float(row["gmacs_convolutions"]), abs=0.0051), row
            if row["params_millions"]:
                expected = pytest.approx(float(row["params_millions"]), abs=0.0051)
                assert count_parameters(model) / 1e6 == expected, row


def test_mini_benchmark_to_the_integer(shared: Path) -> None:
    """SPEC section 5: 283 of the 288 published rows with the defaults, five with ``last_pool="padded"``."""
    counted: dict[tuple[Any, ...], tuple[int, int, int]] = {}  # MACs, parameters without classes, and those a class
    equal = {"default": 0, "padded": 0}
    with (shared / "reference/mini_benchmark.csv").open() as file:
        for row in csv.DictReader(file):
            frames, pooling = int(row["frames"]), row["temporal_pooling"] == "1"
            name = f"{row['module']}_{row['backbone']}"
            options: dict[str, Any] = {"temporal_pooling": pooling}
            if name == "i3d_inception_v1" and not pooling and frames >= (64 if row["dataset"] == "mini-ssv2" else 32):
                options["last_pool"] = "padded"
            classes = 87 if row["dataset"] == "mini-ssv2" else 200
            condition = (name, frames, *options.values())
            if condition not in counted:
                with torch.device("meta"):
                    model = create_model(name, num_classes=classes, num_frames=frames, **options)
                a_class = model.fc.in_features + 1
                counted[condition] = count_macs(model), count_parameters(model) - classes * a_class, a_class
            macs, parameters, a_class = counted[condition]
            assert (macs, parameters + classes * a_class) == (int(row["macs"]), int(row["params"])), row
            equal["padded" if "last_pool" in options else "default"] += 1
    assert equal == {"default": 283, "padded": 5}


def test_macs_of_a_known_convolution() -> None:
    class One(torch.nn.Module):
        num_frames = 2

        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
            self.tconv = TemporalConv(4, groups=4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.tconv(ops.unfold(self.conv(ops.fold(x)), 2))

    assert count_macs(One(), 8) == 2 * 8 * 8 * (4 * 3 * 9 + 4 * 3)


@pytest.mark.parametrize("name", list_models())
def test_every_network_at_its_full_width(name: str) -> None:
    """Shapes alone, on the meta device, at sizes that give even maps and odd ones; others count MACs at the papers'."""
    with torch.device("meta"):
        model = create_model(name, num_classes=7).eval()
        for size in (112, 240):
            assert model(torch.empty(2, model.num_frames, 3, size, size)).shape == (2, 7)


def narrow(name: str, num_frames: int, **options: Any) -> VideoNetwork:
    """A network for 5 classes, as narrow as its family allows."""
    if "base_width" in model_options(name):
        options.setdefault("base_width", 16)
    return create_model(name, num_classes=5, num_frames=num_frames, **options)


@pytest.mark.parametrize("name", list_models())
def test_every_network(name: str, tmp_path: Path) -> None:
    """Shape, a gradient for every parameter, also in mixed precision, and the same output after safetensors.

    A parameter without gradient stops distributed training. T is half of what the network usually takes.
    """
    torch.manual_seed(1)
    model = narrow(name, model_entry(name).num_frames // 2)
    clips = torch.randn(2, model.num_frames, 3, 64, 64)
    logits = model.train()(clips)
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []
    with torch.autocast("cpu", torch.bfloat16):
        model(clips).square().sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())

    model.eval()
    write_weights(model, tmp_path / "weights.safetensors")
    again = narrow(name, model.num_frames).eval()
    again.load_state_dict(read_state_dict(tmp_path / "weights.safetensors"))
    with torch.no_grad():
        logits = model(clips[:1])
        torch.testing.assert_close(again(clips[:1]), logits, rtol=0, atol=0)
        half = model.bfloat16()(clips[:1].bfloat16())
    assert half.isfinite().all()


COMPILED = ["stm_resnet18", "stc_resnet18", "stw_resnet18", "tin_resnet18", "tanet_resnet18", "gst_resnet18"]
COMPILED += ["tea_resnet50", "tam_inception_v1", "i3d_resnet18", "slowfast_resnet50_8x8", "x3d_s"]


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_equals_eager(name: str) -> None:
    """Through all that precedes Inductor, whose C++ takes its time: test_deploy.py goes through that, too."""
    torch.compiler.reset()  # it counts how often VideoNetwork.forward was compiled, over all tests
    torch.manual_seed(1)
    model = narrow(name, model_entry(name).num_frames).eval()
    torch.nn.init.normal_(model.fc.weight)
    clips = torch.randn(1, model.num_frames, 3, 64, 64)
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(clips), model(clips), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in list_models()), *VARIANTS])
def test_depends_on_the_order_of_frames(name: str, options: dict[str, Any]) -> None:
    """SPEC section 1: TSN's output does not, every other network's does."""
    torch.manual_seed(1)
    model = narrow(name, 8, **options).eval()
    torch.nn.init.normal_(model.fc.weight)
    clips = torch.randn(1, 8, 3, 48, 48)
    with torch.no_grad():
        logits = model(clips)
        change = (logits - model(clips[:, [3, 0, 7, 2, 5, 1, 6, 4]])).abs().max() / logits.abs().max()
    if name.startswith("tsn"):
        assert change < 1e-5
    else:
        assert change > 1e-4


POOLED = [name for name in list_models() if "temporal_pooling" in model_options(name)]
POOLED = [name for name in POOLED if re.search("(resnet(18|50)|inception_v1)$", name)]


@pytest.mark.parametrize("name", POOLED)
def test_temporal_pooling_leaves_no_frame_out(name: str) -> None:
    """Each frame has an influence on the output at the start; a stride over a kernel of one frame would take it."""
    torch.manual_seed(1)
    model = narrow(name, 16, temporal_pooling=True).eval()
    torch.nn.init.normal_(model.fc.weight)
    clips = torch.randn(1, 16, 3, 32, 32, requires_grad=True)
    model(clips).square().sum().backward()
    assert clips.grad is not None
    assert clips.grad.abs().amax((0, 2, 3, 4)).min() > 0


@pytest.mark.parametrize("name", ["tam_resnet18", "tea_resnet50", "i3d_resnet18", "slowfast_resnet50_8x8"])
def test_nonlocal_blocks_join_any_residual_network(name: str) -> None:
    """They start as the identity, and once they do not, every parameter of theirs has a gradient."""
    plain, model = (narrow(name, 8, nonlocal_blocks=wanted).eval() for wanted in (False, True))
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all("nonlocal_block." in key for key in missing)
    clips = torch.randn(2, 8, 3, 64, 64)
    torch.testing.assert_close(model(clips), plain(clips))
    for module in model.modules():
        if isinstance(module, NonLocalBlock):
            torch.nn.init.ones_(module.bn.weight)
    model(clips).square().sum().backward()
    blocks = [value for key, value in model.named_parameters() if "nonlocal_block." in key]
    assert all(value.grad is not None for value in blocks)
    assert (model(clips) - plain(clips)).abs().max() > 0


def test_stc_without_its_temporal_parts_ignores_order() -> None:
    model = small("stc_resnet50", alpha=1.0, shift=False, tr=False)
    clip = torch.randn(2, 4, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(clip), model(clip.flip(1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["stm_resnet18", "stm_resnet50", "stc_resnet50", "stw_resnet50", "tam_resnet18"])
def test_one_frame_and_odd_sizes(name: str) -> None:
    model = small(name, num_frames=1)
    assert model(torch.randn(1, 1, 3, 57, 75)).isfinite().all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_operations_keep_the_layout_that_convolutions_want(layout: torch.memory_format) -> None:
    x = torch.randn(6, 16, 5, 7).contiguous(memory_format=layout)
    clip = ops.unfold(x, 3)
    weight = torch.randn(16, 1, 3)
    expected = torch.nn.functional.conv1d(clip.permute(0, 3, 4, 2, 1).reshape(-1, 16, 3), weight, padding=1, groups=16)
    expected = expected.reshape(2, 5, 7, 16, 3).permute(0, 4, 3, 1, 2)
    result = ops.temporal_conv(clip, weight)
    torch.testing.assert_close(result, expected)
    if layout is torch.channels_last:
        shifted = ops.shift(clip, [(4, 1), (4, -1), (8, 0)])
        for folded in (ops.fold(result), ops.fold(shifted), ops.fold(ops.motion_difference(clip, clip))):
            assert folded.is_contiguous(memory_format=torch.channels_last)


def test_tsm_takes_the_next_frame_first() -> None:
    """TSM's code: channels 0 … C/8 from t+1, C/8 … C/4 from t-1, zeros outside."""
    clip = torch.randn(1, 4, 16, 2, 2)
    expected = clip.clone()
    expected[:, :-1, :2], expected[:, -1, :2] = clip[:, 1:, :2], 0
    expected[:, 1:, 2:4], expected[:, 0, 2:4] = clip[:, :-1, 2:4], 0
    torch.testing.assert_close(ops.shift(clip, [(2, 1), (2, -1), (12, 0)]), expected, rtol=0, atol=0)


@pytest.mark.parametrize("channelwise", [True, False])
def test_cstm_starts_as_a_quarter_half_quarter_shift(channelwise: bool) -> None:
    clip = torch.randn(2, 8, 64, 7, 7)
    start = ChannelwiseTemporal(64, channelwise=channelwise)(clip)
    assert torch.equal(start, ops.shift(clip, [(16, -1), (32, 0), (16, 1)]))


def test_stw_is_three_convolutions_of_shifted_frames() -> None:
    """STFM as the paper draws it: previous, current, next frame to C/4, C/2, C/4 channels."""
    block = create_model("stw_resnet50", num_classes=2, num_frames=4).layer2[0]
    y = torch.randn(2, 4, 128, 14, 14)
    weight = block.conv2.weight
    zero = torch.zeros_like(y[:, :1])
    frames = (torch.cat((zero, y[:, :-1]), 1), y, torch.cat((y[:, 1:], zero), 1))
    stfm = torch.cat(
        [
            torch.nn.functional.conv2d(ops.fold(x), part, stride=2, padding=1)
            for x, part in zip(frames, weight.split([32, 64, 32]), strict=True)
        ],
        dim=1,
    )
    gate = torch.sigmoid(torch.einsum("ck,kntchw->nthw", block.conv2.twm.weight[0], torch.stack(frames)))
    twm = torch.nn.functional.avg_pool2d(ops.fold(y - y * gate.unsqueeze(2)), 2)
    torch.testing.assert_close(ops.fold(block.conv2(y)), stfm + twm, rtol=1e-4, atol=1e-4)


def relu(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(min=0)


def frames_of(x: torch.Tensor, t: int) -> torch.Tensor:
    return x.reshape(-1, t, *x.shape[1:])


def neighbours(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of (N, T, …): the previous, the current and the next frame, zero outside."""
    zero = torch.zeros_like(x[:, :1])
    return torch.cat((zero, x[:, :-1]), 1), x, torch.cat((x[:, 1:], zero), 1)


@pytest.mark.parametrize(("name", "stage"), [("stm_resnet50", 2), ("stm_resnet50", 3), ("stm_resnet18", 3)])
def test_an_stm_block_is_the_papers_equations(name: str, stage: int) -> None:
    """Written out frame by frame, on an odd map, in a block with stride where there is one."""
    model = create_model(name, num_classes=2, num_frames=4, base_width=32).eval()
    block = getattr(model, f"layer{stage - 1}")[0]
    for module in block.modules():  # far from their start, so that every term counts
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias)
    torch.nn.init.normal_(block.cstm.weight)
    t, f = 4, torch.nn.functional
    x = torch.randn(2 * t, block.conv1.in_channels, 15, 15)
    y = relu(block.bn1(block.conv1(x)))
    w = block.cstm.weight[:, 0]
    mixed = sum(part * w[:, k, None, None] for k, part in enumerate(neighbours(frames_of(y, t))))
    s = block.bn2(block.conv2(mixed.flatten(0, 1)))
    r = frames_of(block.cmm.bn(block.cmm.reduce(y)), t)
    k = frames_of(block.cmm.conv(r.flatten(0, 1)), t)
    h = torch.stack([k[:, i + 1] - r[:, i] if i + 1 < t else torch.zeros_like(r[:, i]) for i in range(t)], 1)
    m = block.cmm.restore(h.flatten(0, 1))
    if block.conv2.stride[0] == 2:
        m = f.max_pool2d(m, 2, 2, ceil_mode=True)
    shortcut = x if block.downsample is None else block.downsample(x)
    expected = relu(block.bn3(block.conv3(relu(s) + m)) + shortcut) if "50" in name else relu(s + m + shortcut)
    torch.testing.assert_close(block(x, t), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("light", [False, True])
def test_stc_is_the_papers_equations(light: bool) -> None:
    name = "stc_light_resnet50" if light else "stc_resnet50"
    stc = create_model(name, num_classes=2, num_frames=4).layer2[0].conv2
    y = torch.randn(2, 4, 128, 15, 15)
    first, second = y[:, :, :96], y[:, :, 96:]
    before, now, after = neighbours(first)
    shifted = torch.cat((after[:, :, :12], before[:, :, 12:24], now[:, :, 24:]), 2)
    spatial = frames_of(torch.nn.functional.conv2d(shifted.flatten(0, 1), stc.spatial.weight, stride=2, padding=1), 4)
    gate = stc.temporal_gate
    pooled = spatial.mean((3, 4)).transpose(1, 2)
    pooled = relu(gate.reduce(pooled)) if light else pooled
    z1 = spatial * torch.sigmoid(gate.conv(pooled)).transpose(1, 2)[..., None, None]
    strided = torch.stack(neighbours(second))[..., ::2, ::2]
    temporal = torch.einsum("ock,kntchw->ntohw", stc.temporal.weight, strided)
    gate = stc.spatial_gate
    pooled = relu(gate.reduce(temporal.mean(1))) if light else temporal.mean(1)
    z2 = temporal * torch.sigmoid(gate.conv(pooled))[:, None]
    torch.testing.assert_close(stc(y), torch.cat((z1, z2), 2), rtol=1e-4, atol=1e-4)


def test_tam_changes_the_branch_and_not_the_shortcut() -> None:
    block = create_model("tam_resnet50", num_classes=2, num_frames=4, base_width=32).eval().layer1[1]
    torch.nn.init.normal_(block.tam.conv.weight)
    x = torch.randn(8, 128, 7, 7)
    parts = neighbours(frames_of(x, 4))
    inside = relu(sum(part * block.tam.conv.weight[:, 0, k, None, None] for k, part in enumerate(parts)))
    y = relu(block.bn1(block.conv1(inside.flatten(0, 1))))
    expected = relu(block.bn3(block.conv3(relu(block.bn2(block.conv2(y))))) + x)
    torch.testing.assert_close(block(x, 4), expected, rtol=1e-4, atol=1e-4)


def test_motion_is_the_next_frame_minus_this_one() -> None:
    k, r = torch.randn(1, 3, 2, 4, 4), torch.randn(1, 3, 2, 4, 4)
    motion = ops.motion_difference(k, r)
    torch.testing.assert_close(motion[:, 0], k[:, 1] - r[:, 0])
    assert not motion[:, -1].any()


@pytest.mark.parametrize(
    ("placement", "stages", "expected"),
    [
        ("all", (2, 3, 4, 5), 16),
        ("all", (4, 5), 9),
        ("first", (2, 3, 4, 5), 4),
        ("first", (4,), 1),
        ("top", (2, 3, 4, 5), 8),
        ("bottom", (2, 3, 4, 5), 8),
        ("alternate", (2, 3, 4, 5), 9),
    ],
)
def test_placement(placement: str, stages: tuple[int, ...], expected: int) -> None:
    model = create_model("stm_resnet50", num_classes=2, base_width=16, placement=placement, stages=stages)
    placed = [index for index, block in enumerate(model.blocks()) if hasattr(block, "cmm")]
    assert len(placed) == expected
    if placement in ("top", "bottom"):
        assert placed == (list(range(8, 16)) if placement == "top" else list(range(8)))


def test_resnet101_shifts_every_other_block() -> None:
    with torch.device("meta"):
        model = create_model("tsm_resnet101", num_classes=2)
    assert [hasattr(block, "tsm") for block in model.layer3][:4] == [True, False, True, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"name": "stm_resnet5"}, "near it: .*stm_resnet50"),
        ({"name": "smt_resnet50"}, "near it: .*stm_resnet50"),
        ({"name": "stm"}, "near it: .*stm_resnet18"),
        ({"name": "vit_base"}, "`clipwise models` lists them all"),
        ({"name": "tsm_resnet50", "temporal_pooling": True, "num_frames": 12}, "multiple of 8, got 12; take 8 or 16"),
        ({"name": "i3d_resnet50", "temporal_pooling": True, "num_frames": 4}, "multiple of 8, got 4; take 8, or leave"),
        ({"name": "tsm_resnet50", "temporal_pooling": "min"}, "'max', 'average' or false, got 'min'"),
        ({"name": "slowfast_resnet50_8x8", "num_frames": 30}, "30"),
        ({"name": "i3d_inception_v1", "num_frames": 1}, "padded"),
        ({"name": "stm_resnet50", "alpha": 0.5}, "has no option alpha; it takes .*modules"),
        ({"name": "stc_resnet50", "alpha": 2}, "alpha must lie in"),
        ({"name": "stm_resnet50", "placement": "middle"}, "placement must be one of"),
        ({"name": "stm_resnet50", "stages": (1,)}, "stages must be some of"),
        ({"name": "tsn_resnet50", "num_frames": 0}, "num_frames must be at least 1"),
        ({"name": "tsn_resnet50", "dropout": "abc"}, "option dropout takes float, got 'abc'"),
        ({"name": "tsn_resnet50", "stages": 4}, "option stages takes a list, got 4"),
        ({"name": "stc_resnet50", "shift": "no"}, "option shift takes bool, got 'no'"),
        ({"name": "stc_resnet50", "split": "equal", "alpha": 1.0}, "has one part only"),
        ({"name": "stm_resnet18", "caffe_stride": True}, "ResNet-18 has none"),
        ({"name": "stm_resnet50", "caffe_stride": True, "weights": "imagenet"}, "have the stride in the 3×3"),
        ({"name": "tsn_resnet50", "placement": "top"}, "TSN has none"),
        ({"name": "tsn_inception_v1", "stages": (4,)}, "TSN has none"),
        ({"name": "stc_resnet50", "alpha": 1.0, "sr": False}, "alpha=1 leaves out"),
        ({"name": "stc_resnet50", "alpha": 0.0, "tr": False}, "alpha=0 leaves out"),
        ({"name": "s3d_resnet18", "temporal_pooling": True, "stages": (5,)}, "thrown away unseen"),
        ({"name": "gst_resnet18", "alpha": float("nan")}, "splits no channels"),
    ],
)
def test_wrong_arguments_say_what_is_right(call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(call.pop("name"), num_classes=2, **call)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 5, 3, 32, 32), "made for 4 frames.*got 5"),
        ((4, 3, 32, 32), r"\(N, T, 3, H, W\)"),
        ((1, 4, 3, 32, 16), "at least 32×32 pixels, got 32×16: resize"),
    ],
)
def test_wrong_clip_says_what_is_right(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("stm_resnet18")(torch.zeros(shape))


def image_state(depth: int = 50, classes: int = 1000) -> dict[str, torch.Tensor]:
    """A state dict with torchvision's keys: this project's tsn has no others."""
    torch.manual_seed(3)
    return create_model(f"tsn_resnet{depth}", num_classes=classes, base_width=16).state_dict()


FROM_RESNET50 = [name for name in list_models() if model_entry(name).image_backbone == "resnet50"]


@pytest.mark.parametrize("name", FROM_RESNET50)
def test_image_weights_start_every_network(name: str, tmp_path: Path) -> None:
    """Nothing of the image network is lost, and nothing that it could fill stays random."""
    state = image_state()
    save_file(state, tmp_path / "image.safetensors")
    model = create_model(name, num_classes=5, base_width=16)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_weights(model, tmp_path / "image.safetensors", name=name)
    assert set(report.left) == {"fc.weight", "fc.bias"}
    assert not [key for key in report.new if model.image_keys.fullmatch(key)]
    own = model.state_dict()
    stem = own["conv1.weight"].sum(2) if own["conv1.weight"].ndim == 5 else own["conv1.weight"]
    torch.testing.assert_close(stem, state["conv1.weight"])
    assert all(torch.equal(own[key], before[key]) for key in report.new)


def test_image_weights_go_where_each_module_needs_them(tmp_path: Path) -> None:
    state = image_state()
    save_file(state, tmp_path / "image.safetensors")
    conv2 = state["layer1.0.conv2.weight"]

    def started(name: str) -> dict[str, torch.Tensor]:
        return create_model(name, num_classes=5, base_width=16, weights=tmp_path / "image.safetensors").state_dict()

    assert torch.equal(started("stc_resnet50")["layer1.0.conv2.spatial.weight"], conv2[:12, :12])
    for name in ("tsm_resnet50", "tam_resnet50", "stm_resnet50", "stw_resnet50"):
        assert torch.equal(started(name)["layer1.0.conv2.weight"], conv2)


def test_a_head_of_other_classes_is_refused_or_reset(tmp_path: Path) -> None:
    trained = create_model("tsm_resnet18", num_classes=9, base_width=16)
    save_file(trained.state_dict(), tmp_path / "nine.safetensors")
    with pytest.raises(
        ValueError, match=r"its head, fc\.weight \(9, 128\).*, is not that of tsm_resnet18 with 4 classes.*--reset-head"
    ):
        create_model("tsm_resnet18", num_classes=4, base_width=16, weights=tmp_path / "nine.safetensors")
    model = create_model(
        "tsm_resnet18", num_classes=4, base_width=16, weights=tmp_path / "nine.safetensors", reset_head=True
    )
    assert torch.equal(model.state_dict()["conv1.weight"], trained.state_dict()["conv1.weight"])
    assert model.fc.out_features == 4


@pytest.mark.parametrize("reset", [False, True])
def test_a_head_that_fits_is_kept_unless_reset(tmp_path: Path, reset: bool) -> None:
    """Two data sets may have as many classes and not the same ones."""
    trained = create_model("tsm_resnet18", num_classes=9, base_width=16)
    save_file(trained.state_dict(), tmp_path / "nine.safetensors")
    model = create_model(
        "tsm_resnet18", num_classes=9, base_width=16, weights=tmp_path / "nine.safetensors", reset_head=reset
    )
    assert torch.equal(model.fc.weight, trained.fc.weight) is not reset


@pytest.mark.parametrize("part", ["fc.weight", "fc.bias"])
def test_half_a_head_is_no_head(tmp_path: Path, part: str) -> None:
    state = create_model("tsm_resnet18", num_classes=9, base_width=16).state_dict()
    save_file({key: value for key, value in state.items() if key != part}, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match=r"its head, fc\.\w+ \(9.*\), is not that"):
        create_model("tsm_resnet18", num_classes=9, base_width=16, weights=tmp_path / "half.safetensors")


def test_a_runs_folder_is_a_start_and_broken_numbers_are_none(run: Path, tmp_path: Path) -> None:
    model = create_model("stm_resnet18", num_classes=4, num_frames=4, base_width=16, weights=run)
    state = read_state_dict(run / "best.safetensors")
    assert torch.equal(model.state_dict()["conv1.weight"], state["conv1.weight"])
    state["bn1.weight"][0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match=r"1 of its tensors hold NaN or infinite values, the first bn1\.weight"):
        create_model("stm_resnet18", num_classes=4, base_width=16, weights=tmp_path / "nan.safetensors")


def test_nonlocal_blocks_join_a_trained_slowfast(tmp_path: Path) -> None:
    state = narrow("slowfast_resnet50_8x8", 8).state_dict()
    save_file(state, tmp_path / "slowfast.safetensors")
    model = narrow("slowfast_resnet50_8x8", 8, nonlocal_blocks=True, weights=tmp_path / "slowfast.safetensors")
    assert torch.equal(model.state_dict()["slow.stem.conv.weight"], state["slow.stem.conv.weight"])


def test_inflation_of_a_half_precision_file_is_exact(tmp_path: Path) -> None:
    """Divided by three in fp16, the taps would not add up to the image's kernel."""
    state = {key: value.half() if value.ndim == 4 else value for key, value in image_state(18).items()}
    save_file(state, tmp_path / "half.safetensors")
    own = narrow("i3d_resnet18", 4, weights=tmp_path / "half.safetensors").state_dict()
    torch.testing.assert_close(own["conv1.weight"].sum(2), state["conv1.weight"].float(), rtol=1e-6, atol=1e-8)


def test_real_imagenet_weights_name_what_a_frame_shows(shared: Path) -> None:
    """With the stride where that file has it; in the 3×3 the ball's probability falls to a fifth."""
    labels = json.loads((shared / "weights/imagenet_labels.json").read_text())
    with open_frames(shared / "data/clips/v_SoccerJuggling_g23_c01.avi") as video:
        frames = video.read(segments_middle(video.num_frames, 8))
    box = evaluation_boxes(*frames.shape[1:3], crops=1, ratio=0.875)[0]
    clip = Normalise(IMAGENET_MEAN, IMAGENET_STD)(crop_resize(frames, box, 224)[None])
    model = create_model(
        "tsn_resnet50",
        num_classes=1000,
        caffe_stride=True,
        weights=shared / "weights/resnet50_imagenet.safetensors",
    ).eval()
    with torch.no_grad():
        scores = model(clip).softmax(1)[0]
    assert scores[labels.index("soccer_ball")] > 0.15


def test_real_imagenet_weights_start_a_temporal_network(shared: Path) -> None:
    report = load_weights(
        create_model("stm_resnet50", num_classes=6, caffe_stride=True),
        shared / "weights/resnet50_imagenet.safetensors",
        name="stm_resnet50",
    )
    assert set(report.left) == {"fc.weight", "fc.bias"}
    assert all("cstm" in key or "cmm" in key or key.startswith("fc") for key in report.new)
    assert "cmm.reduce.weight (16)" in str(report)


@pytest.mark.parametrize(
    ("name", "of"),
    [("stm_resnet18", "tsn_resnet34"), ("stm_resnet101", "tsn_resnet50"), ("stm_resnet50", "stc_resnet50")],
)
def test_a_file_of_another_depth_or_kind_is_refused(tmp_path: Path, name: str, of: str) -> None:
    save_file(create_model(of, num_classes=3, base_width=16).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="give a file of the same backbone"):
        create_model(name, num_classes=2, base_width=16, weights=tmp_path / "other.safetensors")


def test_a_file_that_holds_a_part_is_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": image_state()["conv1.weight"]}, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"\d+ of its tensors are missing"):
        create_model("tsn_resnet50", num_classes=2, base_width=16, weights=tmp_path / "part.safetensors")


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    save_file({"encoder.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"nothing in it matches stm_resnet18; its keys begin encoder\.weight"):
        load_weights(create_model("stm_resnet18", num_classes=2), tmp_path / "other.safetensors", name="stm_resnet18")
    save_file(image_state(18), tmp_path / "narrow.safetensors")
    with pytest.raises(ValueError, match="other shapes than stm_resnet18's"):
        load_weights(create_model("stm_resnet18", num_classes=2), tmp_path / "narrow.safetensors", name="stm_resnet18")


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this code ran",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": _Runs()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="would run code"):
        read_state_dict(tmp_path / "evil.pth")
    assert "this code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"PK\x03\x04 cut"])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_damaged_weight_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read_state_dict(tmp_path / name)


def test_imagenet_offline_says_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPWISE_CACHE", str(tmp_path))
    monkeypatch.setattr(weights_module, "_IMAGENET_ADDRESS", "http://127.0.0.1:9/")
    with pytest.raises(ConnectionError, match=r"resnet50-0676ba61\.pth") as error:
        create_model("stm_resnet50", num_classes=2, weights="imagenet")
    assert str(tmp_path) in str(error.value)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "resnet50-0676ba61.pth").write_bytes(b"cut short")
    with pytest.raises(ValueError, match="SHA-256 begins with"):
        create_model("stm_resnet50", num_classes=2, weights="imagenet")
