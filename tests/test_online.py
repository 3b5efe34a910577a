"""Networks that follow a video frame by frame: what they answer, when, and what they cannot know yet."""

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import clipwise

from clipwise.analysis.plots import earliness_curves
from clipwise.checkpoint import read_checkpoint, write_card, write_weights
from clipwise.config import ModelConfig, ViewsConfig
from clipwise.data.decode import ArrayFrames, open_frames
from clipwise.data.labels import Head, LabelSpace
from clipwise.data.manifest import Manifest
from clipwise.data.sampling import segments_middle
from clipwise.data.synthetic import render
from clipwise.data.transforms import Normalise, crop_resize, evaluation_boxes
from clipwise.evaluation.online import SHARES, Answers, Looks, OnlineEvaluation, evaluate_online
from clipwise.evaluation.run import evaluate
from clipwise.models.registry import create_model

FRAMES, SIZE = 4, 32


def checkpoint(folder: Path, space: LabelSpace, *, causal: bool, seed: int = 0) -> Path:
    """A network as it starts, its head large enough that answers differ."""
    torch.manual_seed(seed)
    options = {"base_width": 16} | ({"causal": True} if causal else {})
    model = create_model("stm_resnet18", num_classes=sum(space.sizes), num_frames=FRAMES, **options)
    with torch.no_grad():
        model.fc.weight.mul_(30)
    folder.mkdir()
    config = ModelConfig(name="stm_resnet18", num_frames=FRAMES, weights=None, options=options)
    write_card(folder, config, space, ViewsConfig(size=SIZE, crop_ratio=0.875))
    write_weights(model, folder / "best.safetensors")
    return folder


