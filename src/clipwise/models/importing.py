"""Other projects' checkpoints → a folder that ``clipwise predict`` and ``clipwise.load`` take.

The file is read without running code that it brings (``files.py``), its keys are renamed by the map of the project it
comes from, the network is recognised by the renamed keys, and every tensor must then find its place: anything missing,
left over or of another shape is refused, but for what is known to be of no consequence and is named.

Maps for one network stand beside it (``temporal/tam.py``, ``slowfast.py``, ``x3d.py``, ``deepmind_i3d.py``); below are
those for the way a project writes any of its networks. A map takes a state dict and returns one under our keys, in
which a key without counterpart keeps its name. Where the names were looked up stands in :data:`SOURCES`.
"""

import dataclasses
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from clipwise.checkpoint import command_line, versions, write_card, write_weights
from clipwise.config import ModelConfig, ViewsConfig, load_config, override_views
from clipwise.files import file_sha256, write_json
from clipwise.models import slowfast, x3d
from clipwise.models.deepmind_i3d import from_deepmind
from clipwise.models.files import read_weight_file
from clipwise.models.network import VideoNetwork
from clipwise.models.registry import create_model, model_entry
from clipwise.models.temporal.tam import from_ibm
from clipwise.models.weights import grouped

__all__ = ["SOURCES", "ImportReport", "import_checkpoint"]

State = dict[str, Tensor]

_ENTRY = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_ACCOUNT = "import.json"
_OWN_FILES = {"model.json", "last.safetensors", _ACCOUNT}


@dataclass(frozen=True)
class _Recognised:
    """What the renamed keys say about the network."""

    name: str | None
    """None where several networks have these keys and shapes."""
    num_frames: int | None = None
    """Where the weights tell it."""
    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    undecided: dict[str, str] = field(default_factory=dict)
    """Options that weights do not show and the user must give, with the reason and the values."""


@dataclass(frozen=True)
class Source:
    """A project whose checkpoints can be imported."""

    networks: str
    origin: str
    """Where names and shapes were looked up: repository, commit, files."""
    rename: Callable[[State], State]
    recognise: Callable[[State, State], _Recognised | None]
    """(the file's state dict without wrappers, the renamed one) → the network."""
    harmless: str = r"(?!)"
    """Pattern of keys that may be left over, beside those of no consequence in any file."""


