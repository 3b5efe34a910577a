"""I3D and S3D on ResNets, and torchvision's video networks: inflation, equations, layouts of public files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from clipwise.models.complexity import count_macs, count_parameters
from clipwise.models.network import VideoNetwork
from clipwise.models.registry import create_model
from clipwise.models.weights import load_weights


def on_meta(name: str, num_classes: int, **options: Any) -> VideoNetwork:
    with torch.device("meta"):
        return create_model(name, num_classes=num_classes, **options)


def scatter_statistics(model: nn.Module) -> None:
    """BN far from the identity, so that leaving one out, or exchanging two, shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)


def inflated(folder: Path, kind: str, depth: int, frames: int, **options: Any) -> tuple[VideoNetwork, VideoNetwork]:
    """An image network of one frame and a 3D one that starts from its weights."""
    caffe = {"caffe_stride": True} if options.get("caffe_stride") else {}
    image = create_model(f"tsn_resnet{depth}", num_classes=2, num_frames=1, base_width=16, **caffe).eval()
    scatter_statistics(image)
    save_file(image.state_dict(), folder / "image.safetensors")
    name = f"{kind}_resnet{depth}"
    model = create_model(name, num_classes=2, num_frames=frames, base_width=16, **options).eval()
    report = load_weights(model, folder / "image.safetensors", name=name)
    assert not report.left
    assert all("_t." in key or ".se." in key for key in report.new)
    return image, model


@pytest.mark.parametrize(
    ("depth", "options", "frames", "exact"),
    [
        (18, {}, 35, [17]),
        (50, {}, 35, [17]),
        (50, {"caffe_stride": True}, 37, [17, 18, 19]),
        (18, {"temporal_pooling": True}, 112, [7]),
    ],
)
def test_inflated_i3d_gives_the_image_networks_features_in_the_interior(
    tmp_path: Path, depth: int, options: dict[str, Any], frames: int, exact: list[int]
) -> None:
    """17 convolutions see time, so zeros outside the clip reach 17 frames inwards from either end, and no further
    (ever fainter: a third at each); with pooling 1 + 4·1 + (1 + 3·2) + (2 + 3·4) + (4 + 3·8) = 54."""
    image, model = inflated(tmp_path, "i3d", depth, frames, **options)
    picture = torch.randn(1, 1, 3, 64, 64)
    with torch.no_grad():
        expected = image.forward_features(picture)[0, 0]
        features = model.forward_features(picture.expand(1, frames, 3, 64, 64))[0]
    distance = (features - expected).abs().amax(1) / expected.abs().max()
    assert (distance[exact] < 1e-5).all()
    assert (distance[[0, -1]] > 1e-2).all()


def test_inflated_s3d_gives_the_image_networks_features_but_at_the_ends(tmp_path: Path) -> None:
    """Its temporal convolutions start as the identity, so only the stem sees the ends."""
    image, model = inflated(tmp_path, "s3d", 50, 8)
    picture = torch.randn(1, 1, 3, 32, 32)
    with torch.no_grad():
        expected = image.forward_features(picture)[0, 0]
        features = model.forward_features(picture.expand(1, 8, 3, 32, 32))[0]
    distance = (features - expected).abs().amax(1) / expected.abs().max()
    # Each new BN divides by √(1 + 1e-5).
    assert [step for step, value in enumerate(distance) if value < 1e-3] == [1, 2, 3, 4, 5, 6]


def relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def by_frames(x: Tensor, conv: nn.Conv3d) -> Tensor:
    """A 3D convolution as a sum over its taps of 2D convolutions of single frames, zeros outside the clip."""
    taps, stride, pad = conv.weight.shape[2], conv.stride[0], conv.weight.shape[2] // 2
    out = []
    for t in range(0, x.shape[2], stride):
        terms = [
            F.conv2d(x[:, :, t + k - pad], conv.weight[:, :, k], stride=conv.stride[1], padding=conv.padding[1])
            for k in range(taps)
            if 0 <= t + k - pad < x.shape[2]
        ]
        out.append(sum(terms))
    return torch.stack(out, 2)


