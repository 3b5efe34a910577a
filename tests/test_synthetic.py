"""The rendered data: no picture tells the direction of time, and what was asked for is what is written."""

import csv
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from clipwise.data import synthetic
from clipwise.data.synthetic import PAIRS, render, synthesize

Pictures = NDArray[np.uint8]
Twins = dict[tuple[str, str], list[tuple[Pictures, Pictures]]]  # of each pair, the decoded videos of each scene
SCENES = 24


def decode(path: Path) -> Pictures:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def content(folder: Path) -> dict[str, Pictures]:
    """Every video of a set, decoded, by its path within the set."""
    return {p.relative_to(folder).as_posix(): decode(p) for p in sorted(folder.glob("*/*"))}


def rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


# The leak test: a classifier that sees one decoded picture at a time.


def features(pictures: Pictures) -> NDArray[np.float32]:
    """What a picture shows, coarsely, and how finely it is coded, where: (N, H, W, 3) to (N, features)."""
    colour = pictures.astype(np.float32)
    grey = colour.mean(3)
    n, side = grey.shape[:2]

    def grid(values: NDArray[np.float32], cells: int) -> NDArray[np.float32]:
        step = side // cells
        return values.reshape(n, cells, step, cells, step).mean((2, 4)).reshape(n, -1)

    detail = np.abs(4 * grey - np.roll(grey, 1, 1) - np.roll(grey, -1, 1) - np.roll(grey, 1, 2) - np.roll(grey, -1, 2))
    across = np.abs(np.diff(grey, axis=2)).mean(1)  # by column: jumps at the borders of 8×8 blocks stand out
    down = np.abs(np.diff(grey, axis=1)).mean(2)
    blocks = [steps[:, k::8].mean(1, keepdims=True) for steps in (across, down) for k in range(8)]
    percentiles = np.percentile(detail.reshape(n, -1), (10, 50, 90, 99), axis=1).T
    statistics = [
        colour.mean((1, 2)),
        colour.std((1, 2)),
        np.log1p(detail.mean((1, 2)))[:, None],
        percentiles,
    ]
    opponent = colour[..., 0] - colour[..., 2]
    parts = [grid(grey, 8), grid(opponent, 4), np.log1p(grid(detail, 8)), *blocks, *statistics]
    return np.concatenate(parts, axis=1).astype(np.float32)


# Trained on the pictures of one mask, with their directions and pairs; the answers, for all pictures.
Judge = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]], NDArray[np.bool_]]


def judge_by_statistics(pictures: Pictures) -> Judge:
    """Logistic regression on the features, a model for each pair."""
    seen = features(pictures)

    def judge(direction: NDArray[np.int64], pair: NDArray[np.int64], train: NDArray[np.bool_]) -> NDArray[np.bool_]:
        answers = np.zeros(len(seen), bool)
        for p in np.unique(pair):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
            model.fit(seen[train & (pair == p)], direction[train & (pair == p)])
            answers[pair == p] = model.predict(seen[pair == p]) == 1
        return answers

    return judge


def judge_by_network(pictures: Pictures) -> Judge:
    """A network that sees the picture and, amplified, its finest detail; an output for each pair."""
    return partial(_judge_by_network, pictures)