@pytest.fixture(scope="module")
def networks(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A two-sided and a causal network."""
    folder = tmp_path_factory.mktemp("online")
    space = Manifest.read(videos).label_space
    return {name: checkpoint(folder / name, space, causal=name == "causal") for name in ("two_sided", "causal")}


@pytest.fixture(scope="module")
def evenly(networks: dict[str, Path], videos: Path) -> OnlineEvaluation:
    """Both, with as many frames as the offline network takes."""
    return evaluate_online(list(networks.values()), videos, split="val")


@pytest.fixture(scope="module")
def paced(networks: dict[str, Path], videos: Path) -> OnlineEvaluation:
    """Both, looking at every third frame."""
    return evaluate_online(list(networks.values()), videos, split="val", looks=Looks(stride=3))


def answers_of(found: OnlineEvaluation, network: int, name: str) -> Answers:
    (one,) = (answers for answers in found.networks[network].answers if answers.name == name)
    return one


def test_offline_is_what_evaluate_gives(evenly: OnlineEvaluation, networks: dict[str, Path], videos: Path) -> None:
    for place, path in enumerate(networks.values()):
        usual = evaluate(path, videos, split="val", workers=0).evaluation
        offline = answers_of(evenly, place, "offline, clip")
        np.testing.assert_allclose(offline.scores[-1], usual.scores, atol=1e-4)
        assert offline.whole == usual.video


@pytest.mark.parametrize(("network", "way"), [(0, "sliding"), (1, "causal")])
def test_on_the_clips_frames_the_last_answer_is_the_clips(evenly: OnlineEvaluation, network: int, way: str) -> None:
    clip = answers_of(evenly, network, "offline, clip").scores[-1]
    np.testing.assert_allclose(answers_of(evenly, network, f"{way}, last frame").scores[-1], clip, atol=1e-4)
    assert np.abs(answers_of(evenly, network, f"{way}, mean over frames").scores[-1] - clip).max() > 1e-2


def test_the_windows_mean_is_that_of_the_offline_networks_clips(
    paced: OnlineEvaluation, networks: dict[str, Path], videos: Path
) -> None:
    """Windows made by hand: before there are T frames the first is repeated."""
    trained = read_checkpoint(networks["two_sided"])
    normalise = Normalise(trained.views.mean, trained.views.std)
    manifest = Manifest.read(videos, split="val")
    expected = []
    for item in manifest:
        with open_frames(item.path) as frames:
            pictures = frames.read(np.arange(0, frames.num_frames, 3))
        (box,) = evaluation_boxes(*pictures.shape[1:3], crops=1, ratio=0.875)
        seen = crop_resize(pictures, box, SIZE)
        padded = torch.cat([*[seen[:1]] * (FRAMES - 1), seen])
        windows = torch.stack([padded[start : start + FRAMES] for start in range(len(seen))])
        with torch.inference_mode():
            expected.append(trained.model(normalise(windows)).softmax(1).mean(0).numpy())
    mean = answers_of(paced, 0, "sliding, mean over frames")
    np.testing.assert_allclose(mean.scores[-1], np.stack(expected), atol=1e-4)


@pytest.mark.parametrize("place", [0, 5])
def test_no_answer_knows_what_comes_after_it(
    paced: OnlineEvaluation, networks: dict[str, Path], videos: Path, tmp_path: Path, place: int
) -> None:
    """What is told after a share of a video is what is told of a video that ends there."""
    manifest = Manifest.read(videos, split="val")
    rows = []
    for index, item in enumerate(manifest):
        with manifest.open(index) as frames:
            assert frames.fps is not None
            passed = -(-frames.num_frames * SHARES[place] // 100)
            rows.append([item.path, manifest.names_of(index)[0], 0, (passed - 0.5) / frames.fps])
    del rows[::2]
    cut = tmp_path / "cut.csv"
    with cut.open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "start", "end"], *rows])
    ended = evaluate_online(list(networks.values()), cut, looks=Looks(stride=3))
    for network, other in zip(paced.networks, ended.networks, strict=True):
        for answers, others in zip(network.answers, other.answers, strict=True):
            expected = answers.scores[place, 1::2]
            np.testing.assert_allclose(others.scores[-1], expected, atol=1e-4, err_msg=answers.name)


def test_the_frames_looked_at() -> None:
    frames = ArrayFrames(np.zeros((20, 4, 4, 3), np.uint8), fps=10.0)
    assert Looks(multiple=2).of(frames, 4).tolist() == segments_middle(20, 8).tolist()
    assert Looks(stride=6).of(frames, 4).tolist() == [0, 6, 12, 18]
    two_a_second = Looks(rate=2).of(frames, 4)
    assert two_a_second[0] == 0
    assert set(np.diff(two_a_second)[1:]) == {5}
    with pytest.raises(ValueError, match="states no frame rate"):
        Looks(rate=2).of(ArrayFrames(np.zeros((20, 4, 4, 3), np.uint8)), 4)
    for wrong in ({}, {"stride": 2, "rate": 2.0}, {"stride": 0}, {"rate": -1.0}, {"multiple": 0}):
        with pytest.raises(ValueError, match="got"):
            Looks(**wrong)  # type: ignore[arg-type]


def test_trainings_that_differ_in_their_seeds_are_one_group(
    networks: dict[str, Path], videos: Path, tmp_path: Path
) -> None:
    space = Manifest.read(videos).label_space
    others = [checkpoint(tmp_path / f"causal{seed}", space, causal=True, seed=seed) for seed in (1, 2)]
    found = evaluate_online([networks["two_sided"], networks["causal"], *others], videos, split="val", videos=3)
    assert [len(group.members) for group in found.groups] == [1, 3]
    (group,) = found.record["groups"]
    values = [answers_of(found, place, "causal, last frame").whole.top1 for place in (1, 2, 3)]
    figures = group["answers"]["causal, last frame"]["top1"]
    assert figures == {"mean": pytest.approx(np.mean(values)), "deviation": pytest.approx(np.std(values, ddof=1))}
    assert found.groups[1].curves("top1")["causal, last frame"].shape == (3, len(SHARES))


def test_a_video_that_cannot_be_read_is_named_and_left_out(
    networks: dict[str, Path], videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    manifest = Manifest.read(videos, split="val")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"\0" * 100)
    listed = tmp_path / "listed.csv"
    with listed.open("w", newline="") as file:
        rows = [[item.path, manifest.names_of(index)[0]] for index, item in enumerate(manifest)]
        csv.writer(file).writerows([["path", "label"], [broken, rows[0][1]], *rows[:3]])
    output, plot = tmp_path / "online.json", tmp_path / "online.png"
    arguments = ["analyze", "online", *networks.values(), "--data", listed, "--multiple", "1", "--plot", plot]
    assert clipwise(*arguments, "--output", output, monkeypatch=monkeypatch) == 1
    table = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert {"two_sided", "causal"} < set(table)  # not folded for want of room
    record = json.loads(output.read_text())
    assert [failure["path"] for failure in record["data"]["unreadable"]] == [str(broken)]
    assert record["data"]["videos"] == 3
    assert plot.stat().st_size > 10_000
    ways = [[answers["way"] for answers in network["answers"]] for network in record["networks"]]
    assert ways == [["offline", "sliding", "sliding"], ["offline", "causal", "causal"]]
    for network in record["networks"]:
        for latency in network["latency_ms"].values():
            assert 0 < latency["q1"] <= latency["median"] <= latency["q3"] <= latency["p95"]
        assert network["latency_ms"]["offline"]["answers"] == 3
    assert record["threads"] == torch.get_num_threads()
    assert clipwise(*arguments, "--on-error", "raise", monkeypatch=monkeypatch) == 1
    assert clipwise(*arguments, "--on-error", "skip", "--stride", "2", monkeypatch=monkeypatch) == 1  # and --multiple


def test_of_a_training_run_the_seed_is_told(run: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert clipwise("analyze", "online", run, "--videos", 2, "--json", monkeypatch=monkeypatch) == 0
    (network,) = json.loads(capsys.readouterr().out)["networks"]
    assert network["seed"] == network["training"]["config"]["training"]["seed"] == 0


def test_several_heads_are_refused(videos: Path, tmp_path: Path) -> None:
    space = LabelSpace((Head("verb", ("a", "b")), Head("noun", ("c", "d"))), False)
    with pytest.raises(ValueError, match="one class is tested"):
        evaluate_online([checkpoint(tmp_path / "heads", space, causal=True)], videos)


def test_the_picture_refuses_what_it_cannot_draw(tmp_path: Path) -> None:
    for wrong in ({}, {"a": {"x": [[1.0, 2.0]]}}, {"a": {"x": [[1.0] * 9 + [101.0]]}}, {"a": {"x": [1.0] * 10}}):
        with pytest.raises(ValueError, match="drawn"):
            earliness_curves(tmp_path / "x.png", SHARES, wrong, "title", "axis")


# benchmarks/online.py


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "online_benchmark", Path(__file__).resolve().parents[1] / "benchmarks/online.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["online_benchmark"] = module
    spec.loader.exec_module(module)
    return module


def test_each_true_event_counts_once(benchmark: ModuleType) -> None:
    truth = [benchmark.Truth("falling", 3.0, 6.0), benchmark.Truth("standing_up", 6.0, 9.0)]
    found = [("falling", 2.1), ("falling", 3.2), ("standing_up", 7.1), ("falling", 6.2), ("lying_down", 3.0)]
    assert benchmark.counted(found, truth) == (1, 5, 2)
    assert benchmark.pairs_of(found, truth) == [(1, 0)]


def stream(benchmark: ModuleType, rng: np.random.Generator) -> tuple[Any, tuple[Any, Any]]:
    """A recording of 60 s with three events, and scores that follow them a second late."""
    classes = (*benchmark.TRANSITIONS, "walking")
    starts = np.sort(rng.choice(np.arange(2, 54, 6), 3, replace=False)).astype(float)
    truth = [benchmark.Truth(classes[rng.integers(4)], start, start + 3) for start in starts]
    seconds = np.arange(0, 60, 0.6)
    logits = rng.normal(scale=0.5, size=(len(seconds), 5))
    logits[:, 4] += 2.0
    for true in truth:
        during = (seconds >= true.start + 1) & (seconds < true.end + 1)
        logits[during, classes.index(true.label)] += 5.0
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    name = f"recording{rng.integers(10**9)}"
    return benchmark.Recording(name, Path(name), 1500, 25.0, tuple(truth)), (seconds, scores.astype(np.float32))


def test_a_recordings_parameters_are_chosen_without_it(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"smoothing": (0.0, 0.6), "threshold": (0.3, 0.5, 0.8), "release": (0.8,), "min_seconds": (0.0, 0.6)}
    monkeypatch.setattr(benchmark, "SETTINGS", few)
    rng = np.random.default_rng(3)
    pairs = [stream(benchmark, rng) for _ in range(3)]
    recordings, streams = [one for one, _ in pairs], {one.name: of for one, of in pairs}
    look = benchmark.Look(15, True)
    classes = (*benchmark.TRANSITIONS, "walking")
    result = benchmark.evaluate_events({look: streams}, recordings, classes)
    assert result["dated back"]["recall"] == 100
    assert result["dated back"]["overlapping"]["median_start_error_s"] < 0.4
    assert 0.8 < result["as found"]["overlapping"]["median_start_offset_s"] < 2
    # Other scores in the last recording change what is chosen for the others, never what is chosen for it.
    seconds, scores = streams[recordings[-1].name]
    streams[recordings[-1].name] = seconds, scores[::-1].copy()
    changed = benchmark.evaluate_events({look: streams}, recordings, classes)
    for dating in benchmark.DATINGS:
        before, after = (one[dating]["recordings"] for one in (result, changed))
        assert before[-1]["parameters"] == after[-1]["parameters"]
        assert before[0]["parameters"] != after[0]["parameters"]


def test_clips_become_recordings_with_their_true_events(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The whole benchmark, on 2 recordings of 4 clips each and one training clip."""
    names = ("walking", "falling", "walking", "standing_up")
    rows = [["walking/t_00.mp4", "walking", "t", 24, "train"]]
    rows += [[f"{name}/{rec}_{i:02}.mp4", name, rec, 10 + i, "val"] for rec in "ab" for i, name in enumerate(names)]
    for place, (path, _, _, frames, _) in enumerate(rows):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        write_clip(tmp_path / path, render("moves_left", place, size=48, frames=(frames, frames)))
    with (tmp_path / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "class", "recording", "frames", "split"], *rows])
    space = LabelSpace.of((*benchmark.TRANSITIONS, "walking"))
    two_sided = checkpoint(tmp_path / "two_sided", space, causal=False)
    output = tmp_path / "result.json"
    arguments = ["online.py", two_sided, "--data", tmp_path, "--output", output, "--weights", "best", "--moved"]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    few = {"smoothing": (0.0, 0.6), "threshold": (0.3, 0.6), "release": (0.8,), "min_seconds": (0.0,)}
    monkeypatch.setattr(benchmark, "SETTINGS", few)
    benchmark.main()
    record = json.loads(output.read_text())
    assert record["recordings"]["stride"] == {"two_sided": 6, "two_sided_moved": 6}
    joined = record["recordings"]["joined"]
    assert [one["frames"] for one in joined] == [10 + 11 + 12 + 13] * 2
    assert joined[0]["truth"][1:3] == [["falling", 0.4, 0.84], ["walking", 0.84, 1.32]]
    assert [row["answers"] for row in record["offline_to_online"]] == [
        *("sliding, mean over frames", "sliding, last frame"),
        *("offline, clip", "causal, mean over frames", "causal, last frame"),
    ]
    assert record["goals"] == {}  # none for weights that were only moved
    chosen = record["recordings"]["networks"]["two_sided_moved"]["as found"]["recordings"][0]["parameters"]
    assert (chosen["stride"], chosen["consensus"]) == (6, True)  # nothing is found: the first of all
    assert "Kinetics-400: 75.5 to 75.4 (-0.1)" in capsys.readouterr().out
    assert output.with_suffix(".png").is_file()


def write_clip(path: Path, pictures: Any) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
