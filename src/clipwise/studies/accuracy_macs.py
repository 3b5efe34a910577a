"""Accuracy against multiply–accumulates: the comparison of networks that all five papers draw ([STM] Table 9, [STM-J]
Table 4, [STC] Figure 2 and Table IV, [STW] Table 1, [DA] Figure 1)."""

from clipwise.studies.mini_benchmark import MINI_BENCHMARK
from clipwise.studies.study import Claim, Study, Variant

__all__ = ["STUDIES"]


def _mini(module: str) -> dict[str, float]:
    something, _, _, macs = MINI_BENCHMARK[module, "resnet50", 8, False]
    return {"mini-SSV2 top-1": something, "GMACs": macs / 1e9}


def _ssv1(top1: float, gmacs: float) -> dict[str, float]:
    return {"SSv1 top-1": top1, "GMACs": gmacs}


_ACCURACY = Study(
    "accuracy_macs",
    "Accuracy against MACs, 8 frames and one view",
    "STM, Table 9; STM-J, Table 4; STC, Figure 2, Tables II and IV; STW, Table 1; DA, Figure 1",
    (
        Variant(
            "TSN", "tsn_{backbone}", published=_ssv1(19.7, 32.9) | {"mini-SSV2 top-1": _mini("tsn")["mini-SSV2 top-1"]}
        ),
        Variant("TSM", "tsm_{backbone}", published=_ssv1(45.6, 32.9)),
        Variant("TAM", "tam_{backbone}", published=_mini("tam")),
        Variant("TIN", "tin_{backbone}", published=_ssv1(45.8, 34.0)),
        Variant("TANet", "tanet_{backbone}", published=_ssv1(46.5, 33.0)),
        Variant("TEINet", "teinet_{backbone}", published=_ssv1(47.4, 33.0)),
        Variant("GST", "gst_{backbone}", published=_ssv1(47.0, 29.5)),
        Variant("GST-Large", "gst_large_{backbone}", published=_ssv1(47.7, 40.4)),
        Variant("C3D", "c3d_{backbone}", published=_ssv1(46.2, 62.5)),
        Variant("P3D", "p3d_{backbone}", published=_ssv1(45.7, 37.8)),
        Variant("S3D", "s3d_{backbone}", published=_mini("s3d")),
        Variant("I3D", "i3d_{backbone}", published=_mini("i3d")),
        Variant(
            "TEA",
            "tea_resnet50",
            {"caffe_stride": None},
            training=("model.weights=null",),
            published=_ssv1(48.9, 35.0),
        ),
        Variant("STC", "stc_{backbone}", published=_ssv1(48.3, 26.9)),
        Variant("STC-Light", "stc_light_{backbone}", published=_ssv1(48.2, 26.8)),
        Variant("STW", "stw_{backbone}", published=_ssv1(46.3, 33.5)),
        Variant("STM-18", "stm_resnet18", {"caffe_stride": None}, published=_ssv1(40.5, 14.6)),
        Variant("STM-34", "stm_resnet34", {"caffe_stride": None}, published=_ssv1(43.8, 29.4)),
        Variant("STM", "stm_{backbone}", published=_ssv1(48.5, 33.3)),
    ),
    (
        Claim("STM ≥ TSM", "STM", "TSM"),
        Claim("STM ≥ STM-34", "STM", "STM-34"),
        Claim("STM-34 ≥ STM-18", "STM-34", "STM-18"),
        Claim("STC ≥ GST, with fewer MACs", "STC", "GST"),
        Claim("STC-Light ≥ GST, with fewer MACs", "STC-Light", "GST"),
        Claim("STC ≥ TSM, with fewer MACs", "STC", "TSM"),
        Claim("STW ≥ TSM", "STW", "TSM"),
        Claim("TAM ≥ I3D, with half the MACs", "TAM", "I3D"),
        Claim("TEA ≥ STM", "TEA", "STM"),
        *(Claim(f"{label} ≥ TSN", label, "TSN") for label in ("TSM", "STM", "STC", "STW")),
    ),
    "Published: one view, STM's networks from STM-J (STM prints 47.5), those that the papers re-implement from the "
    "table that has them. Deep Analysis tests I3D, S3D and TAM on mini-SSV2. TEA is a Res2Net, for which there is no "
    "image network here: it starts from random weights. TIN is published from Kinetics, the others from ImageNet.",
)

STUDIES = (_ACCURACY,)