@dataclass(frozen=True)
class ImportReport:
    """What became of each tensor of a file and of a network."""

    matched: tuple[str, ...]
    """Keys that file and network share."""
    renamed: tuple[tuple[str, str], ...]
    """The file's key, the network's key."""
    derived: tuple[str, ...]
    """The network's keys whose tensor was made from the file's: turned, or put together from several."""
    missing: tuple[str, ...]
    """The network's keys that nothing in the file fills."""
    unfit: tuple[str, ...]
    """Keys whose tensors have another shape than the network's, or hold what no weight can be."""
    left: tuple[str, ...]
    """The file's keys that have no place in the network."""
    harmless: tuple[str, ...]
    """Likewise, but known to be of no consequence."""
    beside: tuple[str, ...] = ()
    """What the file holds besides weights, and was not looked at."""
    notes: tuple[str, ...] = ()
    file: str = ""
    sha256: str = ""
    name: str = ""
    num_frames: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all that matters found its place."""
        return not (self.missing or self.unfit or self.left)

    def __str__(self) -> str:
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        more = f" and {len(self.unfit) - 4} more" if len(self.unfit) > 4 else ""
        lines = [
            f"{self.file}: {self.name}, num_frames={self.num_frames}{options}",
            f"  {len(self.matched)} keys matched, {len(self.renamed)} renamed, {len(self.derived)} derived",
            f"  missing in the file:          {grouped(self.missing)}",
            *([f"  not fit for their place:      {', '.join(self.unfit[:4])}{more}"] if self.unfit else []),
            f"  left over in the file:        {grouped(self.left)}",
            f"  left over, no consequence:    {grouped(self.harmless)}",
            *([f"  beside the weights, not read: {', '.join(self.beside)}"] if self.beside else []),
            *(f"  note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


# --- the maps of whole projects ---------------------------------------------------------------------------------------


def _by_rules(state: State, *rules: tuple[str, str]) -> State:
    """Rename by the first rule whose pattern the whole key fits."""
    renamed = {}
    for key, value in state.items():
        new = key
        for pattern, template in rules:
            if match := re.fullmatch(pattern, key):
                new = match.expand(template)
                break
        if new in renamed:
            raise ValueError(f"{key} is one of several keys that would become {new}")
        renamed[new] = value
    return renamed


def _from_mit(state: State) -> State:
    """TSM's and TSN's: ``base_model.`` before the image network, ``.net`` where a shift wraps a convolution."""
    renamed = _by_rules(
        state,
        (rf"new_fc\.{_ENTRY}", r"fc.\1"),
        (rf"base_model\.(.+\.conv1)\.net\.{_ENTRY}", r"\1.\2"),
        (rf"base_model\.(features\.\d+\.conv\.0)\.net\.{_ENTRY}", r"\1.\2"),
        (r"base_model\.(.+)", r"\1"),
    )
    # MobileNetV2's block is one row of layers there, pairs of convolution and BN in torchvision.
    opening = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
    others = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}

    def in_block(key: str) -> str:
        match = re.fullmatch(rf"features\.(\d+)\.conv\.(\d)\.{_ENTRY}", key)
        places = opening if match and match[1] == "1" else others
        return f"features.{match[1]}.conv.{places[match[2]]}.{match[3]}" if match and match[2] in places else key

    return {in_block(key): value for key, value in renamed.items()}


_CONV_BN = {"conv": "0", "bn": "1"}
_MOBILE_STAGES = (1, 2, 3, 4, 3, 3, 1)


def _from_mmaction2(state: State) -> State:
    """``backbone.`` and ``cls_head.``; each convolution and its BN are a pair ``conv1.conv``, ``conv1.bn``."""
    if "backbone.conv1_s.conv.weight" in state:
        return x3d.from_mmaction2(state)
    if "backbone.conv2.conv.weight" in state:
        return {_mmaction2_mobilenet(key): value for key, value in state.items()}
    block = r"backbone\.(layer\d\.\d+\.)(?:block\.)?"
    renamed = _by_rules(
        state,
        (rf"cls_head\.fc_cls\.{_ENTRY}", r"fc.\1"),
        (rf"backbone\.conv1\.conv\.{_ENTRY}", r"conv1.\1"),
        (rf"backbone\.conv1\.bn\.{_ENTRY}", r"bn1.\1"),
        (rf"{block}conv(\d)\.conv\.(?:net2?\.)?{_ENTRY}", r"\1conv\2.\3"),
        (rf"{block}conv(\d)\.bn\.{_ENTRY}", r"\1bn\2.\3"),
        (rf"{block}downsample\.conv\.{_ENTRY}", r"\1downsample.0.\2"),
        (rf"{block}downsample\.bn\.{_ENTRY}", r"\1downsample.1.\2"),
        (r"backbone\.(layer\d\.\d+)\.tam\.([GL]\..+)", r"\1.tanet.\2"),
        (r"backbone\.(layer\d\.\d+)\.conv1\.conv\.net1\.(.+)", r"\1.tin.\2"),
    )
    return {_mmaction2_slowfast(key): value for key, value in renamed.items()}


def _mmaction2_mobilenet(key: str) -> str:
    if match := re.fullmatch(rf"backbone\.conv([12])\.(conv|bn)\.{_ENTRY}", key):
        return f"features.{0 if match[1] == '1' else 18}.{_CONV_BN[match[2]]}.{match[3]}"
    if match := re.fullmatch(rf"backbone\.layer(\d)\.(\d)\.conv\.(\d)\.(?:net\.)?(conv|bn)\.{_ENTRY}", key):
        stage, index, part, kind = int(match[1]), int(match[2]), int(match[3]), match[4]
        last = 1 if stage == 1 else 2
        # torchvision's last convolution of a block and its BN are no pair.
        place = f"{part}.{_CONV_BN[kind]}" if part < last else str(last + (kind == "bn"))
        return f"features.{1 + sum(_MOBILE_STAGES[: stage - 1]) + index}.conv.{place}.{match[5]}"
    return re.sub(r"^cls_head\.fc_cls\.", "fc.", key)


def _mmaction2_slowfast(key: str) -> str:
    if match := re.fullmatch(rf"backbone\.slow_path\.(conv1|layer\d)_lateral\.(conv|bn)\.{_ENTRY}", key):
        return f"laterals.{0 if match[1] == 'conv1' else match[1][-1]}.{match[2]}.{match[3]}"
    if match := re.fullmatch(rf"backbone\.(slow|fast)_path\.conv1\.(conv|bn)\.{_ENTRY}", key):
        return f"{match[1]}.stem.{match[2]}.{match[3]}"
    if match := re.fullmatch(
        rf"backbone\.(slow|fast)_path\.(layer\d\.\d+)\.(conv\d|downsample)\.(conv|bn)\.{_ENTRY}", key
    ):
        path, block, part, kind, entry = match.groups()
        place = f"downsample.{_CONV_BN[kind]}" if part == "downsample" else f"{kind}{part[-1]}"
        return f"{path}.{block}.{place}.{entry}"
    return key


def _from_pyslowfast(state: State) -> State:
    if "pred_w" in state:
        state = {_pyslowfast_name(key): value for key, value in state.items()}
    if any(key.startswith("blocks.") for key in state):
        return slowfast.from_pytorchvideo(state)
    own = x3d.from_pyslowfast if any("stem.conv_xy." in key for key in state) else slowfast.from_pyslowfast
    return own(state)


def _pyslowfast_name(blob: str) -> str:
    """Caffe2's name of a blob → PySlowFast's: ``t_res3_0_branch2b_bn_s`` → ``s3.pathway1_res0.branch2.b_bn.weight``."""
    kinds = {"w": "weight", "b": "bias", "bn_s": "weight", "bn_b": "bias", "bn_rm": "running_mean"}
    match = re.fullmatch(r"(.+?)_(w|b|bn_s|bn_b|bn_rm|bn_riv)", blob)
    if not match:
        return blob
    layer, bn, entry = match[1], match[2].startswith("bn"), kinds.get(match[2], "running_var")
    if layer == "pred":
        return f"head.projection.{entry}"
    if fuse := re.fullmatch(r"t_(?:pool1|res(\d)_\d+_branch2c_bn)_subsample", layer):
        return f"s{fuse[1] or 1}_fuse.{'bn' if bn else 'conv_f2s'}.{entry}"
    pathway, layer = ("1", layer[2:]) if layer.startswith("t_") else ("0", layer)
    if layer in ("conv1", "res_conv1"):
        return f"s1.pathway{pathway}_stem.{'bn' if bn else 'conv'}.{entry}"
    if block := re.fullmatch(r"res(\d)_(\d+)_branch(?:(1)|2([abc]))", layer):
        branch = "branch1" if block[3] else f"branch2.{block[4]}"
        return f"s{block[1]}.pathway{pathway}_res{block[2]}.{branch}{'_bn' if bn else ''}.{entry}"
    return blob


def _from_torchvision(state: State) -> State:
    return _by_rules(state, (rf"classifier\.1\.{_ENTRY}", r"fc.\1"))


def _from_deepmind(state: State) -> State:
    """DeepMind's own names, in a PyTorch file or in TensorFlow's form (*unverified*), and those of the best known port.

    TensorFlow's variables, ``RGB/inception_i3d/Mixed_3b/Branch_0/Conv3d_0a_1x1/conv_3d/w``, were read in others' code
    that lists them, not at their origin.
    """
    plain: State = {}
    for key, value in state.items():
        if match := re.fullmatch(r"(?:RGB/)?(?:inception_i3d/)?(.+)/(conv_3d|batch_norm)/(\w+)(?::0)?", key):
            layer = match[1].replace("/", ".")
            entries = {
                "conv_3d": {"w": "conv.weight", "b": "conv.bias"},
                "batch_norm": {
                    "beta": "bn.bias",
                    "moving_mean": "bn.running_mean",
                    "moving_variance": "bn.running_var",
                },
            }[match[2]]
            if match[3] in entries:
                # TensorFlow's kernels are (T, H, W, in, out), its statistics (1, 1, 1, 1, C).
                is_kernel = match[3] == "w" and value.ndim == 5
                plain[f"{layer}.{entries[match[3]]}"] = value.permute(4, 3, 0, 1, 2) if is_kernel else value.flatten()
                continue
        plain[key] = value
    branches = {
        "b0": "Branch_0.Conv3d_0a_1x1",
        "b1a": "Branch_1.Conv3d_0a_1x1",
        "b1b": "Branch_1.Conv3d_0b_3x3",
        "b2a": "Branch_2.Conv3d_0a_1x1",
        "b2b": "Branch_2.Conv3d_0b_3x3",
        "b3b": "Branch_3.Conv3d_0b_1x1",
    }
    named = {}
    for key, value in plain.items():
        key = key.replace(".conv3d.", ".conv.")
        key = re.sub(r"^logits\.", "Logits.Conv3d_0c_1x1.", key)
        key = re.sub(r"^(Mixed_\d[b-f])\.(b\d[ab]?)\.", lambda m: f"{m[1]}.{branches.get(m[2], m[2])}.", key)
        named[key.replace("Branch_2.Conv3d_0a_3x3.", "Branch_2.Conv3d_0b_3x3.")] = value  # one misnamed layer of theirs
    return from_deepmind(named)


def _from_tanet(state: State) -> State:
    return _by_rules(
        state,
        (rf"new_fc\.{_ENTRY}", r"fc.\1"),
        (r"base_model\.(layer\d\.\d+)\.net\.(.+)", r"\1.\2"),
        (r"base_model\.(layer\d\.\d+)\.tam\.(.+)", r"\1.tanet.\2"),
        (r"base_model\.(.+)", r"\1"),
    )


# --- which network it is ----------------------------------------------------------------------------------------------


def _resnet_depth(state: State) -> int | None:
    """18 … 152, by the blocks of each stage and their kind."""
    counts = tuple(
        len({match[1] for key in state if (match := re.match(rf"layer{stage}\.(\d+)\.", key))}) for stage in range(1, 5)
    )
    bottleneck = "layer1.0.conv3.weight" in state
    known: dict[tuple[int, ...], tuple[int | None, int | None]] = {
        (2, 2, 2, 2): (18, None),
        (3, 4, 6, 3): (34, 50),
        (3, 4, 23, 3): (None, 101),
        (3, 8, 36, 3): (None, 152),
    }
    return known.get(counts, (None, None))[bottleneck]


_FRAMES_NOT_TOLD = "the weights do not tell the number of frames; --num-frames says it where it is another"


def _recognise_2d(file: State, state: State) -> _Recognised | None:
    """TSN and TSM on ResNets and MobileNetV2; a shift shows in the names of the convolutions it wraps."""
    shifted = {match[1] for key in file if (match := re.search(r"(layer\d\.\d+|features\.\d+)\..*\bnet\.", key))}
    notes = (_FRAMES_NOT_TOLD,) if shifted else ()
    module = "tsm" if shifted else "tsn"
    if "features.18.0.weight" in state:
        return _Recognised(f"{module}_mobilenet_v2", notes=notes)
    depth = _resnet_depth(state)
    kernel = state.get("conv1.weight")
    if depth is None or kernel is None or kernel.ndim != 4:
        return None
    options: dict[str, Any] = {}
    blocks = {match[1] for key in state if (match := re.match(r"(layer\d\.\d+)\.", key))}
    if shifted:
        every_other = {block for block in blocks if int(block.rsplit(".")[-1]) % 2 == 0}
        if shifted not in (blocks, every_other):
            raise ValueError(
                "a shift is neither in all residual blocks nor in every other: Clipwise has no such network"
            )
        placement = "all" if shifted == blocks else "alternate"
        if placement != ("alternate" if depth >= 101 else "all"):  # what the network has of itself
            options["placement"] = placement
    return _Recognised(f"{module}_resnet{depth}", options=options, notes=notes)


def _recognise_mmaction2(file: State, state: State) -> _Recognised | None:
    if "slow.stem.conv.weight" in state:
        if "laterals.0.bn.weight" not in state:
            raise ValueError(
                "MMAction2's SlowFast has lateral connections without normalisation and ReLU unless it was trained "
                "with lateral_norm=True; that is another network than the paper's, which Clipwise does not have. "
                "PySlowFast's files can be imported"
            )
        note = "MMAction2 takes the slow pathway's frames at 0, α, 2α …, Clipwise (as PySlowFast) spread to the last"
        found = _recognise_slowfast(state)
        return found and dataclasses.replace(found, notes=(*found.notes, note))
    if "stem.conv_xy.weight" in state:
        return _recognise_x3d(state)
    for module in ("tanet", "tin"):
        sizes = {"tanet": "layer1.0.tanet.G.0.weight", "tin": "layer1.0.tin.offset_net.fc1.weight"}
        if (linear := state.get(sizes[module])) is not None and (depth := _resnet_depth(state)):
            return _Recognised(f"{module}_resnet{depth}", num_frames=linear.shape[1])
    if any(key.startswith("backbone.layer") and ".conv.0." in key for key in file):
        shifted = any(".net." in key for key in file)
        name = f"{'tsm' if shifted else 'tsn'}_mobilenet_v2"
        return _Recognised(name, notes=(_FRAMES_NOT_TOLD,) if shifted else ())
    return _recognise_2d(file, state)


def _recognise_ibm(file: State, state: State) -> _Recognised | None:
    pooling = {
        "temporal_pooling": "IBM's networks pool over time unless they were trained with --without_t_stride, which "
        "weights do not show: false, true, or in 2D networks average"
    }
    notes = (_FRAMES_NOT_TOLD,)
    if (stem := state.get("conv1.conv.weight")) is not None:
        if stem.ndim == 4:
            return _Recognised(f"{_ibm_module(state)}_inception_v1", notes=notes, undecided=pooling)
        if "conv3.conv_t.weight" in state:
            return _Recognised("s3d_inception_v1", notes=notes, undecided=pooling)
        padded = (
            "the last max-pool is IBM's public code's, 3×3×3; most published counts are another's, last_pool=unpadded"
        )
        return _Recognised(
            "i3d_inception_v1", options={"last_pool": "padded"}, notes=(*notes, padded), undecided=pooling
        )
    stem, depth = state.get("conv1.weight"), _resnet_depth(state)
    if stem is None or depth is None:
        return None
    if stem.ndim == 5:
        separated = any("conv2_t." in key for key in state)
        return _Recognised(f"{'s3d' if separated else 'i3d'}_resnet{depth}", notes=notes, undecided=pooling)
    return _Recognised(f"{_ibm_module(state)}_resnet{depth}", notes=notes, undecided=pooling)


def _ibm_module(state: State) -> str:
    return "tam" if any(re.search(r"\btam\w*\.", key) for key in state) else "tsn"


def _recognise_slowfast(state: State) -> _Recognised | None:
    kernel = state.get("laterals.0.conv.weight")
    forms = {5: "4x16", 7: "8x8"}
    if kernel is None or kernel.ndim != 5 or kernel.shape[2] not in forms:
        return None
    return _Recognised(f"slowfast_resnet50_{forms[kernel.shape[2]]}", notes=(_FRAMES_NOT_TOLD,))


def _recognise_pyslowfast(file: State, state: State) -> _Recognised | None:
    if "laterals.0.conv.weight" in state:
        return _recognise_slowfast(state)
    return _recognise_x3d(state)


def _recognise_x3d(state: State) -> _Recognised | None:
    blocks = len({match[1] for key in state if (match := re.match(r"layer1\.(\d+)\.", key))})
    if "stem.conv_xy.weight" not in state or blocks not in (3, 5):
        return None
    if blocks == 5:
        return _Recognised("x3d_l")
    return _Recognised(None)  # X3D-S or X3D-M: one network, for other sizes and numbers of frames


def _recognise_torchvision(file: State, state: State) -> _Recognised | None:
    if (stem := state.get("stem.0.weight")) is not None:
        inner = state.get("layer2.0.conv1.0.weight")
        flat = inner is not None and inner.ndim == 5 and inner.shape[2] == 1
        name = "r2plus1d_18" if stem.shape[0] == 45 else "mc3_18" if flat else "r3d_18"
        return _Recognised(name, notes=(_AT_15,))
    if "features.0.0.0.weight" in state:
        return _Recognised("s3d_torchvision", notes=(_AT_15,))
    if "inception3a.branch1.conv.weight" in state:
        return _Recognised("tsn_inception_v1")
    return _recognise_2d({}, state)


_AT_15 = "torchvision samples 15 frames a second: stride 2 in a video of 30; --set views.stride=1 for one of 15"


def _recognise_deepmind(file: State, state: State) -> _Recognised | None:
    return _Recognised("i3d_deepmind") if "inception3a.branch1.conv.weight" in state else None


def _recognise_tanet(file: State, state: State) -> _Recognised | None:
    linear, depth = state.get("layer1.0.tanet.G.0.weight"), _resnet_depth(state)
    if linear is None or depth is None:
        return None
    return _Recognised(f"tanet_resnet{depth}", num_frames=linear.shape[1])


_DENSE = {
    "i3d_deepmind": 1,
    "r3d_18": 2,
    "mc3_18": 2,
    "r2plus1d_18": 2,
    "s3d_torchvision": 2,
    "slowfast_resnet50_4x16": 2,
    "slowfast_resnet50_8x8": 2,
    "x3d_s": 6,
    "x3d_m": 5,
    "x3d_l": 5,
}
"""Networks that take consecutive frames, with the stride of their training; the others' frames span the video."""