@pytest.mark.parametrize("kind", ["i3d", "s3d"])
@pytest.mark.parametrize("depth", [18, 50])
def test_a_block_is_the_papers_equations(kind: str, depth: int) -> None:
    """The first block of stage 3: strides in time and space, and squeeze-excitation."""
    model = create_model(
        f"{kind}_resnet{depth}",
        num_classes=2,
        num_frames=8,
        base_width=32,
        temporal_pooling=True,
        squeeze_excitation=True,
    ).eval()
    scatter_statistics(model)
    b = model.layer2[0]
    for name, parameter in b.named_parameters():
        if "_t.weight" in name and parameter.ndim == 5:  # away from the identity
            nn.init.kaiming_normal_(parameter)
    x = torch.randn(2, b.conv1.in_channels, 8, 15, 15)

    def convolve(x: Tensor, number: int) -> Tensor:
        y = getattr(b, f"bn{number}")(by_frames(x, getattr(b, f"conv{number}")))
        if kind == "s3d" and (number == 2 or depth == 18):
            y = getattr(b, f"bn{number}_t")(by_frames(relu(y), getattr(b, f"conv{number}_t")))
        return y

    with torch.no_grad():
        y = convolve(relu(convolve(x, 1)), 2)
        if depth == 50:
            y = convolve(relu(y), 3)
        assert y.shape[2:] == (4, 8, 8)
        gate = torch.sigmoid(b.se.expand(relu(b.se.reduce(y.flatten(2).mean(2)))))
        y = torch.einsum("ncthw,nc->ncthw", y, gate)
        expected = relu(y + b.downsample[1](by_frames(x, b.downsample[0])))
        torch.testing.assert_close(b(x), expected, rtol=1e-4, atol=1e-4)


def test_squeeze_excitation_reduces_by_sixteen() -> None:
    added = count_parameters(on_meta("i3d_resnet50", 200, squeeze_excitation=True)) - 46_571_144
    assert added == sum(
        count * (c * c // 16 + c // 16 + c * c // 16 + c) for c, count in ((256, 3), (512, 4), (1024, 6), (2048, 3))
    )


def test_nonlocal_blocks_follow_the_same_blocks_as_in_2d() -> None:
    options = {"num_classes": 2, "num_frames": 8, "base_width": 16}
    model = create_model("i3d_resnet50", nonlocal_blocks=True, temporal_pooling=True, **options).eval()
    plane = create_model("tsn_resnet50", nonlocal_blocks=True, **options)
    assert {key for key, _ in model.named_modules() if key.endswith("nonlocal_block")} == {
        key for key, _ in plane.named_modules() if key.endswith("nonlocal_block")
    }
    clip = torch.randn(1, 8, 3, 64, 64)
    without = create_model("i3d_resnet50", temporal_pooling=True, **options).eval()
    without.load_state_dict({key: value for key, value in model.state_dict().items() if "nonlocal" not in key})
    with torch.no_grad():
        assert torch.equal(model(clip), without(clip))  # they start as the identity
        nn.init.ones_(model.layer2[1].nonlocal_block.bn.weight)
        x = torch.randn(1, 128, 4, 8, 8)
        inside = without.layer2[1](x)
        expected = model.layer2[1].nonlocal_block(inside.transpose(1, 2)).transpose(1, 2)
        torch.testing.assert_close(model.layer2[1](x), expected)
        assert not torch.equal(inside, expected)


@pytest.mark.parametrize("name", ["i3d_resnet18", "s3d_resnet50", "r3d_18"])
@pytest.mark.parametrize("frames", [1, 3])
def test_any_number_of_frames_and_odd_sizes(name: str, frames: int) -> None:
    narrow = {} if name == "r3d_18" else {"base_width": 16}
    model = create_model(name, num_classes=3, num_frames=frames, **narrow).eval()
    assert model(torch.randn(1, frames, 3, 57, 75)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("i3d_resnet50", {"temporal_pooling": True, "num_frames": 12}, "multiple of 8, got 12; take 8 or 16"),
        ("i3d_resnet50", {"temporal_pooling": "max"}, "option temporal_pooling takes bool, got 'max'"),
        ("i3d_resnet18", {"caffe_stride": True}, "ResNet-18 has none"),
        ("s3d_resnet18", {"base_width": 20}, "base_width must be a multiple of 16, got 20"),
        ("s3d_torchvision", {"num_frames": 4}, "fewer than 5 leave none, got num_frames = 4"),
    ],
)
def test_wrong_arguments_say_what_is_right(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, num_classes=2, **options)


# pytorch/vision, torchvision/models/video/resnet.py at d075d13: the middle widths of R(2+1)D, one for a block.
MIDDLE = {(1, 0): 144, (1, 1): 144, (2, 0): 230, (2, 1): 288, (3, 0): 460, (3, 1): 576, (4, 0): 921, (4, 1): 1152}


