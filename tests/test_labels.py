"""Labels beyond one class a video, from the manifest to the prediction: heads such as verb and noun, and label sets."""

import contextlib
import csv
import itertools
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL
from sklearn.metrics import average_precision_score

import clipwise
from clipwise.checkpoint import read_card
from clipwise.cli import main
from clipwise.config import AugmentationConfig, DataConfig, load_config
from clipwise.data.dataset import Draw, TrainingClips
from clipwise.data.failures import FailureAccount
from clipwise.data.labels import Head, LabelSpace, partner_label
from clipwise.data.manifest import Manifest
from clipwise.data.pack import pack
from clipwise.data.transforms import mirror_labels
from clipwise.evaluation.metrics import (
    HeadMetrics,
    LabelSetMetrics,
    head_metrics,
    label_set_metrics,
    mean_scores,
    video_metrics,
)
from clipwise.evaluation.run import evaluate
from clipwise.models.registry import create_model
from clipwise.processes import Processes
from clipwise.training.run import split_manifest
from clipwise.training.task import ClassificationTask

TWO_HEADS = LabelSpace((Head("verb", ("put", "take")), Head("noun", ("cup", "knife", "pan"))))
SETS = {"moves_left": "left|across", "moves_right": "right|across", "moves_up": "up", "moves_down": ""}


