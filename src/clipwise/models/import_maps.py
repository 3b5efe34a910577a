"""How other projects write their checkpoints: key maps, recognising the network, and the table of :data:`SOURCES`.

A map takes a state dict and returns one under our keys, in which a key without counterpart keeps its name. Maps for one
network stand beside it (``temporal/tam.py``, ``mobilenet.py``, ``slowfast.py``, ``x3d.py``, ``deepmind_i3d.py``); here
are those for the way a project writes any of its networks. Where the names were looked up stands in ``Source.origin``.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from clipwise.models import mobilenet, slowfast, x3d
from clipwise.models.deepmind_i3d import from_published
from clipwise.models.temporal.tam import from_ibm

__all__ = ["SOURCES", "Recognised", "Source", "State"]

State = dict[str, Tensor]


@dataclass(frozen=True)
class Recognised:
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
    """Whose and which, for messages and for the command line's help."""
    origin: str
    """Where names and shapes were looked up: repository, commit, files."""
    rename: Callable[[State], State]
    recognise: Callable[[State, State], Recognised | None]
    """(the file's state dict without wrappers, the renamed one) → the network."""
    harmless: str = r"(?!)"
    """Pattern of keys that may be left over, beside those of no consequence in any file."""


# --- keys -------------------------------------------------------------------------------------------------------------

_ENTRY = r"(weight|bias|running_mean|running_var|num_batches_tracked)"


def _by_rules(*rules: tuple[str, str], then: Callable[[State], State] | None = None) -> Callable[[State], State]:
    """A map by the first rule whose pattern the whole key fits, and ``then`` by the map of one network."""

    def rename(state: State) -> State:
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
        return then(renamed) if then else renamed

    return rename


_BLOCK = r"backbone\.(layer\d\.\d+\.)(?:block\.)?"
_mmaction2_resnet = _by_rules(
    (rf"cls_head\.fc_cls\.{_ENTRY}", r"fc.\1"),
    (rf"backbone\.conv1\.conv\.{_ENTRY}", r"conv1.\1"),
    (rf"backbone\.conv1\.bn\.{_ENTRY}", r"bn1.\1"),
    (rf"{_BLOCK}conv(\d)\.conv\.(?:net2?\.)?{_ENTRY}", r"\1conv\2.\3"),
    (rf"{_BLOCK}conv(\d)\.bn\.{_ENTRY}", r"\1bn\2.\3"),
    (rf"{_BLOCK}downsample\.conv\.{_ENTRY}", r"\1downsample.0.\2"),
    (rf"{_BLOCK}downsample\.bn\.{_ENTRY}", r"\1downsample.1.\2"),
    (r"backbone\.(layer\d\.\d+)\.tam\.([GL]\..+)", r"\1.tanet.\2"),
    (r"backbone\.(layer\d\.\d+)\.conv1\.conv\.net1\.(.+)", r"\1.tin.\2"),
)


def _from_mmaction2(state: State) -> State:
    """``backbone.`` and ``cls_head.``; each convolution and its BN are a pair ``conv1.conv``, ``conv1.bn``."""
    families = {"conv1_s": x3d.from_mmaction2, "conv2": mobilenet.from_mmaction2, "slow_path": slowfast.from_mmaction2}
    for part, own in families.items():
        if any(key.startswith(f"backbone.{part}.") for key in state):
            return own(state)
    return _mmaction2_resnet(state)


def _from_pyslowfast(state: State) -> State:
    if "pred_w" in state:
        return slowfast.from_caffe2(state)
    if any(key.startswith("blocks.") for key in state):
        return slowfast.from_pytorchvideo(state)
    own = x3d.from_pyslowfast if any("stem.conv_xy." in key for key in state) else slowfast.from_pyslowfast
    return own(state)


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


