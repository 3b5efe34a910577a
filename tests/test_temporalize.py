"""Temporal modules in networks that a user brings: equal to our own networks, and in blocks of every known kind.

The image networks below carry the attribute names of torchvision and timm, and no more than a block needs.
"""

import copy
import pickle
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import PATIENCE
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clipwise import create_model, temporalize
from clipwise.models.complexity import count_macs, count_parameters
from clipwise.models.registry import temporal_modules
from clipwise.models.temporalize import Temporalized
from clipwise.models.timm import timm_network
from clipwise.models.weights import load_weights

T = 4


class Block(nn.Module):
    """torchvision's BasicBlock and Bottleneck, and timm's with groups and squeeze-and-excitation at the end."""

    def __init__(
        self, channels: int, width: int, out: int, stride: int = 1, *, basic: bool, groups: int = 1, se: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, *((3, stride, 1) if basic else (1,)), bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1 if basic else stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        if not basic:
            self.conv3 = nn.Conv2d(width, out, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out)
        self.se = Gate(out) if se else None
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        if hasattr(self, "conv3"):
            x = self.bn3(self.conv3(self.relu(x)))
        if self.se is not None:
            x = self.se(x)
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        x += shortcut
        return self.relu(x)


class Gate(nn.Module):
    """Squeeze-and-excitation with torchvision's names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, 4, 1)
        self.fc2 = nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class ImageResNet(nn.Module):
    """torchvision's ResNet, narrow."""

    def __init__(self, depths: tuple[int, ...], *, base: int = 16, basic: bool = False, **block: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, base, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = base
        for stage, depth in enumerate(depths):
            width = base * 2**stage
            out = width if basic else 4 * width
            blocks = []
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(Block(channels, width, out, stride, basic=basic, **block))
                channels = out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Rows(nn.Module):
    """A stem, blocks in a row and a head, with the names of torchvision's MobileNets."""

    def __init__(self, stem: nn.Module, *blocks: nn.Module, channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(stem, *blocks)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(channels, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def conv_bn(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU6(inplace=True))


class TorchvisionInverted(nn.Module):
    """MobileNetV2's InvertedResidual."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        first = [] if expansion == 1 else [conv_bn(channels, hidden, 1)]
        last = [nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out)]
        self.conv = nn.Sequential(*first, conv_bn(hidden, hidden, 3, stride, hidden), *last)
        self.use_res_connect = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileV3(nn.Module):
    """MobileNetV3's InvertedResidual, with its gate in the Sequential."""

    def __init__(self, channels: int, gate: bool) -> None:
        super().__init__()
        gates = [Gate(2 * channels)] if gate else []
        last = nn.Sequential(nn.Conv2d(2 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        depthwise = conv_bn(2 * channels, 2 * channels, 5, 1, 2 * channels)
        self.block = nn.Sequential(conv_bn(channels, 2 * channels, 1), depthwise, *gates, last)
        self.use_res_connect = True

    def forward(self, x: Tensor) -> Tensor:
        result = self.block(x)
        result += x
        return result


class TimmInverted(nn.Module):
    """timm's InvertedResidual (``conv_pwl``), or its DepthwiseSeparableConv."""

    def __init__(self, channels: int, out: int, stride: int = 1, *, expand: bool = True, gate: bool = False) -> None:
        super().__init__()
        hidden = 2 * channels if expand else channels
        self.conv_s2d = None
        if expand:
            self.conv_pw = nn.Conv2d(channels, hidden, 1, bias=False)
            self.bn1 = nn.Sequential(nn.BatchNorm2d(hidden), nn.SiLU(inplace=True))
        self.conv_dw = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.bn2 = nn.Sequential(nn.BatchNorm2d(hidden), nn.SiLU(inplace=True))
        self.se = Gate(hidden) if gate else nn.Identity()
        setattr(self, "conv_pwl" if expand else "conv_pw", nn.Conv2d(hidden, out, 1, bias=False))
        self.bn3 = nn.BatchNorm2d(out)
        self.drop_path = nn.Identity()
        self.has_skip = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if hasattr(self, "conv_pwl"):
            x = self.bn1(self.conv_pw(x))
        x = self.se(self.bn2(self.conv_dw(x)))
        x = self.bn3(self.conv_pwl(x) if hasattr(self, "conv_pwl") else self.conv_pw(x))
        return self.drop_path(x) + shortcut if self.has_skip else x


class TimmEdge(nn.Module):
    """timm's EdgeResidual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_exp = nn.Conv2d(channels, 2 * channels, 3, 1, 1, bias=False)
        self.bn1 = nn.Sequential(nn.BatchNorm2d(2 * channels), nn.ReLU(inplace=True))
        self.conv_pwl = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.has_skip = True

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv_pwl(self.bn1(self.conv_exp(x)))) + x


class ConvNormAct(nn.Module):
    """timm's."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


class BatchNormAct2d(nn.BatchNorm2d):
    """timm's: the activation is a part of it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class TimmConvBnAct(nn.Module):
    """timm's ConvBnAct (EfficientNetV2's first blocks): one convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = BatchNormAct2d(channels)
        self.has_skip = True

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv(x)) + x


class TimmUniversal(nn.Module):
    """timm's UniversalInvertedResidual (MobileNetV4), with the first and the middle depthwise convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dw_start = ConvNormAct(channels, channels, 3, groups=channels)
        self.pw_exp = ConvNormAct(channels, 2 * channels, 1)
        self.dw_mid = ConvNormAct(2 * channels, 2 * channels, 5, groups=2 * channels)
        self.pw_proj = ConvNormAct(2 * channels, channels, 1)
        self.has_skip = True

    def forward(self, x: Tensor) -> Tensor:
        return self.pw_proj(self.dw_mid(self.pw_exp(self.dw_start(x)))) + x


class TimmConvNeXt(nn.Module):
    """timm's ConvNeXtBlock, whose linear layers take channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential()
        self.mlp.fc1, self.mlp.act = nn.Linear(channels, 2 * channels), nn.GELU()
        self.mlp.fc2 = nn.Linear(2 * channels, channels)
        self.gamma = nn.Parameter(torch.ones(channels))
        self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return y.mul(self.gamma.reshape(1, -1, 1, 1)) + self.shortcut(x)


def resnext() -> nn.Module:
    return ImageResNet((1, 1, 1, 2), groups=4, se=True)


def one_block() -> nn.Module:
    return Rows(conv_bn(3, 16, 3, 4), Block(16, 8, 16, 2, basic=False), channels=16)


def mobilenet_v2() -> nn.Module:
    """The whole of torchvision's, half as wide."""
    blocks, channels = [], 16
    for expansion, out, count, stride in (
        (1, 8, 1, 1), (6, 16, 2, 2), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1)
    ):  # fmt: skip
        for index in range(count):
            blocks.append(TorchvisionInverted(channels, out, 1 if index else stride, expansion))
            channels = out
    return Rows(conv_bn(3, 16, 3, 2), *blocks, conv_bn(160, 1280, 1), channels=1280)


def mobilenet_v3() -> nn.Module:
    return Rows(conv_bn(3, 16, 3, 4), MobileV3(16, False), MobileV3(16, True), channels=16)


def timm_mobilenet() -> nn.Module:
    rows = (TimmInverted(16, 16, expand=False), TimmInverted(16, 24, 2), TimmInverted(24, 24), TimmUniversal(24))
    return Rows(conv_bn(3, 16, 3, 4), *rows, channels=24)


def timm_convnext() -> nn.Module:
    return Rows(nn.Conv2d(3, 16, 4, 4), TimmConvNeXt(16), TimmConvNeXt(16), channels=16)


def lively(model: nn.Module) -> nn.Module:
    """Random in every parameter and statistic, so that nothing starts at zero or as identity; ready to compare."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                value.add_(noise.abs() if "running_var" in key else 0.2 * noise)
    return model.eval()


OURS = [(f"{module}_resnet18", {}) for module in temporal_modules()] + [
    *((f"{module}_resnet50", {}) for module in ("tsm", "tam", "stm", "stw")),
    ("tsn_resnet50", {"nonlocal_blocks": True}),
    ("tam_resnet50", {"nonlocal_blocks": True, "stages": (4, 5), "placement": "first"}),
    ("stm_resnet50", {"fusion": "concatenation", "spatial_conv": "channelwise", "causal": True}),
    ("stm_resnet18", {"modules": "cmm", "placement": "alternate"}),
    ("stw_resnet50", {"modules": "twm_stfm", "fusion": "average"}),
    ("stw_resnet18", {"modules": "stfm", "causal": True}),
]


@pytest.mark.parametrize(("name", "options"), OURS)
def test_a_resnet_that_is_brought_becomes_our_own_network(name: str, options: dict[str, Any]) -> None:
    """Same keys, same counts, same logits; and the user's network is left as it was."""
    module, depth = name.split("_resnet")
    brought = ImageResNet((2, 2, 2, 2), basic=True) if depth == "18" else ImageResNet((3, 4, 6, 3))
    before = set(brought.state_dict())
    ours = lively(create_model(name, num_classes=5, num_frames=T, base_width=16, **options))
    model = temporalize(brought, module, num_frames=T, **options).eval()
    model.load_state_dict(model.from_image(ours.state_dict()))
    clips = torch.randn(1, T, 3, 57, 48)
    with torch.no_grad():
        torch.testing.assert_close(model(clips), ours(clips), rtol=1e-4, atol=1e-4)
    assert set(brought.state_dict()) == before
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in brought.modules())
    if "nonlocal_blocks" in options:
        assert len(model.placed) == (5 if module == "tsn" else 2)  # TAM in the first of stages 4 and 5
    assert count_parameters(model) == count_parameters(ours)
    assert count_macs(model, 64) == count_macs(ours, 64)


def test_tsm_in_a_mobilenet_that_is_brought_becomes_our_own() -> None:
    ours = lively(create_model("tsm_mobilenet_v2", num_classes=5, num_frames=T, width=0.5))
    model = temporalize(mobilenet_v2(), "tsm", num_frames=T).eval()
    model.load_state_dict(model.from_image(ours.state_dict()))
    clips = torch.randn(1, T, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(clips), ours(clips), rtol=1e-4, atol=1e-4)
    assert (len(model.placed), len(model.skipless)) == (10, 7)


def test_long_stages_shift_every_other_block_as_tsm_does() -> None:
    brought = ImageResNet((1, 1, 23, 1))
    model = temporalize(brought, "tsm", num_frames=T)
    assert len(model.placed) == 15
    assert "layer3.1" in model.unplaced
    assert len(temporalize(brought, "tam", num_frames=T).placed) == 26


NETWORKS: list[tuple[Callable[[], nn.Module], tuple[str, ...], dict[str, Any], int]] = [
    (resnext, ("tsm", "stm", "stw", "tin", "teinet"), {}, 5),
    (mobilenet_v2, ("stm", "stw"), {}, 10),
    (mobilenet_v3, ("tsm", "tanet", "stw"), {}, 2),
    (timm_mobilenet, ("tsm", "tam", "stm", "stw", "tanet"), {}, 3),
    (timm_convnext, ("tsm", "tam", "stw", "tanet", "teinet"), {}, 2),
    (lambda: Rows(conv_bn(3, 16, 3, 4), TimmConvBnAct(16), channels=16), ("stm", "gst"), {}, 1),
    (lambda: Rows(conv_bn(3, 16, 3, 4), TimmEdge(16), channels=16), ("tam", "tanet"), {}, 1),
    (lambda: Rows(conv_bn(3, 16, 3, 4), TimmEdge(16), channels=16), ("stw",), {"modules": "stfm"}, 1),
]
CASES = [(network, module, options, count) for network, modules, options, count in NETWORKS for module in modules]


@pytest.mark.parametrize(("network", "module", "options", "count"), CASES)
def test_in_blocks_of_every_kind(
    network: Callable[[], nn.Module], module: str, options: dict[str, Any], count: int, tmp_path: Path
) -> None:
    """It sits where it should, sees time, trains, and survives copying, saving and half precision."""
    model = temporalize(network(), module, num_frames=T, **options)
    assert len(model.placed) == count
    clips = torch.randn(2, T, 3, 64, 64)
    model(clips).square().sum().backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []

    lively(model)
    with torch.no_grad():
        logits = model(clips)
        assert (logits - model(clips.flip(1))).abs().max() > 1e-4 * logits.abs().max()
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(twin(clips), logits)
            # Its hooks are its own: they follow its weights, not the first network's.
            for parameter in model.parameters():
                parameter.add_(1.0)
            torch.testing.assert_close(twin(clips), logits)
            for parameter in model.parameters():
                parameter.sub_(1.0)
        save_file(model.state_dict(), tmp_path / "weights.safetensors")
        other = temporalize(network(), module, num_frames=T, **options).eval()
        other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
        torch.testing.assert_close(other(clips), model(clips))
        assert other.bfloat16()(clips.bfloat16()).isfinite().all()


@pytest.mark.parametrize("module", ["tsn", "tsm", "stm", "stw"])
def test_a_clip_of_one_frame_repeated_is_the_image_where_time_only_shifts(module: str) -> None:
    """TSN's mean of identical frames is the image network's output; a module that sees time changes it."""
    brought = lively(resnext())
    model = temporalize(brought, module, num_frames=T).eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        same = torch.allclose(model(image[:, None].expand(-1, T, -1, -1, -1)), brought(image), rtol=1e-4, atol=1e-4)
    assert same == (module == "tsn")


@pytest.mark.parametrize(("network", "module"), [(one_block, "stm"), (timm_convnext, "stw"), (mobilenet_v3, "tanet")])
def test_compiles_whole(network: Callable[[], nn.Module], module: str) -> None:
    model = lively(temporalize(network(), module, num_frames=T))
    clips = torch.randn(2, T, 3, 64, 64)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = model(clips)
        torch.testing.assert_close(compiled(clips), expected)
        torch.testing.assert_close(compiled(2 * clips), model(2 * clips))  # nothing is kept from the first call


def test_stw_around_a_convolution_with_groups_and_bias_is_the_papers() -> None:
    """STFM by its definition, a convolution for each of the three frames, zero frames outside; the bias; plus TWM."""
    model = lively(temporalize(timm_convnext(), "stw", num_frames=T))
    conv = model.network.features[1].conv_dw
    y = torch.randn(2, T, 16, 9, 11)
    out = conv(y.flatten(0, 1)).unflatten(0, (2, T))
    outside = torch.zeros_like(y[:, :1])
    frames = torch.cat((outside, y, outside), dim=1)
    for t in range(T):
        parts = []
        for taken, channels in ((t, range(4)), (t + 1, range(4, 12)), (t + 2, range(12, 16))):
            for c in channels:
                kernel = conv.weight[c : c + 1]
                parts.append(F.conv2d(frames[:, taken, c : c + 1], kernel, padding=3) + conv.bias[c])
        scores = sum(torch.einsum("nchw,c->nhw", frames[:, t + k], conv.twm.weight[0, :, k]) for k in range(3))
        expected = torch.cat(parts, 1) + y[:, t] * (1 - scores.sigmoid()[:, None])
        torch.testing.assert_close(out[:, t], expected, rtol=1e-4, atol=1e-4)


def test_image_weights_still_load(tmp_path: Path) -> None:
    """An image network's file, head of ImageNet's 1000 classes included, and never another depth's."""
    image = ImageResNet((3, 4, 6, 3))
    image.fc = nn.Linear(image.fc.in_features, 1000)
    save_file(image.state_dict(), tmp_path / "image.safetensors")
    for module in ("stm", "stc"):
        model = temporalize(ImageResNet((3, 4, 6, 3)), module, num_frames=T)
        report = load_weights(model, tmp_path / "image.safetensors", name=module)
        assert {key.split(".")[0] for key in report.left} <= {"fc"}
        assert torch.equal(model.network.layer2[0].conv1.weight, image.layer2[0].conv1.weight)
    torch.testing.assert_close(
        model.network.layer2[0].conv2.spatial.weight, image.layer2[0].conv2.weight[:24, :24]
    )  # STC's three quarters of 32
    for depths in ((3, 4, 5, 3), (3, 4, 7, 3)):
        save_file(ImageResNet(depths).state_dict(), tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match="not the weights of tam's image network"):
            load_weights(model_of("tam"), tmp_path / "other.safetensors", name="tam")


def model_of(module: str) -> Temporalized:
    return temporalize(ImageResNet((3, 4, 6, 3)), module, num_frames=T)


def test_the_users_weights_are_kept_where_a_convolution_is_replaced() -> None:
    brought = ImageResNet((1, 1, 1, 1))
    weight = brought.layer2[0].conv2.weight
    c3d = temporalize(brought, "c3d", num_frames=T).network.layer2[0].conv2.weight
    torch.testing.assert_close(c3d, weight[:, :, None].expand(-1, -1, 3, -1, -1) / 3)
    assert torch.equal(temporalize(brought, "stw", num_frames=T).network.layer2[0].conv2.weight, weight)


def test_head_kept_or_new() -> None:
    brought = resnext()
    kept = temporalize(brought, "tsm")
    assert torch.equal(kept.fc.weight, brought.fc.weight)
    assert kept.num_classes == 5
    new = temporalize(brought, "tsm", num_classes=9, num_frames=2, dropout=0.0)
    assert new(torch.randn(1, 2, 3, 32, 32)).shape == (1, 9)
    brought.fc = nn.Identity()
    assert temporalize(brought, "tsm", num_classes=9).fc.in_features == 512
    with pytest.raises(ValueError, match="say num_classes"):
        temporalize(brought, "tsm")


def test_threads_that_share_a_network_keep_their_own_maps() -> None:
    model = lively(temporalize(one_block(), "stm", num_frames=T)).eval()
    clips = [torch.randn(1, T, 3, 32, 32) for _ in range(60)]

    def logits(clip: Tensor) -> Tensor:
        with torch.inference_mode():
            result: Tensor = model(clip)
        return result

    alone = [logits(clip) for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        torch.testing.assert_close(list(pool.map(logits, clips)), alone)


def test_threads_that_share_a_causal_network_keep_their_own_length() -> None:
    """A causal network takes clips of any length; one thread's must not unfold another's."""
    model = lively(temporalize(one_block(), "stm", num_frames=T, causal=True)).eval()
    model(torch.randn(1, 2, 3, 32, 32))
    clip, inside, go_on = torch.randn(1, 4, 3, 32, 32), threading.Event(), threading.Event()
    with torch.no_grad():
        alone = model(clip)

    def wait(*_: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            go_on.wait(PATIENCE)

    hook = next(part for part in model.modules() if isinstance(part, nn.Conv2d)).register_forward_hook(wait)
    with ThreadPoolExecutor(1) as pool, torch.no_grad():
        other = pool.submit(model, clip)
        assert inside.wait(PATIENCE)
        model(torch.randn(2, 2, 3, 32, 32))
        go_on.set()
        torch.testing.assert_close(other.result().detach(), alone)
    hook.remove()


def test_wrong_use_says_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"nn.Module that is built already; got 'resnet18'"):
        temporalize("resnet18", "tsm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no temporal module is called 'tms'; near it: .*tsm"):
        temporalize(resnext(), "tms")
    with pytest.raises(ValueError, match="tsm has no option alpha; it takes causal, dropout"):
        temporalize(resnext(), "tsm", alpha=0.5)
    with pytest.raises(ValueError, match="option modules takes str, got 3"):
        temporalize(resnext(), "stm", modules=3)
    with pytest.raises(ValueError, match="takes clips already"):
        temporalize(model_of("tsm"), "tsm")
    with pytest.raises(ValueError, match=r"found no residual block in Rows.*has_skip or use_res_connect"):
        temporalize(Rows(conv_bn(3, 8, 3, 2), conv_bn(8, 8, 3, 2), channels=8), "tsm")
    with pytest.raises(ValueError, match="1 blocks have no skip connection"):
        temporalize(Rows(conv_bn(3, 8, 3, 2), TimmInverted(8, 16, 2), channels=16), "tsm")
    with pytest.raises(ValueError, match="choose none of the residual blocks; those found: stages 2"):
        temporalize(timm_convnext(), "tsm", stages=(5,))
    with pytest.raises(ValueError, match="attention reads every frame"):
        temporalize(resnext(), "tsm", causal=True, nonlocal_blocks=True)
    with pytest.raises(ValueError, match=r"stages 3 and 4, .* has stages 2; leave them out"):
        temporalize(timm_convnext(), "tsm", nonlocal_blocks=True)
    with pytest.raises(ValueError, match="choose none of the residual blocks"):
        temporalize(resnext(), "tsm", stages=(2,), placement="bottom", nonlocal_blocks=True)
    with pytest.raises(ValueError, match=r"does not run on an image of shape \(1, 3, 224, 224\)"):
        temporalize(nn.Linear(7, 5), "tsm")
    with pytest.raises(ValueError, match="option stages takes a list, got 3"):
        temporalize(resnext(), "tsm", stages=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_frames must be at least 1, a whole number, got '8'"):
        temporalize(resnext(), "tsm", num_frames="8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="option dropout takes float, got '0"):
        temporalize(resnext(), "tsm", dropout="0.5")  # type: ignore[arg-type]
    for module in ("tsm", "gst"):  # beside the convolution and in its place
        with pytest.raises(ValueError, match="ImageResNet is temporalized already; give the image network"):
            temporalize(temporalize(ImageResNet((1, 1, 1, 1)), module).network, "tsm")
    with pytest.raises(ValueError, match=r"scripted or traced by torch\.jit; give the module itself"):
        temporalize(torch.jit.ScriptModule(), "tsm")
    with pytest.raises(ValueError, match="made for 8 frames a clip, got 4"):
        temporalize(resnext(), "tsm")(torch.randn(1, 4, 3, 64, 64))


@pytest.mark.parametrize(
    ("network", "module", "match"),
    [
        (resnext, "c3d", r"layer1.0 \(Block\): it replaces an ungrouped 3×3.*groups=4.*tsm, tam, stm, stw"),
        (mobilenet_v3, "stm", r"features.2 \(MobileV3\): a gate .* stands between .*tsm, tam, stw"),
        (timm_convnext, "stm", r"features.1 \(TimmConvNeXt\): features.1.mlp.fc1 .* is linear and takes channels last"),
        (NETWORKS[-1][0], "stw", r"features.1 \(TimmEdge\): .* 32 channels of 16.*modules='stfm'"),
        (NETWORKS[-1][0], "stm", r"features.1 \(TimmEdge\): its channels change from 16 to 32"),
    ],
)
def test_where_a_module_cannot_go(network: Callable[[], nn.Module], module: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        temporalize(network(), module)


# timm itself: by a stand-in everywhere, and for real where it can be imported.


class FakeTimm(SimpleNamespace):
    """The functions of timm that are called, over one network."""

    def __init__(self) -> None:
        def create(name: str, num_classes: int, pretrained: bool = False) -> nn.Module:
            network = resnext()
            network.fc = nn.Linear(network.fc.in_features, num_classes) if num_classes else nn.Identity()
            network.get_classifier = lambda: network.fc
            if pretrained:
                self.fetched += 1
                nn.init.constant_(network.bn1.weight, 7.0)
            return network

        super().__init__(
            create_model=create,
            is_model=lambda name: name.split(".")[0] == "resnext",
            is_model_pretrained=lambda name: name == "resnext",
            list_models=lambda: ["resnext"],
            fetched=0,
        )


def test_create_model_on_a_backbone_of_timm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timm = FakeTimm()
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setenv("CLIPWISE_CACHE", str(tmp_path))
    model = create_model("stm", backbone="timm/resnext", num_classes=9, num_frames=T, modules="cmm", dropout=0.1)
    assert len(model.placed) == 5
    assert model(torch.randn(1, T, 3, 64, 64)).shape == (1, 9)
    assert timm.fetched == 0
    for _ in range(2):  # fetched once, then from the cache
        model = create_model("tsm", backbone="timm/resnext", num_classes=9, weights="imagenet")
        assert (model.network.bn1.weight == 7).all()
    assert timm.fetched == 1
    for name, options, match in (
        ("tsm_resnet50", {"backbone": "timm/resnext"}, "the name is a temporal module's: tsn, tsm"),
        ("tsm", {"backbone": "resnext"}, "backbone must be 'timm/' and the name"),
        ("tsm", {"backbone": "timm/resnxt"}, "timm has no network called 'resnxt'; near it: resnext"),
        ("tsm", {"backbone": "timm/resnext", "base_width": 16}, "tsm has no option base_width; it takes"),
        ("tsm", {"backbone": "timm/resnext.a1", "weights": "imagenet"}, "timm has no weights for 'resnext.a1'"),
    ):
        with pytest.raises(ValueError, match=match):
            create_model(name, num_classes=9, **options)


def test_without_timm_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'clipwise\[timm\]'"):
        timm_network("resnet50", 5)


@pytest.mark.parametrize(
    ("name", "module", "placed"),
    [
        ("resnet18", "stm", 8),
        ("resnext50_32x4d", "stw", 16),
        ("mobilenetv3_small_100", "tsm", None),
        ("efficientnet_b0", "tam", 9),
        ("convnext_atto", "stw", 12),
    ],
)
def test_on_timm_itself(name: str, module: str, placed: int | None) -> None:
    try:
        import timm  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"needs timm, which cannot be imported: {error}")
    model = create_model(module, backbone=f"timm/{name}", num_classes=5, num_frames=T)
    assert len(model.placed) == placed if placed else model.placed
    model(torch.randn(2, T, 3, 64, 64)).sum().backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []
