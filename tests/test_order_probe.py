"""The order of frames: what each network sees of it, and what may be concluded from how many videos."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import clipwise

import clipwise as package
from clipwise.checkpoint import write_card, write_weights
from clipwise.config import ModelConfig, ViewsConfig
from clipwise.data import decode
from clipwise.data.labels import LabelSpace
from clipwise.data.manifest import Manifest
from clipwise.data.synthetic import synthesize
from clipwise.evaluation.order_probe import (
    BLIND,
    ORDERS,
    NetworkProbe,
    compare,
    data_verdict,
    frame_orders,
    largest_change,
    network_verdict,
    probe_order,
)
from clipwise.evaluation.run import evaluate
from clipwise.models.registry import create_model

TRAINING = [
    "model.num_frames=4",
    "views.size=32",
    "augmentation.scales=[1.0]",
    "model.options.dropout=0",
    "training.batch_size=8",
    "training.reference_batch=8",
    "training.lr=0.02",
    "data.workers=0",
    "data.in_memory=true",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An STM that has learnt to tell left from right, and a TSN, which cannot, with their 40 validation videos."""
    folder = tmp_path_factory.mktemp("order")
    videos = synthesize(folder / "videos", pairs=1, videos_per_class=60, size=32, frames=(12, 16), val_share=0.34)
    for name, epochs in (("stm", 8), ("tsn", 1)):
        overrides = [*TRAINING, f"model.name={name}_resnet18", f"training.epochs={epochs}"]
        package.train(videos.parent, folder / name, recipe="demo", overrides=overrides)
    return {"stm": folder / "stm", "tsn": folder / "tsn", "videos": videos.parent}


def untrained(folder: Path, name: str, classes: tuple[str, ...]) -> Path:
    """A network as it starts, in a folder of its own; its fully connected layer as large as a trained one's."""
    model = create_model(name, num_classes=len(classes), num_frames=4, base_width=16)
    folder.mkdir()
    write_card(
        folder,
        ModelConfig(name=name, num_frames=4, weights=None, options={"base_width": 16}),
        LabelSpace.of(classes),
        ViewsConfig(size=32),
    )
    write_weights(model, folder / "best.safetensors")
    return folder


def probe(
    right: dict[str, list[int]], *, change: float = 1.0, labels: list[int] | None = None, name: str = "stm"
) -> NetworkProbe:
    """Of two classes; 1 where a video is right."""
    labels = labels or [place % 2 for place in range(len(right["in order"]))]
    scores: dict[Any, Any] = {}
    for order in ORDERS:
        hits = np.array(right.get(order, right["in order"]))
        given = np.where(hits, labels, 1 - np.array(labels))
        scores[order] = np.eye(2, dtype=np.float32)[given][None]
    return NetworkProbe(name, name, ("no", "yes"), np.array(labels), scores, change)


def shares(videos: int, **right: float) -> dict[str, list[int]]:
    """So many of the videos right, the same ones first, and of either class alike."""
    return {order.replace("_", " "): [1] * round(share * videos) + [0] * (videos - round(share * videos))
            for order, share in right.items()}  # fmt: skip


# Orders


@pytest.mark.parametrize(("num_frames", "draws"), [(3, 9), (4, 5), (8, 3), (16, 20)])
def test_shuffles_are_shuffles(num_frames: int, draws: int) -> None:
    orders = frame_orders(num_frames, draws=draws, seed=1)
    shuffled = orders["shuffled"]
    assert len(shuffled) == min(draws, 4 if num_frames == 3 else draws)
    assert (np.sort(shuffled, axis=1) == np.arange(num_frames)).all()
    there = {tuple(row) for row in np.concatenate([shuffled, orders["in order"], orders["reversed"]])}
    assert len(there) == len(shuffled) + 2
    assert (frame_orders(num_frames, draws=draws, seed=1)["shuffled"] == shuffled).all()
    assert orders["one frame"].tolist() == [[num_frames // 2] * num_frames]


def test_of_two_frames_the_reversal_is_the_only_shuffle() -> None:
    assert frame_orders(2)["shuffled"].tolist() == [[1, 0]]
    assert frame_orders(8, stills=2)["one frame"].tolist() == [[2] * 8, [6] * 8]
    with pytest.raises(ValueError, match="takes 1 frame: there is no order"):
        frame_orders(1)
    with pytest.raises(ValueError, match="stills 1 to 8; got 3 and 9"):
        frame_orders(8, stills=9)


# Rules


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for videos, (lost, won) in product((10, 40, 200), ((0.02, 0.02), (0.3, 0.05), (0.6, 0.0))):
        covered = 0
        for _ in range(400):
            drawn = rng.choice(3, size=videos, p=[lost, won, 1 - lost - won])
            found = compare((drawn != 1).astype(float), (drawn != 0).astype(float))
            covered += found.low <= 100 * (lost - won) <= found.high
        assert covered >= 0.92 * 400, (videos, lost, won)


def test_the_interval_is_wide_where_videos_are_few() -> None:
    same = np.ones(10)
    assert compare(same, same).high == pytest.approx(23.1, abs=0.1)  # no video of ten changed
    assert compare(np.ones(400), np.ones(400)).high < 1
    assert compare(np.ones(5), np.zeros(5)).points == compare(np.ones(5), np.zeros(5)).high == 100
    with pytest.raises(ValueError, match="the same videos"):
        compare(np.ones(3), np.ones(4))


@pytest.mark.parametrize(
    ("right", "change", "verdict"),
    [
        (shares(100, in_order=0.9, shuffled=0.5, reversed=0.4), 1.0, "uses"),
        (shares(100, in_order=0.9, shuffled=0.9, reversed=0.3), 1.0, "uses"),
        (shares(200, in_order=0.9, shuffled=0.9, reversed=0.9), 1.0, "unused"),
        (
            shares(10, in_order=1.0, shuffled=1.0, reversed=1.0),
            1.0,
            "open",
        ),  # ten videos do not show a loss of 5 points
        (shares(100, in_order=0.5, shuffled=0.3, reversed=0.3), 1.0, "open"),  # has learnt nothing
        (shares(100, in_order=0.9, shuffled=0.9, reversed=0.9), BLIND / 2, "blind"),
    ],
)
def test_what_is_said_of_a_network(right: dict[str, list[int]], change: float, verdict: str) -> None:
    assert network_verdict(probe(right, change=change))[0] == verdict


GOOD = shares(100, in_order=0.9, shuffled=0.5, reversed=0.4, one_frame=0.5)


@pytest.mark.parametrize(
    ("networks", "verdict"),
    [
        ([probe(GOOD)], "probably"),
        ([probe(GOOD), probe(shares(100, in_order=0.5), change=0.0, name="tsn")], "needs"),
        # Shuffling costs it much, and yet a network that sees no order does as well.
        ([probe(GOOD), probe(shares(100, in_order=0.9), change=0.0, name="tsn")], "no"),
        ([probe(GOOD), probe(shares(100, in_order=0.86), change=0.0, name="tsn")], "open"),
        # Better than TSN, but not by the order.
        (
            [
                probe(shares(200, in_order=0.9, shuffled=0.9, reversed=0.9, one_frame=0.4)),
                probe(shares(200, in_order=0.5), change=0.0, name="tsn"),
            ],
            "open",
        ),
        ([probe(shares(200, in_order=0.9, shuffled=0.4, reversed=0.4, one_frame=0.9))], "no"),
        ([probe(shares(20, in_order=1.0, shuffled=0.9, reversed=0.5, one_frame=0.9))], "open"),
        ([probe(shares(6, in_order=1.0, shuffled=0.5, reversed=0.5, one_frame=0.5))], "unknown"),
        ([probe(shares(100, in_order=0.9), change=0.0, name="tsn")], "unknown"),
        ([probe(shares(100, in_order=0.5, shuffled=0.1))], "unknown"),
    ],
)
def test_what_is_said_of_the_data(networks: list[NetworkProbe], verdict: str) -> None:
    found, said = data_verdict(networks)
    assert found == verdict
    assert {"needs": "needs time:", "probably": "probably needs", "no": "does not need"}.get(found, "hether") in said


# Networks


@pytest.mark.parametrize("name", ["tsn_resnet18", "stm_resnet18", "tsm_resnet18"])
def test_a_network_without_temporal_modules_gives_the_same_logits_in_any_order(name: str) -> None:
    model = create_model(name, num_classes=5, num_frames=8, base_width=16).eval()
    torch.nn.init.normal_(model.fc.weight, std=0.1)
    clip = torch.randn(2, 8, 3, 32, 32)
    orders = frame_orders(8)
    with torch.inference_mode():
        logits = {order: [model(clip[:, one]) for one in torch.from_numpy(of)] for order, of in orders.items()}
    ordered = logits["in order"][0]
    changes = [float((one - ordered).abs().max()) for one in (*logits["shuffled"], *logits["reversed"])]
    if name.startswith("tsn"):
        assert max(changes) < 1e-4
    else:
        assert min(changes) > 1e-2


def test_videos_are_decoded_once_and_in_order_is_what_evaluate_gives(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = Manifest.read(videos).classes
    networks = [untrained(tmp_path / name, name, classes) for name in ("stm_resnet18", "tsn_resnet18")]
    read = []
    real = decode.VideoFile.read
    monkeypatch.setattr(decode.VideoFile, "read", lambda self, indices: read.append(self.path) or real(self, indices))
    found = probe_order(networks, videos, workers=0, draws=2)
    stm, tsn = found.networks
    assert len(read) == 2 * stm.videos  # each network once
    # Untrained, and with a head of nearly zero: seen all the same.
    assert stm.change > 100 * BLIND
    assert tsn.change < BLIND / 10
    assert found.verdict == "unknown"
    usual = evaluate(networks[0], videos, workers=0).evaluation
    assert (usual.labels == stm.labels).all()
    assert np.allclose(usual.scores, stm.scores["in order"][0], atol=1e-6)
    assert stm.mean_class_accuracy("in order") == pytest.approx(usual.video.figures["mean_class_accuracy"])


def test_a_change_is_relative_to_the_logits() -> None:
    ordered = torch.randn(6, 1, 1, 4)
    other = ordered + 0.01
    assert largest_change(1000 * ordered, 1000 * other) == pytest.approx(largest_change(ordered, other), rel=1e-3)
    assert largest_change(torch.zeros(3, 1, 1, 4), torch.zeros(3, 1, 2, 4)) == 0


def test_rendered_videos_need_time_and_stm_uses_it(trained: dict[str, Path]) -> None:
    found = probe_order([trained["stm"], trained["tsn"]], which="last", workers=0)
    stm, tsn = found.networks
    assert stm.top1("in order") >= 85
    assert stm.top1("reversed") <= 25
    assert network_verdict(stm)[0] == "uses"
    assert network_verdict(tsn)[0] == "blind"
    for order in ("shuffled", "reversed"):
        assert np.abs(tsn.scores[order] - tsn.scores["in order"]).max() < 1e-5
    assert found.verdict == "needs"
    assert stm.taken_for()["moves_left"][0] == "moves_right"
    assert probe_order([trained["stm"]], which="last", workers=0).verdict == "probably"


def test_the_command_prints_writes_and_draws(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, plot = tmp_path / "order.json", tmp_path / "order.png"
    arguments = ("analyze", "order", trained["stm"], trained["tsn"], trained["videos"], "--weights", "last")
    monkeypatch.setenv("COLUMNS", "80")
    code = clipwise(*arguments, "--workers", "0", "--output", output, "--plot", plot, monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert code == 0
    assert "tsn cannot see the order of frames" in said
    assert "Your data needs time: stm is right on" in said
    assert "moves_right (" in said
    assert "…" not in said  # nothing is cut at 80 columns
    assert plot.stat().st_size > 5000
    record = json.loads(output.read_text())
    stm = record["networks"][0]
    assert record["data_verdict"] == "needs"
    assert [row["class"] for row in stm["per_class"]] == ["moves_left", "moves_right"]
    assert len(record["videos"]) == len(stm["predictions"]["shuffled"][2]) == 40
    hits = [
        row["label"] == given for row, given in zip(record["videos"], stm["predictions"]["reversed"][0], strict=True)
    ]
    assert stm["figures"]["reversed"]["top1"] == pytest.approx(100 * np.mean(hits))
    code = clipwise(*arguments, "--workers", "0", "--videos", "10", "--json", monkeypatch=monkeypatch)
    few = json.loads(capsys.readouterr().out)
    assert code == 0
    assert len(few["videos"]) == 10
    assert {row["video"] for row in few["videos"]} < {row["video"] for row in record["videos"]}


def test_what_cannot_be_probed_is_refused(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = untrained(tmp_path / "stm", "stm_resnet18", Manifest.read(videos).classes)
    assert clipwise("analyze", "order", network, network, videos, monkeypatch=monkeypatch) == 1
    assert "each checkpoint is to be given once" in capsys.readouterr().err
    assert clipwise("analyze", "order", network, videos, "--plot", "a.txt", monkeypatch=monkeypatch) == 1
    assert "a.txt: must end in .png or .svg or .pdf" in capsys.readouterr().err