def _recognise_2d(file: State, state: State) -> Recognised | None:
    """TSN and TSM on ResNets and MobileNetV2; a shift shows in the names of the convolutions it wraps."""
    shifted = {match[1] for key in file if (match := re.search(r"(layer\d\.\d+|features\.\d+)\..*\bnet\.", key))}
    notes = (_FRAMES_NOT_TOLD,) if shifted else ()
    module = "tsm" if shifted else "tsn"
    if "features.18.0.weight" in state:
        return Recognised(f"{module}_mobilenet_v2", notes=notes)
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
    return Recognised(f"{module}_resnet{depth}", options=options, notes=notes)


def _recognise_mmaction2(file: State, state: State) -> Recognised | None:
    if "slow.stem.conv.weight" in state:
        if "laterals.0.bn.weight" not in state:
            raise ValueError(
                "MMAction2's SlowFast has lateral connections without normalisation and ReLU unless it was trained "
                "with lateral_norm=True; that is another network than the paper's, which Clipwise does not have. "
                "PySlowFast's files can be imported"
            )
        note = "MMAction2 takes the slow pathway's frames at 0, α, 2α …, Clipwise (as PySlowFast) spread to the last"
        found = _recognise_slowfast_or_x3d(file, state)
        return found and dataclasses.replace(found, notes=(*found.notes, note))
    return _recognise_slowfast_or_x3d(file, state) or _recognise_by_frames(file, state) or _recognise_2d(file, state)


def _recognise_ibm(file: State, state: State) -> Recognised | None:
    pooling = {
        "temporal_pooling": "IBM's networks pool over time unless they were trained with --without_t_stride, which "
        "weights do not show: false, true, or in 2D networks average"
    }
    notes = (_FRAMES_NOT_TOLD,)
    if (stem := state.get("conv1.conv.weight")) is not None:
        if stem.ndim == 4:
            return Recognised(f"{_ibm_module(state)}_inception_v1", notes=notes, undecided=pooling)
        if "conv3.conv_t.weight" in state:
            return Recognised("s3d_inception_v1", notes=notes, undecided=pooling)
        padded = (
            "the last max-pool is IBM's public code's, 3×3×3; most published counts are another's, last_pool=unpadded"
        )
        return Recognised(
            "i3d_inception_v1", options={"last_pool": "padded"}, notes=(*notes, padded), undecided=pooling
        )
    stem, depth = state.get("conv1.weight"), _resnet_depth(state)
    if stem is None or depth is None:
        return None
    if stem.ndim == 5:
        separated = any("conv2_t." in key for key in state)
        return Recognised(f"{'s3d' if separated else 'i3d'}_resnet{depth}", notes=notes, undecided=pooling)
    return Recognised(f"{_ibm_module(state)}_resnet{depth}", notes=notes, undecided=pooling)


def _ibm_module(state: State) -> str:
    return "tam" if any(re.search(r"\btam\w*\.", key) for key in state) else "tsn"


def _by_key(names: Mapping[str, str | None]) -> Callable[[State, State], Recognised | None]:
    """Recognises a network by a key; the first in the table that is there decides."""

    def recognise(file: State, state: State) -> Recognised | None:
        return next((Recognised(name) for key, name in names.items() if key in state), None)

    return recognise


_recognise_x3d = _by_key(
    {
        "layer1.4.se.fc1.weight": "x3d_l",
        "stem.conv_xy.weight": None,  # X3D-S or X3D-M: one network, for other sizes and numbers of frames
    }
)


def _recognise_slowfast_or_x3d(file: State, state: State) -> Recognised | None:
    if name := slowfast.name_of(state):
        return Recognised(name, notes=(_FRAMES_NOT_TOLD,))
    return _recognise_x3d(file, state)


def _recognise_by_frames(file: State, state: State) -> Recognised | None:
    """TANet and TIN on ResNets, which have a linear layer over the frames."""
    for module, key in (("tanet", "tanet.G.0.weight"), ("tin", "tin.offset_net.fc1.weight")):
        if (linear := state.get(f"layer1.0.{key}")) is not None and (depth := _resnet_depth(state)):
            return Recognised(f"{module}_resnet{depth}", num_frames=linear.shape[1])
    return None


