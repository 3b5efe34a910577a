"""The ablations of STM (Jiang et al., ICCV 2019, [STM]; Wang et al., its journal version, [STM-J])."""

from clipwise.studies.study import Claim, Study, Variant

__all__ = ["STUDIES"]

_NETWORK = "stm_{backbone}"


def _ssv1(top1: float, top5: float) -> dict[str, float]:
    return {"SSv1 top-1": top1, "SSv1 top-5": top5}


_TSN = Variant("TSN", "tsn_{backbone}", published=_ssv1(19.7, 46.6))
_STM = Variant("STM", _NETWORK, published=_ssv1(49.2, 79.3))

_MODULES = Study(
    "stm_modules",
    "Impact of STM's two modules",
    "STM, Table 5; STM-J, Table 6",
    (
        _TSN,
        Variant("CMM", _NETWORK, {"modules": "cmm"}, published=_ssv1(44.1, 74.8)),
        Variant("CSTM", _NETWORK, {"modules": "cstm"}, published=_ssv1(47.7, 77.9)),
        _STM,
    ),
    (
        Claim("CMM ≥ TSN", "CMM", "TSN"),
        Claim("CSTM ≥ TSN", "CSTM", "TSN"),
        Claim("CSTM ≥ CMM", "CSTM", "CMM"),
        Claim("CSTM + CMM ≥ CMM alone", "STM", "CMM"),
        Claim("CSTM + CMM ≥ CSTM alone", "STM", "CSTM"),
    ),
)

# Concatenation needs bottlenecks, so this study names its backbone whatever the run's.
_FUSION = Study(
    "stm_fusion",
    "Fusion of CSTM and CMM: sum or concatenation",
    "STM, Table 6; STM-J, Table 7",
    (
        Variant("TSN", "tsn_resnet50", published=_ssv1(19.7, 46.6)),
        Variant("sum", "stm_resnet50", published=_ssv1(49.2, 79.3)),
        Variant("concatenation", "stm_resnet50", {"fusion": "concatenation"}, published=_ssv1(41.8, 73.2)),
    ),
    (
        Claim("sum ≥ concatenation", "sum", "concatenation"),
        Claim("concatenation ≥ TSN", "concatenation", "TSN"),
    ),
    "On ResNet-50 whatever --backbone says: the 1×1 after the concatenation needs the BN of a bottleneck's end.",
)

_FREQUENCY = Study(
    "stm_frequency",
    "Frequency degeneration: STM with its kernels fixed",
    "STM-J, Table 8",
    (
        _TSN,
        Variant("frequency degeneration", _NETWORK, {"degenerate": True}, published=_ssv1(45.2, 74.1)),
        _STM,
    ),
    (
        Claim("frequency degeneration ≥ TSN", "frequency degeneration", "TSN"),
        Claim("learnable ≥ frequency degeneration", "STM", "frequency degeneration"),
    ),
    "Fixed are CSTM's kernels to the sum, CMM's to the difference of neighbouring frames.",
)


def _first_of(stages: tuple[int, ...], label: str, top1: float, top5: float) -> Variant:
    return Variant(label, _NETWORK, {"stages": stages, "placement": "first"}, published=_ssv1(top1, top5))


_ONE_BLOCK = (
    _first_of((2,), "stage 2 one block", 38.7, 70.1),
    _first_of((3,), "stage 3 one block", 40.6, 71.6),
    _first_of((4,), "stage 4 one block", 41.5, 72.6),
    _first_of((5,), "stage 5 one block", 41.5, 71.8),
)

_LOCATION = Study(
    "stm_location",
    "Location and number of STM blocks",
    "STM, Table 7; STM-J, Table 9",
    (
        _TSN,
        *_ONE_BLOCK,
        _first_of((2, 3, 4, 5), "stages 2-5 one block each", 47.9, 78.1),
        Variant("stages 2-5 all blocks", _NETWORK, published=_ssv1(49.2, 79.3)),
    ),
    (
        *(Claim(f"one block in {row.label[:7]} ≥ TSN", row.label, "TSN") for row in _ONE_BLOCK),
        Claim("one block in stage 5 ≥ one in stage 2", "stage 5 one block", "stage 2 one block"),
        *(
            Claim(f"one block in each stage ≥ one in {row.label[:7]}", "stages 2-5 one block each", row.label)
            for row in _ONE_BLOCK
        ),
        Claim("all blocks ≥ one block in each stage", "stages 2-5 all blocks", "stages 2-5 one block each"),
        *(Claim(f"all blocks ≥ one in {row.label[:7]}", "stages 2-5 all blocks", row.label) for row in _ONE_BLOCK),
    ),
    "TSN's row is that of STM's Table 5, to which the text compares one block.",
)

_CONVOLUTION = Study(
    "stm_convolution",
    "Type of convolution in CSTM and CMM",
    "STM, Table 8; STM-J, Table 10",
    (
        Variant(
            "CSTM channel-wise 1D",
            _NETWORK,
            {"modules": "cstm"},
            published={"SSv1 top-1": 47.7, "M parameters": 23.88, "GMACs": 32.93},
        ),
        Variant(
            "CSTM channel-wise 1D and 2D",
            _NETWORK,
            {"modules": "cstm", "spatial_conv": "channelwise"},
            published={"SSv1 top-1": 42.6, "M parameters": 13.28, "GMACs": 24.05},
        ),
        Variant(
            "CSTM ordinary",
            _NETWORK,
            {"modules": "cstm", "temporal_conv": "ordinary"},
            published={"SSv1 top-1": 46.9, "M parameters": 27.64, "GMACs": 40.59},
        ),
        Variant(
            "CMM channel-wise",
            _NETWORK,
            {"modules": "cmm"},
            published={"SSv1 top-1": 44.1, "M parameters": 23.95, "GMACs": 32.95},
        ),
        Variant(
            "CMM ordinary",
            _NETWORK,
            {"modules": "cmm", "motion_conv": "ordinary"},
            published={"SSv1 top-1": 43.5, "M parameters": 24.25, "GMACs": 33.5},
        ),
    ),
    (
        Claim("CSTM: channel-wise over time ≥ ordinary", "CSTM channel-wise 1D", "CSTM ordinary"),
        Claim("CSTM: ordinary 3×3 ≥ channel-wise 3×3", "CSTM channel-wise 1D", "CSTM channel-wise 1D and 2D"),
        Claim("CMM: channel-wise ≥ ordinary", "CMM channel-wise", "CMM ordinary"),
    ),
    "The counts printed for CMM and for the channel-wise 3×3 in CSTM come out of no reading of the paper; ours are in "
    "clipwise.models.temporal.stm.",
)


def _twins(label: str, model: str, without: tuple[float, float], with_twins: tuple[float, float]) -> list[Variant]:
    return [
        Variant(name, model, training=training, published={"Kinetics-400 top-1": kinetics, "SSv1 top-1": something})
        for name, training, (kinetics, something) in (
            (label, ("training.twins=false",), without),  # whatever the recipe says
            (f"{label} + Twins", ("training.twins=true",), with_twins),
        )
    ]


_TWINS = Study(
    "stm_twins",
    "Impact of Twins Training",
    "STM-J, Table 11",
    (
        *_twins("TSN", "tsn_{backbone}", (70.6, 19.7), (72.5, 20.9)),
        *_twins("TSM", "tsm_{backbone}", (74.1, 47.3), (75.2, 48.2)),
        *_twins("STM", _NETWORK, (73.7, 49.2), (75.5, 50.4)),
    ),
    tuple(
        Claim(f"{label} with Twins Training ≥ without", f"{label} + Twins", label) for label in ("TSN", "TSM", "STM")
    ),
    "Twins Training sees every sampled clip in two augmentations, so a step costs twice as much.",
)

STUDIES = (_MODULES, _FUSION, _FREQUENCY, _LOCATION, _CONVOLUTION, _TWINS)
