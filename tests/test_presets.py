"""Published protocols, views batched across videos, and ensembles."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

from clipwise.checkpoint import write_card, write_weights
from clipwise.cli import application
from clipwise.config import ModelConfig, ViewsConfig
from clipwise.data.dataset import TestViews, _clip_indices, read_views
from clipwise.data.decode import open_frames
from clipwise.data.labels import Head, LabelSpace
from clipwise.data.manifest import Manifest
from clipwise.data.transforms import Normalise
from clipwise.evaluation.ensemble import combine, evaluate_ensemble
from clipwise.evaluation.presets import list_protocols, protocol_entry, protocol_views
from clipwise.evaluation.protocols import evaluate_model, rebatched, score_views
from clipwise.evaluation.run import evaluate
from clipwise.models.registry import create_model

OF_256, OF_240 = 224 / 256, 224 / 240
# name: sampling, clips, crops, share of the short side, size, average
PUBLISHED = {
    "stm": ("random", 10, 3, 1.0, 224, "softmax"),
    "stm_journal": ("random", 10, 3, 1.0, 224, "softmax"),
    "stc_1clip": ("middle", 1, 1, OF_240, 224, "softmax"),
    "stc_1clip_others": ("middle", 1, 1, OF_256, 224, "softmax"),
    "stc_2clip": ("two_clips", 2, 3, OF_240, 224, "softmax"),
    "stc_10clip": ("random", 10, 3, OF_240, 224, "softmax"),
    "stw": ("middle", 1, 1, 1.0, 224, "softmax"),
    "stw_kinetics": ("random", 10, 3, 1.0, 224, "softmax"),
    "tsm": ("two_clips", 2, 3, 1.0, 256, "logits"),
    "tsm_kinetics": ("dense", 10, 3, 1.0, 256, "logits"),
    "tsm_1clip": ("middle", 1, 1, OF_256, 224, "logits"),
    "deep_analysis_uniform": ("middle", 1, 1, OF_256, 224, "softmax"),
    "deep_analysis_uniform_2clip": ("uniform", 2, 3, 1.0, 256, "softmax"),
    "deep_analysis_dense": ("dense", 10, 3, 1.0, 256, "softmax"),
    "slowfast": ("slowfast", 10, 3, 1.0, 256, "softmax"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_the_protocol_of_the_specification(name: str) -> None:
    views = protocol_views(name, ViewsConfig(), 8)
    ratio = views.crop_ratio if views.crops == 1 else views.three_crop_ratio
    assert (views.sampling, views.clips, views.crops, ratio, views.size, views.average) == PUBLISHED[name]


@pytest.mark.parametrize("name", list_protocols())
@pytest.mark.parametrize("num_frames", [1, 4, 8, 16, 32, 64, 100])
def test_every_preset_goes_with_every_frame_count_and_leaves_the_colours_to_the_network(
    name: str, num_frames: int
) -> None:
    own = ViewsConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), clips=7, sampling="uniform")
    views = protocol_views(name, own, num_frames)
    assert (views.mean, views.std) == (own.mean, own.std)
    assert protocol_entry(name).section
    assert protocol_entry(name).data


def test_an_unknown_protocol_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no protocol 'stm8'; there are stm, "):
        protocol_views("stm8", ViewsConfig(), 8)


def test_frames_of_the_presets_are_those_of_the_reference() -> None:
    def clips(name: str, available: int, num_frames: int) -> np.ndarray:
        return _clip_indices(available, num_frames, protocol_views(name, ViewsConfig(), num_frames), "a.mp4") + 1

    assert clips("stc_2clip", 30, 8).tolist() == [[2, 6, 10, 14, 17, 21, 25, 29], [1, 4, 8, 12, 16, 19, 23, 27]]
    dense = clips("tsm_kinetics", 300, 8)
    assert dense[:, 0].tolist() == [1, 27, 53, 79, 105, 132, 158, 184, 210, 237]
    assert dense[0].tolist() == [1, 9, 17, 25, 33, 41, 49, 57]
    assert (np.diff(clips("tsm_kinetics", 300, 16)) == 4).all(), "a window of 64 frames whatever the frame count"
    assert (np.diff(clips("deep_analysis_dense", 300, 32)) == 2).all()
    assert clips("slowfast", 300, 32)[:, 0].tolist() == [1 + 236 * clip // 10 for clip in range(10)]
    middle, following = clips("deep_analysis_uniform_2clip", 300, 8)
    assert (following == middle + 1).all()


def test_pixels_of_the_presets() -> None:
    """A frame whose columns are numbered shows which part of it a view has."""
    columns = np.broadcast_to(np.arange(160, dtype=np.uint8)[None, None, :, None], (8, 120, 160, 3))

    def extent(name: str) -> list[tuple[int, int]]:
        views = protocol_views(name, ViewsConfig(), 8)
        with open_frames(np.ascontiguousarray(columns)) as frames:
            read = read_views(frames, 8, views, identity="a")
        assert read.shape == (views.clips * views.crops, 8, 3, views.size, views.size)
        return [(int(view.min()), int(view.max())) for view in read[: views.crops]]

    # The whole short side (120) three times, a centre of 224/240 or 224/256 of it, and three of 224/240.
    assert extent("stm") == extent("tsm") == [(0, 119), (20, 139), (40, 159)]
    assert extent("stw") == [(20, 139)]
    assert extent("stc_1clip") == [(24, 135)]
    assert extent("tsm_1clip") == [(27, 131)]
    assert extent("stc_2clip") == [(0, 111), (24, 135), (48, 159)]


def test_the_two_averages_differ_where_one_view_is_sure() -> None:
    logits = torch.tensor([[[9.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])
    space = LabelSpace.of(["a", "b"])
    views = ViewsConfig(clips=4, sampling="uniform")
    assert score_views(logits, views, space)[1].argmax() == 1
    by_clip, scores = score_views(logits, ViewsConfig(clips=4, sampling="uniform", average="logits"), space)
    torch.testing.assert_close(scores, torch.tensor([[9 / 4, 3 / 4]]).softmax(-1))
    torch.testing.assert_close(by_clip, logits.softmax(-1))


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 11))
def test_rebatching_keeps_every_row_in_order_and_fills_every_batch_but_the_last(sizes: list[int], size: int) -> None:
    rows = torch.arange(sum(sizes))
    read = 0

    def parts() -> Any:
        nonlocal read
        for part in rows.split(sizes):
            read += len(part)
            yield part

    given_out, batches = 0, []
    for batch in rebatched(parts(), size):
        batches.append(torch.cat(batch))
        given_out += len(batches[-1])
        assert read - given_out < max([*sizes, 1]) + size, "no more is held than a part and a batch"
    assert all(len(batch) == size for batch in batches[:-1])
    assert not batches or 0 < len(batches[-1]) <= size
    assert torch.cat(batches or [rows]).tolist() == rows.tolist()


def network(num_frames: int, seed: int = 0, classes: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    model = create_model("stm_resnet18", num_classes=classes, num_frames=num_frames, base_width=16)
    nn.init.normal_(model.fc.weight)  # as it starts, all classes score alike
    return model.eval()


@pytest.mark.parametrize("batch_size", [1, 5, 12, 500])
def test_views_fill_batches_across_videos_and_score_as_each_video_alone(videos: Path, batch_size: int) -> None:
    manifest = Manifest.read(videos).select("val")
    views = ViewsConfig(size=32, sampling="random", clips=2, crops=3)
    model = network(4)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    result = evaluate_model(model, manifest, views, num_frames=4, batch_size=batch_size, workers=0)
    total = len(manifest) * 6
    assert seen == [batch_size] * (total // batch_size) + [total % batch_size] * (total % batch_size > 0)
    normalise = Normalise(views.mean, views.std)
    dataset = TestViews(manifest, num_frames=4, views=views)
    with torch.inference_mode():
        alone = torch.stack([model(normalise(dataset[i]["clip"])).softmax(-1).mean(0) for i in range(len(manifest))])  # type: ignore[index]
    torch.testing.assert_close(torch.from_numpy(result.scores), alone, rtol=0, atol=1e-6)
    assert result.indices.tolist() == list(range(len(manifest)))


def test_a_video_that_cannot_be_read_shifts_no_score_to_another(videos: Path, tmp_path: Path) -> None:
    data = tmp_path / "videos"
    shutil.copytree(videos, data)
    manifest = Manifest.read(data).select("val")
    whole = evaluate_model(network(4), manifest, ViewsConfig(size=32, crops=3), num_frames=4, batch_size=4, workers=2)
    Path(manifest[2].path).write_bytes(b"no video")
    rest = evaluate_model(network(4), manifest, ViewsConfig(size=32, crops=3), num_frames=4, batch_size=4, workers=2)
    assert rest.indices.tolist() == [i for i in range(len(manifest)) if i != 2]
    np.testing.assert_allclose(rest.scores, np.delete(whole.scores, 2, axis=0), atol=1e-6)


def checkpoint(folder: Path, num_frames: int, space: LabelSpace, seed: int = 0, **views: Any) -> Path:
    folder.mkdir(parents=True)
    config = ModelConfig(name="stm_resnet18", num_frames=num_frames, options={"base_width": 16})
    write_card(folder, config, space, ViewsConfig(**{"size": 32, **views}))
    write_weights(network(num_frames, seed, len(space.classes)), folder / "best.safetensors")
    return folder


@pytest.fixture(scope="module")
def classes(videos: Path) -> tuple[str, ...]:
    return Manifest.read(videos).classes


@pytest.fixture(scope="module")
def pair(classes: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of 4 and 8 frames; the second knows the classes in the opposite order, at another size, with two clips."""
    folder = tmp_path_factory.mktemp("pair")
    return (
        checkpoint(folder / "four", 4, LabelSpace.of(classes)),
        checkpoint(
            folder / "eight", 8, LabelSpace.of(classes[::-1]), seed=1, size=48, sampling="two_clips", clips=2, crops=3
        ),
    )


