"""Figures from scores, and the pictures drawn of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clipwise.analysis.plots import confusion_matrix, frame_strip, pair_accuracy
from clipwise.evaluation.metrics import mean_softmax, video_metrics


def scores_for(predicted: list[int], classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predicted), classes).float()


def test_an_example_worked_by_hand():
    # Of "a" 3 of 4 right, of "b" 1 of 2, of "c" 0 of 1: 4 of 7 in all, and (75 + 50 + 0) / 3.
    labels = [0, 0, 0, 0, 1, 1, 2]
    predicted = [0, 0, 0, 1, 1, 2, 0]
    figures = video_metrics(scores_for(predicted, 3), labels, ["a", "b", "c"])
    assert figures.videos == 7
    assert figures.top1 == pytest.approx(400 / 7)
    assert figures.mean_class_accuracy == pytest.approx(125 / 3)
    assert figures.confusion == ((3, 1, 0), (0, 1, 1), (1, 0, 0))
    assert [(row.videos, row.accuracy) for row in figures.per_class] == [(4, 75), (2, 50), (1, 0)]
    assert [(row.confused_with, row.confused_videos) for row in figures.per_class] == [
        ("b", 1),
        ("c", 1),
        ("a", 1),
    ]


def test_top5_counts_the_five_highest_and_no_sixth():
    scores = torch.tensor([[6.0, 5, 4, 3, 2, 1, 0]]).repeat(7, 1)
    figures = video_metrics(scores, range(7), list("abcdefg"))
    assert figures.top1 == pytest.approx(100 / 7)
    assert figures.top5 == pytest.approx(500 / 7)


def test_top5_of_fewer_than_five_classes_is_certain():
    assert video_metrics(torch.rand(9, 4), [0, 1, 2] * 3, list("abcd")).top5 == 100


def test_a_class_without_videos_has_no_accuracy_even_when_it_is_predicted():
    figures = video_metrics(scores_for([0, 2], 4), [0, 1], ["a", "b", "only predicted", "never"])
    assert figures.mean_class_accuracy == 50, "the mean of 100 for a and 0 for b"
    assert [row.accuracy for row in figures.per_class] == [100, 0, None, None]
    assert figures.per_class[0].confused_with is None
    assert figures.per_class[1].confused_with == "only predicted"
    assert figures.confusion[2] == (0, 0, 0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_network_that_cannot_decide_is_as_good_as_always_naming_the_first_class(dtype):
    labels = [label for label in range(20) for _ in range(3)]
    undecided = video_metrics(torch.zeros(60, 20, dtype=dtype), labels, [str(i) for i in range(20)])
    assert (undecided.top1, undecided.top5, undecided.mean_class_accuracy) == (5, 25, 5)


def test_mean_class_accuracy_does_not_reward_naming_the_largest_class():
    figures = video_metrics(scores_for([0] * 100, 2), [0] * 95 + [1] * 5, ["large", "small"])
    assert (figures.top1, figures.mean_class_accuracy) == (95, 50)


def test_the_order_of_the_videos_does_not_matter():
    scores, labels = torch.rand(50, 6), torch.randint(0, 6, (50,))
    order = torch.randperm(50)
    classes = list("abcdef")
    assert video_metrics(scores, labels, classes) == video_metrics(scores[order], labels[order], classes)


def test_figures_survive_json_and_arrays_do_as_well_as_tensors():
    scores, labels = np.random.default_rng(0).random((12, 3)), np.arange(12) % 3
    figures = video_metrics(scores, labels, ["a", "b", "c"])
    assert figures == video_metrics(torch.from_numpy(scores), torch.from_numpy(labels), ["a", "b", "c"])
    written = json.loads(json.dumps(figures.to_dict(), allow_nan=False))
    assert written == figures.to_dict()
    assert written["per_class"][1]["class"] == "b"


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (torch.zeros(0, 2), [], r"\(0, 2\)"),
        (torch.zeros(3, 3), [0, 1, 0], r"\(3, 3\) and \(3,\) for 2 classes"),
        (torch.zeros(3, 2), [0, 1], r"\(3, 2\) and \(2,\)"),
        (torch.zeros(2), [0, 1], r"\(2,\)"),
        (torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), [0, 1], r"1 of 4 .*\(1, 0\): nan"),
        (torch.tensor([[0.0, float("inf")]]), [0], "inf"),
        (torch.zeros(2, 2), [0, 2], "0 to 1; got 2"),
        (torch.zeros(2, 2), [-1, 0], "got -1"),
        (torch.zeros(2, 2), [0.0, 1.0], "float"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_its_value(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        video_metrics(scores, labels, ["a", "b"])


def test_views_are_averaged_as_probabilities_not_as_logits():
    logits = torch.tensor([[[9.0, 0.0], [0.0, 1.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    scores = mean_softmax(logits)
    sure, unsure = 1 / (1 + np.exp(-9)), 1 / (1 + np.exp(1))
    assert scores[0, 0].item() == pytest.approx((sure + 2 * unsure) / 3)
    assert scores[1].tolist() == [0.5, 0.5]
    torch.testing.assert_close(scores.sum(-1), torch.ones(2))
    torch.testing.assert_close(mean_softmax(logits[0]), scores[0])
    assert torch.equal(mean_softmax(logits[:, [2, 0, 1]]), scores)


def test_low_precision_views_are_averaged_in_float32():
    logits = torch.randn(4, 30, 10)
    low = mean_softmax(logits.bfloat16())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, mean_softmax(logits.bfloat16().float()))
    assert mean_softmax(logits + 1000).isfinite().all(), "no overflow"


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(5), r"\(5,\)"),
        (torch.zeros(2, 0, 5), r"\(2, 0, 5\)"),
        (torch.tensor([[0.0, float("nan")]]), r"\(0, 1\): nan"),
    ],
)
def test_views_that_give_no_score_are_refused(logits, message):
    with pytest.raises(ValueError, match=message):
        mean_softmax(logits)


def pixels(path: Path) -> np.ndarray:
    """(H,W,3) in 0 to 1."""
    from matplotlib.image import imread

    return imread(path)[..., :3]


@pytest.mark.parametrize("number", [1, 2, 21])
def test_a_confusion_matrix_shows_shares_of_each_class(tmp_path, number):
    classes = [f"a class with a longish name, number {i}" for i in range(number)]
    # Classes of very different size, all right: the picture must be the same as for classes of one video.
    confusion_matrix(tmp_path / "many.png", np.diag(np.arange(1, number + 1)), classes, "All right")
    confusion_matrix(tmp_path / "one.png", np.eye(number), classes, "All right")
    assert np.array_equal(pixels(tmp_path / "many.png"), pixels(tmp_path / "one.png"))


def test_200_classes_have_room_for_their_names_in_a_picture_that_can_be_opened(tmp_path):
    confusion_matrix(tmp_path / "200.png", np.eye(200), [f"a longish name, number {i}" for i in range(200)], "")
    height, width, _ = pixels(tmp_path / "200.png").shape
    assert min(height, width) > 200 * 12, "12 pixels a line"
    assert max(height, width) < 5000


def test_a_class_without_videos_does_not_look_like_one_that_is_never_right(tmp_path):
    confusion_matrix(tmp_path / "none.png", [[0, 0], [0, 3]], ["a", "b"], "")
    confusion_matrix(tmp_path / "wrong.png", [[0, 3], [0, 3]], ["a", "b"], "")
    assert not np.array_equal(pixels(tmp_path / "none.png"), pixels(tmp_path / "wrong.png"))


def share_of(path: Path, colour: str) -> float:
    from matplotlib.colors import to_rgb

    return float((np.abs(pixels(path) - to_rgb(colour)).max(-1) < 0.02).mean())


def test_the_bars_of_a_pair_are_as_long_as_its_accuracy(tmp_path):
    names = [("opens", "closes"), ("rotates_clockwise", "rotates_counterclockwise")]
    pair_accuracy(tmp_path / "pairs.png", names, {"STM": [90, 100], "TSN": [48, 47]}, "Which way did it go?")
    blue, orange = share_of(tmp_path / "pairs.png", "#0072B2"), share_of(tmp_path / "pairs.png", "#E69F00")
    assert orange / blue == pytest.approx(47.5 / 95, rel=0.1)


def test_a_strip_keeps_every_frame_in_order(tmp_path):
    shades = np.linspace(40, 220, 6).astype(np.uint8)
    frames = np.zeros((6, 20, 30, 3), np.uint8)
    frames[..., 0] = shades[:, None, None]
    frame_strip(tmp_path / "strip.png", [("one", frames), ("two", frames[:3, :, :20])])
    red = pixels(tmp_path / "strip.png")
    for scanline in (red[len(red) // 4], red[len(red) * 3 // 4]):
        seen = [round(255 * float(r)) for r, g, b in scanline if g == 0 and b == 0]
        assert seen == sorted(seen)
        assert len(set(seen)) in (6, 3)


@pytest.mark.parametrize("ending", ["svg", "pdf"])
def test_pictures_are_written_in_the_format_of_their_ending(tmp_path, ending):
    path = tmp_path / f"pairs.{ending}"
    pair_accuracy(path, [("a", "b")], {"STM": [100]}, "A pair")
    assert path.read_bytes().lstrip().startswith({"svg": b"<?xml", "pdf": b"%PDF"}[ending])


def test_what_cannot_be_drawn_is_refused_and_leaves_no_file(tmp_path):
    path = tmp_path / "picture.png"
    with pytest.raises(ValueError, match=r"\(2, 3\) for 2"):
        confusion_matrix(path, np.zeros((2, 3)), ["a", "b"], "")
    with pytest.raises(ValueError, match="negative"):
        confusion_matrix(path, [[1, -1], [0, 1]], ["a", "b"], "")
    with pytest.raises(ValueError, match=r"TSN needs 1 .* got \[50, 60\]"):
        pair_accuracy(path, [("a", "b")], {"STM": [100], "TSN": [50, 60]}, "")
    with pytest.raises(ValueError, match="nan"):
        pair_accuracy(path, [("a", "b")], {"STM": [float("nan")]}, "")
    with pytest.raises(ValueError, match="got 0 and 1"):
        pair_accuracy(path, [], {"STM": []}, "")
    with pytest.raises(ValueError, match="one row"):
        frame_strip(path, [])
    with pytest.raises(ValueError, match=r"clip: .*\(3, 4, 4\)"):
        frame_strip(path, [("clip", np.zeros((3, 4, 4), np.uint8))])
    with pytest.raises(ValueError, match="bmpx"):
        pair_accuracy(path.with_suffix(".bmpx"), [("a", "b")], {"STM": [100]}, "")
    assert not list(tmp_path.iterdir())