def _usual_views(name: str) -> dict[str, Any]:
    """One view of a video, as the network's authors crop, normalise and sample it; published tests average several."""
    entry = model_entry(name)
    views: dict[str, Any] = {"size": entry.size, "mean": entry.mean, "std": entry.std}
    if name in _DENSE:
        views |= {"sampling": "dense", "stride": _DENSE[name]}
    if name.startswith("slowfast"):
        views["crop_ratio"] = 1.0  # 256 of 256
    return views


SOURCES: dict[str, Source] = {
    "tsm": Source(
        "TSN and TSM on ResNet and MobileNetV2",
        "github.com/mit-han-lab/temporal-shift-module: ops/models.py at 51328c0, ops/temporal_shift.py at 4759ad8, "
        "archs/mobilenet_v2.py at d6da93d, main.py at 40bedbf",
        _from_mit,
        _recognise_2d,
    ),
    "mmaction2": Source(
        "TSN and TSM on ResNet and MobileNetV2, TANet, TIN, X3D, SlowFast with lateral_norm",
        "github.com/open-mmlab/mmaction2, mmaction/models/backbones: resnet.py at 017c449, resnet_tsm.py at 03ff3fc, "
        "tanet.py at 0a921fd, resnet_tin.py at 01e3c42, mobilenet_v2.py at 06c11e3, mobilenet_v2_tsm.py at a067e27, "
        "resnet3d_slowfast.py at 07517a2; heads/slowfast_head.py at 154f657",
        _from_mmaction2,
        _recognise_mmaction2,
        harmless=r"data_preprocessor\.(mean|std)",
    ),
    "ibm": Source(
        "TSN, TAM, I3D and S3D on ResNet and Inception-v1",
        "github.com/IBM/action-recognition-pytorch at c88e74b: models/twod_models/ resnet.py (628c30f), "
        "inception_v1.py, temporal_modeling.py; models/threed_models/ i3d.py, s3d.py, i3d_resnet.py, s3d_resnet.py",
        from_ibm,
        _recognise_ibm,
    ),
    "pyslowfast": Source(
        "SlowFast-R50 and X3D, the zoo's Caffe2 files and PyTorchVideo's SlowFast included",
        "github.com/facebookresearch/SlowFast: slowfast/models/video_model_builder.py at 00eb2b4, stem_helper.py at "
        "1739b74, resnet_helper.py at bac7b67; slowfast/utils/checkpoint.py at 058922e, c2_model_loading.py at "
        "31d2ea7. For X3D and PyTorchVideo see Clipwise's x3d.py and slowfast.py",
        _from_pyslowfast,
        _recognise_pyslowfast,
        # What PySlowFast's own reader of Caffe2 files passes over.
        harmless=r".*_momentum|lr|model_iter",
    ),
    "torchvision": Source(
        "ResNet, GoogLeNet and MobileNetV2 (frame by frame), R3D-18, MC3-18, R(2+1)D-18, S3D",
        "github.com/pytorch/vision, torchvision/models: resnet.py at f50e776, mobilenetv2.py at 0256d65, "
        "googlenet.py at 0413037, video/resnet.py at 0614eac, video/s3d.py at 0216591",
        _from_torchvision,
        _recognise_torchvision,
        harmless=r"aux[12]\..+",  # GoogLeNet's auxiliary heads, used in training only
    ),
    "deepmind-i3d": Source(
        "I3D on Inception-v1, RGB, as PyTorch's, safetensors or NumPy's .npz of the TensorFlow variables",
        "github.com/deepmind/kinetics-i3d, tf_v2/i3d.py at 50c8f19; github.com/piergiaj/pytorch-i3d, pytorch_i3d.py at "
        "b49fadf. Unverified: the variables' names in an .npz, read in others' code that lists them",
        _from_deepmind,
        _recognise_deepmind,
    ),
    "tanet": Source(
        "TANet on ResNet-50/101",
        "github.com/liu-zhy/temporal-adaptive-module at 84f6b79: ops/models.py, ops/temporal_module.py",
        _from_tanet,
        _recognise_tanet,
    ),
}