def test_an_ensemble_is_the_mean_of_its_members_by_the_names_of_classes(videos: Path, pair: tuple[Path, Path]) -> None:
    one, other = (evaluate(path, videos, workers=0).evaluation for path in pair)
    result = evaluate_ensemble(pair, videos, workers=0)
    np.testing.assert_allclose(result.evaluation.scores, (one.scores + other.scores[:, ::-1]) / 2, atol=1e-6)
    assert (result.evaluation.labels == one.labels).all()
    assert result.evaluation.names == one.names
    members = result.record["ensemble"]["members"]
    assert [member["protocol"]["num_frames"] for member in members] == [4, 8]
    assert [member["protocol"]["views"]["size"] for member in members] == [32, 48]
    assert [member["video"]["top1"] for member in members] == [one.video.top1, other.video.top1]
    assert len({member["checkpoint"]["sha256"] for member in members}) == 2
    assert result.record["video"]["videos"] == len(one.names)
    json.dumps(result.record, allow_nan=False)


def test_an_ensemble_of_one_network_with_itself_is_that_network(videos: Path, pair: tuple[Path, Path]) -> None:
    alone = evaluate(pair[0], videos, workers=0)
    twice = evaluate_ensemble([pair[0], pair[0]], videos, workers=0)
    np.testing.assert_allclose(twice.evaluation.scores, alone.evaluation.scores, atol=1e-7)
    assert twice.evaluation.video.figures == alone.evaluation.video.figures


