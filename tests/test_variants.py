"""Variants of STM, STC and STW, and the causal forms of all temporal modules."""

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
from clipwise.models.temporal.layers import shift_groups
from clipwise.models.temporal.stm import ChannelwiseTemporal
from clipwise.models.temporal.tam import TemporalAggregation
from clipwise.models.weights import load_weights

STM: list[dict[str, Any]] = [
    {},
    {"modules": "cstm"},
    {"modules": "cmm"},
    {"modules": "cmm", "motion_conv": "ordinary"},
    {"fusion": "concatenation"},
    {"temporal_conv": "ordinary"},
    {"spatial_conv": "channelwise"},
    {"motion_conv": "ordinary"},
    {"degenerate": True},
]
STW: list[dict[str, Any]] = [
    {},
    {"modules": "stfm"},
    {"modules": "twm"},
    {"modules": "stfm_twm"},
    {"modules": "twm_stfm"},
    {"fusion": "1:6:1"},
    {"fusion": "1:14:1"},
    {"fusion": "average"},
]
STC: list[dict[str, Any]] = [
    {},
    {"reduction": 4},
    {"split": "equal"},
    {"alpha": 0.0},
    {"alpha": 1.0},
    {"shift": False},
    {"tr": False},
    {"sr": False},
]
VARIANTS = [
    *(("stm_resnet50", options) for options in STM),
    *(("stm_resnet18", options) for options in STM if "fusion" not in options),
    *(("stw_resnet18", options) for options in STW),
    *(("stc_resnet18", options) for options in STC),
    ("stc_light_resnet18", {}),
    ("tsm_resnet18", {}),
    ("tam_resnet18", {}),
]


def named(value: Any) -> str | None:
    return ",".join(f"{key}={option}" for key, option in value.items()) if isinstance(value, dict) else None


def small(name: str, **options: Any) -> torch.nn.Module:
    """A narrow network whose features depend on all of its parts: BNs and temporal weights are far from their start."""
    model = create_model(name, num_classes=5, num_frames=4, base_width=16, **options)
    for key, parameter in model.named_parameters():
        if "bn" in key and key.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
        elif parameter.ndim == 3:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    torch.nn.init.normal_(model.fc.weight)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "options", "millions", "gmacs"),
    [
        ("stm", {"modules": "cmm"}, 24.02, 33.03),
        ("stm", {"fusion": "concatenation"}, 26.55, 36.36),
        ("stm", {"modules": "cstm", "temporal_conv": "ordinary"}, 27.64, 40.40),
        ("stm", {"modules": "cstm", "spatial_conv": "channelwise"}, 12.59, 18.04),
        ("stm", {"modules": "cmm", "motion_conv": "ordinary"}, 24.07, 33.11),
        ("stm", {"causal": True}, 24.04, 33.07),
        ("stw", {"fusion": "1:14:1"}, 23.88, 32.74),
        ("stw", {"modules": "stfm"}, 23.86, 32.70),  # a rearranged conv2: TSN's
        ("stw", {"modules": "stfm", "fusion": "average"}, 23.86, 32.70),
        ("stc", {"shift": False}, 21.98, 26.66),
    ],
)
def test_counts(name: str, options: dict[str, Any], millions: float, gmacs: float) -> None:
    with torch.device("meta"):
        model = create_model(f"{name}_resnet50", num_classes=174, **options)
    assert count_parameters(model) / 1e6 == pytest.approx(millions, abs=0.0051)
    assert count_macs(model) / 1e9 == pytest.approx(gmacs, abs=0.0051)


def frame(x: Tensor, t: int) -> Tensor:
    """Frame t of (N, T, …), zero outside the clip."""
    return x[:, t] if 0 <= t < x.shape[1] else torch.zeros_like(x[:, 0])


def offsets(causal: bool) -> tuple[int, int, int]:
    return (-2, -1, 0) if causal else (-1, 0, 1)


