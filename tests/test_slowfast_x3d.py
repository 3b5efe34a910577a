"""SlowFast and X3D: published counts, the slow frames, the equations written out a second way on PySlowFast's names."""

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipwise import create_model
from clipwise.models import slowfast, x3d
from clipwise.models.complexity import count_macs, count_parameters, describe_stages

Shapes = dict[str, tuple[int, ...]]


@pytest.mark.parametrize(
    ("name", "size", "params", "gmacs"),
    [
        ("slowfast_resnet50_4x16", 256, "34.48", "36.10"),
        ("slowfast_resnet50_8x8", 256, "34.57", "65.71"),
        ("x3d_s", 160, "3.8", "1.96"),
        ("x3d_m", 224, "3.8", "4.73"),
        ("x3d_l", 312, "6.2", "18.37"),
    ],
)
def test_counts_are_the_published_ones(name: str, size: int, params: str, gmacs: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=400)
    assert f"{count_parameters(model) / 1e6:.{len(params.split('.')[1])}f}" == params
    assert f"{count_macs(model, size) / 1e9:.2f}" == gmacs


def test_the_slow_pathway_sees_the_frames_that_the_peers_take() -> None:
    model = create_model("slowfast_resnet50_8x8", num_classes=3, base_width=16).eval()
    seen: list[Tensor] = []
    model.slow.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    clip = torch.arange(32.0).reshape(1, 32, 1, 1, 1).expand(1, 32, 3, 32, 32)
    with torch.no_grad():
        model(clip)
    assert seen[0][0, 0, :, 0, 0].tolist() == [0, 4, 8, 13, 17, 22, 26, 31]
    assert create_model("slowfast_resnet50_4x16", num_classes=3, base_width=16).slow_frames == [0, 10, 20, 31]


@pytest.mark.parametrize(
    ("name", "frames", "remedy"),
    [
        ("slowfast_resnet50_4x16", 20, "multiple of 8, got 20; take 16 or 24"),
        ("slowfast_resnet50_8x8", 2, "multiple of 4, got 2; take 4"),
    ],
)
def test_frames_that_alpha_does_not_divide_are_refused(name: str, frames: int, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        create_model(name, num_classes=3, num_frames=frames)


@pytest.mark.parametrize("name", ["slowfast_resnet50_8x8", "x3d_m"])
def test_a_width_that_cannot_be_built_and_an_image_start_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="base_width must be a multiple of 8, got 12"):
        create_model(name, num_classes=3, base_width=12)
    with pytest.raises(ValueError, match="has no ImageNet file"):
        create_model(name, num_classes=3, weights="imagenet", base_width=16)


@pytest.mark.parametrize("frames", [1, 5])
def test_x3d_takes_any_number_of_frames_and_odd_sizes(frames: int) -> None:
    model = create_model("x3d_s", num_classes=3, num_frames=frames, base_width=16).eval()
    with torch.no_grad():
        assert model(torch.randn(2, frames, 3, 57, 75)).isfinite().all()


def test_the_listing_shows_both_pathways_and_leaves_no_parameter_out() -> None:
    model = create_model("slowfast_resnet50_8x8", num_classes=5, base_width=16)
    stages = {stage.name: stage for stage in describe_stages(model, 64)}
    assert list(stages)[:6] == ["slow.stem", "fast.stem", "laterals.0", "slow.layer1", "fast.layer1", "laterals.1"]
    assert stages["slow.layer4"].shape == (8, 512, 2, 2)
    assert stages["fast.layer4"].shape == (32, 64, 2, 2)
    assert sum(stage.parameters for stage in stages.values()) == count_parameters(model)


# PySlowFast's names and shapes, from its builders (see the networks' files) and the Kinetics configurations.


def norm(name: str, channels: int) -> Shapes:
    learnt = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**learnt, f"{name}.num_batches_tracked": ()}


def conv_norm(conv: str, bn: str, *shape: int) -> Shapes:
    return {f"{conv}.weight": shape, **norm(bn, shape[0])}


