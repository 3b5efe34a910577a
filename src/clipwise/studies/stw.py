"""The ablations of STW (Cai, [STW]), all on Something-Something V1 with 8 frames."""

from clipwise.studies.study import Claim, Study, Variant

__all__ = ["STUDIES"]

_NETWORK = "stw_{backbone}"


def _ssv1(top1: float, top5: float) -> dict[str, float]:
    return {"SSv1 top-1": top1, "SSv1 top-5": top5}


_STFM = Variant("STFM", _NETWORK, {"modules": "stfm"}, published=_ssv1(42.6, 73.5))
_TWM = Variant("TWM", _NETWORK, {"modules": "twm"}, published=_ssv1(41.9, 72.3))

_RATIOS = Study(
    "stw_ratios",
    "How STFM joins three frames",
    "STW, Table 5",
    tuple(
        Variant(label, _NETWORK, {"modules": "stfm", "fusion": fusion}, published=_ssv1(top1, top5))
        for label, fusion, top1, top5 in (
            ("average", "average", 32.8, 60.2),
            ("1/16 : 7/8 : 1/16", "1:14:1", 39.2, 68.9),
            ("1/8 : 3/4 : 1/8", "1:6:1", 41.5, 70.4),
            ("1/4 : 1/2 : 1/4", "1:2:1", 42.6, 73.5),
        )
    ),
    (
        Claim("1/16 : 7/8 : 1/16 ≥ average", "1/16 : 7/8 : 1/16", "average"),
        Claim("1/8 : 3/4 : 1/8 ≥ 1/16 : 7/8 : 1/16", "1/8 : 3/4 : 1/8", "1/16 : 7/8 : 1/16"),
        Claim("1/4 : 1/2 : 1/4 ≥ 1/8 : 3/4 : 1/8", "1/4 : 1/2 : 1/4", "1/8 : 3/4 : 1/8"),
    ),
    "STFM alone, as its row in Table 6 says.",
)

_MODULES = Study(
    "stw_modules",
    "Impact of STFM and TWM",
    "STW, Table 6; GMACs: section IV-C",
    (
        Variant("TSN", "tsn_{backbone}", published={**_ssv1(19.7, 46.6), "GMACs": 33}),
        Variant("TSM", "tsm_{backbone}", published=_ssv1(42.1, 72.7)),
        _STFM,
        _TWM,
        Variant("STW", _NETWORK, published={**_ssv1(46.3, 76.6), "GMACs": 33.5}),
    ),
    (
        Claim("STFM ≥ TSN", "STFM", "TSN"),
        Claim("TWM ≥ TSN", "TWM", "TSN"),
        Claim("STFM ≥ TSM", "STFM", "TSM"),
        Claim("STFM + TWM ≥ STFM alone", "STW", "STFM"),
        Claim("STFM + TWM ≥ TWM alone", "STW", "TWM"),
    ),
    "The paper's counts of 33 and 33.5 GMACs are of a tool that adds BN and pooling; ours are 32.70 and 32.74.",
)

_COMBINATION = Study(
    "stw_combination",
    "STFM and TWM in parallel or one after the other",
    "STW, Tables 8 and 6",
    (
        _STFM,
        _TWM,
        Variant("parallel", _NETWORK, published=_ssv1(46.3, 76.6)),
        Variant("STFM then TWM", _NETWORK, {"modules": "stfm_twm"}, published=_ssv1(42.1, 73.3)),
        Variant("TWM then STFM", _NETWORK, {"modules": "twm_stfm"}, published=_ssv1(41.8, 73.5)),
    ),
    (
        Claim("parallel ≥ STFM → TWM", "parallel", "STFM then TWM"),
        Claim("parallel ≥ TWM → STFM", "parallel", "TWM then STFM"),
        Claim("STFM alone ≥ STFM → TWM", "STFM", "STFM then TWM"),
        Claim("TWM alone ≥ TWM → STFM", "TWM", "TWM then STFM"),
    ),
)

_STAGES = Study(
    "stw_stages",
    "Stages that STW blocks stand in",
    "STW, Table 7",
    tuple(
        Variant(label, _NETWORK, {"stages": stages} if len(stages) < 4 else {}, published=_ssv1(top1, top5))
        for label, stages, top1, top5 in (
            ("stage 2", (2,), 40.0, 70.2),
            ("stage 3", (3,), 41.1, 71.5),
            ("stage 4", (4,), 43.9, 73.7),
            ("stage 5", (5,), 43.1, 73.8),
            ("stages 2-5", (2, 3, 4, 5), 46.3, 76.7),
            ("stages 3-5", (3, 4, 5), 45.9, 76.1),
            ("stages 4-5", (4, 5), 45.6, 76.1),
        )
    ),
    (
        Claim("stage 3 ≥ stage 2", "stage 3", "stage 2"),
        Claim("stage 4 ≥ stage 3", "stage 4", "stage 3"),
        Claim("stage 4 ≥ stage 5", "stage 4", "stage 5"),
        Claim("stages 4–5 ≥ stage 4", "stages 4-5", "stage 4"),
        Claim("stages 4–5 ≥ stage 5", "stages 4-5", "stage 5"),
        Claim("stages 3–5 ≥ stages 4–5", "stages 3-5", "stages 4-5"),
        Claim("stages 2–5 ≥ stages 3–5", "stages 2-5", "stages 3-5"),
    ),
    "That stage 4 does better than stage 5 the paper puts down to its six blocks against three; ResNet-18 has two in "
    "each.",
)

STUDIES = (_RATIOS, _MODULES, _COMBINATION, _STAGES)
