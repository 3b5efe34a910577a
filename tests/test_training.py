"""Training: it can be stopped and resumed without a trace, says what it did, and refuses what it cannot do."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL
from safetensors.torch import load_file

import clipwise
from clipwise.config import AugmentationConfig, Config, DataConfig, TrainingConfig, load_config
from clipwise.data.dataset import Draw, DrawSampler, TrainingClips
from clipwise.data.decode import DecodeError
from clipwise.data.manifest import Manifest
from clipwise.training.run import split_manifest
from clipwise.training.schedule import learning_rate
from clipwise.training.task import DivergedError

STEPS_PER_EPOCH = 3  # 16 training videos in batches of 6
# What draws at random on the device is on, so that a resumed run that drew otherwise would end elsewhere.
RANDOM = [*SMALL, "model.options.dropout=0.5", "augmentation.brightness=0.4", "augmentation.greyscale=0.3"]


class Interrupt:
    """A reporter that presses Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def started(self, *_: Any) -> None: ...

    def stepped(self, *, step: int, **_: Any) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)

    def epoch_ended(self, *_: Any) -> None: ...

    def failed(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def whole(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    clipwise.train(videos, folder, overrides=RANDOM)
    return folder


@pytest.mark.parametrize("step", [STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1])
def test_a_resumed_run_ends_with_the_weights_of_one_never_stopped(
    videos: Path, tmp_path: Path, whole: Path, step: int
) -> None:
    stopped = clipwise.train(videos, tmp_path / "run", overrides=RANDOM, reporter=Interrupt(step))
    assert (stopped.finished, stopped.step) == (False, step)
    resumed = clipwise.train(None, tmp_path / "run", resume=True)
    assert resumed.finished
    uninterrupted = load_file(whole / "last.safetensors")
    weights = load_file(tmp_path / "run/last.safetensors")
    assert weights.keys() == uninterrupted.keys()
    assert all(torch.equal(value, uninterrupted[key]) for key, value in weights.items())
    with (tmp_path / "run/epochs.csv").open() as file, (whole / "epochs.csv").open() as other:
        logged, expected = ([(row["epoch"], row["loss"]) for row in csv.DictReader(part)] for part in (file, other))
    assert logged == expected


def test_a_line_logged_before_a_crash_is_not_logged_twice(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    clipwise.train(videos, folder, overrides=SMALL, reporter=Interrupt(STEPS_PER_EPOCH))
    with (folder / "epochs.csv").open("a") as file:
        file.write("2,6,0.0,1.0,1.0,0.0,0.0,0.0,1.0\n")
    clipwise.train(None, folder, resume=True)
    with (folder / "epochs.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["3", "6"]


def test_a_run_folder_tells_all_about_it(run: Path, videos: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "run.json", "splits.json", "model.json", "epochs.csv", "validation.json"} <= names
    assert {"best.safetensors", "last.safetensors", "resume.ckpt"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    card = json.loads((run / "model.json").read_text())
    assert card["classes"] == ["moves_down", "moves_left", "moves_right", "moves_up"]
    assert card["classes_sha256"] == Manifest.read(videos).classes_hash
    assert card["views"]["size"] == 32
    account = json.loads((run / "run.json").read_text())
    assert {"command", "config_sha256", "versions", "device", "effective_lr", "data"} <= account.keys()
    assert Config().sha256 != account["config_sha256"]
    validation = json.loads((run / "validation.json").read_text())
    assert len(validation["scores"]) == 8


def test_learning_lowers_the_loss(videos: Path, tmp_path: Path) -> None:
    more = [*SMALL, "training.epochs=30", "training.schedule=cosine", "training.lr=0.02", "training.batch_size=8"]
    result = clipwise.train(videos, tmp_path / "run", overrides=more)
    assert result.epochs[-1].loss < 0.7 * result.epochs[0].loss


def test_clips_do_not_depend_on_the_number_of_workers(videos: Path) -> None:
    manifest = Manifest.read(videos).select("train")

    def clips(workers: int) -> list[torch.Tensor]:
        dataset = TrainingClips(
            manifest, num_frames=4, size=32, data=DataConfig(), augmentation=AugmentationConfig(), seed=5
        )
        sampler = DrawSampler(manifest.labels, batch_size=4, epochs=1, balanced=False, seed=5)
        loader = torch.utils.data.DataLoader(
            dataset, batch_sampler=sampler, num_workers=workers, collate_fn=lambda batch: batch
        )
        return [sample["clip"] for batch in loader for sample in batch]

    assert all(torch.equal(a, b) for a, b in zip(clips(0), clips(2), strict=True))


def test_a_mirrored_clip_takes_its_partner_class(videos: Path) -> None:
    manifest = Manifest.read(videos)
    dataset = TrainingClips(
        manifest, num_frames=4, size=32, data=DataConfig(), augmentation=AugmentationConfig(), seed=0
    )
    left = int(np.flatnonzero(manifest.labels == manifest.classes.index("moves_left"))[0])
    up = int(np.flatnonzero(manifest.labels == manifest.classes.index("moves_up"))[0])
    labels = {manifest.classes[dataset[Draw(left, number)]["label"]] for number in range(20)}
    assert labels == {"moves_left", "moves_right"}
    assert {manifest.classes[dataset[Draw(up, number)]["label"]] for number in range(20)} == {"moves_up"}


def test_a_reversed_clip_takes_its_partner_class_and_other_clips_stay_as_they_were(videos: Path) -> None:
    manifest = Manifest.read(videos)

    def clips(**options: Any) -> list[dict[str, Any]]:
        dataset = TrainingClips(
            manifest, num_frames=4, size=32, data=DataConfig(), augmentation=AugmentationConfig(**options), seed=0
        )
        return [dataset[Draw(up, number)] for number in range(20)]

    up = int(np.flatnonzero(manifest.labels == manifest.classes.index("moves_up"))[0])
    plain, played = clips(), clips(reverse=True)
    names = [manifest.classes[int(clip["label"])] for clip in played]
    assert set(names) == {"moves_up", "moves_down"}
    for before, after, name in zip(plain, played, names, strict=True):
        expected = before["clip"].flip(0) if name == "moves_down" else before["clip"]
        assert torch.equal(after["clip"], expected)
    assert {int(clip["label"]) for clip in clips(reverse=True, reverse_pairs=(("moves_up", "moves_up"),))} == {
        manifest.classes.index("moves_up")
    }


def test_reversal_without_partners_and_pairs_without_reversal_are_refused(videos: Path) -> None:
    manifest = Manifest.read(videos)
    overrides = ["augmentation.reverse=true", "augmentation.reverse_pairs=[[moves_up, sings]]"]
    augmentation = load_config(overrides=overrides).augmentation
    with pytest.raises(ValueError, match="'sings' are not in the list of classes"):
        TrainingClips(manifest, num_frames=4, size=32, data=DataConfig(), augmentation=augmentation, seed=0)
    with pytest.raises(ValueError, match="reverse_pairs need reverse: true"):
        load_config(overrides=["augmentation.reverse_pairs=[[opens, closes]]"])
    config = load_config(overrides=["augmentation.reverse=true", "augmentation.reverse_pairs=[[opens, closes]]"])
    assert Config.from_json(config.to_dict()) == config


def test_balanced_draws_give_each_class_its_share() -> None:
    labels = np.array([0] * 90 + [1] * 8 + [2] * 2)
    sampler = DrawSampler(labels, batch_size=30, epochs=50, balanced=True, seed=0)
    batches = list(sampler)
    assert {len(batch) for batch in batches} == {30}
    drawn = np.bincount([labels[draw.video] for batch in batches for draw in batch])
    assert np.abs(drawn / drawn.sum() - 1 / 3).max() < 0.02


def test_plain_epochs_hold_every_video_once() -> None:
    sampler = DrawSampler(np.zeros(10, int), batch_size=4, epochs=3, balanced=False, seed=0)
    batches = list(sampler)
    epochs = [[draw.video for batch in batches[3 * e : 3 * e + 3] for draw in batch] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_schedules() -> None:
    steps = TrainingConfig(
        epochs=50, lr=0.01, batch_size=32, reference_batch=64, schedule="steps", milestones=(30, 40, 45)
    )
    assert steps.effective_lr == 0.005
    rates = [learning_rate(steps, epoch * 7, 7) for epoch in (0, 29, 30, 40, 45, 49)]
    assert rates == pytest.approx([0.005, 0.005, 5e-4, 5e-5, 5e-6, 5e-6])
    cosine = TrainingConfig(epochs=10, lr=1.0, batch_size=1, reference_batch=1, schedule="cosine", warmup_epochs=2)
    rates = [learning_rate(cosine, step, 4) for step in range(40)]
    assert rates[:8] == pytest.approx([(step + 1) / 8 for step in range(8)])
    assert rates[8] == 1.0
    assert rates[24] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.01
    short = TrainingConfig(epochs=4, lr=1.0, batch_size=1, reference_batch=1, warmup_epochs=0.1)
    assert max(learning_rate(short, step, 3) for step in range(12)) <= 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lrr=1", "training.lrr: there is no such field; there are .*lr"),
        ("training.lr=fast", "training.lr: .*number.*'fast'"),
        ("views.size=8", "at least 32 pixels"),
        ("views.clips=3", "means clips=1, got clips=3; any number goes with"),
        ("speed.lr=1", "speed: there is no such field"),
        ("lr", "takes section.field=value"),
    ],
)
def test_wrong_fields_are_named(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(None, [override])


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_epoch(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    clipwise.train(videos, folder, overrides=SMALL, reporter=Interrupt(STEPS_PER_EPOCH))
    good = load_file(folder / "last.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["training"].update(lr=1e30, gradient_clip=None)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DivergedError, match=r"became .* at step [456] \(epoch 2\); .*lower training.lr"):
        clipwise.train(None, folder, resume=True)
    kept = load_file(folder / "last.safetensors")
    assert all(torch.equal(value, kept[key]) for key, value in good.items())
    config["training"].update(lr=0.01)
    (folder / "config.json").write_text(json.dumps(config))
    assert clipwise.train(None, folder, resume=True).finished


def test_weights_that_blow_up_in_an_epochs_last_step_replace_nothing(videos: Path, tmp_path: Path) -> None:
    """The loss before that step is fine, and without validation nothing else would look at the weights."""
    folder = tmp_path / "run"
    whole = [*SMALL, "data.validation_split=none", "training.batch_size=16", "training.gradient_clip=null"]
    clipwise.train(videos, folder, overrides=whole, reporter=Interrupt(1))
    good = load_file(folder / "last.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["training"].update(lr=1e35)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DivergedError, match=r"at step 2 .*what was saved before is kept"):
        clipwise.train(None, folder, resume=True)
    kept = load_file(folder / "last.safetensors")
    assert all(torch.equal(value, kept[key]) for key, value in good.items())


def test_data_without_splits_is_all_trained_on_where_nothing_is_to_be_validated(videos: Path, tmp_path: Path) -> None:
    whole = Manifest.read(videos)
    unsplit = whole.with_splits([""] * len(whole))
    config = load_config(None, ["data.validation_split=none"])
    train, validation = split_manifest(unsplit, config)
    assert (len(train), validation) == (len(whole), None)
    folder = tmp_path / "run"
    result = clipwise.train(unsplit, folder, overrides=[*SMALL, "data.validation_split=none", "training.epochs=1"])
    assert result.finished
    assert not (folder / "best.safetensors").exists()


def test_a_run_that_diverges_at_once_leaves_nothing(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergedError):
        clipwise.train(videos, tmp_path / "run", overrides=[*SMALL, "training.lr=1e30", "training.gradient_clip=null"])
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_training_video_is_named_and_nothing_is_left(videos: Path, tmp_path: Path) -> None:
    data = tmp_path / "videos"
    shutil.copytree(videos, data)
    broken = next(Path(item.path) for item in Manifest.read(data) if item.split == "train")
    broken.write_bytes(b"")
    with pytest.raises(DecodeError, match=broken.name):
        clipwise.train(data, tmp_path / "run", overrides=SMALL)
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_neither_continued_nor_lost_by_accident(run: Path, videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    before = sorted(path.stat().st_mtime_ns for path in folder.iterdir())
    with pytest.raises(ValueError, match="exists already; --resume continues that run, --overwrite replaces"):
        clipwise.train(videos, folder, overrides=SMALL)
    assert sorted(path.stat().st_mtime_ns for path in folder.iterdir()) == before
    with pytest.raises(DivergedError):
        clipwise.train(videos, folder, overrides=[*SMALL, "training.lr=1e30"], overwrite=True)
    assert sorted(path.stat().st_mtime_ns for path in folder.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert clipwise.train(videos, folder, overrides=SMALL, overwrite=True).finished


def test_bf16_trains_and_resumes_alike(videos: Path, tmp_path: Path) -> None:
    bf16 = [*SMALL, "training.precision=bf16"]
    clipwise.train(videos, tmp_path / "whole", overrides=bf16)
    clipwise.train(videos, tmp_path / "run", overrides=bf16, reporter=Interrupt(2))
    clipwise.train(None, tmp_path / "run", resume=True)
    whole, resumed = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_an_empty_folder_that_was_there_stays(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(DivergedError):
        clipwise.train(videos, tmp_path / "run", overrides=[*SMALL, "training.lr=1e30"])
    assert list((tmp_path / "run").iterdir()) == []


def test_a_replaced_run_comes_back_after_the_new_one_was_killed(run: Path, videos: Path, tmp_path: Path) -> None:
    """As a power cut in the new run's first epoch leaves it."""
    shutil.copytree(run, tmp_path / ".run.replaced")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    with pytest.raises(ValueError, match="exists already"):
        clipwise.train(videos, tmp_path / "run", overrides=SMALL)
    assert load_file(tmp_path / "run/last.safetensors").keys() == load_file(run / "last.safetensors").keys()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_signal_handlers_are_as_before(videos: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    clipwise.train(videos, tmp_path / "run", overrides=[*SMALL, "training.epochs=1"], reporter=Interrupt(2))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_ctrl_c_interrupts_as_one(videos: Path, tmp_path: Path) -> None:
    class Impatient(Interrupt):
        def stepped(self, *, step: int, **_: Any) -> None:
            for _again in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        clipwise.train(videos, tmp_path / "run", overrides=SMALL, reporter=Impatient(1))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not (tmp_path / "run").exists()


def test_overwrite_spares_what_is_no_run(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/one.txt").write_text("dear")
    with pytest.raises(ValueError, match="no training run, so --overwrite will not delete"):
        clipwise.train(videos, tmp_path / "photos", overrides=SMALL, overwrite=True)
    assert (tmp_path / "photos/one.txt").read_text() == "dear"


def test_output_that_cannot_be_written(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        clipwise.train(videos, tmp_path / "file/run", overrides=SMALL)


def test_other_data_cannot_be_resumed_on(run: Path, videos: Path, tmp_path: Path) -> None:
    folder, data = tmp_path / "run", tmp_path / "videos"
    shutil.copytree(run, folder)
    shutil.copytree(videos, data)
    lines = (data / "manifest.csv").read_text().splitlines()
    kept = [line for line in lines if "moves_up_00000" not in line]
    (data / "manifest.csv").write_text("\n".join(kept) + "\n")
    with pytest.raises(ValueError, match="its videos or their labels are not those"):
        clipwise.train(data, folder, resume=True)
    (data / "manifest.csv").write_text("\n".join(lines) + "\n")
    clipwise.train(data, folder, resume=True)
    (data / "classes.txt").write_text("moves_up\nmoves_right\nmoves_left\nmoves_down\n")
    relabelled = [line.replace(",moves_up,", ",moves_down,", 1) for line in lines]
    (data / "manifest.csv").write_text("\n".join(relabelled) + "\n")
    with pytest.raises(ValueError, match="its videos or their labels are not those"):
        clipwise.train(data, folder, resume=True)


def test_without_splits_a_share_of_each_class_is_held_out(videos: Path, tmp_path: Path) -> None:
    data = tmp_path / "videos"
    shutil.copytree(videos, data)
    (data / "manifest.csv").unlink()
    clipwise.train(data, tmp_path / "run", overrides=[*SMALL, "training.epochs=1"])
    splits = json.loads((tmp_path / "run/splits.json").read_text())
    assert (len(splits["train"]), len(splits["validation"])) == (20, 4)
    assert {name.split("/")[0] for name, _, _ in splits["validation"]} == {
        "moves_down",
        "moves_left",
        "moves_right",
        "moves_up",
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.milestones=[1]"], r"milestones=\[1\] belong to training.schedule=steps, and it is cosine"),
        (["training.schedule=steps"], "schedule=steps without milestones never changes the rate"),
        (["training.warmup_epochs=51"], "warmup_epochs=51 of 50 epochs: the full rate is never reached"),
        (["training.momentum=0", "training.nesterov=true"], "nesterov is a kind of momentum"),
    ],
)
def test_a_schedule_that_would_quietly_be_another_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(None, overrides)


def test_an_epoch_is_validated_by_one_view_unless_all_are_asked_for(videos: Path, tmp_path: Path) -> None:
    views = [*SMALL, "training.epochs=1", "views.sampling=uniform", "views.clips=2", "views.crops=3"]
    config = load_config(None, views)
    assert (config.views.one.clips, config.views.one.crops, config.views.one.sampling) == (1, 1, "middle")
    assert load_config(None, [*views, "views.sampling=slowfast"]).views.one.sampling == "dense"
    scores = []
    for name, more in (("one", []), ("all", ["training.validation_views=all"])):
        clipwise.train(videos, tmp_path / name, overrides=[*views, *more])
        scores.append(json.loads((tmp_path / name / "validation.json").read_text())["scores"])
    run = tmp_path / "one"
    for found, tested in zip(scores, (config.views.one, config.views), strict=True):
        np.testing.assert_allclose(
            [row["scores"] for row in found],
            [row["scores"] for row in clipwise.evaluate(run, views=tested, workers=0).record["scores"]],
            atol=1e-5,
        )