def pyslowfast_slowfast(width: int, fusion: int, classes: int) -> Shapes:
    shapes: Shapes = {}
    for pathway, (share, stem) in enumerate([(1, 1), (8, 5)]):
        name = f"s1.pathway{pathway}_stem"
        shapes |= conv_norm(f"{name}.conv", f"{name}.bn", width // share, 3, stem, 7, 7)
    for stage in range(1, 5):
        fast = width // 8 * (1 if stage == 1 else 2**stage)
        shapes |= conv_norm(f"s{stage}_fuse.conv_f2s", f"s{stage}_fuse.bn", 2 * fast, fast, fusion, 1, 1)
    depths = (3, 4, 6, 3)
    for (stage, depth), (pathway, share) in itertools.product(enumerate(depths, start=2), enumerate([1, 8])):
        inner = width // share * 2 ** (stage - 2)
        before = width // share * (1 if stage == 2 else 2 ** (stage - 1))
        if pathway == 0:
            before += before // 4
        kernel = 3 if pathway == 1 or stage >= 4 else 1
        for block in range(depth):
            name = f"s{stage}.pathway{pathway}_res{block}"
            if block == 0:
                shapes |= conv_norm(f"{name}.branch1", f"{name}.branch1_bn", 4 * inner, before, 1, 1, 1)
            shapes |= conv_norm(f"{name}.branch2.a", f"{name}.branch2.a_bn", inner, before, kernel, 1, 1)
            shapes |= conv_norm(f"{name}.branch2.b", f"{name}.branch2.b_bn", inner, inner, 1, 3, 3)
            shapes |= conv_norm(f"{name}.branch2.c", f"{name}.branch2.c_bn", 4 * inner, inner, 1, 1, 1)
            before = 4 * inner
    return {**shapes, "head.projection.weight": (classes, 36 * width), "head.projection.bias": (classes,)}


def pyslowfast_x3d(depths: tuple[int, ...], width: int, classes: int) -> Shapes:
    squeezed = {36: 8, 72: 8, 144: 16, 288: 24, 54: 8, 108: 8, 216: 16, 432: 32}
    stem = "s1.pathway0_stem"
    shapes: Shapes = {f"{stem}.conv_xy.weight": (width, 3, 1, 3, 3)}
    shapes |= conv_norm(f"{stem}.conv", f"{stem}.bn", width, 1, 5, 1, 1)
    before = width
    for stage, depth in enumerate(depths, start=2):
        out = width * 2 ** (stage - 2)
        inner = out * 9 // 4
        for block in range(depth):
            name = f"s{stage}.pathway0_res{block}"
            if block == 0:
                shapes |= conv_norm(f"{name}.branch1", f"{name}.branch1_bn", out, before, 1, 1, 1)
            shapes |= conv_norm(f"{name}.branch2.a", f"{name}.branch2.a_bn", inner, before, 1, 1, 1)
            shapes |= conv_norm(f"{name}.branch2.b", f"{name}.branch2.b_bn", inner, 1, 3, 3, 3)
            if block % 2 == 0:
                few = squeezed[inner]
                shapes |= {f"{name}.branch2.se.fc1.weight": (few, inner, 1, 1, 1)}
                shapes |= {f"{name}.branch2.se.fc1.bias": (few,)}
                shapes |= {f"{name}.branch2.se.fc2.weight": (inner, few, 1, 1, 1)}
                shapes |= {f"{name}.branch2.se.fc2.bias": (inner,)}
            shapes |= conv_norm(f"{name}.branch2.c", f"{name}.branch2.c_bn", out, inner, 1, 1, 1)
            before = out
    inner = before * 9 // 4
    shapes |= conv_norm("head.conv_5", "head.conv_5_bn", inner, before, 1, 1, 1)
    shapes |= {"head.lin_5.weight": (2048, inner, 1, 1, 1)}
    return {**shapes, "head.projection.weight": (classes, 2048), "head.projection.bias": (classes,)}


def filled(shapes: Shapes) -> dict[str, Tensor]:
    """Random tensors that keep a network's activations near 1."""
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif len(shape) > 1:
            state[name] = torch.randn(shape) * (2 / torch.empty(shape)[0].numel()) ** 0.5
        elif name.endswith(("var", "bn.weight")):
            state[name] = torch.rand(shape) + 0.5
        else:
            state[name] = torch.randn(shape) * 0.3
    return state


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("slowfast_resnet50_4x16", pyslowfast_slowfast(64, 5, 400)),
        ("slowfast_resnet50_8x8", pyslowfast_slowfast(64, 7, 400)),
        ("x3d_s", pyslowfast_x3d((3, 5, 11, 7), 24, 400)),
        ("x3d_m", pyslowfast_x3d((3, 5, 11, 7), 24, 400)),
        ("x3d_l", pyslowfast_x3d((5, 10, 25, 15), 24, 400)),
    ],
)
def test_pyslowfast_names_map_completely_both_ways(name: str, shapes: Shapes) -> None:
    with torch.device("meta"):
        own = create_model(name, num_classes=400).state_dict()
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
    renamed = (x3d if name.startswith("x3d") else slowfast).from_pyslowfast(state)
    assert len(renamed) == len(state)
    assert {key: value.shape for key, value in renamed.items()} == {key: value.shape for key, value in own.items()}