def norm(key: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{key}.{part}", (channels,)
    yield f"{key}.num_batches_tracked", ()


def resnet_layout(kind: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Keys and shapes of the three ResNets' files, as that source builds them."""
    if kind == "r2plus1d_18":
        yield "stem.0.weight", (45, 3, 1, 7, 7)
        yield from norm("stem.1", 45)
        yield "stem.3.weight", (64, 45, 3, 1, 1)
        yield from norm("stem.4", 64)
    else:
        yield "stem.0.weight", (64, 3, 3, 7, 7)
        yield from norm("stem.1", 64)
    widths = {1: (64, 64), 2: (64, 128), 3: (128, 256), 4: (256, 512)}
    for (stage, block), middle in MIDDLE.items():
        below, width = widths[stage]
        inputs = width if block else below
        for number, before in ((1, inputs), (2, width)):
            key = f"layer{stage}.{block}.conv{number}"
            if kind == "r2plus1d_18":
                yield f"{key}.0.0.weight", (middle, before, 1, 3, 3)
                yield from norm(f"{key}.0.1", middle)
                yield f"{key}.0.3.weight", (width, middle, 3, 1, 1)
            else:
                yield f"{key}.0.weight", (width, before, 1 if kind == "mc3_18" and stage > 1 else 3, 3, 3)
            yield from norm(f"{key}.1", width)
        if inputs != width:
            yield f"layer{stage}.{block}.downsample.0.weight", (width, inputs, 1, 1, 1)
            yield from norm(f"layer{stage}.{block}.downsample.1", width)
    yield "fc.weight", (400, 512)
    yield "fc.bias", (400,)


# pytorch/vision, torchvision/models/video/s3d.py at cae3e71: position in `features`, inputs, and the branches' widths.
S3D_BLOCKS = {
    5: (192, 64, 96, 128, 16, 32, 32),
    6: (256, 128, 128, 192, 32, 96, 64),
    8: (480, 192, 96, 208, 16, 48, 64),
    9: (512, 160, 112, 224, 24, 64, 64),
    10: (512, 128, 128, 256, 24, 64, 64),
    11: (512, 112, 144, 288, 32, 64, 64),
    12: (528, 256, 160, 320, 32, 128, 128),
    14: (832, 256, 160, 320, 32, 128, 128),
    15: (832, 384, 192, 384, 48, 128, 128),
}


def s3d_layout() -> Iterator[tuple[str, tuple[int, ...]]]:
    def unit(key: str, out: int, *rest: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{key}.0.weight", (out, *rest)
        yield from norm(f"{key}.1", out)

    def pair(key: str, inputs: int, out: int, k: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from unit(f"{key}.0", out, inputs, 1, k, k)
        yield from unit(f"{key}.1", out, out, k, 1, 1)

    yield from pair("features.0", 3, 64, 7)
    yield from unit("features.2", 64, 64, 1, 1, 1)
    yield from pair("features.3", 64, 192, 3)
    for position, (inputs, b0, m1, b1, m2, b2, b3) in S3D_BLOCKS.items():
        key = f"features.{position}"
        yield from unit(f"{key}.branch0", b0, inputs, 1, 1, 1)
        yield from unit(f"{key}.branch1.0", m1, inputs, 1, 1, 1)
        yield from pair(f"{key}.branch1.1", m1, b1, 3)
        yield from unit(f"{key}.branch2.0", m2, inputs, 1, 1, 1)
        yield from pair(f"{key}.branch2.1", m2, b2, 3)
        yield from unit(f"{key}.branch3.1", b3, inputs, 1, 1, 1)
    yield "classifier.1.weight", (400, 1024, 1, 1, 1)
    yield "classifier.1.bias", (400,)


def layout(name: str) -> dict[str, tuple[int, ...]]:
    return dict(s3d_layout() if name == "s3d_torchvision" else resnet_layout(name))


TORCHVISION = {
    # parameters and GMACs (fc included, 0.0002 at most) that torchvision documents, of 16 frames
    "r3d_18": (33_371_472, 40.697, 112),
    "mc3_18": (11_695_440, 43.343, 112),
    "r2plus1d_18": (31_505_325, 40.519, 112),
    "s3d_torchvision": (8_320_048, 17.979, 224),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_counts_and_layout(name: str) -> None:
    parameters, gmacs, size = TORCHVISION[name]
    model = on_meta(name, 400, num_frames=16)
    assert count_parameters(model) == parameters
    assert count_macs(model, size) / 1e9 == pytest.approx(gmacs, abs=0.001)
    expected = layout(name)
    if name == "s3d_torchvision":
        expected["fc.weight"], expected["fc.bias"] = expected.pop("classifier.1.weight")[:2], (400,)
        del expected["classifier.1.bias"]
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == expected


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_file_of_torchvisions_layout_fills_the_network(name: str, tmp_path: Path) -> None:
    state = {key: torch.full(shape, 0.5) for key, shape in layout(name).items()}
    torch.save(state, tmp_path / "public.pth")
    model = create_model(name, num_classes=400)
    report = load_weights(model, tmp_path / "public.pth", name=name)
    assert not report.new
    assert not report.left
    assert torch.equal(model.fc.bias, state["classifier.1.bias" if name == "s3d_torchvision" else "fc.bias"])
    del state[next(iter(state))]
    torch.save(state, tmp_path / "public.pth")
    with pytest.raises(ValueError, match="1 of its tensors are missing"):
        load_weights(model, tmp_path / "public.pth", name=name)


def test_r2plus1d_has_the_weights_of_the_convolutions_it_stands_for() -> None:
    """To within 1 % wherever the middle width was computed for that very convolution; torchvision reuses it for the
    second convolution of a block that widens, which then falls short by a fifth."""
    whole, parts = on_meta("r3d_18", 400), on_meta("r2plus1d_18", 400)
    for stage, block in MIDDLE:
        for number in (1, 2):
            conv = getattr(getattr(whole, f"layer{stage}")[block], f"conv{number}")[0]
            pair = getattr(getattr(parts, f"layer{stage}")[block], f"conv{number}")[0]
            share = (pair[0].weight.numel() + pair[3].weight.numel()) / conv.weight.numel()
            borrowed = number == 2 and block == 0 and stage > 1
            assert (0.79 < share < 0.81) if borrowed else (0.99 < share <= 1), (stage, block, number)


def test_s3d_counts_the_first_and_the_last_step_half() -> None:
    """Windows of two steps, averaged; 48 frames leave 6 steps, hence weights of 1, 2, 2, 2, 2, 1 tenths."""
    model = create_model("s3d_torchvision", num_classes=4, num_frames=48).eval()
    nn.init.normal_(model.fc.weight)
    clip = torch.randn(1, 48, 3, 64, 64)
    with torch.no_grad():
        x = model.features(clip.transpose(1, 2)).mean((3, 4))
        weights = torch.tensor([0.1, 0.2, 0.2, 0.2, 0.2, 0.1])
        torch.testing.assert_close(model(clip), model.fc((x * weights).sum(2)), rtol=1e-4, atol=1e-4)


def test_mc3_sees_time_in_its_first_stages_only() -> None:
    model = create_model("mc3_18", num_classes=4, num_frames=5)
    assert [bool(layer[0].conv1[0].kernel_size[0] > 1) for layer in (model.layer1, model.layer2)] == [True, False]
    assert model.layer4(torch.randn(1, 256, 5, 4, 4)).shape[2] == 5


@pytest.mark.parametrize("name", TORCHVISION)
def test_outputs_equal_torchvisions(name: str, tmp_path: Path) -> None:
    try:
        from torchvision.models import video
    except Exception as error:  # a build for another torch fails in many ways
        pytest.skip(f"torchvision does not import beside this torch: {type(error).__name__}")
    frames, size = (16, 224) if name == "s3d_torchvision" else (8, 64)
    theirs = getattr(video, "s3d" if name == "s3d_torchvision" else name)(num_classes=400).eval()
    scatter_statistics(theirs)
    torch.save(theirs.state_dict(), tmp_path / "public.pth")
    ours = create_model(name, num_classes=400, num_frames=frames, weights=tmp_path / "public.pth").eval()
    clip = torch.randn(1, frames, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(ours(clip), theirs(clip.transpose(1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["i3d_resnet18", "s3d_resnet50"])
def test_placement_leaves_the_other_blocks_without_time(name: str) -> None:
    """Of the top half, no kernel of the lower stages is longer than a frame."""
    model = create_model(name, num_classes=3, num_frames=6, base_width=16, placement="top").eval()
    lower = [module for stage in (model.layer1, model.layer2) for module in stage.modules()]
    upper = [module for stage in (model.layer3, model.layer4) for module in stage.modules()]
    for modules, longest in ((lower, 1), (upper, 3)):
        assert max(module.kernel_size[0] for module in modules if isinstance(module, torch.nn.Conv3d)) == longest
