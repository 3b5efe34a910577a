"""Evaluating, predicting and loading: the same video gives the same answer whichever way it comes in."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from safetensors.torch import load_file, save_file

import clipwise
from clipwise.checkpoint import read_checkpoint
from clipwise.config import ViewsConfig
from clipwise.data.dataset import read_views
from clipwise.data.decode import ArrayFrames, DecodeError, open_frames
from clipwise.data.manifest import Manifest
from clipwise.evaluation.run import evaluate


@pytest.fixture
def video(videos: Path) -> Path:
    return videos / "moves_left/moves_left_00000.mp4"


def test_every_kind_of_source_gives_the_same_scores(run: Path, video: Path) -> None:
    predictor = clipwise.load(run)
    expected = predictor(video)
    with open_frames(video) as frames:
        array = frames.read(range(frames.num_frames))
    with video.open("rb") as file:
        others = predictor([str(video), video.read_bytes(), file, array])
    for other in others:
        np.testing.assert_array_equal(other.scores, expected.scores)
    assert expected.scores.sum() == pytest.approx(1, abs=1e-5)
    assert expected.label == expected.top[0][0] == predictor.classes[int(expected.scores.argmax())]
    assert len(predictor(video, top_k=2).top) == 2


def test_the_predictor_is_the_network_on_the_middle_frames(run: Path, video: Path) -> None:
    checkpoint = read_checkpoint(run)
    with open_frames(video) as frames:
        tick = frames.num_frames / 4
        pictures = frames.read([int(tick / 2 + tick * i) for i in range(4)])
    side = round(48 * 0.875)
    top = (48 - side) // 2
    crop = torch.from_numpy(pictures[:, top : top + side, top : top + side]).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(crop, (32, 32), mode="bilinear", antialias=True)
    mean, std = torch.tensor(checkpoint.views.mean), torch.tensor(checkpoint.views.std)
    clip = (small / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        scores = checkpoint.model(clip[None]).softmax(1)[0]
    np.testing.assert_allclose(clipwise.load(run)(video).scores, scores, atol=1e-5)


def test_each_goes_on_after_a_broken_video(run: Path, video: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    results = list(clipwise.load(run).each([video, tmp_path / "empty.mp4", video]))
    assert isinstance(results[1], DecodeError)
    assert "empty.mp4" in str(results[1])
    assert results[0].top == results[2].top  # type: ignore[union-attr]


def test_a_one_frame_video_is_scored_and_says_so(run: Path, video: Path) -> None:
    with open_frames(video) as frames:
        one = frames.read([0])
    assert clipwise.load(run)(one).num_frames == 1


def test_evaluation_agrees_with_prediction(run: Path, videos: Path) -> None:
    result = evaluate(run, precision="fp32", workers=0)
    predictor = clipwise.load(run)
    assert len(result.evaluation.names) == 8
    for name, scores in zip(result.evaluation.names, result.evaluation.scores, strict=True):
        np.testing.assert_allclose(predictor(videos / name).scores, scores, atol=1e-5)


def test_views_are_averaged_after_softmax_and_repeat(run: Path, videos: Path) -> None:
    views = ViewsConfig(size=32, clips=4, sampling="random", crops=3)
    first, second = (evaluate(run, views=views, workers=0) for _ in range(2))
    np.testing.assert_array_equal(first.evaluation.scores, second.evaluation.scores)
    assert first.evaluation.clip.videos == 4 * first.evaluation.video.videos
    np.testing.assert_allclose(first.evaluation.scores.sum(1), 1, atol=1e-5)


def test_a_result_records_the_whole_protocol(run: Path) -> None:
    record = json.loads(json.dumps(evaluate(run, workers=0).record))
    assert record["protocol"]["average"] == "mean of softmax over views"
    assert record["protocol"]["views"]["sampling"] == "middle"
    assert record["checkpoint"]["sha256"]
    assert record["videos"] == {"scored": 8, "unreadable": [], "shorter_than_clip": []}
    assert len(record["training"]["epochs"]) == 2
    scores = np.array([row["scores"] for row in record["scores"]])
    right = [record["classes"][k] == row["label"] for k, row in zip(scores.argmax(1), record["scores"], strict=True)]
    assert record["video"]["top1"] == pytest.approx(100 * np.mean(right))


def test_a_run_can_be_used_from_anywhere(
    run: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert evaluate(run, workers=0).record["data"]["videos"] == 8


def test_the_data_trained_on_is_tested_on_what_was_held_out(videos: Path, tmp_path: Path) -> None:
    data = tmp_path / "videos"
    shutil.copytree(videos, data)
    (data / "manifest.csv").unlink()
    clipwise.train(data, tmp_path / "run", overrides=SMALL)
    held = [name for name, _, _ in json.loads((tmp_path / "run/splits.json").read_text())["validation"]]
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for folder, given in ((tmp_path / "run", None), (tmp_path / "run", data), (tmp_path / "link", None)):
        assert sorted(evaluate(folder, given, workers=0).evaluation.names) == sorted(held)


def test_segments_of_a_file_are_held_out_together_and_found_again(videos: Path, tmp_path: Path) -> None:
    rows = ["path,label,start,end"]
    for item in Manifest.read(videos):
        label = item.name.split("/")[0]
        rows += [f"{item.path},{label},0,0.2", f"{item.path},{label},0.2,0.4"]
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    clipwise.train(tmp_path, tmp_path / "run", overrides=[*SMALL, "training.epochs=1"])
    splits = json.loads((tmp_path / "run/splits.json").read_text())
    train, held = ({name for name, _, _ in splits[part]} for part in ("train", "validation"))
    assert not train & held
    assert len(splits["validation"]) == 8
    for given in (None, tmp_path, tmp_path / "manifest.csv"):
        assert len(evaluate(tmp_path / "run", given, workers=0).evaluation.names) == 8


def test_what_was_trained_on_is_never_scored_unasked(videos: Path, tmp_path: Path) -> None:
    """Neither of the run's own data nor of a copy of it: one other split is taken, of several one must be named."""
    data = tmp_path / "videos"
    shutil.copytree(videos, data)
    listed = (data / "manifest.csv").read_text().replace(",val", ",test")
    (data / "manifest.csv").write_text(listed)
    with pytest.raises(ValueError, match=r"no split 'value' to validate on; there is: test, train; name one by"):
        clipwise.train(data, tmp_path / "run", overrides=[*SMALL, "data.validation_split=value"])
    clipwise.train(data, tmp_path / "run", overrides=[*SMALL, "training.epochs=1"])
    (data / "copy.csv").write_text(listed)
    for given in (None, data / "copy.csv"):
        result = evaluate(tmp_path / "run", given, workers=0)
        assert (len(result.evaluation.names), result.record["data"]["split"]) == (8, "test")
    (data / "three.csv").write_text(listed.replace(",test", ",other", 1))
    with pytest.raises(ValueError, match="no split 'val'; name the split to test on by --split: other, test, train"):
        evaluate(tmp_path / "run", data / "three.csv", workers=0)
    assert len(evaluate(tmp_path / "run", data / "three.csv", split="test", workers=0).evaluation.names) == 7


