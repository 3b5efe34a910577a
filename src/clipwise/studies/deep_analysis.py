"""The comparisons of Deep Analysis (Chen et al., CVPR 2021, [DA]).

Networks with more frames start from those with half as many, as the paper trains them ([DA] section 5). In how many
epochs and at which rate is the recipe's matter.
"""

from collections.abc import Mapping
from typing import Any

from clipwise.studies.mini_benchmark import MINI_BENCHMARK, PARAMETERS
from clipwise.studies.study import Claim, Study, Variant

__all__ = ["STUDIES"]

_MODULES = {"TSN": "tsn", "TAM": "tam", "S3D": "s3d", "I3D": "i3d"}
_TEMPORAL = ("TAM", "S3D", "I3D")
# What a recipe for ResNet-50 may set and another network lacks.
_BACKBONES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "ResNet-18": ("resnet18", {"caffe_stride": None}),
    "Inception-v1": ("inception_v1", {"caffe_stride": None, "base_width": None}),
    "ResNet-50": ("resnet50", {}),
}
_FRAMES = (8, 16, 32, 64)
# Of the training clips; uniform too is said, for a recipe may be of dense ones.
_SAMPLING_IN_TRAINING = {"uniform": ("data.sampling=segments",), "dense": ("data.sampling=dense", "data.stride=2")}


def _accuracies(module: str, backbone: str = "resnet50", frames: int = 8, *, pooling: bool = False) -> dict[str, float]:
    """Top-1 on mini-SSV2 and mini-Kinetics."""
    something, kinetics, _, _ = MINI_BENCHMARK[_MODULES[module], backbone, frames, pooling]
    return {"mini-SSV2 top-1": something, "mini-Kinetics top-1": kinetics}


def _counts(module: str, backbone: str, frames: int, *, pooling: bool) -> dict[str, float]:
    name = _MODULES[module]
    macs = MINI_BENCHMARK[name, backbone, frames, pooling][3]
    return {"M parameters": PARAMETERS[name, backbone] / 1e6, "GMACs": macs / 1e9}


def _mini_label(module: str, backbone: str, frames: int, *, pooling: bool = False) -> str:
    return f"{module} {backbone} {frames}f{' tp' if pooling else ''}"


def _mini_rows(module: str, backbone: str, *, pooling: bool) -> list[Variant]:
    name, options = _BACKBONES[backbone]
    rows: list[Variant] = []
    for frames in _FRAMES:
        more: dict[str, Any] = {"temporal_pooling": True} if pooling else {}
        if (module, backbone, pooling, frames) == ("I3D", "Inception-v1", False, 64):
            more["last_pool"] = "padded"  # as the authors counted this one
        mit = MINI_BENCHMARK[_MODULES[module], name, frames, pooling][2]
        rows.append(
            Variant(
                _mini_label(module, backbone, frames, pooling=pooling),
                f"{_MODULES[module]}_{name}",
                {**options, **more},
                training=(f"model.num_frames={frames}",),
                start=rows[-1].label if rows else None,
                published=_accuracies(module, name, frames, pooling=pooling)
                | {"mini-MiT top-1": mit}
                | _counts(module, name, frames, pooling=pooling),
            )
        )
    return rows


