"""The testing protocols of the papers, by name.

A protocol is a set of :class:`~clipwise.config.ViewsConfig` fields: which frames, how many clips and crops, how large,
and how the views' scores are averaged. Normalisation is the network's, never the protocol's. Where a paper tests one
way on one data set and another way on another, each way has a name of its own; ``clipwise protocols`` lists them.

"256² resized to 224²" is here one resize of the whole short side to 224 pixels, not two.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from clipwise.config import ViewsConfig

__all__ = ["Protocol", "changed_fields", "list_protocols", "protocol_entry", "protocol_views"]


@dataclass(frozen=True)
class Protocol:
    """One way of testing, and where it is published."""

    name: str
    paper: str
    section: str
    data: str
    """The data sets that the paper tests so."""
    sampling: Literal["middle", "two_clips", "uniform", "random", "dense", "slowfast"]
    clips: int
    crops: Literal[1, 3]
    resolution: tuple[int, int, int]
    """Short side of the frame, side of the crop in it, side of the network's input; in pixels."""
    average: Literal["softmax", "logits"] = "softmax"
    stride: int | None = None
    """Frames from one to the next in dense sampling; None where ``window`` says it."""
    window: int | None = None
    """Frames that a dense clip spans: a network of T frames takes every (window // T)-th."""
    note: str = ""
    """What the paper leaves open, or where its code differs."""

    def views(self, num_frames: int) -> dict[str, Any]:
        """The fields of ``views`` that the protocol sets, for a network of ``num_frames`` frames."""
        short_side, crop, size = self.resolution
        ratio = "crop_ratio" if self.crops == 1 else "three_crop_ratio"
        fields: dict[str, Any] = {
            "sampling": self.sampling,
            "clips": self.clips,
            "crops": self.crops,
            ratio: crop / short_side,
            "size": size,
            "average": self.average,
        }
        if self.stride or self.window:
            fields |= {"stride": self.stride or max(1, (self.window or 1) // num_frames), "short": "wrap"}
        return fields


_CENTRE: dict[str, Any] = {"crops": 1, "resolution": (256, 224, 224)}
_THREE_TO_224: dict[str, Any] = {"crops": 3, "resolution": (256, 256, 224)}
_THREE_OF_256: dict[str, Any] = {"crops": 3, "resolution": (256, 256, 256)}

_STM = partial(
    Protocol, paper="STM: SpatioTemporal and Motion Encoding for Action Recognition, ICCV 2019", section="4.2"
)
_STM_JOURNAL = partial(
    Protocol,
    paper="Learning SpatioTemporal and Motion Features in a Unified 2D Network (STM, journal version)",
    section="4.2",
)
_STC = partial(
    Protocol,
    paper="Spatio-Temporal Collaborative Module for Efficient Action Recognition (STC)",
    section="IV-B, Table IV",
)
_STW = partial(Protocol, paper="A Novel Spatio-Temporal-Wise Network for Action Recognition (STW)", section="IV-B-2")
_TSM = partial(
    Protocol,
    paper="TSM: Temporal Shift Module for Efficient Video Understanding, ICCV 2019",
    section="5.1",
    average="logits",
)
_DEEP = partial(
    Protocol, paper="Deep Analysis of CNN-based Spatio-temporal Representations for Action Recognition", section="6.2"
)
_SLOWFAST = partial(Protocol, paper="SlowFast Networks for Video Recognition, ICCV 2019", section="4 (Inference)")

_STM_VIEWS: dict[str, Any] = {"sampling": "random", "clips": 10, **_THREE_TO_224, "data": "all"}
_ONE_VIEW: dict[str, Any] = {"sampling": "middle", "clips": 1, **_CENTRE}
_SOMETHING = "Something-Something"
_STC_THREE_CROPS: dict[str, Any] = {
    "crops": 3,
    "resolution": (240, 224, 224),
    "data": _SOMETHING,
    "note": "the size of the three crops is not given: 224 of 240 pixels, as the centre crop; averaging neither",
}
_TSM_LOGITS = "the paper is silent on averaging; its code averages logits"

_PROTOCOLS = (
    _STM("stm", **_STM_VIEWS),
    _STM("stm_1clip", **_ONE_VIEW, section="4.6, Table 9", data=f"{_SOMETHING} V1: the rows of one view"),
    _STM_JOURNAL("stm_journal", **_STM_VIEWS),
    _STM_JOURNAL(
        "stm_journal_1clip", **_ONE_VIEW, section="4.5, Table 4", data=f"{_SOMETHING} V1: the rows of one view"
    ),
    _STC("stc_1clip", sampling="middle", clips=1, crops=1, resolution=(240, 224, 224), data=_SOMETHING),
    _STC("stc_1clip_others", **_ONE_VIEW, section="IV-B", data="Diving48, EPIC-KITCHENS-55, EGTEA Gaze+"),
    _STC("stc_2clip", sampling="two_clips", clips=2, **_STC_THREE_CROPS),
    _STC("stc_10clip", sampling="random", clips=10, **_STC_THREE_CROPS),
    _STW(
        "stw",
        sampling="middle",
        clips=1,
        crops=1,
        resolution=(256, 256, 224),
        data=_SOMETHING,
        note="the size of the crop is not given: all of the short side, whose resizing to 224 the paper describes",
    ),
    _STW(
        "stw_kinetics",
        sampling="random",
        clips=10,
        **_THREE_TO_224,
        data="Kinetics-400, UCF-101, HMDB-51",
        note="where the 10 clips lie is not given: at random, as STM's; nor the averaging",
    ),
    _TSM(
        "tsm",
        sampling="two_clips",
        clips=2,
        **_THREE_OF_256,
        data="all but Kinetics",
        note=f"{_TSM_LOGITS}; its README tests at size 224 with three_crop_ratio 0.875",
    ),
    _TSM(
        "tsm_kinetics",
        sampling="dense",
        clips=10,
        **_THREE_OF_256,
        window=64,
        data="Kinetics-400",
        note=f"{_TSM_LOGITS}; for networks trained on dense clips",
    ),
    _TSM("tsm_1clip", **_ONE_VIEW, data="all: the tables of efficiency", note=_TSM_LOGITS),
    _DEEP(
        "deep_analysis_uniform",
        **_ONE_VIEW,
        section="5, 6.1",
        data="mini-SSV2, mini-Kinetics, mini-MiT",
        note="clip-level accuracy; the crop is in its supplement",
    ),
    _DEEP(
        "deep_analysis_uniform_2clip",
        sampling="uniform",
        clips=2,
        **_THREE_OF_256,
        section="6.2, Tables 2 and 3",
        data=f"{_SOMETHING} V2; Kinetics-400 where trained on uniform clips",
        note="the second clip is the frame after the middle, not STC's and TSM's first frame",
    ),
    _DEEP(
        "deep_analysis_dense",
        sampling="dense",
        clips=10,
        **_THREE_OF_256,
        stride=2,
        section="6.2, Tables 2 and 3",
        data="Kinetics-400, Moments in Time",
        note="networks of 32 frames; the stride is its code's",
    ),
    _SLOWFAST(
        "slowfast",
        sampling="slowfast",
        clips=10,
        **_THREE_OF_256,
        window=64,
        data="Kinetics-400 and -600",
        note="positions as PySlowFast has them: the last clip ends before the video does; its sum of softmax ranks as "
        "the mean does",
    ),
)
_BY_NAME = {protocol.name: protocol for protocol in _PROTOCOLS}


def list_protocols() -> list[str]:
    """The protocols' names, those of a paper together."""
    return list(_BY_NAME)


def protocol_entry(name: str) -> Protocol:
    """Look a protocol up.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in _BY_NAME:
        raise ValueError(f"no protocol {name!r}; there are {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def protocol_views(name: str, views: ViewsConfig, num_frames: int) -> ViewsConfig:
    """A network's views as a protocol wants them.

    Args:
        name: one of :func:`list_protocols`.
        views: the network's own, whose normalisation stays.
        num_frames: T, from which the stride of some follows.

    Raises:
        ValueError: if there is no such protocol.
    """
    return dataclasses.replace(views, **protocol_entry(name).views(num_frames))


def changed_fields(name: str, views: ViewsConfig, num_frames: int) -> dict[str, Any]:
    """The fields in which views differ from the protocol of that name: name → what they are instead."""
    wanted = protocol_entry(name).views(num_frames)
    return {key: getattr(views, key) for key, value in wanted.items() if getattr(views, key) != value}
