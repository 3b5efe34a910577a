"""Other projects' checkpoints become Clipwise folders, whole or not at all.

The state dicts are made of names and shapes as the projects' own code gives them, listed here from the network's to
theirs, the other way than the maps; import_maps.SOURCES says where they were looked up.
"""

import json
import pickle
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import clipwise
from clipwise.cli import import_weights, main
from clipwise.models import files
from clipwise.models.files import read_weight_file
from clipwise.models.import_maps import SOURCES
from clipwise.models.importing import import_checkpoint
from clipwise.models.registry import create_model

CLASSES = 6
LABELS = [f"class {index}" for index in range(CLASSES)]
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


# --- names and shapes of the image networks, as torchvision has them --------------------------------------------------


def conv(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape


def bn(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for entry in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{entry}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def fc(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (CLASSES, channels)
    yield f"{name}.bias", (CLASSES,)


def resnet(depth: int, width: int = 64) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from conv("conv1", width, 3, 7, 7)
    yield from bn("bn1", width)
    channels, bottleneck = width, depth >= 50
    for stage, count in enumerate(BLOCKS[depth]):
        inner = width * 2**stage
        outer = inner * (4 if bottleneck else 1)
        for index in range(count):
            block = f"layer{stage + 1}.{index}"
            sizes = (1, 3, 1) if bottleneck else (3, 3)
            widths = (channels, inner, inner, outer) if bottleneck else (channels, inner, inner)
            for number, size in enumerate(sizes, start=1):
                yield from conv(f"{block}.conv{number}", widths[number], widths[number - 1], size, size)
                yield from bn(f"{block}.bn{number}", widths[number])
            if index == 0 and (stage > 0 or bottleneck):
                yield from conv(f"{block}.downsample.0", outer, channels, 1, 1)
                yield from bn(f"{block}.downsample.1", outer)
            channels = outer
    yield from fc("fc", channels)


MOBILE_ROWS = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))


def mobilenet() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from conv("features.0.0", 32, 3, 3, 3)
    yield from bn("features.0.1", 32)
    channels, index = 32, 1
    for expansion, outer, count in MOBILE_ROWS:
        for _ in range(count):
            block, inner = f"features.{index}.conv", channels * expansion
            pairs = ([] if expansion == 1 else [(inner, channels, 1)]) + [(inner, 1, 3)]
            for place, (out, into, size) in enumerate(pairs):
                yield from conv(f"{block}.{place}.0", out, into, size, size)
                yield from bn(f"{block}.{place}.1", out)
            yield from conv(f"{block}.{len(pairs)}", outer, inner, 1, 1)
            yield from bn(f"{block}.{len(pairs) + 1}", outer)
            channels, index = outer, index + 1
    yield from conv("features.18.0", 1280, 320, 1, 1)
    yield from bn("features.18.1", 1280)
    yield from fc("classifier.1", 1280)


INCEPTION = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


def inception_layers() -> Iterator[tuple[str, int, int, int]]:
    """Name, inputs, outputs, size of each convolution of GoogLeNet."""
    yield from (("conv1", 3, 64, 7), ("conv2", 64, 64, 1), ("conv3", 64, 192, 3))
    for name, (into, one, reduce_2, two, reduce_3, three, pool) in INCEPTION.items():
        block = f"inception{name}"
        yield from ((f"{block}.branch1", into, one, 1), (f"{block}.branch2.0", into, reduce_2, 1))
        yield from ((f"{block}.branch2.1", reduce_2, two, 3), (f"{block}.branch3.0", into, reduce_3, 1))
        yield from ((f"{block}.branch3.1", reduce_3, three, 3), (f"{block}.branch4.1", into, pool, 1))


def googlenet() -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, into, out, size in inception_layers():
        yield from conv(f"{name}.conv", out, into, size, size)
        yield from bn(f"{name}.bn", out)
    yield from fc("fc", 1024)


def filled(names: Iterator[tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    """Random values, each tensor's different; statistics as they can be."""
    state: dict[str, Tensor] = {}
    for index, (name, shape) in enumerate(names):
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(index + 1)
        elif name.endswith(("running_var", "bn_riv")):
            state[name] = torch.rand(shape) + 0.5
        else:
            fan = max(1, torch.Size(shape).numel() // shape[0]) if len(shape) > 1 else 4
            state[name] = torch.randn(shape) / fan**0.5
    return state


# --- how the projects write them --------------------------------------------------------------------------------------


def mit(key: str, *, shift: bool) -> str:
    """TSM: base_model.…; conv1 of each block wrapped; the head replaced by new_fc; all under DataParallel's module."""
    if key.startswith("fc."):
        return f"module.new_{key}"
    wrapped = re.sub(r"^(layer\d\.\d+\.conv1)\.weight$", r"\1.net.weight", key) if shift else key
    return f"module.base_model.{wrapped}"


SHIFTED_MOBILE = (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)


def mit_mobile(key: str, *, shift: bool) -> str:
    """TSM's own MobileNetV2: layers of a block in one row, the shift in conv.0 where there is a shortcut."""
    if key.startswith("classifier."):
        return key.replace("classifier.1.", "module.new_fc.")
    match = re.fullmatch(r"features\.(\d+)\.conv\.([\d.]+)\.(\w+)", key)
    if match:
        first = {"0.0": "0", "0.1": "1", "1": "3", "2": "4"}
        others = {"0.0": "0", "0.1": "1", "1.0": "3", "1.1": "4", "2": "6", "3": "7"}
        place = (first if match[1] == "1" else others)[match[2]]
        net = ".net" if shift and place == "0" and int(match[1]) in SHIFTED_MOBILE else ""
        key = f"features.{match[1]}.conv.{place}{net}.{match[3]}"
    return f"module.base_model.{key}"


def mmaction2(key: str, *, shift: bool = False, block: str = "") -> str:
    """ResNets of ConvModules: conv1.conv and conv1.bn; `block` is TANet's wrapper of a residual block."""
    key = re.sub(r"^(layer\d\.\d+\.)", rf"\1{block}", key)
    key = re.sub(r"\bbn(\d)\.", r"conv\1.bn.", key)
    key = re.sub(r"\bconv(\d)\.weight$", r"conv\1.conv.weight", key)
    key = key.replace("downsample.0.", "downsample.conv.").replace("downsample.1.", "downsample.bn.")
    if shift:
        key = re.sub(r"^(layer\d\.\d+\.conv1\.conv)\.weight$", r"\1.net.weight", key)
    return key.replace("fc.", "cls_head.fc_cls.") if key.startswith("fc.") else f"backbone.{key}"


def mmaction2_mobile(key: str, *, shift: bool) -> str:
    """MobileNetV2 of ConvModules in layer1 … layer7, between conv1 and conv2."""
    if key.startswith("classifier."):
        return key.replace("classifier.1.", "cls_head.fc_cls.")
    number = int(key.split(".")[1])
    kind = {"0": "conv", "1": "bn"}
    if number in (0, 18):
        return f"backbone.conv{1 if number == 0 else 2}.{kind[key.split('.')[2]]}.{key.split('.')[3]}"
    starts = (1, 2, 4, 7, 11, 14, 17)
    layer = max(index for index, start in enumerate(starts) if start <= number)
    match = re.fullmatch(r"features\.\d+\.conv\.([\d.]+)\.(\w+)", key)
    assert match
    rows = {"0.0": "0.conv", "0.1": "0.bn", "1.0": "1.conv", "1.1": "1.bn", "2": "2.conv", "3": "2.bn"}
    first = {"0.0": "0.conv", "0.1": "0.bn", "1": "1.conv", "2": "1.bn"}
    place = (first if number == 1 else rows)[match[1]]
    if shift and place.startswith("0.") and number in SHIFTED_MOBILE:
        place = f"0.net.{place[2:]}"  # the whole ConvModule is wrapped
    return f"backbone.layer{layer + 1}.{number - starts[layer]}.conv.{place}.{match[2]}"


def tanet_parts(width: int, frames: int, key: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The adaptive module's tensors of ResNet-50, the block's own prefix being `key`."""
    for stage, count in enumerate(BLOCKS[50]):
        channels = width * 2**stage
        for index in range(count):
            tam = key.format(stage=stage + 1, index=index)
            yield f"{tam}.G.0.weight", (2 * frames, frames)
            yield from bn(f"{tam}.G.1", 2 * frames)
            yield f"{tam}.G.3.weight", (3, 2 * frames)
            yield f"{tam}.L.0.weight", (channels // 4, channels, 3)
            yield from bn(f"{tam}.L.1", channels // 4)
            yield f"{tam}.L.3.weight", (channels, channels // 4, 1)


def tin_parts(width: int, frames: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """MMAction2's interlacing module of ResNet-18, before the first convolution of each block."""
    for stage, count in enumerate(BLOCKS[18]):
        for index in range(count):
            channels = width * 2 ** (stage if index or stage == 0 else stage - 1) // 4
            net = f"backbone.layer{stage + 1}.{index}.conv1.conv.net1"
            yield f"{net}.offset_net.conv.weight", (1, channels, 3)
            yield f"{net}.offset_net.conv.bias", (1,)
            yield f"{net}.offset_net.fc1.weight", (frames, frames)
            yield f"{net}.offset_net.fc1.bias", (frames,)
            yield f"{net}.offset_net.fc2.weight", (2, frames)
            yield f"{net}.offset_net.fc2.bias", (2,)
            yield f"{net}.weight_net.conv.weight", (2, channels, 3)
            yield f"{net}.weight_net.conv.bias", (2,)


SLOWFAST_PARTS = {
    "branch1": "downsample.0",
    "branch1_bn": "downsample.1",
    **{f"branch2.{letter}": f"conv{number}" for number, letter in enumerate("abc", start=1)},
    **{f"branch2.{letter}_bn": f"bn{number}" for number, letter in enumerate("abc", start=1)},
}


def pyslowfast(width: int, fusion: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """SlowFast-R50 with beta 1/8: PySlowFast's names and shapes."""
    for pathway, share in enumerate((1, 8)):
        stem = f"s1.pathway{pathway}_stem"
        yield from conv(f"{stem}.conv", width // share, 3, 5 if pathway else 1, 7, 7)
        yield from bn(f"{stem}.bn", width // share)
    fast = width // 8
    for stage, channels in enumerate((fast, 4 * fast, 8 * fast, 16 * fast), start=1):
        yield from conv(f"s{stage}_fuse.conv_f2s", 2 * channels, channels, fusion, 1, 1)
        yield from bn(f"s{stage}_fuse.bn", 2 * channels)
    for pathway, share in enumerate((1, 8)):
        channels = width // share
        for stage, count in enumerate(BLOCKS[50]):
            inner = width // share * 2**stage
            frames = 3 if pathway or stage >= 2 else 1
            for index in range(count):
                block = f"s{stage + 2}.pathway{pathway}_res{index}"
                into = channels + (2 * channels // 8 if pathway == 0 and index == 0 else 0)
                if index == 0:
                    yield from conv(f"{block}.branch1", 4 * inner, into, 1, 1, 1)
                    yield from bn(f"{block}.branch1_bn", 4 * inner)
                yield from conv(f"{block}.branch2.a", inner, into, frames, 1, 1)
                yield from bn(f"{block}.branch2.a_bn", inner)
                yield from conv(f"{block}.branch2.b", inner, inner, 1, 3, 3)
                yield from bn(f"{block}.branch2.b_bn", inner)
                yield from conv(f"{block}.branch2.c", 4 * inner, inner, 1, 1, 1)
                yield from bn(f"{block}.branch2.c_bn", 4 * inner)
                channels = 4 * inner
    yield from fc("head.projection", 36 * width)


def slowfast_own(key: str) -> str:
    """PySlowFast's name → the network's."""
    if match := re.fullmatch(r"s1\.pathway(\d)_stem\.(.+)", key):
        return f"{('slow', 'fast')[int(match[1])]}.stem.{match[2]}"
    if match := re.fullmatch(r"s(\d)_fuse\.(conv_f2s|bn)\.(\w+)", key):
        return f"laterals.{int(match[1]) - 1}.{'conv' if match[2] == 'conv_f2s' else 'bn'}.{match[3]}"
    if match := re.fullmatch(r"s(\d)\.pathway(\d)_res(\d)\.(.+)\.(\w+)", key):
        path, layer = ("slow", "fast")[int(match[2])], int(match[1]) - 1
        return f"{path}.layer{layer}.{match[3]}.{SLOWFAST_PARTS[match[4]]}.{match[5]}"
    return key.replace("head.projection", "fc")


def caffe2(key: str) -> str | None:
    """PySlowFast's name → that of the blob it reads it from."""
    entries = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    layer, entry = key.rsplit(".", 1)
    if entry == "num_batches_tracked":
        return None
    if layer == "head.projection":
        return f"pred_{entry[0]}"
    if match := re.fullmatch(r"s(\d)_fuse\.(\w+)", layer):
        last = {"2": 2, "3": 3, "4": 5}
        start = "t_pool1" if match[1] == "1" else f"t_res{match[1]}_{last[match[1]]}_branch2c_bn"
        return f"{start}_subsample_{'w' if match[2] == 'conv_f2s' else 'bn_' + entries[entry]}"
    if match := re.fullmatch(r"s1\.pathway(\d)_stem\.(\w+)", layer):
        path = "t_" if match[1] == "1" else ""
        return f"{path}conv1_w" if match[2] == "conv" else f"{path}res_conv1_bn_{entries[entry]}"
    match = re.fullmatch(r"s(\d)\.pathway(\d)_res(\d)\.branch(1|2\.[abc])(_bn)?", layer)
    assert match, key
    kind = f"bn_{entries[entry]}" if match[5] else "w"
    path = "t_" if match[2] == "1" else ""
    return f"{path}res{match[1]}_{match[3]}_branch{match[4].replace('.', '')}_{kind}"


def mmaction2_slowfast(key: str) -> str:
    """PySlowFast's name → MMAction2's with lateral_norm."""
    own = slowfast_own(key)
    if own.startswith("laterals."):
        _, index, kind, entry = own.split(".")
        return f"backbone.slow_path.{'conv1' if index == '0' else f'layer{index}'}_lateral.{kind}.{entry}"
    if own.startswith("fc."):
        return f"cls_head.fc_cls.{own[3:]}"
    path, rest = own.split(".", 1)
    rest = rest.replace("stem.", "conv1.")
    if rest.startswith("layer"):
        rest = mmaction2(rest).removeprefix("backbone.")
    return f"backbone.{path}_path.{rest}"


# --- the check --------------------------------------------------------------------------------------------------------


def write(state: dict[str, Tensor], folder: Path, **beside: Any) -> Path:
    file = folder / "theirs.pth"
    torch.save({"epoch": 50, "state_dict": state, **beside} if beside else state, file)
    return file


def check(
    folder: Path,
    source: str,
    theirs: dict[str, Tensor],
    ours: dict[str, Tensor],
    *,
    name: str,
    frames: int,
    size: int = 64,
    overrides: tuple[str, ...] = (),
    model: str | None = None,
    num_frames: int | None = None,
) -> Any:
    """Import `theirs`; the folder must hold `ours`, and give what the network with `ours` gives."""
    report = import_checkpoint(
        write(theirs, folder),
        folder / "imported",
        source=source,
        labels=LABELS,
        name=model,
        num_frames=num_frames,
        overrides=overrides,
    )
    predictor = clipwise.load(folder / "imported", device="cpu")
    assert (report.name, report.num_frames) == (name, frames)
    assert predictor.num_frames == frames
    assert list(predictor.classes) == LABELS
    found = predictor.model.state_dict()
    assert sorted(found) == sorted(ours)
    unequal = [key for key, value in ours.items() if not torch.equal(found[key], value.reshape(found[key].shape))]
    assert not unequal
    expected = create_model(name, num_classes=CLASSES, num_frames=frames, **report.options)
    expected.load_state_dict({key: value.reshape(found[key].shape) for key, value in ours.items()})
    clips = torch.randn(1, frames, 3, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(predictor.model(clips), expected.eval()(clips), rtol=1e-4, atol=1e-5)
    return report


NARROW = ("model.options.base_width=16",)


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("depth", [18, 50, 101])
def test_tsm_resnet(depth: int, shift: bool, tmp_path: Path) -> None:
    ours = filled(resnet(depth, 16))
    wrapped = {f"layer{s}.{b}" for s in range(1, 5) for b in range(0, 40, 2 if depth == 101 else 1)}
    theirs = {mit(key, shift=shift and ".".join(key.split(".")[:2]) in wrapped): value for key, value in ours.items()}
    name = f"{'tsm' if shift else 'tsn'}_resnet{depth}"
    report = check(tmp_path, "tsm", theirs, ours, name=name, frames=8, overrides=NARROW)
    assert "placement" not in report.options
    assert len(report.renamed) == len(ours)


def test_a_shift_in_other_blocks_than_usual_is_seen(tmp_path: Path) -> None:
    ours = filled(resnet(101, 16))
    theirs = {mit(key, shift=True): value for key, value in ours.items()}
    report = check(tmp_path, "tsm", theirs, ours, name="tsm_resnet101", frames=8, overrides=NARROW)
    assert report.options["placement"] == "all"
    half = {key.replace(".net.", "." if "layer2" in key else ".net."): value for key, value in theirs.items()}
    with pytest.raises(ValueError, match="no such network"):
        import_checkpoint(write(half, tmp_path), tmp_path / "out", source="tsm", labels=LABELS, overrides=NARROW)


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize(("source", "naming"), [("tsm", mit_mobile), ("mmaction2", mmaction2_mobile)])
def test_mobilenet(source: str, naming: Callable[..., str], shift: bool, tmp_path: Path) -> None:
    canonical = filled(mobilenet())
    theirs = {naming(key, shift=shift): value for key, value in canonical.items()}
    ours = {key.replace("classifier.1.", "fc."): value for key, value in canonical.items()}
    check(tmp_path, source, theirs, ours, name=f"{'tsm' if shift else 'tsn'}_mobilenet_v2", frames=8, size=32)


@pytest.mark.parametrize("shift", [True, False])
def test_mmaction2_resnet(shift: bool, tmp_path: Path) -> None:
    ours = filled(resnet(50, 16))
    theirs = {mmaction2(key, shift=shift): value for key, value in ours.items()}
    theirs["data_preprocessor.mean"] = theirs["data_preprocessor.std"] = torch.ones(3)
    name = "tsm_resnet50" if shift else "tsn_resnet50"
    report = check(tmp_path, "mmaction2", theirs, ours, name=name, frames=8, overrides=NARROW)
    assert report.harmless == ("data_preprocessor.mean", "data_preprocessor.std")


@pytest.mark.parametrize(("source", "frames"), [("tanet", 8), ("mmaction2", 16)])
def test_tanet_tells_its_frames(source: str, frames: int, tmp_path: Path) -> None:
    image = filled(resnet(50, 16))
    prefix = {"tanet": "module.base_model.layer{stage}.{index}.tam", "mmaction2": "backbone.layer{stage}.{index}.tam"}
    modules = filled(tanet_parts(16, frames, prefix[source]))
    if source == "tanet":
        image_names = {
            key: f"module.new_{key}"
            if key.startswith("fc.")
            else "module.base_model." + re.sub(r"^(layer\d\.\d+)\.", r"\1.net.", key)
            for key in image
        }
    else:
        image_names = {key: mmaction2(key, block="block.") for key in image}
    theirs = {image_names[key]: value for key, value in image.items()} | modules
    own = {re.sub(r"^.*(layer\d\.\d+)\.tam\.", r"\1.tanet.", key): value for key, value in modules.items()}
    check(tmp_path, source, theirs, image | own, name="tanet_resnet50", frames=frames, overrides=NARROW, size=32)


def test_mmaction2_tin(tmp_path: Path) -> None:
    image, modules = filled(resnet(18, 16)), filled(tin_parts(16, 8))
    theirs = {re.sub(r"conv1\.conv\.net\.", "conv1.conv.net2.", mmaction2(k, shift=True)): v for k, v in image.items()}
    own = {re.sub(r"^backbone\.(.+)\.conv1\.conv\.net1\.", r"\1.tin.", key): value for key, value in modules.items()}
    check(tmp_path, "mmaction2", theirs | modules, image | own, name="tin_resnet18", frames=8, overrides=NARROW)


@pytest.mark.parametrize("source", ["pyslowfast", "mmaction2"])
@pytest.mark.parametrize(("fusion", "form"), [(5, "4x16"), (7, "8x8")])
def test_slowfast(source: str, fusion: int, form: str, tmp_path: Path) -> None:
    state = filled(pyslowfast(16, fusion))
    ours = {slowfast_own(key): value for key, value in state.items()}
    theirs = state if source == "pyslowfast" else {mmaction2_slowfast(key): value for key, value in state.items()}
    name = f"slowfast_resnet50_{form}"
    check(tmp_path, source, theirs, ours, name=name, frames=32, overrides=NARROW)
    views = json.loads((tmp_path / "imported" / "model.json").read_text())["views"]
    assert (views["size"], views["crop_ratio"], views["stride"], views["mean"]) == (256, 1.0, 2, [0.45] * 3)


def test_slowfast_of_pytorchvideo(tmp_path: Path) -> None:
    state = filled(pyslowfast(16, 7))
    theirs = {}
    for key, value in state.items():
        stage, rest = int(key[1]) - 1 if key[1].isdigit() else 6, key
        rest = re.sub(r"^s\d\.pathway(\d)_stem\.", r"blocks.0.multipathway_blocks.\1.", rest)
        rest = re.sub(r"^s(\d)_fuse\.conv_f2s", f"blocks.{stage}.multipathway_fusion.conv_fast_to_slow", rest)
        rest = re.sub(r"^s(\d)_fuse\.bn", f"blocks.{stage}.multipathway_fusion.norm", rest)
        rest = re.sub(r"^s\d\.pathway(\d)_res(\d)\.", rf"blocks.{stage}.multipathway_blocks.\1.res_blocks.\2.", rest)
        rest = re.sub(r"\.branch1\.", ".branch1_conv.", rest).replace(".branch1_bn.", ".branch1_norm.")
        rest = re.sub(r"\.branch2\.([abc])\.", r".branch2.conv_\1.", rest)
        rest = re.sub(r"\.branch2\.([abc])_bn\.", r".branch2.norm_\1.", rest)
        rest = re.sub(r"^(blocks\.0\..*)\.bn\.", r"\1.norm.", rest)
        theirs[rest.replace("head.projection", "blocks.6.proj")] = value
    ours = {slowfast_own(key): value for key, value in state.items()}
    check(tmp_path, "pyslowfast", theirs, ours, name="slowfast_resnet50_8x8", frames=32, overrides=NARROW)


def x3d_m() -> Iterator[tuple[str, tuple[int, ...]]]:
    """X3D-M: PySlowFast's names and shapes."""
    yield from conv("s1.pathway0_stem.conv_xy", 24, 3, 1, 3, 3)
    yield from conv("s1.pathway0_stem.conv", 24, 1, 5, 1, 1)
    yield from bn("s1.pathway0_stem.bn", 24)
    into = 24
    rows = ((24, 54, 8, 3), (48, 108, 8, 5), (96, 216, 16, 11), (192, 432, 32, 7))
    for stage, (out, inner, squeezed, count) in enumerate(rows, start=2):
        for index in range(count):
            block = f"s{stage}.pathway0_res{index}"
            if index == 0:
                yield from conv(f"{block}.branch1", out, into, 1, 1, 1)
                yield from bn(f"{block}.branch1_bn", out)
            yield from conv(f"{block}.branch2.a", inner, into, 1, 1, 1)
            yield from bn(f"{block}.branch2.a_bn", inner)
            yield from conv(f"{block}.branch2.b", inner, 1, 3, 3, 3)
            yield from bn(f"{block}.branch2.b_bn", inner)
            if index % 2 == 0:
                for name, shape in (("fc1", (squeezed, inner)), ("fc2", (inner, squeezed))):
                    yield from conv(f"{block}.branch2.se.{name}", *shape, 1, 1, 1)
                    yield f"{block}.branch2.se.{name}.bias", shape[:1]
            yield from conv(f"{block}.branch2.c", out, inner, 1, 1, 1)
            yield from bn(f"{block}.branch2.c_bn", out)
            into = out
    yield from conv("head.conv_5", 432, 192, 1, 1, 1)
    yield from bn("head.conv_5_bn", 432)
    yield from conv("head.lin_5", 2048, 432, 1, 1, 1)
    yield from fc("head.projection", 2048)


def test_x3d(tmp_path: Path) -> None:
    theirs = filled(x3d_m())
    names = {"s1.pathway0_stem.conv.": "stem.conv_t.", "s1.pathway0_stem.": "stem.", "head.projection.": "fc."}
    names |= {"head.conv_5.": "conv5.", "head.conv_5_bn.": "bn5.", "head.lin_5.": "lin5.", "branch2.se.": "se."}
    names |= {"branch1.": "downsample.0.", "branch1_bn.": "downsample.1."}
    names |= {f"branch2.{letter}.": f"conv{number}." for number, letter in enumerate("abc", start=1)}
    names |= {f"branch2.{letter}_bn.": f"bn{number}." for number, letter in enumerate("abc", start=1)}
    ours = {}
    for key, value in theirs.items():
        own = re.sub(r"^s(\d)\.pathway0_res(\d+)", lambda match: f"layer{int(match[1]) - 1}.{match[2]}", key)
        for old, new in names.items():
            own = own.replace(old, new)
        ours[own] = value
    check(tmp_path, "pyslowfast", theirs, ours, name="x3d_m", model="x3d_m", frames=16, size=32)
    views = json.loads((tmp_path / "imported" / "model.json").read_text())["views"]
    assert (views["size"], views["stride"], views["crop_ratio"]) == (224, 5, 0.875)


def test_slowfast_of_the_zoo_is_a_caffe2_file(tmp_path: Path) -> None:
    state = filled(pyslowfast(16, 7))
    blobs: dict[str, Any] = {blob: value.numpy() for key, value in state.items() if (blob := caffe2(key))}
    blobs |= {"conv1_w_momentum": blobs["conv1_w"], "lr": np.float32([0.1]), "model_iter": np.int64([7])}
    file = tmp_path / "SLOWFAST_8x8_R50.pkl"
    file.write_bytes(pickle.dumps({"blobs": blobs, "cfg": "…"}, protocol=2))
    report = import_checkpoint(file, tmp_path / "out", source="pyslowfast", labels=LABELS, overrides=NARROW)
    assert report.name == "slowfast_resnet50_8x8"
    assert set(report.harmless) == {"conv1_w_momentum", "lr", "model_iter"}
    found = clipwise.load(tmp_path / "out", device="cpu").model.state_dict()
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(found[slowfast_own(key)], value), key


def test_mmaction2_slowfast_of_another_kind_is_refused(tmp_path: Path) -> None:
    state = filled(pyslowfast(16, 5))
    theirs = {mmaction2_slowfast(key): value for key, value in state.items()}
    plain = {key: value for key, value in theirs.items() if "_lateral.bn" not in key}
    with pytest.raises(ValueError, match="lateral_norm"):
        import_checkpoint(write(plain, tmp_path), tmp_path / "out", source="mmaction2", labels=LABELS)


def ibm_tam(canonical: dict[str, Tensor], modules: dict[str, int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """IBM's state dict and ours; `modules` are the names of the aggregation modules with their channels."""
    theirs, ours = dict(canonical), dict(canonical)
    for name, channels in modules.items():
        taps = {part: torch.randn(channels, 1, 1, 1) for part in ("prev", "next", "curr")}
        theirs |= {f"{name}.{part}_se.fc1.weight": tap for part, tap in taps.items()}
        ours[f"{name}.conv.weight"] = torch.stack([taps[part][:, :, 0, 0] for part in ("prev", "curr", "next")], dim=2)
    return {f"module.{key}": value for key, value in theirs.items()}, ours


@pytest.mark.parametrize("tam", [True, False])
@pytest.mark.parametrize("depth", [18, 50])
def test_ibm_resnet(depth: int, tam: bool, tmp_path: Path) -> None:
    image = filled(resnet(depth, 16))
    first = {key.rsplit(".", 2)[0]: value.shape[1] for key, value in image.items() if ".0.conv1.w" in key}
    rest = {key.rsplit(".", 2)[0]: value.shape[1] for key, value in image.items() if ".conv1.weight" in key}
    modules = {f"{block}.tam": channels for block, channels in {**rest, **first}.items() if block} if tam else {}
    theirs, ours = ibm_tam(image, modules)
    with pytest.raises(ValueError, match=r"without_t_stride.*--set model\.options\.temporal_pooling"):
        check(tmp_path, "ibm", theirs, ours, name="", frames=8, overrides=NARROW)
    pooling = (*NARROW, "model.options.temporal_pooling=average")
    name = f"{'tam' if tam else 'tsn'}_resnet{depth}"
    report = check(tmp_path, "ibm", theirs, ours, name=name, frames=16, overrides=pooling, num_frames=16)
    assert len(report.derived) == len(modules)


def test_ibm_inception(tmp_path: Path) -> None:
    out = {"1": 64, "2": 64, "3": 192} | {
        name: one + two + three + pool for name, (_, one, _, two, _, three, pool) in INCEPTION.items()
    }
    theirs, ours = ibm_tam(filled(googlenet()), {f"tam{name}": channels for name, channels in out.items()})
    no_pooling = ("model.options.temporal_pooling=false",)
    check(tmp_path, "ibm", theirs, ours, name="tam_inception_v1", frames=8, overrides=no_pooling)
    views = json.loads((tmp_path / "imported" / "model.json").read_text())["views"]
    assert views["mean"] == views["std"] == [0.5] * 3


def in_three_dimensions(separated: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """IBM's I3D or S3D on ResNet-18, 16 wide."""
    for key, shape in resnet(18, 16):
        if len(shape) != 4:
            yield key, shape
            continue
        split = separated and shape[-1] == 3
        yield key, (*shape[:2], 1 if split or shape[-1] == 1 else 3, *shape[2:])
        if split:
            yield from conv(key.replace(".weight", "_t"), shape[0], shape[0], 3, 1, 1)
            yield from bn(key.removesuffix(".weight").replace("conv", "bn") + "_t", shape[0])


def inception_in_three_dimensions(separated: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """IBM's I3D or S3D on Inception-v1."""
    for name, into, out, size in inception_layers():
        split = separated and size == 3
        frames = 1 if split else (min(size, 3) if separated else size)
        yield from conv(f"{name}.conv", out, into, frames, size, size)
        yield from bn(f"{name}.bn", out)
        if split:
            yield from conv(f"{name}.conv_t", out, out, 3, 1, 1)
            yield f"{name}.conv_t.bias", (out,)
            yield from bn(f"{name}.bn_t", out)
    yield from fc("fc", 1024)


@pytest.mark.parametrize("separated", [False, True])
def test_ibm_3d(separated: bool, tmp_path: Path) -> None:
    module = "s3d" if separated else "i3d"
    pooling = ("model.options.temporal_pooling=true",)
    (tmp_path / "resnet").mkdir()
    ours = filled(in_three_dimensions(separated))
    theirs = {f"module.{key}": value for key, value in ours.items()}
    check(tmp_path / "resnet", "ibm", theirs, ours, name=f"{module}_resnet18", frames=8, overrides=(*NARROW, *pooling))
    ours = filled(inception_in_three_dimensions(separated))
    theirs = {f"module.{key}": value for key, value in ours.items()}
    report = check(tmp_path, "ibm", theirs, ours, name=f"{module}_inception_v1", frames=8, overrides=pooling)
    assert report.options.get("last_pool") == (None if separated else "padded")


def test_torchvision_image_networks(tmp_path: Path) -> None:
    for index, (names, name) in enumerate(
        ((resnet(18), "tsn_resnet18"), (googlenet(), "tsn_inception_v1"), (mobilenet(), "tsn_mobilenet_v2"))
    ):
        theirs = filled(names)
        ours = {key.replace("classifier.1.", "fc."): value for key, value in theirs.items()}
        if name == "tsn_inception_v1":
            theirs["aux1.conv.conv.weight"], theirs["aux2.fc2.bias"] = torch.ones(128, 512, 1, 1), torch.ones(1000)
        folder = tmp_path / str(index)
        folder.mkdir()
        report = check(folder, "torchvision", theirs, ours, name=name, frames=8, size=32)
        assert bool(report.harmless) == (name == "tsn_inception_v1")


def torchvision_resnet3d(kind: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    if kind == "r2plus1d_18":
        for index, shape in ((0, (45, 3, 1, 7, 7)), (3, (64, 45, 3, 1, 1))):
            yield from conv(f"stem.{index}", *shape)
            yield from bn(f"stem.{index + 1}", shape[0])
    else:
        yield from conv("stem.0", 64, 3, 3, 7, 7)
        yield from bn("stem.1", 64)
    channels = 64
    for stage in range(4):
        width = 64 * 2**stage
        for index in range(2):
            block = f"layer{stage + 1}.{index}"
            middle = (channels * width * 27) // (channels * 9 + 3 * width)
            for number, into in ((1, channels), (2, width)):
                name = f"{block}.conv{number}"
                if kind == "r2plus1d_18":
                    yield from conv(f"{name}.0.0", middle, into, 1, 3, 3)
                    yield from bn(f"{name}.0.1", middle)
                    yield from conv(f"{name}.0.3", width, middle, 3, 1, 1)
                else:
                    yield from conv(f"{name}.0", width, into, 1 if kind == "mc3_18" and stage else 3, 3, 3)
                yield from bn(f"{name}.1", width)
            if stage and index == 0:
                yield from conv(f"{block}.downsample.0", width, channels, 1, 1, 1)
                yield from bn(f"{block}.downsample.1", width)
            channels = width
    yield from fc("fc", 512)


def torchvision_s3d() -> Iterator[tuple[str, tuple[int, ...]]]:
    def unit(name: str, out: int, into: int, *size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from conv(f"{name}.0", out, into, *size)
        yield from bn(f"{name}.1", out)

    def pair(name: str, out: int, into: int, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from unit(f"{name}.0", out, into, 1, size, size)
        yield from unit(f"{name}.1", out, out, size, 1, 1)

    yield from pair("features.0", 64, 3, 7)
    yield from unit("features.2", 64, 64, 1, 1, 1)
    yield from pair("features.3", 192, 64, 3)
    places = (5, 6, 8, 9, 10, 11, 12, 14, 15)
    for place, (into, one, reduce_2, two, reduce_3, three, pool) in zip(places, INCEPTION.values(), strict=True):
        block = f"features.{place}"
        yield from unit(f"{block}.branch0", one, into, 1, 1, 1)
        yield from unit(f"{block}.branch1.0", reduce_2, into, 1, 1, 1)
        yield from pair(f"{block}.branch1.1", two, reduce_2, 3)
        yield from unit(f"{block}.branch2.0", reduce_3, into, 1, 1, 1)
        yield from pair(f"{block}.branch2.1", three, reduce_3, 3)
        yield from unit(f"{block}.branch3.1", pool, into, 1, 1, 1)
    yield "classifier.1.weight", (CLASSES, 1024, 1, 1, 1)
    yield "classifier.1.bias", (CLASSES,)


@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18", "s3d_torchvision"])
def test_torchvision_video_networks(name: str, tmp_path: Path) -> None:
    theirs = filled(torchvision_s3d() if name == "s3d_torchvision" else torchvision_resnet3d(name))
    ours = {key.replace("classifier.1.", "fc."): value for key, value in theirs.items()}
    check(tmp_path, "torchvision", theirs, ours, name=name, frames=16, num_frames=16, size=32)


@pytest.mark.parametrize("name", ["resnet18", "video.r3d_18", "video.mc3_18", "video.r2plus1d_18", "video.s3d"])
def test_torchvision_gives_what_the_imported_folder_gives(name: str, tmp_path: Path) -> None:
    models: Any = pytest.importorskip("torchvision.models")
    for part in name.split("."):
        models = getattr(models, part)
    network: nn.Module = models(num_classes=CLASSES).eval()
    frames = 2 if name == "resnet18" else 16
    import_checkpoint(
        write(network.state_dict(), tmp_path), tmp_path / "out", source="torchvision", labels=LABELS, num_frames=frames
    )
    ours = clipwise.load(tmp_path / "out", device="cpu").model
    clips = torch.randn(1, frames, 3, 224, 224)
    with torch.inference_mode():
        theirs = network(clips[0]).mean(0, keepdim=True) if name == "resnet18" else network(clips.transpose(1, 2))
        torch.testing.assert_close(ours(clips), theirs, rtol=1e-4, atol=1e-5)


# --- DeepMind's I3D ---------------------------------------------------------------------------------------------------


def test_the_published_i3d_answers_as_published(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Imported and asked through the command line: the middle 64 frames, the centre 224 of 256 pixels."""
    file = shared / "weights" / "i3d_inception_v1_kinetics400.safetensors"
    labels = shared / "reference" / "labels" / "kinetics400.txt"
    assert run("models", "import", file, "--from", "deepmind-i3d", "--labels", labels, "-o", tmp_path / "i3d") == 0
    printed = capsys.readouterr().out
    assert "missing in the file:          none" in printed
    assert "left over in the file:        none" in printed
    card = json.loads((tmp_path / "i3d" / "model.json").read_text())
    assert card["views"]["mean"] == card["views"]["std"] == [0.5] * 3
    published = {
        "v_SoccerJuggling_g23_c01.avi": ("juggling soccer ball", 0.999),
        "hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi": ("cartwheeling", 0.88),
        "R6llTwEh07w.mp4": ("using segway", 1.0),
    }
    assert run("predict", tmp_path / "i3d", *(shared / "data/clips" / name for name in published), "--json") == 0
    for line in capsys.readouterr().out.splitlines():
        answer = json.loads(line)
        label, probability = published.pop(Path(answer["video"]).name)
        assert answer["top"][0]["label"] == label
        assert answer["top"][0]["score"] == pytest.approx(probability, abs=0.02)
    assert not published


def run(*arguments: object) -> int:
    """The command line's exit status."""
    before, sys.argv = sys.argv, ["clipwise", *map(str, arguments)]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


def deepmind(channels_last: bool) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Layer in DeepMind's spelling, kind of tensor, shape."""
    parts = ("Branch_0/Conv3d_0a_1x1", "Branch_1/Conv3d_0a_1x1", "Branch_1/Conv3d_0b_3x3")
    parts += ("Branch_2/Conv3d_0a_1x1", "Branch_2/Conv3d_0b_3x3", "Branch_3/Conv3d_0b_1x1")
    layers = [("Conv3d_1a_7x7", 3, 64, 7), ("Conv3d_2b_1x1", 64, 64, 1), ("Conv3d_2c_3x3", 64, 192, 3)]
    blocks = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
    inner = list(inception_layers())[3:]
    for index, block in enumerate(blocks):
        for part, (_, into, out, size) in zip(parts, inner[6 * index : 6 * index + 6], strict=True):
            # TensorFlow's checkpoint has this one layer under another name.
            part = part.replace("0b", "0a") if (block, part) == ("5b", parts[4]) and channels_last else part
            layers.append((f"Mixed_{block}/{part}", into, out, size))
    for layer, into, out, size in layers:
        yield layer, "kernel", (size, size, size, into, out) if channels_last else (out, into, size, size, size)
        for kind in ("beta", "mean", "variance"):
            yield layer, kind, (1, 1, 1, 1, out) if channels_last else (out,)
    yield "Logits/Conv3d_0c_1x1", "kernel", (1, 1, 1, 1024, CLASSES) if channels_last else (CLASSES, 1024, 1, 1, 1)
    yield "Logits/Conv3d_0c_1x1", "bias", (CLASSES,)


def test_i3d_in_tensorflow_s_form_and_in_the_port_s(tmp_path: Path) -> None:
    values = {(layer, kind): torch.rand(shape) for layer, kind, shape in deepmind(True)}
    tensorflow = {
        "kernel": "conv_3d/w", "bias": "conv_3d/b",
        "beta": "batch_norm/beta", "mean": "batch_norm/moving_mean", "variance": "batch_norm/moving_variance",
    }  # fmt: skip
    arrays = {f"RGB/inception_i3d/{layer}/{tensorflow[kind]}": v.numpy() for (layer, kind), v in values.items()}
    np.savez(tmp_path / "tf.npz", **arrays)
    import_checkpoint(tmp_path / "tf.npz", tmp_path / "tf", source="deepmind-i3d", labels=LABELS)

    port = {"kernel": "conv3d.weight", "bias": "conv3d.bias", "beta": "bn.bias", "mean": "bn.running_mean"}
    port["variance"] = "bn.running_var"
    letters = {"Branch_0/Conv3d_0a_1x1": "b0", "Branch_1/Conv3d_0a_1x1": "b1a", "Branch_1/Conv3d_0b_3x3": "b1b"}
    letters |= {"Branch_2/Conv3d_0a_1x1": "b2a", "Branch_2/Conv3d_0b_3x3": "b2b", "Branch_2/Conv3d_0a_3x3": "b2b"}
    letters |= {"Branch_3/Conv3d_0b_1x1": "b3b", "Logits/Conv3d_0c_1x1": "logits"}
    state = {}
    for (layer, kind), value in values.items():
        block, _, part = layer.partition("/")
        name = "logits" if block == "Logits" else f"{block}.{letters[part]}" if part else block
        state[f"{name}.{port[kind]}"] = value.permute(4, 3, 0, 1, 2) if kind == "kernel" else value.flatten()
        if kind == "beta":
            state[f"{name}.bn.weight"] = torch.ones(value.numel())
    report = import_checkpoint(write(state, tmp_path), tmp_path / "port", source="deepmind-i3d", labels=LABELS)
    assert {key.rsplit(".", 2)[-2:][0] for key in report.harmless} == {"bn"}

    one, other = (clipwise.load(tmp_path / name, device="cpu").model.state_dict() for name in ("tf", "port"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    kernel = values["Mixed_5b/Branch_2/Conv3d_0a_3x3", "kernel"]
    assert torch.equal(one["inception5a.branch3.1.conv.weight"][3, 5], kernel[..., 5, 3])
    assert torch.equal(one["fc.weight"], values["Logits/Conv3d_0c_1x1", "kernel"][0, 0, 0].T)

    state["Mixed_3b.b0.bn.weight"] = torch.full((64,), 2.0)
    with pytest.raises(ValueError, match=r"left over in the file:\s+Mixed_3b.b0.bn.weight\n"):
        import_checkpoint(write(state, tmp_path), tmp_path / "no", source="deepmind-i3d", labels=LABELS)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> dict[str, Tensor]:
    """A TSM checkpoint."""
    return {mit(key, shift=True): value for key, value in filled(resnet(18, 16)).items()}


def refused(state: dict[str, Tensor], folder: Path, match: str, **arguments: Any) -> None:
    arguments = {"source": "tsm", "labels": LABELS, "overrides": NARROW} | arguments
    with pytest.raises(ValueError, match=match):
        import_checkpoint(write(state, folder), folder / "out", **arguments)
    assert not (folder / "out").exists()
    assert [entry.name for entry in folder.iterdir()] == ["theirs.pth"], "nothing half-written stays"


def test_what_is_missing_left_over_or_reshaped_is_named_and_nothing_written(
    small: dict[str, Tensor], tmp_path: Path
) -> None:
    lacking = {key: value for key, value in small.items() if "layer3.1.bn2.running_var" not in key}
    refused(lacking, tmp_path, r"missing in the file: +layer\*\.\*\.bn2\.running_var")
    refused(
        {**small, "module.base_model.layer2.0.nl.g.weight": torch.ones(2)}, tmp_path, r"left over in the file: +.*nl"
    )
    key = "module.base_model.conv1.weight"  # optical flow: ten channels
    refused({**small, key: torch.ones(16, 10, 7, 7)}, tmp_path, r"\(16, 10, 7, 7\) for conv1.weight \(16, 3, 7, 7\)")
    refused({k: v for k, v in small.items() if "new_fc" not in k}, tmp_path, "no classifier")
    refused({f"encoder.{key}": value for key, value in small.items()}, tmp_path, "none of tsm's networks.*--model")
    refused(small, tmp_path, "none of tanet's networks.*another project's: --from tsm", source="tanet")
    key = "module.base_model.layer1.0.bn1.running_mean"
    refused({**small, key: small[key] / 0}, tmp_path, r"with NaN or infinite values for layer1.0.bn1.running_mean")
    refused({**small, key: small[key].int()}, tmp_path, "of torch.int32 for layer1.0.bn1")
    refused({**small, key: small[key].to_sparse()}, tmp_path, "is sparse")
    taps = {f"layer1.0.tam.{part}_se.fc1.weight": torch.ones(2) for part in ("prev", "curr", "next")}
    refused(taps, tmp_path, "other shapes than ibm's", source="ibm")
    # Batch counters alone may be absent.
    few = {key: value for key, value in small.items() if not key.endswith("num_batches_tracked")}
    assert import_checkpoint(
        write(few, tmp_path), tmp_path / "out", source="tsm", labels=LABELS, overrides=NARROW
    ).complete


def test_labels_must_be_as_many_as_classes(small: dict[str, Tensor], tmp_path: Path) -> None:
    refused(small, tmp_path, "6 classes, the list of labels 5.*--labels", labels=LABELS[:5])
    refused(small, tmp_path, "6 classes, no list of labels was given", labels=None)


def test_wrong_arguments_say_what_to_do(small: dict[str, Tensor], tmp_path: Path) -> None:
    refused(small, tmp_path, "no source 'timm'; there are tsm, mmaction2", source="timm")
    refused(small, tmp_path, "only model.options.… and views.… can be set", overrides=["training.lr=1"])
    refused(small, tmp_path, "has no option depth", overrides=["model.options.depth=1"])
    refused(small, tmp_path, "near it", name="tsm_resnet51")
    refused(small, tmp_path, r"missing in the file.*\n.*\n.*\n.*the keys look like tsm_resnet18's", name="tam_resnet18")
    x3d = {"s1.pathway0_stem.conv_xy.weight": torch.ones(24, 3, 1, 3, 3), "head.projection.bias": torch.ones(CLASSES)}
    x3d |= {f"s2.pathway0_res{index}.branch2.a.weight": torch.ones(54, 24, 1, 1, 1) for index in range(3)}
    refused(x3d, tmp_path, "--model x3d_s or x3d_m", source="pyslowfast")


def test_an_existing_folder_is_kept(small: dict[str, Tensor], tmp_path: Path) -> None:
    file, out = write(small, tmp_path), tmp_path / "out"

    def again(**arguments: Any) -> None:
        import_checkpoint(file, out, source="tsm", labels=LABELS, overrides=NARROW, **arguments)

    again()
    with pytest.raises(ValueError, match="--overwrite replaces"):
        again()
    again(overwrite=True, num_frames=4)
    assert clipwise.load(out, device="cpu").num_frames == 4
    assert sorted(entry.name for entry in out.iterdir()) == ["import.json", "last.safetensors", "model.json"]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes.txt, which no import wrote.*--output"):
        again(overwrite=True)
    assert (out / "notes.txt").exists()


def test_into_the_folder_where_one_is(
    small: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(small, tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    import_checkpoint(file, ".", source="tsm", labels=LABELS, overrides=NARROW)
    assert clipwise.load(".", device="cpu").num_frames == 8


def test_a_write_that_fails_leaves_nothing(
    small: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    file = write(small, tmp_path)
    monkeypatch.setattr("clipwise.models.importing.write_weights", full)
    with pytest.raises(OSError, match="no space"):
        import_checkpoint(file, tmp_path / "out", source="tsm", labels=LABELS, overrides=NARROW)
    assert [entry.name for entry in tmp_path.iterdir()] == ["theirs.pth"]


# --- reading without running ------------------------------------------------------------------------------------------


class Evil:
    """Unpickled, it would make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["theirs.pth", "theirs.pkl"])
def test_a_pickle_that_would_run_code_is_refused(name: str, small: dict[str, Tensor], tmp_path: Path) -> None:
    mark = tmp_path / "was_run"
    for index, content in enumerate(({"state_dict": small, "epoch": Evil(mark)}, {"blobs": Evil(mark)})):
        file = tmp_path / f"{index}_{name}"
        if index == 0:
            torch.save(content, file)
        else:
            file.write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(ValueError, match=r"refused|not a readable"):
            import_checkpoint(file, tmp_path / "out", source="tsm", labels=LABELS)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists(), "the danger is real"


class Forged:
    """Unpickled, an array whose eight bytes NumPy takes for the address of an object."""

    def __reduce__(self) -> Any:
        reconstruct = np.empty(0).__reduce__()[0]
        return reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), ForgedKind(), False, b"A" * 8)


class ForgedKind:
    def __reduce__(self) -> Any:
        fields = {"a": (PlainObject(), 0)}
        return np.dtype, ("V8", False, True), (3, "|", None, ("a",), fields, 8, 1, 0)


class PlainObject:
    def __reduce__(self) -> Any:
        return np.dtype, ("O8",)


@pytest.mark.parametrize("name", ["theirs.pth", "theirs.pkl"])
def test_no_pickle_makes_an_array_of_forged_addresses(name: str, small: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / name
    if name.endswith("pth"):
        torch.save({"state_dict": small, "best": Forged()}, file)
        assert read_weight_file(file).tensors.keys() == small.keys()
        assert not isinstance(files._pytorch(file)["best"], np.ndarray)
    else:
        file.write_bytes(pickle.dumps({"blobs": {"w": Forged()}}, protocol=2))
        with pytest.raises(ValueError, match=r"refused|not a readable"):
            read_weight_file(file)


def test_what_frameworks_put_beside_the_weights_is_let_through(small: dict[str, Tensor], tmp_path: Path) -> None:
    # MMEngine's buffer refers to its own methods in what it pickles.
    module = types.ModuleType("mmengine.logging.history_buffer")
    source = """
class HistoryBuffer:
    def mean(self): raise RuntimeError("was run")
    def __getstate__(self): return {**self.__dict__, "statistics_methods": {"mean": HistoryBuffer.mean}}
    def __setstate__(self, state): raise RuntimeError("was run")
"""
    exec(source, module.__dict__)
    module.HistoryBuffer.__module__ = module.__name__
    parents = {name: types.ModuleType(name) for name in ("mmengine", "mmengine.logging")}
    buffer = module.HistoryBuffer()
    buffer._log_history = np.array([0.5, 0.25])
    file = tmp_path / "epoch_50.pth"
    sys.modules.update({**parents, module.__name__: module})
    try:
        hub = {"log_scalars": {"train/loss": buffer}, "best": np.float64(61.2)}
        torch.save({"state_dict": small, "message_hub": hub, "optimizer": {}}, file)
    finally:
        for name in (*parents, module.__name__):
            del sys.modules[name]
    content = read_weight_file(file)
    assert content.beside == ("message_hub", "optimizer")
    assert content.tensors.keys() == small.keys()
    report = import_checkpoint(file, tmp_path / "out", source="tsm", labels=LABELS, overrides=NARROW)
    assert "beside the weights, not read: message_hub, optimizer" in str(report)


def test_objects_in_a_numpy_archive_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", allow_pickle=True, w=np.array([Evil(tmp_path / "was_run")], dtype=object))
    with pytest.raises(ValueError, match="plain arrays"):
        read_weight_file(tmp_path / "a.npz")
    assert not (tmp_path / "was_run").exists()


def test_half_precision_becomes_single_and_the_account_says_where_it_came_from(
    small: dict[str, Tensor], tmp_path: Path
) -> None:
    half = {key: value.half() if value.is_floating_point() else value for key, value in small.items()}
    save_file(half, tmp_path / "half.safetensors")
    import_checkpoint(tmp_path / "half.safetensors", tmp_path / "out", source="tsm", labels=LABELS, overrides=NARROW)
    model = clipwise.load(tmp_path / "out", device="cpu").model
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    account = json.loads((tmp_path / "out" / "import.json").read_text())
    assert account["from"] == "tsm"
    assert "mit-han-lab" in account["origin"]
    assert len(account["sha256"]) == 64


def test_help_names_every_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "import", "--help") == 0
    printed = capsys.readouterr().out
    assert all(source in printed for source in SOURCES)
    assert "unverified" in printed
    assert {source.value for source in import_weights.Source} == set(SOURCES)