def rewritten(videos: Path, folder: Path, columns: list[str], cells: Any) -> Path:
    """The rendered videos with other labels: ``cells(class, number)`` for each of them."""
    folder.mkdir()
    rows = [["path", "split", *columns]]
    for number, item in enumerate(Manifest.read(videos)):
        rows.append([item.path, item.split or "", *cells(item.name.split("/")[0], number)])
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def two_heads(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The movement as the verb; the noun is a cup or a pan, with a knife that no video shows."""
    folder = rewritten(
        videos,
        tmp_path_factory.mktemp("labels") / "heads",
        ["label:verb", "label:noun"],
        lambda name, number: [name, ("cup", "pan")[number % 2]],
    )
    (folder / "classes.noun.txt").write_text("pan\nknife\ncup\n")
    return folder


@pytest.fixture(scope="module")
def label_sets(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One, two or no labels a video."""
    return rewritten(videos, tmp_path_factory.mktemp("labels") / "sets", ["labels"], lambda name, _number: [SETS[name]])


@pytest.fixture(scope="module")
def heads_run(two_heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "heads"
    clipwise.train(two_heads, folder, overrides=SMALL)
    return folder


@pytest.fixture(scope="module")
def sets_run(label_sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sets"
    clipwise.train(label_sets, folder, overrides=SMALL)
    return folder


def same(one: Manifest, other: Manifest) -> bool:
    return one.label_space == other.label_space and one.labels.tolist() == other.labels.tolist()


# Manifests


def test_heads_of_a_manifest(two_heads: Path) -> None:
    manifest = Manifest.read(two_heads)
    assert manifest.heads == (
        Head("verb", ("moves_down", "moves_left", "moves_right", "moves_up")),
        Head("noun", ("pan", "knife", "cup")),
    )
    assert len(manifest.classes) == 7
    assert manifest.classes[4] == "noun:pan"
    assert manifest.labels.shape == (24, 2)
    assert manifest.names_of(1) == ("moves_down", "pan")
    assert manifest[1].label is None
    assert manifest.select("val").heads == manifest.heads
    verbs = manifest.with_head("verb")
    assert (verbs.classes, verbs.labels.tolist()) == (manifest.heads[0].classes, manifest.labels[:, 0].tolist())
    with pytest.raises(ValueError, match=r"no head 'adverb' \(a column label:adverb\); there is: verb, noun"):
        manifest.with_head("adverb")
    with pytest.raises(ValueError, match=r"write classes.verb.txt and classes.noun.txt beside it"):
        Manifest.read(two_heads, classes=["a", "b"])


def test_label_sets_of_a_manifest(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("path,labels\na,run | jump\nb,\nc,jump\n")
    manifest = Manifest.read(path)
    assert manifest.multi_label
    assert manifest.classes == ("jump", "run")
    assert manifest.labels.dtype == bool
    assert manifest.labels.tolist() == [[True, True], [False, False], [True, False]]
    assert [manifest.names_of(index) for index in range(3)] == [("jump", "run"), (), ("jump",)]
    assert manifest[0].label is None
    wider = manifest.with_label_space(LabelSpace((Head("label", ("run", "swim", "jump")),), multi_label=True))
    assert [wider.names_of(index) for index in range(3)] == [("run", "jump"), (), ("jump",)]


@pytest.mark.parametrize("kind", ["two_heads", "label_sets"])
def test_labels_survive_writing_packing_and_other_orders(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = Manifest.read(request.getfixturevalue(kind))
    source.write(tmp_path / "copy.csv")
    assert same(Manifest.read(tmp_path / "copy.csv"), source)
    listed = {path.name for path in tmp_path.iterdir()} - {"copy.csv"}
    assert listed == ({"classes.noun.txt"} if kind == "two_heads" else set()), "the rows give the others"
    few = source.select("val")
    pack(few, tmp_path / "few.pack", short_side=32, workers=0)
    assert same(Manifest.read(tmp_path / "few.pack"), few)
    turned = LabelSpace(
        tuple(Head(head.name, head.classes[::-1]) for head in reversed(source.heads)), source.multi_label
    )
    other = source.with_label_space(turned)
    for index in range(len(source)):
        assert sorted(other.names_of(index)) == sorted(source.names_of(index))
    assert same(other.with_label_space(source.label_space), source)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,label:verb\na,x,y\n", "columns label and label:verb: keep one kind"),
        ("path,label,labels\na,x,y\n", "columns label and labels: keep one kind"),
        ("path,labels,label:verb\na,x,y\n", "columns labels and label:verb: keep one kind"),
        ("path,label:verb,label:verb\na,x,y\n", "column label:verb occurs 2 times"),
        ("path,label:\na,x\n", "column 'label:': a head's name is made of letters"),
        ("path,label:a/b\na,x\n", "column 'label:a/b': a head's name"),
        ("path,label:verb,label:noun\na,x,y\nb,x,\n", "line 3: label:noun is empty; .* a label for each head"),
        ("path,labels\na,x\nb,x||y\n", r"line 3: labels has an empty name in 'x\|\|y'"),
        ("path,labels\na,x|\n", r"line 2: labels has an empty name in 'x\|'"),
        ("path,labels\na,x|y|x\n", "line 2: class 'x' is listed more than once"),
        ("path,labels\na,\nb,\n", "no row has a label"),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        Manifest.read(tmp_path / "data.csv")


def test_an_unknown_label_of_a_head_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("path,label:verb,label:noun\na,take,cup\nb,take,cups\n")
    (tmp_path / "classes.noun.txt").write_text("cup\npan\n")
    with pytest.raises(ValueError, match=r"line 3: label:noun 'cups' is not in the list of 2 classes \(did you mean"):
        Manifest.read(tmp_path / "data.csv")


def test_a_head_with_one_class_teaches_nothing(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("path,label:verb,label:noun\na,take,cup\nb,put,cup\n")
    with pytest.raises(ValueError, match=r"at least 2 classes of 'noun', got 1 \('cup'\)"):
        Manifest.read(tmp_path / "data.csv").require_classes()


def test_without_splits_the_first_heads_classes_are_held_out(two_heads: Path, label_sets: Path) -> None:
    config = load_config(None, ["data.holdout=0.34"])
    for folder in (two_heads, label_sets):
        manifest = Manifest.read(folder)
        train, validation = split_manifest(manifest.with_splits([""] * len(manifest)), config)
        assert validation is not None
        assert (len(train), len(validation)) == (16, 8)
        if folder is two_heads:
            assert np.bincount(validation.labels[:, 0]).tolist() == [2, 2, 2, 2]


# Flips


def test_a_mirrored_label_needs_a_partner_in_every_head() -> None:
    verbs, nouns = ["turn left", "turn right", "wave", "pull right out"], ["cup", "left hand", "right hand"]
    partners = [mirror_labels(verbs), mirror_labels(nouns)]

    def mirrored(verb: int, noun: int) -> list[int] | None:
        label = partner_label(np.array([verb, noun]), partners)
        return None if label is None else label.tolist()

    assert mirrored(0, 0) == [1, 0]
    assert mirrored(1, 2) == [0, 1]
    assert mirrored(2, 0) == [2, 0]
    assert mirrored(3, 1) is None


def test_a_set_is_mirrored_only_as_a_whole() -> None:
    classes = ["left", "right", "walk", "pull right out"]
    partners = [mirror_labels(classes)]

    def mirrored(*names: str) -> set[str] | None:
        label = partner_label(np.isin(classes, names), partners)
        return None if label is None else {classes[index] for index in np.flatnonzero(label)}

    assert mirrored("left", "walk") == {"right", "walk"}
    assert mirrored("left", "right") == {"left", "right"}
    assert mirrored() == set()
    assert mirrored("walk", "pull right out") is None


@pytest.mark.parametrize(
    ("kind", "seen"),
    [
        ("two_heads", {("moves_left", "cup"), ("moves_right", "cup")}),
        ("label_sets", {("across", "left"), ("across", "right")}),
    ],
)
def test_training_clips_change_their_labels_with_the_flip(
    kind: str, seen: set[tuple[str, ...]], request: pytest.FixtureRequest
) -> None:
    manifest = Manifest.read(request.getfixturevalue(kind))
    dataset = TrainingClips(
        manifest, num_frames=4, size=32, data=DataConfig(), augmentation=AugmentationConfig(), seed=0
    )
    video = next(index for index in range(len(manifest)) if manifest.names_of(index) in seen)
    assert {manifest.label_space.names(dataset[Draw(video, n)]["label"]) for n in range(20)} == seen


# Losses and metrics


def loss_of(space: LabelSpace, logits: torch.Tensor, labels: torch.Tensor) -> float:
    config = load_config(None, SMALL)
    model = create_model(
        config.model.name, num_classes=len(space.classes), num_frames=config.model.num_frames, **config.model.options
    )
    model.forward = lambda _clips: logits  # type: ignore[method-assign]
    account = FailureAccount("raise", 0.0, 1, remedy="")
    task = ClassificationTask(model, space, config, account, steps_per_epoch=1, start=0, processes=Processes())
    task.optimizers = task.configure_optimizers  # type: ignore[method-assign]  # no trainer has it
    count = len(labels)
    batch = {
        "clip": torch.zeros(count, 4, 3, 32, 32, dtype=torch.uint8),
        "label": labels,
        "index": torch.arange(count),
        "available": torch.full((count,), 9),
        "failures": [],
    }
    loss = task.training_step(batch, 0)
    assert loss is not None
    return float(loss)


def test_losses_are_those_of_the_textbook() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64)
    verbs, nouns = [0, 1, 1], [2, 0, 1]
    of_verbs = [-math.log(math.exp(row[v]) / sum(map(math.exp, row[:2]))) for row, v in zip(logits, verbs, strict=True)]
    of_nouns = [
        -math.log(math.exp(row[2 + n]) / sum(map(math.exp, row[2:]))) for row, n in zip(logits, nouns, strict=True)
    ]
    loss = loss_of(TWO_HEADS, logits, torch.tensor([verbs, nouns]).T)
    assert loss == pytest.approx((sum(of_verbs) / 3 + sum(of_nouns) / 3) / 2)
    sets = torch.rand(3, 5) < 0.4
    probabilities = 1 / (1 + (-logits).exp())
    binary = -torch.where(sets, probabilities, 1 - probabilities).log()
    space = LabelSpace((Head("label", tuple("abcde")),), multi_label=True)
    assert loss_of(space, logits, sets) == pytest.approx(float(binary.mean()))
    one = LabelSpace.of(["a", "b"])
    assert loss_of(one, logits[:, :2], torch.tensor(verbs)) == pytest.approx(sum(of_verbs) / 3)


def test_each_heads_scores_add_up_to_one() -> None:
    scores = mean_scores(torch.randn(4, 3, 5), TWO_HEADS)
    assert torch.allclose(scores[:, :2].sum(1), torch.ones(4))
    assert torch.allclose(scores[:, 2:].sum(1), torch.ones(4))
    sets = mean_scores(torch.zeros(4, 3, 2), LabelSpace((Head("label", ("a", "b")),), multi_label=True))
    assert (sets == 0.5).all()


@pytest.mark.parametrize("sizes", [(7, 9), (2, 3), (4, 5, 6)])
def test_joint_accuracy_is_that_of_all_combinations(sizes: tuple[int, ...]) -> None:
    """Against the product of all combinations, as the library of EPIC-KITCHENS defines an action's score."""
    rng = np.random.default_rng(0)
    space = LabelSpace(tuple(Head(f"h{n}", tuple(map(str, range(size)))) for n, size in enumerate(sizes)))
    parts = [rng.dirichlet(np.ones(size) / 2, 200) for size in sizes]
    labels = np.stack([rng.integers(size, size=200) for size in sizes], 1)
    metrics = head_metrics(np.concatenate(parts, 1), labels, space)
    for number, part in enumerate(parts):
        assert metrics.heads[f"h{number}"] == video_metrics(part, labels[:, number], space.heads[number].classes)
    top1 = top5 = 0
    combinations = list(itertools.product(*map(range, sizes)))
    for video in range(200):
        products = [math.prod(part[video, index] for part, index in zip(parts, c, strict=True)) for c in combinations]
        rank = sum(product > products[combinations.index(tuple(labels[video]))] for product in products)
        top1, top5 = top1 + (rank < 1), top5 + (rank < 5)
    assert (metrics.joint_top1, metrics.joint_top5) == (top1 / 2, top5 / 2)
    both = np.all([part.argmax(1) == labels[:, number] for number, part in enumerate(parts)], axis=0)
    assert metrics.joint_top1 == pytest.approx(100 * both.mean())
    assert metrics.top1 == pytest.approx(np.mean([own.top1 for own in metrics.heads.values()]))


def test_average_precision_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 8, (60, 6)) / 8  # ties
    labels = rng.random((60, 6)) < 0.3
    labels[:, 4] = False
    metrics = label_set_metrics(scores, labels, list("abcdef"))
    expected = [100 * float(average_precision_score(labels[:, i], scores[:, i])) for i in range(6) if i != 4]
    found = [row.average_precision for row in metrics.per_class]
    assert found[4] is None
    assert found[:4] + found[5:] == pytest.approx(expected)
    assert metrics.mean_average_precision == pytest.approx(np.mean(expected)), "a class that no video shows is left out"
    assert [row.videos for row in metrics.per_class] == labels.sum(0).tolist()


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 3), bool), "none of 2 videos has a label"),
        (np.zeros((2, 3)), np.zeros((2, 3), int), "labels the same, of bool"),
        (np.full((2, 3), 2.0), np.ones((2, 3), bool), r"scores must lie in \[0, 1\]"),
        (np.full((2, 3), np.nan), np.ones((2, 3), bool), "scores must be finite"),
    ],
)
def test_scores_that_give_no_precision(scores: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_set_metrics(scores, labels, list("abc"))


# From the manifest to the prediction


def test_two_heads_train_evaluate_and_predict(heads_run: Path, two_heads: Path) -> None:
    card = json.loads((heads_run / "model.json").read_text())
    assert card["format"] == 2, "which versions that know only one head refuse"
    assert [head["name"] for head in card["heads"]] == ["verb", "noun"]
    with (heads_run / "epochs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for row in rows:
        top1 = {key: float(row[key]) for key in ("top1", "verb.top1", "noun.top1", "joint.top1")}
        assert top1["top1"] == pytest.approx((top1["verb.top1"] + top1["noun.top1"]) / 2, abs=1e-4)
        assert top1["joint.top1"] <= min(top1["verb.top1"], top1["noun.top1"])
    assert (heads_run / "best.safetensors").is_file()
    validation = json.loads((heads_run / "validation.json").read_text())
    assert validation["video"]["heads"]["noun"]["top1"] == pytest.approx(float(rows[-1]["noun.top1"]), abs=1e-4)

    result = evaluate(heads_run, workers=0)
    metrics = result.evaluation.video
    assert isinstance(metrics, HeadMetrics)
    assert metrics.videos == 8
    record = json.loads(json.dumps(result.record))
    val = Manifest.read(two_heads).select("val")
    assert [tuple(row["labels"]) for row in record["scores"]] == [val.names_of(index) for index in range(8)]
    assert record["clip"]["verb.top1"] == record["video"]["heads"]["verb"]["top1"]

    predictor = clipwise.load(heads_run)
    videos = Manifest.read(two_heads)
    for name, scores in zip(result.evaluation.names, result.evaluation.scores, strict=True):
        prediction = predictor(videos.root / name, top_k=3)
        np.testing.assert_allclose(prediction.scores, scores, atol=1e-5)
        verb, noun = prediction.heads["verb"], prediction.heads["noun"]
        np.testing.assert_array_equal(np.concatenate([verb.scores, noun.scores]), prediction.scores)
        assert prediction.labels == (verb.label, noun.label)
        assert prediction.label == f"{verb.label} + {noun.label}"
        products = sorted(np.outer(verb.scores, noun.scores).ravel())[::-1][:3]
        np.testing.assert_allclose([score for _, score in prediction.top], products, rtol=1e-5)


def test_one_head_of_several_can_be_trained_and_is_tested_on_the_same_data(two_heads: Path, tmp_path: Path) -> None:
    """EPIC's verbs and nouns as two networks, from one manifest."""
    clipwise.train(two_heads, tmp_path / "run", overrides=[*SMALL, "training.epochs=1", "data.head=noun"])
    assert read_card(tmp_path / "run").label_space.heads == (Head("noun", ("pan", "knife", "cup")),)
    evaluation = evaluate(tmp_path / "run", workers=0).evaluation
    assert evaluation.labels.tolist() == Manifest.read(two_heads).select("val").labels[:, 1].tolist()
    assert set(clipwise.load(tmp_path / "run")(Manifest.read(two_heads)[0].path).heads) == {"noun"}


def test_label_sets_train_evaluate_and_predict(sets_run: Path, label_sets: Path) -> None:
    with (sets_run / "epochs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["top1"] == ""
    best = max(float(row["mean_average_precision"]) for row in rows)
    result = evaluate(sets_run, workers=0)
    metrics, evaluation = result.evaluation.video, result.evaluation
    assert isinstance(metrics, LabelSetMetrics)
    assert metrics.mean_average_precision == pytest.approx(best, abs=1e-4), "the best weights are those of the best mAP"
    expected = average_precision_score(evaluation.labels, evaluation.scores, average="macro")
    assert metrics.mean_average_precision == pytest.approx(100 * expected)
    assert result.record["protocol"]["average"] == "mean of sigmoid over views"
    assert [row["labels"] for row in result.record["scores"]][::2] == [
        [],
        ["across", "left"],
        ["across", "right"],
        ["up"],
    ]

    predictor = clipwise.load(sets_run)
    prediction = predictor(label_sets / evaluation.names[0], top_k=2)
    np.testing.assert_allclose(prediction.scores, evaluation.scores[0], atol=1e-5)
    assert len(prediction.top) == 2
    middle = float(np.sort(prediction.scores)[1:3].mean())
    above = predictor(label_sets / evaluation.names[0], threshold=middle).labels
    assert above == tuple(predictor.classes[index] for index in np.argsort(-prediction.scores)[:2])
    assert predictor(label_sets / evaluation.names[0], threshold=1.0).labels == ()


def test_the_command_line_shows_heads_and_sets(
    heads_run: Path,
    sets_run: Path,
    videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    video = videos / "moves_left/moves_left_00000.mp4"

    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["clipwise", *map(str, arguments)])
        with contextlib.suppress(SystemExit):
            main()
        return capsys.readouterr().out

    out = run("evaluate", heads_run, "--output", tmp_path / "heads.json", "--workers", "0")
    assert "video verb" in out
    assert "video verb + noun" in out
    assert {path.name for path in tmp_path.iterdir()} == {"heads.json", "heads.verb.png", "heads.noun.png"}
    assert "mean average precision" in run("evaluate", sets_run, "--output", tmp_path / "sets.json", "--workers", "0")
    assert not (tmp_path / "sets.png").exists()
    shown = run("predict", heads_run, video, "--top-k", "1")
    assert [line.split()[-1] for line in shown.splitlines()[1::2]] == ["verb", "noun"]
    row = json.loads(run("predict", heads_run, video, "--json"))
    assert row["labels"] == [row["heads"][head][0]["label"] for head in ("verb", "noun")]
    assert run("predict", sets_run, video, "--threshold", "0").count("✓") == 4


def test_what_does_not_belong_together_is_refused(
    run: Path, heads_run: Path, sets_run: Path, videos: Path, two_heads: Path, label_sets: Path, tmp_path: Path
) -> None:
    (tmp_path / "verbs.csv").write_text((two_heads / "manifest.csv").read_text().replace("label:noun", "noun"))
    with pytest.raises(ValueError, match="says nothing of the checkpoint's 'noun'; it has: verb"):
        evaluate(heads_run, tmp_path / "verbs.csv")
    with pytest.raises(ValueError, match="has a set of labels a video, the checkpoint's network one class a video"):
        evaluate(run, label_sets)
    with pytest.raises(ValueError, match="has one class a video, the checkpoint's network a set of labels"):
        evaluate(sets_run, videos)
    with pytest.raises(ValueError, match=r"says nothing of the checkpoint's 'label'; it has: verb, noun"):
        evaluate(run, two_heads)
    with pytest.raises(ValueError, match=r"cannot be drawn with equal probability; leave training\.balanced at false"):
        clipwise.train(label_sets, tmp_path / "run", overrides=[*SMALL, "training.balanced=true"])
    with pytest.raises(ValueError, match="threshold is for sets of labels"):
        clipwise.load(run)(videos / "moves_left/moves_left_00000.mp4", threshold=0.5)


@pytest.mark.parametrize("kind", ["two_heads", "label_sets"])
def test_a_run_is_resumed_in_bf16_with_workers_and_takes_no_other_labels(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(request.getfixturevalue(kind), data)
    more = ["training.precision=bf16", "data.workers=1"]
    clipwise.train(data, tmp_path / "run", overrides=[*SMALL, *more, "training.epochs=1"])
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["training"]["epochs"] = 2
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    assert clipwise.train(None, tmp_path / "run", resume=True).step == 6
    assert len((tmp_path / "run/epochs.csv").read_text().splitlines()) == 3
    table = (data / "manifest.csv").read_text()
    changed = table.replace(",cup\n", ",pan\n", 1).replace(",up\n", ",up|left\n", 1)
    assert changed != table
    (data / "manifest.csv").write_text(changed)
    with pytest.raises(ValueError, match="its videos or their labels are not those that the run"):
        clipwise.train(None, tmp_path / "run", resume=True)


def test_one_class_a_video_is_written_as_before(run: Path) -> None:
    card = json.loads((run / "model.json").read_text())
    assert card["format"] == 1
    assert not {"heads", "multi_label"} & card.keys()
    assert (run / "epochs.csv").read_text().splitlines()[0].endswith("top1,top5,mean_class_accuracy,seconds")
    assert set(json.loads((run / "validation.json").read_text())["scores"][0]) == {"video", "label", "scores"}