def test_heads_are_found_by_name_too(videos: Path, tmp_path: Path, classes: tuple[str, ...]) -> None:
    verb, noun = Head("verb", classes[:3]), Head("noun", classes[2:])
    paths = [
        checkpoint(tmp_path / "a", 4, LabelSpace((verb, noun))),
        checkpoint(tmp_path / "b", 4, LabelSpace((Head("noun", classes[:1:-1]), verb)), seed=1),
    ]
    rows = ["path,label:verb,label:noun,split"]
    for line in (videos / "manifest.csv").read_text().splitlines()[1:]:
        rows.append(f"{videos / line.split(',')[0]},{classes[0]},{classes[3]},val")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    one, other = (evaluate(path, tmp_path / "manifest.csv", workers=0).evaluation for path in paths)
    both = evaluate_ensemble(paths, tmp_path / "manifest.csv", workers=0).evaluation
    np.testing.assert_allclose(both.scores, (one.scores + other.scores[:, [2, 3, 4, 1, 0]]) / 2, atol=1e-6)


def test_segments_too_short_for_any_member_are_counted_one_by_one(
    videos: Path, tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    line = (videos / "manifest.csv").read_text().splitlines()[1]
    path, label = line.split(",")[:2]
    rows = [f"{videos / path},{label},{start},{start + 0.1:g},val" for start in (0, 0.1, 0.2)]
    (tmp_path / "segments.csv").write_text("\n".join(["path,label,start,end,split", *rows]) + "\n")
    (tmp_path / "classes.txt").write_text((videos / "classes.txt").read_text())
    result = evaluate_ensemble(pair, tmp_path / "segments.csv", workers=0)
    assert result.evaluation.short == result.members[1].evaluation.short == (str(videos / path),) * 3


def test_what_is_no_ensemble_is_refused(
    videos: Path, tmp_path: Path, pair: tuple[Path, Path], classes: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match="two checkpoints or more, got 1"):
        evaluate_ensemble(pair[:1], videos)
    strange = checkpoint(tmp_path / "strange", 4, LabelSpace.of([*classes[:3], "sleeps"]))
    with pytest.raises(
        ValueError, match="strange: its classes are not those of the first checkpoint: 2 are in only one"
    ):
        evaluate_ensemble([pair[0], strange], videos)
    heads = LabelSpace((Head("verb", classes), Head("noun", ("cup",))))
    both = checkpoint(tmp_path / "both", 4, heads)
    expected = r"both: answers with a class of each head \(verb, noun\), the first checkpoint with one class"
    with pytest.raises(ValueError, match=expected):
        evaluate_ensemble([pair[0], both], videos)
    several = checkpoint(tmp_path / "set", 4, LabelSpace((Head("label", classes),), multi_label=True))
    with pytest.raises(ValueError, match="set: answers with a set of labels, the first checkpoint with one class"):
        evaluate_ensemble([pair[0], several], videos)
    train, val = (evaluate(pair[0], videos, split=split, workers=0) for split in ("train", "val"))
    with pytest.raises(ValueError, match=r"a and b are to be tested on different videos .* --data"):
        combine([train, val], ["a", "b"])


def test_an_ensemble_scores_what_all_members_could_read(videos: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    data = tmp_path / "videos"
    shutil.copytree(videos, data)
    whole = evaluate(pair[0], data, workers=0)
    broken = Path(Manifest.read(data).select("val")[1].path)
    broken.write_bytes(b"no video")
    part = evaluate(pair[1], data, workers=0)
    both = combine([whole, part], pair)
    assert both.indices.tolist() == part.evaluation.indices.tolist() != whole.evaluation.indices.tolist()
    expected = (np.delete(whole.evaluation.scores, 1, axis=0) + part.evaluation.scores[:, ::-1]) / 2
    np.testing.assert_allclose(both.scores, expected, atol=1e-6)
    assert [failure.path for failure in both.unreadable] == [str(broken)]


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(application(), [str(argument) for argument in arguments], catch_exceptions=False)


def test_the_command_line_tests_by_the_name_of_a_protocol(videos: Path, pair: tuple[Path, Path]) -> None:
    same = ["--set", "views.size=32", "--workers", 0, "--json"]
    record = json.loads(invoke("evaluate", pair[0], videos, "--protocol", "stc_2clip", *same).stdout)
    assert record["protocol"]["preset"]["name"] == "stc_2clip"
    assert record["protocol"]["preset"]["section"] == "IV-B, Table IV"
    assert record["protocol"]["preset"]["changed"] == {"size": 32}
    views = record["protocol"]["views"]
    assert (views["sampling"], views["clips"], views["crops"], views["size"]) == ("two_clips", 2, 3, 32)
    assert math.isclose(views["three_crop_ratio"], OF_240)
    assert record["clip"]["videos"] == 2 * record["video"]["videos"]
    assert (pair[0] / "evaluation_val_stc_2clip_two_clips_2x3_best.json").is_file(), (
        "not under the protocol's name alone"
    )
    plain = json.loads(invoke("evaluate", pair[0], videos, "--workers", 0, "--json").stdout)
    assert plain["protocol"]["preset"] is None


def test_the_command_line_tells_networks_from_videos(videos: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = pair
    ended = invoke("evaluate", one, other / "best.safetensors", videos, "--workers", 0)
    assert ended.exit_code == 0
    assert "ensemble" in ended.stdout
    assert "2 stm_resnet18" in ended.stdout
    written = one / "evaluation+eight_val_middle_1x1_best.json"
    assert written.with_suffix(".png").is_file()
    by_option = tmp_path / "result.json"
    assert invoke("evaluate", one, other, "--data", videos, "--workers", 0, "-o", by_option).exit_code == 0
    first, second = (json.loads(path.read_text()) for path in (written, by_option))
    assert first["scores"] == second["scores"]
    with pytest.raises(ValueError, match=r"holds no model\.json"):
        invoke("evaluate", one, videos, other)


def test_protocols_are_listed_with_paper_and_section() -> None:
    listed = json.loads(invoke("protocols", "--json").stdout)
    assert [entry["name"] for entry in listed] == list_protocols()
    shown = invoke("protocols").stdout
    assert all(name in shown for name in list_protocols())
    one = json.loads(invoke("protocols", "tsm_kinetics", "--num-frames", 16, "--json").stdout)
    assert one["views"]["stride"] == 4
    assert "averages logits" in one["note"]