_MINI = Study(
    "da_mini",
    "Backbones, modules, frames and temporal pooling",
    "DA, Figures 4 and 6",
    tuple(
        row
        for module in _MODULES
        for backbone in _BACKBONES
        for pooling in (False, True)
        for row in _mini_rows(module, backbone, pooling=pooling)
    ),
    (
        *(
            Claim(f"{module}: {better} ≥ {worse}", _mini_label(module, better, 8), _mini_label(module, worse, 8))
            for module in _MODULES
            for better, worse in (("ResNet-50", "ResNet-18"), ("ResNet-50", "Inception-v1"))
        ),
        *(
            Claim(
                f"{module} {backbone}: {more} ≥ {fewer} frames",
                _mini_label(module, backbone, more),
                _mini_label(module, backbone, fewer),
            )
            for module in _TEMPORAL
            for backbone in _BACKBONES
            for fewer, more in ((8, 16), (16, 32))
        ),
        *(
            Claim(
                f"{module} {backbone}: without ≥ with temporal pooling",
                _mini_label(module, backbone, 8),
                _mini_label(module, backbone, 8, pooling=True),
            )
            for module in _TEMPORAL
            for backbone in _BACKBONES
        ),
        *(
            Claim(
                f"TSN {backbone}: with ≥ without temporal pooling",
                _mini_label("TSN", backbone, 8, pooling=True),
                _mini_label("TSN", backbone, 8),
            )
            for backbone in _BACKBONES
        ),
    ),
    "Each row names its own backbone. Parameters are those with mini-SSV2's 87 classes. The paper trains 8 frames for "
    "75 epochs (mini-Kinetics 100) and more frames for 35 (45) from the row with half as many; here a recipe sets one "
    "schedule for all. Claims on frames stop at 32, beyond which the paper sees no significant gain; that Inception-v1 "
    "does better than ResNet-18 it calls a tendency, from which S3D departs.",
)

_POOLING = Study(
    "da_pooling",
    "Temporal pooling, 8 frames",
    "DA, Figure 6",
    tuple(
        Variant(
            f"{module}{' tp' if pooling else ''}",
            f"{_MODULES[module]}_{{backbone}}",
            {"temporal_pooling": True} if pooling else {},
            published=_accuracies(module, pooling=pooling),
        )
        for module in _MODULES
        for pooling in (False, True)
    ),
    (
        *(Claim(f"{module}: without ≥ with temporal pooling", module, f"{module} tp") for module in _TEMPORAL),
        Claim("TSN: with ≥ without temporal pooling", "TSN tp", "TSN"),
    ),
    "Published: ResNet-50, the authors' tables.",
)

_SAMPLING = Study(
    "da_sampling",
    "Uniform against dense sampling, one clip and ten",
    "DA, Figure 5",
    tuple(
        Variant(
            f"{module} {sampling} {clips} clip{'s' if clips > 1 else ''}",
            f"{_MODULES[module]}_{{backbone}}",
            training=_SAMPLING_IN_TRAINING[sampling],
            views=(f"views.sampling={sampling}", f"views.clips={clips}", "views.stride=2"),
        )
        for module in ("I3D", "TAM")
        for sampling in ("uniform", "dense")
        for clips in (1, 10)
    ),
    tuple(
        claim
        for module in ("I3D", "TAM")
        for claim in (
            Claim(f"{module}, one clip: uniform ≥ dense", f"{module} uniform 1 clip", f"{module} dense 1 clip"),
            Claim(f"{module}, dense: ten clips ≥ one", f"{module} dense 10 clips", f"{module} dense 1 clip"),
        )
    ),
    "The figure's bars, of ResNet-18, are printed without numbers. Dense clips take every second frame.",
)

_LONG = "model.num_frames=32"
_SLOWFAST_OPTIONS = {"caffe_stride": None}
_NO_IMAGE_FILE = "model.weights=null"


def _sampled(label: str, model: str, sampling: str, *, slowfast: bool, **more: Any) -> Variant:
    """A row of 32 frames, of which nothing but the views is left open."""
    training = (_LONG, *_SAMPLING_IN_TRAINING[sampling], *((_NO_IMAGE_FILE,) if slowfast else ()))
    return Variant(label, model, _SLOWFAST_OPTIONS if slowfast else {}, training=training, **more)


_KINETICS = Study(
    "da_sampling_kinetics",
    "Uniform against dense sampling, also in training",
    "DA, Table 3",
    tuple(
        _sampled(
            f"{label} {sampling}",
            model,
            sampling,
            slowfast=label == "SlowFast",
            views=("views.crops=3", f"views.clips={clips}", f"views.sampling={sampling}", "views.stride=2"),
            published={"Kinetics-400 top-1": top1},
        )
        for label, model, figures in (
            ("I3D", "i3d_{backbone}", (76.07, 76.61)),
            ("TAM", "tam_{backbone}", (76.45, 76.18)),
            ("SlowFast", "slowfast_resnet50_8x8", (71.85, 76.40)),
        )
        for sampling, clips, top1 in (("uniform", 2, figures[0]), ("dense", 10, figures[1]))
    ),
    (Claim("SlowFast: dense ≥ uniform", "SlowFast dense", "SlowFast uniform"),),
    "32 frames; three crops of two uniform or ten dense clips. SlowFast starts from random weights, as no image "
    "network has its shape. Of I3D and TAM the paper claims that the difference is small.",
)