def test_three_crops_have_the_whole_short_side() -> None:
    pictures = np.zeros((4, 48, 80, 3), np.uint8)
    pictures[:, 0] = pictures[:, -1] = 255
    views = read_views(ArrayFrames(pictures), 4, ViewsConfig(size=48, crops=3), identity="")
    assert views.shape == (3, 4, 3, 48, 48)
    assert (views[..., 0, :] == 255).all()
    assert (views[..., -1, :] == 255).all()


def test_evaluation_and_prediction_draw_the_same_random_clips(run: Path, videos: Path) -> None:
    views = ViewsConfig(size=32, clips=3, sampling="random")
    result = evaluate(run, views=views, workers=0)
    predictor = clipwise.load(run, views=views)
    np.testing.assert_allclose(
        predictor(videos / result.evaluation.names[0]).scores, result.evaluation.scores[0], atol=1e-5
    )


def test_unreadable_videos_are_counted_not_replaced(run: Path, videos: Path, tmp_path: Path) -> None:
    data = tmp_path / "videos"
    shutil.copytree(videos, data)
    broken = next(Path(item.path) for item in Manifest.read(data) if item.split == "val")
    broken.write_bytes(b"<html>not found</html>")
    result = evaluate(run, data, workers=0)
    assert [failure.path for failure in result.evaluation.unreadable] == [str(broken)]
    assert len(result.evaluation.names) == 7


def test_data_with_other_classes_is_refused(run: Path, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text(f"path,label\n{videos}/moves_left/moves_left_00000.mp4,jumps\n")
    with pytest.raises(ValueError, match="not the checkpoint's, the first 'jumps'; the checkpoint knows 4: moves_down"):
        evaluate(run, tmp_path / "test.csv")


def test_classes_are_matched_by_name_whatever_their_order(run: Path, videos: Path, tmp_path: Path) -> None:
    data = tmp_path / "videos"
    shutil.copytree(videos, data)
    (data / "classes.txt").write_text("moves_up\nmoves_left\nmoves_down\nmoves_right\n")
    other, same = evaluate(run, data, workers=0), evaluate(run, workers=0)
    assert other.evaluation.video == same.evaluation.video


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model.json").unlink(), "holds no model.json"),
        (lambda folder: (folder / "model.json").write_text("{"), "damaged or not written by clipwise"),
        (
            lambda folder: (folder / "model.json").write_text(
                (folder / "model.json").read_text().replace("moves_up", "moves_away")
            ),
            "class list was changed after training",
        ),
        (
            lambda folder: (folder / "model.json").write_text(
                (folder / "model.json").read_text().replace("stm_resnet18", "tsm_resnet18")
            ),
            r"not the weights of the tsm_resnet18 .*tensors are missing, \d+ are not its own",
        ),
        (lambda folder: (folder / "best.safetensors").write_bytes(b"cut"), "not a readable safetensors file"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(run: Path, tmp_path: Path, change: object, message: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    change(folder)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        clipwise.load(folder)


def test_weights_of_another_width_are_refused(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    state = load_file(folder / "best.safetensors")
    save_file({**state, "fc.weight": torch.zeros(9, 128)}, folder / "best.safetensors")
    with pytest.raises(ValueError, match="1 have another shape"):
        clipwise.load(folder)


def test_public_names_are_the_documented_ones() -> None:
    names = ["Manifest", "Predictor", "Stream", "__version__", "create_model", "deploy", "evaluate"]
    names += ["list_models", "load", "temporalize", "train"]
    assert clipwise.__all__ == names
    assert all(getattr(clipwise, name) for name in names)
    with pytest.raises(AttributeError, match="no attribute 'models_zoo'"):
        clipwise.models_zoo  # noqa: B018