_AT_15 = "torchvision samples 15 frames a second: stride 2 in a video of 30; --set views.stride=1 for one of 15"


def _recognise_torchvision(file: State, state: State) -> Recognised | None:
    if (stem := state.get("stem.0.weight")) is not None:
        inner = state.get("layer2.0.conv1.0.weight")
        flat = inner is not None and inner.ndim == 5 and inner.shape[2] == 1
        name = "r2plus1d_18" if stem.shape[0] == 45 else "mc3_18" if flat else "r3d_18"
        return Recognised(name, notes=(_AT_15,))
    if "features.0.0.0.weight" in state:
        return Recognised("s3d_torchvision", notes=(_AT_15,))
    if "inception3a.branch1.conv.weight" in state:
        return Recognised("tsn_inception_v1")
    return _recognise_2d({}, state)


SOURCES: dict[str, Source] = {
    "tsm": Source(
        "mit-han-lab's TSN and TSM on ResNet and MobileNetV2",
        "github.com/mit-han-lab/temporal-shift-module: ops/models.py at 51328c0, ops/temporal_shift.py at 4759ad8, "
        "archs/mobilenet_v2.py at d6da93d, main.py at 40bedbf",
        _by_rules(  # ``base_model.`` before the image network, ``.net`` where a shift wraps a convolution
            (rf"new_fc\.{_ENTRY}", r"fc.\1"),
            (rf"base_model\.(.+\.conv1)\.net\.{_ENTRY}", r"\1.\2"),
            (rf"base_model\.(features\.\d+\.conv\.0)\.net\.{_ENTRY}", r"\1.\2"),
            (r"base_model\.(.+)", r"\1"),
            then=mobilenet.from_mit,
        ),
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
        "Deep Analysis' TSN, TAM, I3D and S3D on ResNet and Inception-v1",
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
        _recognise_slowfast_or_x3d,
        # What PySlowFast's own reader of Caffe2 files passes over.
        harmless=r".*_momentum|lr|model_iter",
    ),
    "torchvision": Source(
        "ResNet, GoogLeNet and MobileNetV2 (frame by frame), R3D-18, MC3-18, R(2+1)D-18, S3D",
        "github.com/pytorch/vision, torchvision/models: resnet.py at f50e776, mobilenetv2.py at 0256d65, "
        "googlenet.py at 0413037, video/resnet.py at 0614eac, video/s3d.py at 0216591",
        _by_rules((rf"classifier\.1\.{_ENTRY}", r"fc.\1")),
        _recognise_torchvision,
        harmless=r"aux[12]\..+",  # GoogLeNet's auxiliary heads, used in training only
    ),
    "deepmind-i3d": Source(
        "I3D on Inception-v1, RGB, as PyTorch's or as .npz of TensorFlow's variables (names unverified)",
        "github.com/deepmind/kinetics-i3d, tf_v2/i3d.py at 50c8f19; github.com/piergiaj/pytorch-i3d, pytorch_i3d.py at "
        "b49fadf. Unverified: the variables' names in an .npz, read in others' code that lists them",
        from_published,
        _by_key({"inception3a.branch1.conv.weight": "i3d_deepmind"}),
    ),
    "tanet": Source(
        "liu-zhy's TANet on ResNet-50/101",
        "github.com/liu-zhy/temporal-adaptive-module at 84f6b79: ops/models.py, ops/temporal_module.py",
        _by_rules(
            (rf"new_fc\.{_ENTRY}", r"fc.\1"),
            (r"base_model\.(layer\d\.\d+)\.net\.(.+)", r"\1.\2"),
            (r"base_model\.(layer\d\.\d+)\.tam\.(.+)", r"\1.tanet.\2"),
            (r"base_model\.(.+)", r"\1"),
        ),
        _recognise_by_frames,
    ),
}