def pytorchvideo_name(key: str) -> str:
    """PyTorchVideo's name of a SlowFast tensor, from PySlowFast's."""
    stage, rest = key.split(".", 1)
    if stage == "head":
        return f"blocks.6.proj.{key.rsplit('.', 1)[1]}"
    block = f"blocks.{int(stage[1]) - 1}"
    *parts, last = rest.split(".")
    if stage.endswith("_fuse"):
        return f"{block}.multipathway_fusion.{ {'conv_f2s': 'conv_fast_to_slow', 'bn': 'norm'}[parts[0]] }.{last}"
    pathway, place = parts[0].removeprefix("pathway").split("_")
    if place == "stem":
        return f"{block}.multipathway_blocks.{pathway}.{parts[1].replace('bn', 'norm')}.{last}"
    layer = f"{block}.multipathway_blocks.{pathway}.res_blocks.{place.removeprefix('res')}"
    if parts[1] == "branch2":
        kind = "norm" if parts[2].endswith("_bn") else "conv"
        return f"{layer}.branch2.{kind}_{parts[2][0]}.{last}"
    return f"{layer}.branch1_{'norm' if parts[1].endswith('_bn') else 'conv'}.{last}"


def mmaction2_name(key: str) -> str:
    """MMAction2's name of an X3D tensor, from PySlowFast's."""
    key, last = key.rsplit(".", 1)
    heads = {
        "s1.pathway0_stem.conv_xy": "backbone.conv1_s.conv",
        "s1.pathway0_stem.conv": "backbone.conv1_t.conv",
        "s1.pathway0_stem.bn": "backbone.conv1_t.bn",
        "head.conv_5": "backbone.conv5.conv",
        "head.conv_5_bn": "backbone.conv5.bn",
        "head.lin_5": "cls_head.fc1",
        "head.projection": "cls_head.fc2",
    }
    if key in heads:
        return f"{heads[key]}.{last}"
    stage, block, part = key.split(".", 2)
    parts = {"branch1": "downsample.conv", "branch1_bn": "downsample.bn"}
    parts |= {f"branch2.{letter}": f"conv{i}.conv" for i, letter in enumerate("abc", start=1)}
    parts |= {f"branch2.{letter}_bn": f"conv{i}.bn" for i, letter in enumerate("abc", start=1)}
    parts |= {f"branch2.se.fc{i}": f"se_module.fc{i}" for i in (1, 2)}
    return f"backbone.layer{int(stage[1]) - 1}.{block.removeprefix('pathway0_res')}.{parts[part]}.{last}"


def test_pytorchvideo_names_mean_the_same_tensors() -> None:
    state = {key: torch.empty(shape) for key, shape in pyslowfast_slowfast(16, 7, 5).items()}
    assert "blocks.1.multipathway_blocks.0.res_blocks.0.branch2.conv_a.weight" in map(pytorchvideo_name, state)
    renamed = slowfast.from_pytorchvideo({pytorchvideo_name(key): value for key, value in state.items()})
    expected = slowfast.from_pyslowfast(state)
    assert renamed.keys() == expected.keys()
    assert all(renamed[key] is expected[key] for key in expected)