_CLIPS = Study(
    "da_clips",
    "Number of clips in testing",
    "DA, Figure 8",
    tuple(
        _sampled(
            f"{label} {sampling} {clips}",
            model,
            sampling,
            slowfast=label == "SlowFast",
            views=("views.crops=3", f"views.clips={clips}", f"views.sampling={sampling}", "views.stride=2"),
        )
        for label, model in (("I3D", "i3d_{backbone}"), ("SlowFast", "slowfast_resnet50_8x8"))
        for sampling in ("uniform", "dense")
        for clips in (1, 2, 3, 4, 5, 7, 10)
    ),
    tuple(
        claim
        for label in ("I3D", "SlowFast")
        for claim in (
            Claim(f"{label}, one clip: uniform ≥ dense", f"{label} uniform 1", f"{label} dense 1"),
            Claim(f"{label}, dense: five clips ≥ one", f"{label} dense 5", f"{label} dense 1"),
        )
    ),
    "The figure's curves are printed without numbers. 32 frames, three crops; rows of one sampling share one training.",
)

_I3D = Study(
    "da_i3d",
    "I3D: backbone, temporal pooling, squeeze-excitation",
    "DA, Figure 7 and Table 2",
    (
        Variant(
            "I3D Inception-v1 tp",
            "i3d_inception_v1",
            {**_BACKBONES["Inception-v1"][1], "temporal_pooling": True},
            training=(_LONG,),
        ),
        Variant("I3D tp", "i3d_{backbone}", {"temporal_pooling": True}, training=(_LONG,)),
        Variant(
            "I3D",
            "i3d_{backbone}",
            training=(_LONG,),
            published={"Kinetics-400 top-1": 76.61, "SSv2 top-1": 62.84, "MiT top-1": 31.21},
        ),
        Variant("I3D SE", "i3d_{backbone}", {"squeeze_excitation": True}, training=(_LONG,)),
    ),
    (
        Claim("ResNet-50 ≥ Inception-v1", "I3D tp", "I3D Inception-v1 tp"),
        Claim("without ≥ with temporal pooling", "I3D", "I3D tp"),
        Claim("with ≥ without squeeze-excitation", "I3D SE", "I3D"),
    ),
    "The figure is printed without numbers; those of I3D-ResNet50 stand in Table 2. 32 frames.",
)


# What Table 5 prints, by frames, of networks that the authors' tables lack or, as S3D, give other figures of; the rest
# stands there with more digits.
_TABLE5 = {
    "Inception-v1 Conv.": {8: (58.2, 68.3), 16: (63.7, 70.7)},
    "ResNet Conv.": {8: (61.6, 71.5), 16: (65.7, 73.4)},
    "ResNet TSM": {8: (64.1, 74.1), 16: (67.4, 75.6)},
    "ResNet NLN": {8: (53.0, 73.7), 16: (55.0, 74.5)},
}
_AGGREGATIONS: dict[str, tuple[str, str, Mapping[str, Any], str]] = {
    "Inception-v1 none": ("TSN", "tsn_inception_v1", _BACKBONES["Inception-v1"][1], "inception_v1"),
    "Inception-v1 I3D": ("I3D", "i3d_inception_v1", _BACKBONES["Inception-v1"][1], "inception_v1"),
    "Inception-v1 Conv.": ("S3D", "s3d_inception_v1", _BACKBONES["Inception-v1"][1], "inception_v1"),
    "Inception-v1 TAM": ("TAM", "tam_inception_v1", _BACKBONES["Inception-v1"][1], "inception_v1"),
    "ResNet none": ("TSN", "tsn_{backbone}", {}, "resnet50"),
    "ResNet I3D": ("I3D", "i3d_{backbone}", {}, "resnet50"),
    "ResNet Conv.": ("S3D", "s3d_{backbone}", {}, "resnet50"),
    "ResNet TAM": ("TAM", "tam_{backbone}", {}, "resnet50"),
    "ResNet TSM": ("TSM", "tsm_{backbone}", {}, "resnet50"),
    "ResNet NLN": ("NLN", "tsn_{backbone}", {"nonlocal_blocks": True}, "resnet50"),
}