def dense(weight: Tensor) -> Tensor:
    """A depthwise kernel (C, 1, …) as the ordinary one (C, C, …) with zeros between channels."""
    return torch.stack([weight[:, 0] * (torch.arange(len(weight)) == c).view(-1, *[1] * (weight.ndim - 2))
                        for c in range(len(weight))], dim=1)  # fmt: skip


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("name", "options"), [v for v in VARIANTS if v[0].startswith("stm")], ids=named)
def test_stm_is_its_equations(name: str, options: dict[str, Any], causal: bool) -> None:
    """Frame by frame, every convolution as a dense one, in a block with stride (a bottleneck's conv2) on an odd map."""
    block = small(name, causal=causal, **options).layer2[0]
    parts, t = options.get("modules", "both"), 4
    x = torch.randn(2 * t, block.conv1.in_channels, 15, 15)
    y = ops.unfold(block.bn1(block.conv1(x)).relu(), t)
    channels = y.shape[2]
    z = y
    if parts != "cmm":
        taps = (
            torch.tensor([[[0.0, 1.0, 1.0]]]).expand(channels, 1, 3) if "degenerate" in options else block.cstm.weight
        )
        taps = taps if options.get("temporal_conv") == "ordinary" else dense(taps)
        z = torch.stack(
            [
                sum(
                    torch.einsum("oc,nchw->nohw", taps[..., i], frame(y, now + offset))
                    for i, offset in enumerate(offsets(causal))
                )
                for now in range(t)
            ],
            dim=1,
        )
    kernel = dense(block.conv2.conv.weight) if options.get("spatial_conv") else block.conv2.weight
    bottleneck = hasattr(block, "conv3")
    stride = 2 if bottleneck else 1
    s = block.bn2(F.conv2d(ops.fold(z), kernel, stride=stride, padding=1))
    s = s.relu() if bottleneck else s
    if parts != "cstm":
        cmm = block.cmm
        r = ops.unfold(cmm.bn(cmm.reduce(ops.fold(y))), t)
        if "degenerate" in options:
            kernel = torch.zeros(r.shape[2], 1, 3, 3)
            kernel[:, :, 1, 1] = 1
        else:
            kernel = cmm.conv.weight
        kernel = kernel if options.get("motion_conv") == "ordinary" else dense(kernel)
        k = [F.conv2d(r[:, now], kernel, padding=1) for now in range(t)]
        nothing = torch.zeros_like(r[:, 0])
        if causal:
            h = [k[now] - r[:, now - 1] if now > 0 else nothing for now in range(t)]
        else:
            h = [k[now + 1] - r[:, now] if now < t - 1 else nothing for now in range(t)]
        m = F.max_pool2d(cmm.restore(ops.fold(torch.stack(h, 1))), stride, ceil_mode=True)
        if "fusion" in options:
            left, right = cmm.fuse.weight[:, :channels], cmm.fuse.weight[:, channels:]
            s = F.conv2d(s, left) + F.conv2d(m, right)
        else:
            s = s + m
    expected = ((block.bn3(block.conv3(s)) if bottleneck else s) + block.downsample(x)).relu()
    torch.testing.assert_close(block(x, t), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("options", STW, ids=named)
def test_stw_is_its_equations(options: dict[str, Any], causal: bool) -> None:
    """STFM as the paper draws it, a convolution for each of the three frames, in a block with stride on an odd map."""
    conv2 = small("stw_resnet50", causal=causal, **options).layer2[0].conv2
    y, t = torch.randn(2, 4, 32, 15, 15), 4
    modules, fusion = options.get("modules", "parallel"), options.get("fusion", "1:2:1")

    def three(x: Tensor, now: int) -> list[Tensor]:
        return [frame(x, now + offset) for offset in offsets(causal)]

    def spatial(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, stride=2, padding=1)

    def stfm(x: Tensor) -> Tensor:
        if fusion == "average":
            return torch.stack([spatial(sum(three(x, now)) / 3, conv2.weight) for now in range(t)], 1)
        shares = [int(share) for share in fusion.split(":")]
        sizes = [32 * share // sum(shares) for share in shares]
        return torch.stack(
            [
                torch.cat([spatial(*pair) for pair in zip(three(x, now), conv2.weight.split(sizes), strict=True)], 1)
                for now in range(t)
            ],
            1,
        )

    def twm(x: Tensor) -> Tensor:
        taps = conv2.twm.weight[0]
        s = [sum((taps[:, i, None, None] * part).sum(1) for i, part in enumerate(three(x, now))) for now in range(t)]
        return x - x * torch.stack(s, 1).sigmoid().unsqueeze(2)

    def pooled(x: Tensor) -> Tensor:
        return ops.unfold(F.avg_pool2d(ops.fold(x), 2, 2, ceil_mode=True, count_include_pad=False), t)

    expected = {
        "parallel": lambda: stfm(y) + pooled(twm(y)),
        "stfm": lambda: stfm(y),
        "twm": lambda: ops.unfold(spatial(ops.fold(y), conv2.weight), t) + pooled(twm(y)),
        "stfm_twm": lambda: twm(stfm(y)),
        "twm_stfm": lambda: stfm(twm(y)),
    }[modules]()
    torch.testing.assert_close(conv2(y), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", STC, ids=named)
def test_causal_stc_is_its_equations(options: dict[str, Any]) -> None:
    stc = small("stc_resnet50", causal=True, **options).layer2[0].conv2
    y, t = torch.randn(2, 4, 32, 15, 15), 4
    alpha = options.get("alpha", 0.75)
    size = 16 if options.get("split") == "equal" else int(alpha * 32)
    first, second = y[:, :, :size], y[:, :, size:]
    parts = []
    if alpha > 0:
        eighth = size // 8 if options.get("shift", True) else 0
        mixed = [
            torch.cat(
                (
                    frame(first, now - 2)[:, :eighth],
                    frame(first, now - 1)[:, eighth : 2 * eighth],
                    first[:, now, 2 * eighth :],
                ),
                1,
            )
            for now in range(t)
        ]
        z = torch.stack([F.conv2d(x, stc.spatial.weight, stride=2, padding=1) for x in mixed], 1)
        if options.get("tr", True):
            gate = stc.temporal_gate
            means = z.mean((3, 4))
            if "reduction" in options:
                means = (means @ gate.reduce.weight[..., 0].T).relu()
            weights = [
                sum(frame(means, now + i - 2) @ gate.conv.weight[..., i].T for i in range(3)) for now in range(t)
            ]
            z = z * torch.stack(weights, 1).sigmoid()[..., None, None]
        parts.append(z)
    if alpha < 1:
        thin = second[..., ::2, ::2]
        z = torch.stack(
            [
                sum(
                    torch.einsum("oc,nchw->nohw", stc.temporal.weight[..., i], frame(thin, now + i - 2))
                    for i in range(3)
                )
                for now in range(t)
            ],
            1,
        )
        if options.get("sr", True):
            gate = stc.spatial_gate
            means = torch.stack([z[:, : now + 1].mean(1) for now in range(t)], 1)
            means = ops.fold(means)
            means = gate.reduce(means).relu() if "reduction" in options else means
            z = z * ops.unfold(gate.conv(means).sigmoid(), t)
        parts.append(z)
    torch.testing.assert_close(stc(y), torch.cat(parts, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=named)
def test_a_causal_network_sees_no_later_frame(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(2)
    clip = torch.randn(2, 4, 3, 32, 32)
    other = torch.randn(2, 4, 3, 32, 32)
    new_end = torch.cat((clip[:, :2], other[:, 2:]), 1)
    new_start = torch.cat((other[:, :1], clip[:, 1:]), 1)
    # CMM looks one frame back in each block, and STC's shift alone hardly further: frame 2 is reached by all.
    with torch.no_grad():
        model = small(name, causal=True, **options)
        features = model.forward_features(clip)
        torch.testing.assert_close(model.forward_features(new_end)[:, :2], features[:, :2], rtol=0, atol=1e-6)
        change = (model.forward_features(new_start) - features).abs().amax(dim=(0, 2))
        assert (change > 1e-4).all(), change
        two_sided = small(name, **options)
        two_sided.load_state_dict(model.state_dict())  # the same weights, their taps one frame later
        change = (two_sided.forward_features(new_end) - two_sided.forward_features(clip)).abs().amax(dim=(0, 2))
        assert (change > 1e-4).all(), change


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("groups", [1, 6])
def test_causal_temporal_convolution(kernel: int, groups: int) -> None:
    clip, weight = torch.randn(2, 4, 6, 5, 7), torch.randn(6, 6 // groups, kernel)
    along_time = F.pad(clip.permute(0, 3, 4, 2, 1).reshape(-1, 6, 4), (kernel - 1, 0))
    expected = F.conv1d(along_time, weight, groups=groups).reshape(2, 5, 7, 6, 4).permute(0, 4, 3, 1, 2)
    causal = ops.temporal_conv(clip, weight, causal=True)
    torch.testing.assert_close(causal, expected, rtol=1e-4, atol=1e-5)
    # The two-sided one on a clip that begins half a kernel later.
    delayed = F.pad(clip, (0, 0, 0, 0, 0, 0, kernel // 2, 0))
    torch.testing.assert_close(causal, ops.temporal_conv(delayed, weight)[:, :4], rtol=1e-4, atol=1e-5)


def test_causal_shift_is_a_causal_convolution_with_fixed_taps() -> None:
    """And the two-sided shift a two-sided one."""
    clip = torch.randn(2, 4, 16, 3, 3)
    for causal, taps in ((True, (0, 1, 2)), (False, (2, 0, 1))):  # of the first fold, the second and the rest
        weight = torch.zeros(16, 1, 3)
        for channels, tap in zip((slice(0, 2), slice(2, 4), slice(4, 16)), taps, strict=True):
            weight[channels, 0, tap] = 1
        shifted = ops.shift(clip, shift_groups(16, 2, causal=causal))
        torch.testing.assert_close(shifted, ops.temporal_conv(clip, weight, causal=causal))


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_shift_of_a_clip_shorter_than_the_offset(frames: int) -> None:
    clip = torch.randn(1, frames, 2, 3, 3)
    shifted = ops.shift(clip, [(1, -2), (1, 2)])
    for now in range(frames):
        assert torch.equal(shifted[:, now, 0], frame(clip, now - 2)[:, 0])
        assert torch.equal(shifted[:, now, 1], frame(clip, now + 2)[:, 1])


def test_causal_motion_is_the_two_sided_one_a_frame_later() -> None:
    k, r = torch.randn(2, 4, 3, 5, 5), torch.randn(2, 4, 3, 5, 5)
    causal = ops.motion_difference(k, r, causal=True)
    assert not causal[:, 0].any()
    assert all(torch.equal(causal[:, now], k[:, now] - r[:, now - 1]) for now in range(1, 4))
    assert torch.equal(causal[:, 1:], ops.motion_difference(k, r)[:, :-1])


@pytest.mark.parametrize("window", [1, 3, 8])
def test_running_mean(window: int) -> None:
    clip = torch.randn(2, 6, 3, 5, 4)
    expected = torch.stack([clip[:, max(0, now - window + 1) : now + 1].mean(1) for now in range(6)], 1)
    torch.testing.assert_close(ops.running_mean(clip, window), expected)
    if window == 8:  # the last frame of a clip has its plain mean
        torch.testing.assert_close(expected[:, -1], clip.mean(1))


@pytest.mark.parametrize("causal", [False, True])
def test_tam_is_three_scaled_shifts(causal: bool) -> None:
    clip, module = torch.randn(2, 4, 8, 3, 3), TemporalAggregation(8, causal=causal)
    torch.nn.init.normal_(module.conv.weight)
    expected = sum(
        ops.shift(clip, [(8, offset)]) * module.conv.weight[:, 0, i, None, None]
        for i, offset in enumerate(offsets(causal))
    ).relu()
    torch.testing.assert_close(module(clip), expected)


@pytest.mark.parametrize("channelwise", [False, True])
def test_causal_cstm_starts_as_the_two_sided_one_a_frame_later(channelwise: bool) -> None:
    clip = torch.randn(2, 4, 16, 3, 3)
    start = ChannelwiseTemporal(16, channelwise=channelwise, causal=True)(clip)
    assert torch.equal(start, ops.shift(clip, [(4, -2), (8, -1), (4, 0)]))


def test_causal_operations_keep_the_channels_last_layout() -> None:
    clip = ops.unfold(torch.randn(6, 16, 5, 7).contiguous(memory_format=torch.channels_last), 3)
    for result in (
        ops.temporal_conv(clip, torch.randn(16, 1, 3), causal=True),
        ops.shift(clip, shift_groups(16, 2, causal=True)),
        ops.motion_difference(clip, clip, causal=True),
        ops.running_mean(clip, 3),
    ):
        assert ops.fold(result).is_contiguous(memory_format=torch.channels_last)
        assert result.untyped_storage().nbytes() == result.nbytes


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=named)
def test_variants_learn_and_run_in_half_precision(name: str, options: dict[str, Any], causal: bool) -> None:
    model = small(name, causal=causal, **options)
    model.train()(torch.randn(2, 4, 3, 32, 32)).square().sum().backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []
    with torch.no_grad():
        assert model.eval().bfloat16()(torch.randn(1, 4, 3, 37, 45).bfloat16()).isfinite().all()


def test_degeneration_leaves_only_learnt_weights_in_the_state_dict() -> None:
    model = small("stm_resnet18", degenerate=True)
    assert not [key for key in model.state_dict() if "cstm" in key or "cmm.conv" in key]
    model.to(torch.float64)
    assert model.layer1[0].cstm.weight.dtype is torch.float64


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("stm_resnet50", {"fusion": "concatenation", "causal": True}),
        ("stm_resnet50", {"spatial_conv": "channelwise"}),
        *(("stw_resnet50", options) for options in STW),
        ("stc_resnet50", {"causal": True}),
    ],
    ids=named,
)
def test_image_weights(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    image = create_model("tsn_resnet50", num_classes=1000, base_width=16).state_dict()
    save_file(image, tmp_path / "image.safetensors")
    model = create_model(name, num_classes=5, base_width=16, **options)
    report = load_weights(model, tmp_path / "image.safetensors", name=name)
    assert torch.equal(model.state_dict()["layer2.0.conv3.weight"], image["layer2.0.conv3.weight"])
    left = [key for key in report.left if "conv2" in key]
    if options.get("spatial_conv") == "channelwise":
        assert len(left) == 16
        assert "layer1.0.conv2.conv.weight" in report.new
    else:
        assert not left
    if name.startswith("stw"):
        assert torch.equal(model.state_dict()["layer2.0.conv2.weight"], image["layer2.0.conv2.weight"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("stm_resnet50", {"modules": "cmn"}, "modules must be one of both, cstm, cmm, got 'cmn'"),
        ("stm_resnet50", {"fusion": "max"}, "fusion must be one of sum, concatenation"),
        ("stm_resnet50", {"spatial_conv": "1d"}, "spatial_conv must be one of channelwise, ordinary"),
        ("stm_resnet50", {"modules": "cmm", "temporal_conv": "ordinary"}, "concern CSTM.*leave both at their defaults"),
        ("stm_resnet50", {"modules": "cstm", "motion_conv": "ordinary"}, "concerns CMM.*take modules='cmm' or 'both'"),
        ("stm_resnet50", {"modules": "cstm", "fusion": "concatenation"}, "take modules='both'"),
        ("stm_resnet18", {"fusion": "concatenation"}, "needs bottlenecks.*take fusion='sum'"),
        ("stm_resnet50", {"degenerate": True, "motion_conv": "ordinary"}, "degenerate fixes channel-wise kernels"),
        ("stw_resnet50", {"modules": "both"}, "modules must be one of parallel, stfm, twm, stfm_twm, twm_stfm"),
        ("stw_resnet50", {"fusion": "1:1:1"}, "fusion must be one of 1:2:1, 1:6:1, 1:14:1, average, got '1:1:1'"),
        ("stw_resnet50", {"modules": "twm", "fusion": "average"}, "concerns STFM, which modules='twm' leaves out"),
        ("stc_resnet50", {"alpha": 0.005}, r"alpha = 0\.005 splits no channels: 0 of 64 .* between 0\.0156 and 0\.984"),
        ("stc_resnet50", {"alpha": 0.995}, "64 of 64 would be spatial first"),
        ("stm_resnet50", {"causal": True, "temporal_pooling": True}, "the pooling reads the next frame; leave one out"),
        ("tsn_resnet50", {"causal": True}, "has no option causal"),
        ("stw_resnet50", {"causal": "yes"}, "option causal takes bool"),
    ],
)
def test_wrong_arguments_say_what_is_right(name: str, options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create_model(name, num_classes=2, **options)