def _judge_by_network(
    pictures: Pictures, direction: NDArray[np.int64], pair: NDArray[np.int64], train: NDArray[np.bool_]
) -> NDArray[np.bool_]:

    def layer(channels_in: int, channels: int) -> nn.Module:
        convolution = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())

    def look(x: Tensor) -> Tensor:
        x = x.float() / 255 - 0.5
        detail = x - F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return F.pixel_unshuffle(torch.cat([x, 8 * detail], 1), 2).contiguous(memory_format=torch.channels_last)

    torch.manual_seed(0)
    x_NCHW = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    y, column = torch.from_numpy(direction), torch.from_numpy(pair)[:, None]
    network = nn.Sequential(layer(24, 24), nn.MaxPool2d(2), layer(24, 32), nn.MaxPool2d(2), layer(32, 48))
    network.extend([nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(192, int(pair.max()) + 1)])
    network.to(memory_format=torch.channels_last)
    index = torch.from_numpy(np.flatnonzero(train))
    epochs, batch = 8, 64
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=epochs * (len(index) // batch))
    for _ in range(epochs):
        for chosen in index[torch.randperm(len(index))].split(batch)[: len(index) // batch]:
            logits = network(look(x_NCHW[chosen])).gather(1, column[chosen])[:, 0]
            loss = F.binary_cross_entropy_with_logits(logits, y[chosen].float())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()
    with torch.inference_mode():
        logits = torch.cat([network(look(x)) for x in x_NCHW.split(256)]).gather(1, column)[:, 0]
    return (logits > 0).numpy()


JUDGES = {"statistics": judge_by_statistics, "network": judge_by_network}
FOLDS = {"statistics": (0, 1, 2), "network": (2,)}  # the thirds of the scenes that are held out in turn


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # pictures this small gain nothing from more
    yield
    torch.set_num_threads(threads)


def leak(twins: Twins, judge: str) -> dict[str, float]:
    """By how many points a per-picture classifier beats chance on scenes it was not trained on.

    One figure for each pair, one for all and one for the first and last three pictures of all videos, where
    an encoder does special things. Every scene is there in both directions, so a scene's looks help nothing,
    and as a classifier that sees no difference answers alike for both, the figures vary little by chance.
    """
    taken = []  # (pictures, direction, pair, scene, whether at an end) of each video
    for p, videos in enumerate(twins.values()):
        for scene, both in enumerate(videos):
            for direction, pictures in enumerate(both):
                place = np.arange(len(pictures))
                end = np.minimum(place, place[::-1]) < 3
                # Both directions show the same moments of the scene.
                chosen = end | ((place if direction == 0 else place[::-1]) % 3 == 0)
                one = np.ones(chosen.sum(), np.int64)
                taken.append((pictures[chosen], direction * one, p * one, scene * one, end[chosen]))
    pictures, direction, pair, scene, end = (np.concatenate(parts) for parts in zip(*taken, strict=True))
    right, judged = np.zeros(len(scene), bool), np.zeros(len(scene), bool)
    answer = JUDGES[judge](pictures)
    for fold in FOLDS[judge]:
        held_out = scene % 3 == fold
        answers = answer(direction, pair, ~held_out)
        right[held_out] = (answers == (direction == 1))[held_out]
        judged |= held_out
    among = {first: pair == p for p, (first, _) in enumerate(twins)} | {"ends": end, "all": pair >= 0}
    return {name: 100.0 * float(right[judged & these].mean()) - 50.0 for name, these in among.items()}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("set") / "rendered", videos_per_class=SCENES, seed=3).parent


@pytest.fixture(scope="module")
def twins(rendered: Path) -> Twins:
    def video(label: str, index: int) -> Pictures:
        return decode(rendered / label / f"{label}_{index:05d}.mp4")

    return {(a, b): [(video(a, i), video(b, i)) for i in range(SCENES)] for a, b in PAIRS}


@pytest.mark.parametrize("judge", JUDGES)
def test_no_picture_tells_the_direction(twins: Twins, judge: str) -> None:
    points = leak(twins, judge)
    assert len(points) == len(PAIRS) + 2
    assert max(map(abs, points.values())) <= 3.0, points


def _planted(twins: Twins, change: Callable[[Pictures], Pictures]) -> Twins:
    return {pair: [(a, change(b)) for a, b in videos] for pair, videos in list(twins.items())[:2]}


def _brighter(pictures: Pictures) -> Pictures:
    return np.clip(pictures.astype(np.int16) + 6, 0, 255).astype(np.uint8)


def _marked(pictures: Pictures) -> Pictures:
    marked = pictures.copy()
    marked[:, :4, :4] = np.clip(marked[:, :4, :4].astype(np.int16) + 16, 0, 255)
    return marked


@pytest.mark.parametrize("change", [_brighter, _marked])
def test_a_faint_mark_on_one_class_is_reported(twins: Twins, change: Callable[[Pictures], Pictures]) -> None:
    assert leak(_planted(twins, change), "statistics")["all"] > 3.0


def _encode_plainly(pictures: Pictures, path: Path, **options: str) -> Pictures:
    """Encode with x264's own choice of keyframes and of quality by kind of frame; return what is decoded."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "veryfast", **options})
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return decode(path)


def test_coarser_compression_of_one_class_is_reported(twins: Twins, tmp_path: Path) -> None:
    planted = _planted(twins, lambda b: _encode_plainly(b, tmp_path / "again.mp4", qp="18"))
    assert leak(planted, "statistics")["all"] > 3.0


def test_careless_encoding_is_reported(tmp_path: Path) -> None:
    """The pictures are right, but x264's usual settings treat a file's beginning unlike its end."""
    path = tmp_path / "plain.mp4"

    def video(label: str, index: int) -> Pictures:
        return _encode_plainly(render(label, index, seed=3), path, crf="26")

    careless = {(a, b): [(video(a, i), video(b, i)) for i in range(SCENES)] for a, b in PAIRS[:2]}
    points = leak(careless, "network")
    assert points["all"] > 6.0
    assert points["ends"] > 6.0


# What is written.


def test_the_second_class_is_the_first_in_reverse(twins: Twins) -> None:
    for pair in PAIRS:
        forward, backward = (render(label, 5, seed=3) for label in pair)
        np.testing.assert_array_equal(forward, backward[::-1])
        # The event is far larger than the grain and the camera's shake.
        assert np.abs(forward[0].astype(float) - forward[-1]).max(axis=2).mean() > 10.0
        # It is so in the files too, up to compression.
        a, b = twins[pair][5]
        assert a.shape == b.shape == forward.shape
        assert np.abs(a.astype(float) - forward).mean() < 8.0
        assert np.abs(b.astype(float) - backward).mean() < 8.0


def test_manifest_classes_and_files(rendered: Path) -> None:
    items = rows(rendered / "manifest.csv")
    classes = (rendered / "classes.txt").read_text().splitlines()
    assert classes == sorted(label for pair in PAIRS for label in pair)
    assert len(classes) >= 12
    assert items[0] == {"path": f"{classes[0]}/{classes[0]}_00000.mp4", "label": classes[0], "split": "train"}
    assert sorted(p.relative_to(rendered).as_posix() for p in rendered.glob("*/*")) == sorted(
        item["path"] for item in items
    )
    assert [p.name for p in rendered.parent.iterdir()] == ["rendered"]  # nothing temporary is left


def test_split_is_stratified_and_no_scene_is_in_both(rendered: Path) -> None:
    split_of: dict[tuple[int, str], set[str]] = {}
    count: dict[tuple[str, str], int] = {}
    pair_of = {label: pair[0] for pair in PAIRS for label in pair}
    for item in rows(rendered / "manifest.csv"):
        index = int(item["path"].rsplit("_", 1)[1].removesuffix(".mp4"))
        split_of.setdefault((index, pair_of[item["label"]]), set()).add(item["split"])
        count[item["label"], item["split"]] = count.get((item["label"], item["split"]), 0) + 1
    assert all(len(splits) == 1 for splits in split_of.values())
    assert {n for (_, split), n in count.items() if split == "val"} == {SCENES // 4}
    assert {n for (_, split), n in count.items() if split == "train"} == {SCENES - SCENES // 4}


def test_a_set_depends_on_seed_alone_and_a_smaller_one_is_its_beginning(tmp_path: Path) -> None:
    options = {"size": 32, "frames": (6, 9)}
    done: list[tuple[int, int]] = []
    large = synthesize(
        tmp_path / "large",
        videos_per_class=8,
        pairs=3,
        workers=2,
        progress=lambda *counts: done.append(counts),
        **options,
    )
    small = synthesize(tmp_path / "small", videos_per_class=4, pairs=["moves_up", "opens/closes"][:1], **options)
    other = synthesize(tmp_path / "other", videos_per_class=4, pairs=[PAIRS[1]], seed=1, **options)
    assert done == [(i, 48) for i in range(1, 49)]
    everything, part, different = (content(path.parent) for path in (large, small, other))
    assert set(part) == set(different) < set(everything)
    assert all(np.array_equal(everything[name], pictures) for name, pictures in part.items())
    assert not any(np.array_equal(different[name], pictures) for name, pictures in part.items())
    kept = {item["path"]: item["split"] for item in rows(large)}
    assert all(kept[item["path"]] == item["split"] for item in rows(small))


@pytest.mark.parametrize(("codec", "name"), [("h264", "h264"), ("vp9", "vp9"), ("mpeg4", "mpeg4")])
def test_videos_are_as_asked(tmp_path: Path, codec: str, name: str) -> None:
    manifest = synthesize(
        tmp_path / "out", videos_per_class=3, pairs=["meets"], size=50, frames=(10, 14), fps=15, codec=codec
    )
    lengths = set()
    for item in rows(manifest):
        path = manifest.parent / item["path"]
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == name
            assert (stream.height, stream.width, stream.average_rate) == (50, 50, 15)
        pictures = decode(path)
        wanted = render(item["label"], int(path.stem[-5:]), size=50, frames=(10, 14))
        assert pictures.shape == wanted.shape
        assert np.abs(pictures.astype(float) - wanted).mean() < 8.0
        lengths.add(len(pictures))
    assert lengths <= set(range(10, 15))


def test_one_length(tmp_path: Path) -> None:
    manifest = synthesize(tmp_path / "out", videos_per_class=2, pairs=1, size=32, frames=12, val_share=0.0)
    assert {len(pictures) for pictures in content(manifest.parent).values()} == {12}
    assert {item["split"] for item in rows(manifest)} == {"train"}


# What goes wrong.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 63}, "even number of pixels, at least 32, got size = 63"),
        ({"size": 16}, "at least 32, got size = 16"),
        (
            {"pairs": ["moves_left/moves_up"]},
            "no pair of classes 'moves_left/moves_up'; the pairs are moves_left/",
        ),
        ({"pairs": ["jumps"]}, "no pair of classes 'jumps'"),
        ({"pairs": "opens"}, "write \\['opens'\\]"),
        ({"pairs": ["opens", "closes"]}, "opens/closes is asked for twice"),
        ({"pairs": []}, "no pair of classes was asked for"),
        ({"pairs": 9}, "1 to 8 pairs"),
        ({"frames": (20, 10)}, "shortest <= longest, got frames = \\(20, 10\\)"),
        ({"frames": 2}, "frames must be"),
        ({"codec": "av1"}, "one of h264, vp9, mpeg4, got 'av1'"),
        ({"val_share": 1.0}, "less than 1, got 1.0"),
        ({"videos_per_class": 1}, "leaves one split empty; ask for more videos"),
        ({"videos_per_class": 0}, "videos_per_class must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
    ],
)
def test_bad_arguments(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthesize(tmp_path / "out", **({"videos_per_class": 4} | options))  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())


def test_an_existing_folder_is_replaced_only_when_asked_and_only_if_rendered(tmp_path: Path) -> None:
    options = {"pairs": 1, "size": 32, "frames": 4, "videos_per_class": 2}
    folder = tmp_path / "out"
    folder.mkdir()  # an empty one will do
    synthesize(folder, **options)
    before = content(folder)
    with pytest.raises(ValueError, match=r"out: exists and is not empty; choose another folder, or --overwrite"):
        synthesize(folder, **options)
    synthesize(folder, overwrite=True, seed=1, **options)
    after = content(folder)
    assert set(before) == set(after)
    assert not any(np.array_equal(before[name], after[name]) for name in before)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds 'thesis.tex'"):
        synthesize(folder, overwrite=True, **options)
    assert (folder / "thesis.tex").exists()


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file: is a file; give a folder"):
        synthesize(tmp_path / "file", videos_per_class=4)
    with pytest.raises(ValueError, match=r"cannot be written .*; choose a folder you may write to"):
        synthesize(tmp_path / "file" / "out", videos_per_class=4)


@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, existing: bool) -> None:
    options = {"pairs": 1, "size": 32, "frames": 4, "videos_per_class": 4}
    folder = tmp_path / "deep" / "out"
    if existing:
        synthesize(folder, **options)
    before = sorted(tmp_path.rglob("*"))

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(folder, overwrite=True, progress=interrupt, **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(synthetic, "_encode", fail)
    with pytest.raises(OSError, match="no space left"):
        synthesize(tmp_path / "out", videos_per_class=4, pairs=1)
    assert not any(tmp_path.iterdir())