# --- the engine -------------------------------------------------------------------------------------------------------


def import_checkpoint(
    file: str | Path,
    output: str | Path,
    *,
    source: str,
    labels: Sequence[str] | None = None,
    name: str | None = None,
    num_frames: int | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> ImportReport:
    """Turn another project's checkpoint into a Clipwise folder, whole or not at all.

    Args:
        file: the checkpoint.
        output: the folder to write: ``model.json``, ``last.safetensors`` and the account ``import.json``.
        source: one of :data:`SOURCES`.
        labels: class names in the order of the head's outputs, which no such file tells.
        name: the network's registered name; recognised by the keys where None.
        num_frames: T; from the weights where they tell it, or else the network's usual number.
        overrides: what the weights do not show, such as ``model.options.temporal_pooling=true``, and what shall differ
            from the network's usual testing, such as ``views.clips=10``.
        overwrite: replace what an earlier import wrote into ``output``.

    Raises:
        ValueError: if the file cannot be read safely, is not recognised or does not fit whole; the message has the
            account. If the labels are not as many as the head's classes, or the output is in use.
    """
    if source not in SOURCES:
        raise ValueError(f"no source {source!r}; there are {', '.join(SOURCES)}")
    file, output = Path(file), Path(output)
    options, testing = _split(overrides)
    _check_output(output, overwrite)
    content = read_weight_file(file)
    state = _unwrapped(content.tensors)
    try:
        renamed = SOURCES[source].rename(state)
        found = SOURCES[source].recognise(state, renamed)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    except (IndexError, RuntimeError) as error:  # a map that joins or turns tensors of other shapes
        raise ValueError(f"{file}: some of its tensors have other shapes than {source}'s ({error})") from error
    name, found = _settle(file, source, found, name, options, state)
    frames = num_frames or found.num_frames or model_entry(name).num_frames
    classes = _class_count(file, renamed)
    if labels is None or len(labels) != classes:
        given = "no list of labels was given" if labels is None else f"the list of labels {len(labels)}"
        raise ValueError(
            f"{file}: its head has {classes} classes, {given}; give the list that it was trained with (--labels), a "
            "text file with one class a line in the order of the outputs"
        )
    model = create_model(name, num_classes=classes, num_frames=frames, **found.options)
    values, report = _place(model, renamed, state, SOURCES[source].harmless)
    report = dataclasses.replace(
        report,
        file=str(file),
        sha256=file_sha256(file),
        name=name,
        num_frames=frames,
        options=found.options,
        beside=content.beside,
        notes=found.notes,
    )
    if not report.complete:
        raise ValueError(f"{report}\nnothing was written: the file is not whole, or another network's than {name}")
    model.load_state_dict(values)
    protocol = override_views(ViewsConfig(**_usual_views(name)), testing)
    config = ModelConfig(name=name, num_frames=frames, weights=None, options=found.options)
    _write(output, model, config, labels, protocol, report, source)
    return report


def _split(overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Overrides → the model's options, and those that concern the views."""
    testing = [override for override in overrides if override.startswith("views.")]
    options = [override for override in overrides if override.startswith("model.options.")]
    if other := [override for override in overrides if override not in testing + options]:
        raise ValueError(f"only model.options.… and views.… can be set in an import, got {other[0]!r}")
    return load_config(overrides=options).model.options, testing


def _unwrapped(state: State) -> State:
    """Without the prefixes of data-parallel and compiled modules; each value an object of its own, even a tied one."""
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", key): value.detach() for key, value in state.items()}


def _settle(
    file: Path, source: str, found: _Recognised | None, name: str | None, options: Mapping[str, Any], state: State
) -> tuple[str, _Recognised]:
    """The network's name, and what was recognised with what the user says.

    Raises:
        ValueError: if the network is unknown, or the user has to decide something.
    """
    if found is None and name is None:
        begin = ", ".join(list(state)[:3])
        others = " or ".join(f"--from {other}" for other in SOURCES if _would_recognise(other, state))
        raise ValueError(
            f"{file}: none of {source}'s networks ({SOURCES[source].networks}) was recognised; its keys begin {begin}. "
            + (f"They look like another project's: {others}" if others else "If you know it, name it with --model")
        )
    if found is None:
        found = _Recognised(name)
    elif found.name and name and found.name != name:
        found = _Recognised(name, notes=(f"the keys look like {found.name}'s; --model says {name}",))
    chosen = name or found.name
    if chosen is None:
        raise ValueError(f"{file}: X3D-S and X3D-M have the same weights; say which with --model x3d_s or x3d_m")
    for option, reason in found.undecided.items():
        if option not in options:
            raise ValueError(f"{file}: {reason}; say it with --set model.options.{option}=…")
    return chosen, dataclasses.replace(found, options={**found.options, **options})


def _would_recognise(source: str, state: State) -> bool:
    try:
        return SOURCES[source].recognise(state, SOURCES[source].rename(state)) is not None
    except (ValueError, IndexError, RuntimeError):
        return False


def _class_count(file: Path, renamed: State) -> int:
    for key in ("fc.bias", "fc.weight"):
        if key in renamed and renamed[key].ndim:
            return len(renamed[key])
    raise ValueError(f"{file}: has no classifier; import a checkpoint of a whole network")


def _misfit(value: Tensor, own: Tensor) -> str:
    """Why a tensor cannot take a place; empty if it can. Dimensions of one at the end count nothing, for a 1×1×1
    convolution is a linear map.
    """
    shorter, longer = sorted((tuple(value.shape), tuple(own.shape)), key=len)
    if longer != shorter + (1,) * (len(longer) - len(shorter)):
        return str(tuple(value.shape))
    if own.is_floating_point() and not value.is_floating_point():
        return f"of {value.dtype}"
    return "" if value.isfinite().all() else "with NaN or infinite values"


def _place(model: VideoNetwork, renamed: State, state: State, known_harmless: str) -> tuple[State, ImportReport]:
    """Each tensor to its place, and the account of it."""
    named_in_file = {id(value): key for key, value in state.items()}
    own = model.state_dict()
    values: State = {}
    matched: list[str] = []
    pairs: list[tuple[str, str]] = []
    derived: list[str] = []
    unfit: list[str] = []
    left: list[str] = []
    harmless: list[str] = []
    for key, value in renamed.items():
        original = named_in_file.get(id(value))
        if key not in own:
            # Counters of BN's batches have no effect; nor has a BN's scale of one, in a network that has none.
            scale_of_one = f"{key.removesuffix('weight')}running_var" in own and bool((value == 1).all())
            without_effect = key.endswith("num_batches_tracked") or scale_of_one
            known = without_effect or re.fullmatch(known_harmless, original or key)
            (harmless if known else left).append(original or key)
        elif reason := _misfit(value, own[key]):
            unfit.append(f"{original or key} {reason} for {key} {tuple(own[key].shape)}")
        else:
            values[key] = value.reshape(own[key].shape).to(own[key].dtype)
            if original is None:
                derived.append(key)
            elif original == key:
                matched.append(key)
            else:
                pairs.append((original, key))
    missing = [key for key in own if key not in renamed and not key.endswith("num_batches_tracked")]
    values |= {key: value for key, value in own.items() if key.endswith("num_batches_tracked") and key not in values}
    report = ImportReport(
        matched=tuple(matched),
        renamed=tuple(pairs),
        derived=tuple(derived),
        missing=tuple(missing),
        unfit=tuple(unfit),
        left=tuple(left),
        harmless=tuple(harmless),
    )
    return values, report


def _check_output(output: Path, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: is a file; give a folder for the import")
    inside = {entry.name for entry in output.iterdir()} if output.is_dir() else set()
    if foreign := sorted(inside - _OWN_FILES):
        raise ValueError(f"{output}: holds {foreign[0]}, which no import wrote; give another folder (--output)")
    if inside and not overwrite:
        raise ValueError(f"{output}: exists already; --overwrite replaces an earlier import")


def _write(
    output: Path,
    model: VideoNetwork,
    config: ModelConfig,
    labels: Sequence[str],
    views: ViewsConfig,
    report: ImportReport,
    source: str,
) -> None:
    """All files are written before the first takes its place."""
    new = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=output, prefix=".import.") as aside:
            folder = Path(aside)
            write_card(folder, config, labels, views)
            write_weights(model, folder / "last.safetensors")
            account = {
                "from": source,
                "origin": SOURCES[source].origin,
                **dataclasses.asdict(report),
                "command": command_line(),
                "versions": versions(),
            }
            write_json(folder / _ACCOUNT, account)
            for file in folder.iterdir():
                file.replace(output / file.name)
    except BaseException:
        if new:
            shutil.rmtree(output, ignore_errors=True)
        raise