def _aggregation_row(label: str, frames: int) -> Variant:
    module, model, options, backbone = _AGGREGATIONS[label]
    if label in _TABLE5:
        something, kinetics = _TABLE5[label][frames]
        published = {"mini-SSV2 top-1": something, "mini-Kinetics top-1": kinetics}
    else:
        published = _accuracies(module, backbone, frames)
    return Variant(
        f"{label} {frames}f",
        model,
        options,
        training=(f"model.num_frames={frames}",),
        start=f"{label} {frames // 2}f" if frames > 8 else None,
        published=published,
    )


_AGGREGATION = Study(
    "da_aggregation",
    "Temporal aggregations without temporal pooling",
    "DA, Table 5",
    tuple(_aggregation_row(label, frames) for frames in (8, 16) for label in _AGGREGATIONS),
    tuple(
        Claim(f"{better.replace('ResNet ', '')} ≥ {worse.replace('ResNet ', '')}", f"{better} 8f", f"{worse} 8f")
        for better, worse in (
            ("Inception-v1 I3D", "Inception-v1 none"),
            ("Inception-v1 Conv.", "Inception-v1 none"),
            ("Inception-v1 TAM", "Inception-v1 none"),
            ("Inception-v1 TAM", "Inception-v1 I3D"),
            ("Inception-v1 TAM", "Inception-v1 Conv."),
            ("ResNet I3D", "ResNet none"),
            ("ResNet Conv.", "ResNet none"),
            ("ResNet TAM", "ResNet none"),
            ("ResNet TSM", "ResNet none"),
            ("ResNet NLN", "ResNet none"),
            ("ResNet TAM", "ResNet I3D"),
            ("ResNet TAM", "ResNet Conv."),
            ("ResNet TAM", "ResNet NLN"),
            ("ResNet TSM", "ResNet I3D"),
            ("ResNet TSM", "ResNet Conv."),
            ("ResNet TSM", "ResNet NLN"),
        )
    ),
    "Conv. is S3D. Non-local blocks stand where Wang et al. have them, two in stage 3 and three in stage 4. Published "
    "with more digits where the authors' tables have the same; of Conv. these have figures up to 1.3 points lower or "
    "0.4 higher (`da_mini`). 16 frames start from 8.",
)

_PLACEMENT = Study(
    "da_placement",
    "Number and location of temporal modules",
    "DA, Table 6",
    tuple(
        Variant(
            label,
            "tam_resnet18",
            {"caffe_stride": None, **options},
            published={"mini-SSV2 top-1": something, "mini-Kinetics top-1": kinetics},
        )
        for label, options, something, kinetics in (
            ("all", {}, 59.1, 69.08),
            ("top half", {"placement": "top"}, 59.7, 69.21),
            ("bottom half", {"placement": "bottom"}, 56.5, 69.27),
            ("every other", {"placement": "alternate"}, 59.4, 69.14),
        )
    ),
    (
        Claim("top half ≥ all", "top half", "all"),
        Claim("all ≥ bottom half", "all", "bottom half"),
        Claim("top half ≥ bottom half", "top half", "bottom half"),
        Claim("top half ≥ every other", "top half", "every other"),
    ),
    "TAM on ResNet-18, as in the paper, whatever the run's backbone. The claims are the paper's for mini-SSV2; on "
    "mini-Kinetics it finds that the location makes no difference.",
)

STUDIES = (_MINI, _POOLING, _SAMPLING, _KINETICS, _CLIPS, _I3D, _AGGREGATION, _PLACEMENT)