def test_mmaction2_names_mean_the_same_tensors() -> None:
    state = filled(pyslowfast_x3d((3, 5, 11, 7), 16, 5))
    theirs = {mmaction2_name(key): value for key, value in state.items()}
    theirs["cls_head.fc1.weight"] = theirs["cls_head.fc1.weight"].flatten(1)  # theirs is a linear layer
    assert "backbone.layer1.0.downsample.bn.running_var" in theirs
    renamed, expected = x3d.from_mmaction2(theirs), x3d.from_pyslowfast(state)
    assert renamed.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(renamed[key], expected[key], rtol=0, atol=0)


@pytest.mark.parametrize("module", [slowfast, x3d])
def test_a_key_that_is_not_pyslowfasts_is_left_over_under_its_name(module: object) -> None:
    strange = ["s2.pathway0_nonlocal1.conv_theta.weight", "s2.pathway0_res0.branch3.weight", "head.projection2.weight"]
    assert list(module.from_pyslowfast(dict.fromkeys(strange, torch.zeros(1)))) == strange  # type: ignore[attr-defined]


# The same networks once more, on PySlowFast's names: convolutions as sums over taps, normalisation written out.


def conv(x: Tensor, weight: Tensor, stride: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
    """Zero-padded convolution of (N, C, T, H, W); a weight for one input channel is channel-wise."""
    kernel = weight.shape[2:]
    sizes = [(size + 2 * (k // 2) - k) // s + 1 for size, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    x = F.pad(x, [k // 2 for k in reversed(kernel) for _ in range(2)])
    out = None
    for taps in itertools.product(*map(range, kernel)):
        t, h, w = (slice(tap, tap + s * size, s) for tap, s, size in zip(taps, stride, sizes, strict=True))
        part, tap_weight = x[:, :, t, h, w], weight[(..., *taps)]
        channel_wise = weight.shape[1] == 1
        term = (
            part * tap_weight.view(1, -1, 1, 1, 1)
            if channel_wise
            else torch.einsum("oi,nithw->nothw", tap_weight, part)
        )
        out = term if out is None else out + term
    assert out is not None
    return out


class Written:
    """The pieces that both networks share."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, var, scale, shift = (
            self.state[f"{name}.{part}"].view(-1, 1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        return conv(x, self.state[f"{name}.weight"], (1, stride, stride))

    def shortcut(self, x: Tensor, name: str, stride: int) -> Tensor:
        if f"{name}.branch1.weight" not in self.state:
            return x
        return self.norm(self.conv(x, f"{name}.branch1", stride), f"{name}.branch1_bn")

    def depth(self, stage: int, pathway: int) -> Iterator[tuple[str, int]]:
        for block in itertools.count():
            name = f"s{stage}.pathway{pathway}_res{block}"
            if f"{name}.branch2.a.weight" not in self.state:
                return
            yield name, 2 if block == 0 else 1


def written_slowfast(state: dict[str, Tensor], clips: Tensor, slow_frames: list[int], alpha: int) -> Tensor:
    net = Written(state)
    paths = [clips[:, slow_frames].transpose(1, 2), clips.transpose(1, 2)]
    for stage in range(1, 6):
        for pathway, x in enumerate(paths):
            if stage == 1:
                name = f"s1.pathway{pathway}_stem"
                x = net.norm(net.conv(x, f"{name}.conv", 2), f"{name}.bn").relu()
                x = torch.stack([F.max_pool2d(frame, 3, 2, 1) for frame in x.unbind(2)], dim=2)
            for name, stride in net.depth(stage, pathway):
                step = stride if stage > 2 else 1
                y = net.norm(net.conv(x, f"{name}.branch2.a"), f"{name}.branch2.a_bn").relu()
                y = net.norm(net.conv(y, f"{name}.branch2.b", step), f"{name}.branch2.b_bn").relu()
                y = net.norm(net.conv(y, f"{name}.branch2.c"), f"{name}.branch2.c_bn")
                x = (y + net.shortcut(x, name, step)).relu()
            paths[pathway] = x
        if stage < 5:
            # Frame i of the slow pathway hears the frames around α·i of the fast one.
            taps = state[f"s{stage}_fuse.conv_f2s.weight"][..., 0, 0]
            frames = paths[1].unbind(2)
            heard = []
            for i in range(paths[0].shape[2]):
                around = range(alpha * i - taps.shape[2] // 2, alpha * i + taps.shape[2] // 2 + 1)
                heard.append(
                    sum(
                        torch.einsum("oi,nihw->nohw", taps[..., k], frames[t])
                        for k, t in enumerate(around)
                        if 0 <= t < len(frames)
                    )
                )
            fused = net.norm(torch.stack(heard, dim=2), f"s{stage}_fuse.bn").relu()
            paths[0] = torch.cat([paths[0], fused], dim=1)
    features = torch.cat([x.mean((2, 3, 4)) for x in paths], dim=1)
    return features @ state["head.projection.weight"].T + state["head.projection.bias"]


def written_x3d(state: dict[str, Tensor], clips: Tensor) -> Tensor:
    net = Written(state)
    x = net.conv(clips.transpose(1, 2), "s1.pathway0_stem.conv_xy", 2)
    x = net.norm(net.conv(x, "s1.pathway0_stem.conv"), "s1.pathway0_stem.bn").relu()
    for stage in range(2, 6):
        for name, stride in net.depth(stage, 0):
            y = net.norm(net.conv(x, f"{name}.branch2.a"), f"{name}.branch2.a_bn").relu()
            y = net.norm(net.conv(y, f"{name}.branch2.b", stride), f"{name}.branch2.b_bn")
            if f"{name}.branch2.se.fc1.weight" in state:
                first, second = (state[f"{name}.branch2.se.fc{i}.weight"].flatten(1) for i in (1, 2))
                gate = (y.mean((2, 3, 4)) @ first.T + state[f"{name}.branch2.se.fc1.bias"]).relu()
                gate = (gate @ second.T + state[f"{name}.branch2.se.fc2.bias"]).sigmoid()
                y = y * gate[:, :, None, None, None]
            y = net.norm(net.conv(y * y.sigmoid(), f"{name}.branch2.c"), f"{name}.branch2.c_bn")
            x = (y + net.shortcut(x, name, stride)).relu()
    x = net.norm(net.conv(x, "head.conv_5"), "head.conv_5_bn").relu().mean((2, 3, 4))
    x = (x @ state["head.lin_5.weight"].flatten(1).T).relu()
    return x @ state["head.projection.weight"].T + state["head.projection.bias"]


@pytest.mark.parametrize(("name", "alpha", "fusion"), [("4x16", 8, 5), ("8x8", 4, 7)])
def test_slowfast_equals_its_equations(name: str, alpha: int, fusion: int) -> None:
    model = create_model(f"slowfast_resnet50_{name}", num_classes=5, num_frames=16, base_width=16).eval().double()
    state = {key: value.double() for key, value in filled(pyslowfast_slowfast(16, fusion, 5)).items()}
    model.load_state_dict(slowfast.from_pyslowfast(state))
    clips = torch.randn(2, 16, 3, 37, 41, dtype=torch.double)
    with torch.no_grad():
        expected = written_slowfast(state, clips, [0, 5, 10, 15] if alpha == 4 else [0, 15], alpha)
        torch.testing.assert_close(model(clips), expected)


def test_x3d_equals_its_equations() -> None:
    model = create_model("x3d_s", num_classes=5, num_frames=4, base_width=16).eval().double()
    state = {key: value.double() for key, value in filled(pyslowfast_x3d((3, 5, 11, 7), 16, 5)).items()}
    model.load_state_dict(x3d.from_pyslowfast(state))
    clips = torch.randn(2, 4, 3, 37, 41, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(model(clips), written_x3d(state, clips))
