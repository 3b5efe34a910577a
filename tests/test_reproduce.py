"""`clipwise reproduce`: what was run stays run, whatever ends the runner, and the table says what there is."""

import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from conftest import SMALL, until
from test_training import Interrupt as StopAfter

import clipwise
from clipwise.cli import main
from clipwise.config import flat
from clipwise.files import file_sha256
from clipwise.studies import runner
from clipwise.studies.plan import Plan, Request, Training, choose_variants, standing
from clipwise.studies.report import claim_lines, collect, goal_lines, judged, read_study, table
from clipwise.studies.runner import plan_study, run_study
from clipwise.studies.study import Claim, Goal, Study, Variant, find_study, study_names

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="studies are run on Linux and macOS")

TSN = Variant("TSN", "tsn_{backbone}", published={"SSv1 top-1": 19.7})
STUDY = Study(
    "tiny",
    "A tiny study",
    "no paper",
    variants=(
        TSN,
        Variant("TSN 3 crops", "tsn_{backbone}", views=("views.crops=3",)),
        Variant("TSM", "tsm_{backbone}"),
    ),
    claims=(Claim("TSM ≥ TSN", "TSM", "TSN"),),
    goals=(
        Goal("TSN at least 0", ("TSN",), low=0),
        Goal("TSM − TSN at least 101", ("TSM", "TSN"), "difference", low=101),
        Goal("all within 100", ("TSM", "TSN"), "spread", high=100),
    ),
)
SETTINGS = tuple(field for field in SMALL if not field.startswith("model.name"))


def request(output: Path, videos: Path, study: Study = STUDY, *more: str, **options: Any) -> Request:
    options = {"seeds": (0, 1), "backbone": "resnet18", **options}
    return Request(study=study, output=output, data=videos, overrides=(*SETTINGS, *more), **options)


def train(plan: Plan, training: Training, **options: Any) -> None:
    """What the training's process would do, in this one, which has torch loaded already."""
    clipwise.train(plan.data, training.folder, recipe=training.config, **options)


@pytest.fixture(scope="module")
def complete(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose trainings are all finished and tested; not to be changed."""
    folder = tmp_path_factory.mktemp("studies") / "complete"
    plan = plan_study(request(folder, videos))
    for training in plan.asked:
        train(plan, training)
    assert run_study(request(folder, videos)).complete
    return folder


def read(folder: Path) -> dict[str, Any]:
    study: dict[str, Any] = json.loads((folder / "study.json").read_text())
    return study


def test_a_study_is_a_table_of_means_over_seeds(complete: Path, videos: Path) -> None:
    study = read(complete)
    assert {"study", "title", "source", "note", "command", "data", "recipe", "backbone", "metric", "device"} <= set(
        study
    )
    assert {"threads", "versions", "seeds", "variants", "claims", "missing"} <= set(study)
    assert study["missing"] == []
    assert study["data"]["validation_videos"] == 8
    tsn, crops, tsm = study["variants"]
    for variant in study["variants"]:
        values = [run["figures"]["top1"] for run in variant["runs"]]
        assert [run["seed"] for run in variant["runs"]] == [0, 1]
        assert variant["mean"]["top1"] == pytest.approx(fmean(values), abs=1e-3)
        assert variant["deviation"]["top1"] == pytest.approx(stdev(values), abs=1e-3)
        assert fmean(variant["runs"][0]["per_class"].values()) == pytest.approx(
            variant["runs"][0]["figures"]["mean_class_accuracy"], abs=0.01
        )
    # A shift costs nothing, a test with three crops three times as much.
    assert (tsm["parameters"], tsm["macs"]) == (tsn["parameters"], tsn["macs"]) == (crops["parameters"], crops["macs"])
    assert (tsn["views_per_video"], crops["views_per_video"]) == (1, 3)
    assert tsn["published"] == {"SSv1 top-1": 19.7}
    (claim,) = study["claims"]
    assert claim["difference"] == pytest.approx(tsm["mean"]["top1"] - tsn["mean"]["top1"], abs=1e-3)
    assert claim["holds"] == (claim["difference"] >= 0)
    assert claim["seeds"] == [0, 1]
    assert [(goal["reached"], goal["seeds"]) for goal in study["goals"]] == [(True, 2), (False, 2), (True, 2)]
    assert [goal["value"] for goal in study["goals"]] == [
        tsn["mean"]["top1"],
        claim["difference"],
        abs(claim["difference"]),
    ]
    run = tsm["runs"][1]
    assert run["config"]["model.name"] == "tsm_resnet18"
    assert run["config"]["training.seed"] == 1
    assert run["weights_sha256"] == file_sha256(complete / "tsm_seed1/last.safetensors")
    text = (complete / "study.md").read_text()
    assert f"| TSM | {tsm['parameters'] / 1e6:.2f} |" in text
    assert "TSM ≥ TSN: " in text
    assert "TSM − TSN at least 101: not reached, " in text
    assert study["commands"] == [study["command"]]
    assert (complete / "study.png").read_bytes().startswith(b"\x89PNG")


def test_variants_that_differ_in_testing_alone_share_a_training(complete: Path) -> None:
    folders = sorted(path.name for path in complete.iterdir() if path.is_dir())
    assert folders == ["tsm_seed0", "tsm_seed1", "tsn_seed0", "tsn_seed1"]
    tsn, crops, _ = read(complete)["variants"]
    for one, three in zip(tsn["runs"], crops["runs"], strict=True):
        assert one["weights_sha256"] == three["weights_sha256"]
    views = [
        json.loads((complete / f"tsn_seed0/evaluation_{slug}.json").read_text()) for slug in ("tsn", "tsn_3_crops")
    ]
    assert [record["protocol"]["views"]["crops"] for record in views] == [1, 3]


def test_what_is_complete_is_not_run_again_and_written_the_same(complete: Path, videos: Path, tmp_path: Path) -> None:
    names = ["study.json", "study.md", "study.png"]
    before = [(complete / name).read_bytes() for name in names]
    tested = (complete / "tsm_seed0/evaluation_tsm.json").stat().st_mtime_ns
    outcome = run_study(request(complete, videos), reporter=NothingBegins())
    assert (outcome.complete, outcome.hours_left) == (True, 0)
    assert [(complete / name).read_bytes() for name in names] == before
    assert (complete / "tsm_seed0/evaluation_tsm.json").stat().st_mtime_ns == tested


class Watch:
    """A reporter that does nothing."""

    def kept(self, *_: Any) -> None: ...

    def planned(self, **_: Any) -> None: ...

    def began(self, training: Training, *_: Any) -> None: ...

    def advanced(self, training: Training, there: Any) -> None: ...

    def ended(self, *_: Any) -> None: ...

    def tested(self, *_: Any) -> None: ...


class NothingBegins(Watch):
    def began(self, training: Training, *_: Any) -> None:
        raise AssertionError(f"{training.name} was begun")


class Interrupt(Watch):
    """Presses Ctrl-C once a training has made another epoch."""

    def began(self, training: Training, there: Any, _: Any) -> None:
        self.before = there.epochs

    def advanced(self, training: Training, there: Any) -> None:
        if there.epochs > self.before:
            self.before = 1_000_000
            os.kill(os.getpid(), signal.SIGINT)


def test_a_failed_training_is_named_and_the_others_go_on(complete: Path, videos: Path, tmp_path: Path) -> None:
    """One training is broken, one was stopped in mid-epoch, the rest are finished."""
    study = replace(
        STUDY, variants=(*STUDY.variants, Variant("broken", "tsn_{backbone}", training=("training.lr=1e30",)))
    )
    folder = tmp_path / "study"
    shutil.copytree(complete, folder)
    shutil.rmtree(folder / "tsm_seed1")
    asked = request(folder, videos, study, variants=("TSN", "TSM", "broken"))
    plan = plan_study(asked)
    train(plan, plan.trainings["TSM", 1], reporter=StopAfter(4))
    for part in ("tsn_seed0/epochs.csv", "tsn_seed0/config.json"):  # that it counts as finished rests on these
        assert (folder / part).is_file()
    outcome = run_study(replace(asked, seeds=(1,)), jobs=2)
    assert file_sha256(folder / "tsm_seed1/last.safetensors") == file_sha256(complete / "tsm_seed1/last.safetensors")
    (failed,) = outcome.failed
    assert (failed.name, failed.how) == ("broken, seed 1", "exit status 1")
    assert "lower training.lr" in " ".join(failed.last_lines)
    assert (outcome.complete, outcome.interrupted) == (False, False)
    assert outcome.study["missing"] == [{"variant": "broken", "seed": 1}]
    tsn, *_, tsm, broken = outcome.study["variants"]
    # What lies in the folder of other seeds is in the table too.
    assert [[run["seed"] for run in variant["runs"]] for variant in (tsn, tsm, broken)] == [[0, 1], [0, 1], []]
    runs = read(complete)["variants"][2]["runs"]
    assert [run["figures"] for run in tsm["runs"]] == [run["figures"] for run in runs]
    assert "go" in (folder / "tsm_seed1.log").read_text()


def test_whatever_ends_a_runner_its_trainings_go_on_where_they_were(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    asked = request(folder, videos, STUDY, "training.epochs=100000", variants=("TSM",), seeds=(0,))
    (training,) = plan_study(asked).asked
    killed = multiprocessing.get_context("fork").Process(target=run_study, args=(asked,))
    killed.start()
    until(lambda: standing(training).epochs > 0, "the first epoch")
    killed.kill()
    killed.join()
    # The training lives on: no other runner may touch its folder until it has ended.
    with pytest.raises(ValueError, match="in use by another") as refused:
        run_study(asked)
    left = int(str(refused.value).partition("processes: ")[2].partition(")")[0].split(", ")[1])
    os.kill(left, signal.SIGTERM)
    until(lambda: not locked(folder), "the training ends")
    epochs = standing(training).epochs
    assert (training.folder / "resume.ckpt").is_file()

    # It does not fit into the time, and would not into a whole sitting: it goes on, and is stopped at the limit.
    outcome = run_study(asked, hours=0.5 / 3600)
    assert (outcome.complete, outcome.failed, outcome.interrupted) == (False, (), False)
    assert outcome.hours_left is not None
    assert outcome.hours_left > 0

    outcome = run_study(asked, reporter=Interrupt())
    assert (outcome.complete, outcome.failed, outcome.interrupted) == (False, (), True)
    assert standing(training).epochs > epochs
    assert "go on with: clipwise train --resume" in training.log.read_text()
    assert [run["variant"] for run in outcome.study["missing"]] == ["TSN", "TSN 3 crops", "TSM"]


def locked(folder: Path) -> bool:
    try:
        with runner._locked(folder):
            return False
    except ValueError:
        return True


def test_no_training_is_begun_that_the_time_left_is_too_short_for(
    complete: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(complete, folder)
    shutil.rmtree(folder / "tsm_seed1")
    for path in folder.glob("*/epochs.csv"):  # as if each epoch had taken half an hour
        head, *rows = path.read_text().splitlines()
        path.write_text("\n".join([head, *(row.rpartition(",")[0] + ",1800" for row in rows)]) + "\n")
    assert head.endswith(",seconds")
    clock = [0.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: clock.__setitem__(0, clock[0] + 1800) or clock[0])
    outcome = run_study(request(folder, videos), jobs=2, hours=1.2, reporter=NothingBegins())
    assert (outcome.complete, outcome.failed) == (False, ())
    # Two epochs, and a test of 8 views where an epoch is 16 clips and 8 views; two at once do not halve what is left.
    assert outcome.hours_left == pytest.approx(1 + 0.5 * (8 / 3) / (16 + 8 / 3))
    assert outcome.study["missing"] == [{"variant": "TSM", "seed": 1}]


def test_an_older_account_without_newer_fields_counts_and_another_configuration_does_not(
    complete: Path, videos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(complete, folder)
    path = folder / "tsm_seed0/config.json"
    config = json.loads(path.read_text())
    for field in ("twins", "ema", "accumulate", "lr_factors"):
        del config["training"][field]
    path.write_text(json.dumps(config))
    more = "data.workers=1"  # changes nothing in what is trained
    assert all(standing(training).finished for training in plan_study(request(folder, videos, STUDY, more)).asked)
    with pytest.raises(ValueError, match=r"tsn_seed0: .*training\.epochs is 2 there and 3 here"):
        plan_study(request(folder, videos, STUDY, "training.epochs=3"))
    rows = (videos / "manifest.csv").read_text().splitlines()
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("\n".join([rows[0], *(f"{videos}/{row}" for row in rows[1:-1])]) + "\n")
    with pytest.raises(ValueError, match="the videos or their labels are others"):
        plan_study(request(folder, fewer))
    shutil.rmtree(folder / "tsm_seed1")
    (folder / "tsm_seed1").mkdir()
    (folder / "tsm_seed1/thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="tsm_seed1: holds files that are no training run"):
        plan_study(request(folder, videos))


def test_a_variant_starts_from_anothers_last_weights_of_the_same_seed(
    complete: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = Variant("TSM longer", "tsm_{backbone}", training=("training.momentum=0.8",), start="TSM")
    study = replace(STUDY, variants=(*STUDY.variants, longer))
    folder = tmp_path / "study"
    shutil.copytree(complete, folder)
    asked = request(folder, videos, study, variants=("TSM longer",), seeds=(1,))
    plan = plan_study(asked)
    assert [training.folder.name for training in plan.asked] == ["tsm_seed1", "tsm_longer_seed1"]
    own = plan.trainings["TSM longer", 1]
    assert own.start is plan.trainings["TSM", 1]
    train(plan, own)
    weights = json.loads((own.folder / "run.json").read_text())["weights"]
    assert weights["sha256"] == file_sha256(folder / "tsm_seed1/last.safetensors")
    # Weights are the same by what they hold, from whichever folder they are named.
    monkeypatch.chdir(tmp_path)
    assert all(standing(training).finished for training in plan_study(replace(asked, output=Path("study"))).asked)
    shutil.copy(folder / "tsm_seed0/last.safetensors", folder / "tsm_seed1/last.safetensors")
    with pytest.raises(ValueError, match=r"tsm_longer_seed1: .*model\.weights"):
        plan_study(asked)


def command(
    arguments: list[str | Path],
    study: Study | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[int, str, str]:
    """`clipwise reproduce` in this process, where ``study`` is all there is: exit status, stdout and stderr."""
    if study is not None:
        monkeypatch.setattr("clipwise.studies.study.find_study", lambda _: study)
    monkeypatch.setattr(sys, "argv", ["clipwise", "reproduce", *map(str, arguments)])
    status = 0
    try:
        main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    return status, *capsys.readouterr()


def options(*more: str) -> list[str]:
    return ["--backbone", "resnet18", *more, *(word for setting in SETTINGS for word in ("--set", setting))]


def test_show_prints_the_table_and_what_is_missing(
    complete: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = command(["tiny", "-o", complete, "--show"], STUDY, monkeypatch, capsys)
    assert status == 0
    assert "TSN 3 crops" in out
    assert "TSM ≥ TSN: " in out
    assert command(["tiny", "-o", complete, "--show", "--json"], STUDY, monkeypatch, capsys)[1] == (
        json.dumps(read(complete), ensure_ascii=False) + "\n"
    )
    # With settings of one's own, these decide: a seed more is missing, other settings or videos are refused.
    named = ["tiny", videos, "-o", complete, "--show"]
    assert command([*named, *options("--seeds", "0,1")], STUDY, monkeypatch, capsys)[0] == 0
    status, _, err = command([*named, *options("--seeds", "0,2")], STUDY, monkeypatch, capsys)
    assert status == 1
    assert "missing: TSN (seed 2); TSN 3 crops (seed 2); TSM (seed 2)" in err
    status, _, err = command([*named, *options("--set", "training.lr=0.5")], STUDY, monkeypatch, capsys)
    assert (status, "training.lr is 0.01 there and 0.5 here" in err) == (1, True)
    status, _, err = command(["tiny", "-o", complete, "--show", "--seeds", "0"], STUDY, monkeypatch, capsys)
    assert (status, "begun with the videos" in err) == (1, True)
    # Nothing was run: a step of each network is timed, and nothing written.
    new = tmp_path / "new"
    status, out, err = command(["tiny", videos, "-o", new, "--show", *options()], STUDY, monkeypatch, capsys)
    assert status == 1
    assert "TSM (seed 0, 1, 2)" in err
    assert "an estimate): clipwise reproduce tiny " in err
    assert not new.exists()
    other = replace(STUDY, name="other")
    status, _, err = command(["other", "-o", complete, "--show"], other, monkeypatch, capsys)
    assert status == 1
    assert "holds the study tiny; give other another --output" in err


def test_the_command_that_goes_on_goes_on(
    complete: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a folder"
    shutil.copytree(complete, folder)
    more = ["--jobs", "2", "--hours", "0"]
    arguments = ["tiny", videos, "-o", folder, "--seeds", "0,1,2", *more, *options()]
    status, _, err = command(arguments, STUDY, monkeypatch, capsys)
    assert status == 1
    assert "missing: TSN (seed 2); TSN 3 crops (seed 2); TSM (seed 2)" in err
    words = shlex.split(err.rpartition("an estimate): ")[2])
    assert words[:3] == ["clipwise", "reproduce", "tiny"]
    assert words[-4:] == more
    fewer = [word if word != "0,1,2" else "0,1" for word in words[2:]]
    assert command(fewer, STUDY, monkeypatch, capsys)[0] == 0


def test_a_study_of_certain_videos_has_a_recipe_and_is_not_rendered(videos: Path, tmp_path: Path) -> None:
    study = replace(STUDY, recipe="synthetic_study")
    asked = request(tmp_path, videos, study)
    assert plan_study(asked).base.model.options == {"base_width": 16, "dropout": 0.2}
    assert plan_study(replace(asked, recipe="overhead_adl", backbone="resnet50")).recipe == "overhead_adl"
    with pytest.raises(ValueError, match=r"tiny is about certain videos.*clipwise reproduce tiny DATA"):
        plan_study(replace(asked, data=None))


def test_a_table_has_no_two_columns_of_the_same(complete: Path) -> None:
    study = read(complete)
    for variant in study["variants"]:
        variant["mean"]["mean_class_accuracy"] = variant["mean"]["top1"]
    assert "mean-class accuracy" not in table(study)[0]
    study["variants"][1]["mean"]["mean_class_accuracy"] -= 0.5
    assert "mean-class accuracy" in table(study)[0]


def test_what_cannot_be_run_is_refused_before_anything_is(videos: Path, tmp_path: Path) -> None:
    def refused(study: Study = STUDY, *more: str, **options: Any) -> str:
        with pytest.raises(ValueError, match=r"\S") as error:
            plan_study(request(tmp_path / "study", videos, study, *more, **options))
        return str(error.value)

    assert "variant wrong: tsm_resnet18 has no option alpha" in refused(
        replace(STUDY, variants=(TSN, Variant("wrong", "tsm_{backbone}", {"alpha": 1})))
    )
    frames = replace(STUDY, variants=(TSN, Variant("8f", "tsn_{backbone}", training=("model.num_frames=8",))))
    assert "--set model.num_frames=4: tiny sets model.num_frames itself, for its variant 8f" in refused(frames)
    assert "no split 'dev' to validate on; there is: train, val" in refused(STUDY, "data.validation_split=dev")
    for field in ("model.name=stm_resnet18", "training.seed=3"):
        with pytest.raises(ValueError, match="does not go with a study"):
            request(tmp_path, videos, STUDY, field)
    assert "variant TSN: model.weights=nowhere.safetensors: no such file" in refused(
        STUDY, "model.weights=nowhere.safetensors"
    )
    caffe = ("model.weights=imagenet", "model.options.caffe_stride=true")
    assert "other strides than caffe_stride; give a file by --set" in refused(STUDY, *caffe, backbone="resnet50")
    with pytest.raises(ValueError, match="tiny has no variant 'TSMM'; there are TSM"):
        choose_variants(STUDY, ["TSMM"])
    assert choose_variants(STUDY, ["tsn_3_crops", "TSM"]) == ("TSN 3 crops", "TSM")


def test_an_option_that_a_variant_takes_away_is_not_given(videos: Path, tmp_path: Path) -> None:
    """A recipe's caffe_stride, say, which another family of networks does not know."""
    study = replace(STUDY, variants=(TSN, Variant("without", "tsn_{backbone}", {"base_width": None})))
    plan = plan_study(request(tmp_path / "study", videos, study))
    assert [row.options for row in plan.rows] == [{"base_width": 16}, {}]
    assert plan.trainings["without", 0].config.model.options == {}


def test_a_training_that_was_killed_as_it_began_is_begun_anew(complete: Path, videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(complete, folder)
    for name in ("tsn_seed0", "tsn_seed1", "tsm_seed0"):
        (folder / name / "epochs.csv").unlink()
    for path in (folder / "tsn_seed0").iterdir():
        if path.name != "model.json":  # the first file that is written
            path.unlink()
    (folder / "tsn_seed1/resume.ckpt").unlink()
    plan = plan_study(request(folder, videos, STUDY, "data.on_error=skip"))

    def arguments(label: str, seed: int) -> list[str]:
        return runner._arguments(plan.trainings[label, seed], plan)

    assert "--overwrite" not in arguments("TSN", 0)
    assert not (folder / "tsn_seed0").exists()
    assert "--overwrite" in arguments("TSN", 1)
    assert arguments("TSM", 0)[3:] == ["--resume", "--set", 'data.on_error="skip"']


def test_the_page_lists_all_studies(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    studies = [find_study(name) for name in study_names()]
    trainings = [len({study.training_of(variant.label).label for variant in study.variants}) for study in studies]
    table = "\n".join(
        f"| `{study.name}` | {study.title} | {study.source} | {len(study.variants)} | {number} |"
        for study, number in zip(studies, trainings, strict=True)
    )
    page = (Path(__file__).parents[1] / "docs/studies.md").read_text()
    assert "\n".join(re.findall(r"^\| `.*", page, re.M)) == table
    status, out, _ = command(["--json"], None, monkeypatch, capsys)
    assert (status, [study["trainings"] for study in json.loads(out)]) == (0, trainings)
    status, out, _ = command([], None, monkeypatch, capsys)
    assert [line.split()[0] for line in out.splitlines()] == study_names()
    assert max(map(len, out.splitlines())) <= 80
    status, _, err = command(["stm_module"], None, monkeypatch, capsys)
    assert (status, "near it: stm_modules" in err) == (1, True)


def test_runs_of_an_earlier_sitting_elsewhere_count(complete: Path, videos: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    study = read(complete)
    del study["variants"][2]["runs"][1]  # TSM, seed 1
    del study["config"]["training"]["nesterov"]  # as if there had been no such field yet
    kept.write_text(json.dumps(study))
    folder = tmp_path / "study"
    asked = request(folder, videos, STUDY, "data.on_error=skip", known=kept, seeds=(0,))
    outcome = run_study(asked, reporter=NothingBegins())
    assert (outcome.complete, outcome.hours_left) == (True, 0)
    assert not [path for path in folder.iterdir() if path.is_dir()]
    told = read(folder)["variants"]
    # All that it tells of is in the table, of other seeds too, and can be told of again.
    assert [[run["seed"] for run in variant["runs"]] for variant in told] == [[0, 1], [0, 1], [0]]
    runs, before = (each[0]["runs"][0] for each in (told, study["variants"]))
    assert "training.nesterov" not in runs["config"]
    assert runs["videos_sha256"] == read(complete)["data"]["videos_sha256"]
    assert {key: value for key, value in runs.items() if key != "config"} == {
        key: value for key, value in before.items() if key != "config"
    }
    assert shlex.split(read(folder)["command"]).count(str(kept)) == 1
    again = run_study(replace(asked, output=tmp_path / "again", known=folder / "study.json"), reporter=NothingBegins())
    assert [variant["runs"] for variant in again.study["variants"]] == [variant["runs"] for variant in told]
    # What lies in the folder itself goes before what is told of it.
    plan = plan_study(replace(asked, output=complete, overrides=SETTINGS))
    assert plan.known == {}
    # What is missing is run.
    plan = plan_study(replace(asked, seeds=(0, 1)))
    assert [training.name for training in plan.asked if not plan.standing(training).finished] == ["TSM, seed 1"]


def test_runs_of_another_study_or_other_settings_do_not_count(complete: Path, videos: Path, tmp_path: Path) -> None:
    kept = complete / "study.json"

    def refused(*more: str, known: Path = kept, data: Path = videos) -> str:
        with pytest.raises(ValueError, match=r"\S") as error:
            plan_study(request(tmp_path / "study", data, STUDY, *more, known=known))
        return str(error.value)

    assert "its TSN, seed 0 is another run than this study's: training.lr is" in refused("training.lr=0.5")
    fewer = tmp_path / "fewer"
    shutil.copytree(videos, fewer)
    head, *lines = (fewer / "manifest.csv").read_text().splitlines()
    lines.remove(next(line for line in lines if "train" in line))
    (fewer / "manifest.csv").write_text("\n".join([head, *lines]))
    assert "the videos or their labels are others" in refused(data=fewer)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(read(complete) | {"study": "stm_modules"}))
    assert "tells of the study stm_modules" in refused(known=other)
    for text in ("nothing", "{}", "[]"):
        other.write_text(text)
        assert "is no study.json" in refused(known=other)
    assert "is no study.json (FileNotFoundError" in refused(known=tmp_path / "nowhere.json")


def told_of(videos: Path, folder: Path, complete: Path, study: Study, labels: Sequence[str], *more: str) -> Path:
    """A study.json that tells of seed 0 of these variants, as if they had been run."""
    plan = plan_study(request(folder / "told", videos, study, *more, seeds=(0,)))
    told, like = collect(plan), read(complete)["variants"][0]["runs"][0]
    for variant in told["variants"]:
        if variant["label"] in labels:
            training = plan.trainings[variant["label"], 0]
            own, base = flat(training.config.to_dict()), flat(plan.base.to_dict())
            of_start = training.start and f"weights of {training.start.label}"
            variant["runs"] = [
                like
                | {"seed": 0, "weights_sha256": f"weights of {variant['label']}", "start_sha256": of_start}
                | {"config": {key: own.get(key) for key in {*own, *base} if own.get(key) != base.get(key)}}
            ]
    file = folder / "told.json"
    file.write_text(json.dumps(told))
    return file


CHAIN = replace(
    STUDY,
    variants=(
        TSN,
        Variant("8f", "tsm_{backbone}"),
        Variant("16f", "tsm_{backbone}", training=("training.lr=0.01",), start="8f"),
        Variant("32f", "tsm_{backbone}", training=("training.lr=0.005",), start="16f"),
    ),
    claims=(),
    goals=(),
)


@pytest.mark.parametrize(
    ("told", "asked", "left"),
    [
        (["8f"], [], ["TSN", "8f", "16f", "32f"]),  # of a run elsewhere there are figures, but no weights to start from
        (["8f", "16f"], [], ["TSN", "8f", "16f", "32f"]),
        (["8f", "16f", "32f"], [], ["TSN"]),
        (["32f"], ["32f"], []),  # which needs nothing any more
        (["8f"], ["8f"], []),
        (["8f", "32f"], ["16f"], ["8f", "16f"]),
    ],
)
def test_what_others_start_from_is_run_only_where_they_are(
    told: list[str], asked: list[str], left: list[str], complete: Path, videos: Path, tmp_path: Path
) -> None:
    known = told_of(videos, tmp_path, complete, CHAIN, told)
    plan = plan_study(request(tmp_path / "here", videos, CHAIN, known=known, seeds=(0,), variants=tuple(asked)))
    waiting = [training for training in plan.asked if not plan.standing(training).finished]
    assert [training.label for training in waiting] == left
    # Whatever is left can be begun, one after the other.
    for place, training in enumerate(waiting):
        assert training.start is None or training.start in waiting[:place]


def test_a_run_that_started_from_another_does_not_count(complete: Path, videos: Path, tmp_path: Path) -> None:
    known = told_of(videos, tmp_path, complete, CHAIN, ["8f", "16f"])
    told = json.loads(known.read_text())
    told["variants"][2]["runs"][0]["start_sha256"] = "others"
    known.write_text(json.dumps(told))
    with pytest.raises(ValueError, match="its 16f, seed 0 is another run than this study's: it started from another"):
        plan_study(request(tmp_path / "here", videos, CHAIN, known=known, seeds=(0,)))
    told["variants"][1]["views"] = ["views.crops=3"]
    known.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"its 8f, seed 0 .* it was tested with \('views.crops=3',\)"):
        plan_study(request(tmp_path / "here", videos, CHAIN, known=known, seeds=(0,)))
    told["config"]["model"]["unheard_of"] = 1
    known.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"told.json: is no study.json \(.*unheard_of"):
        plan_study(request(tmp_path / "here", videos, CHAIN, known=known, seeds=(0,)))


def test_a_claim_is_judged_by_the_seeds_that_both_have() -> None:
    """And the commands that made rows of different seeds are told apart."""

    def row(label: str, *figures: tuple[int, float]) -> dict[str, Any]:
        return {"label": label, "runs": [{"seed": seed, "figures": {"top1": figure}} for seed, figure in figures]}

    study = replace(STUDY, variants=(TSN, Variant("TSM", "tsm_{backbone}")))
    both = [row("TSN", (0, 50.0), (1, 52.0), (2, 90.0)), row("TSM", (0, 60.0), (1, 66.0))]
    found = judged(study, both, "top1")
    (claim,) = found["claims"]
    assert (claim["seeds"], claim["difference"], claim["holds"]) == ([0, 1], 12.0, True)
    assert claim["deviation"] == pytest.approx((2 + 18) ** 0.5, abs=1e-4)
    assert [goal["seeds"] for goal in found["goals"]] == [3, 2, 2]  # all that a row has
    (claim,) = judged(study, [both[0], row("TSM", (0, 60.0))], "top1")["claims"]
    assert (claim["difference"], claim["deviation"]) == (10.0, None)
    (claim,) = judged(study, [both[0], row("TSM", (3, 60.0))], "top1")["claims"]
    assert (claim["difference"], claim["holds"]) == (None, None)


def test_a_table_that_tells_more_than_the_next_is_kept(complete: Path, videos: Path, tmp_path: Path) -> None:
    """Of runs that --known told of there is nothing else, if it is that table or is left out the next time."""
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study-1.json").write_text("another")
    before = (complete / "study.json").read_text()
    (folder / "study.json").write_text(before)
    kept: list[tuple[str, Sequence[tuple[str, int]]]] = []

    class Told(NothingBegins):
        def kept(self, path: Path, runs: Sequence[tuple[str, int]]) -> None:
            kept.append((path.name, runs))

    for _ in range(2):  # the second table tells as much as the first
        run_study(request(folder, videos, seeds=(0,)), hours=0, reporter=Told())
    labels = sorted(variant.label for variant in STUDY.variants)
    assert kept == [("study-2.json", [(label, seed) for label in labels for seed in (0, 1)])]
    assert (folder / "study-2.json").read_text() == before
    assert (folder / "study-1.json").read_text() == "another"
    assert not any(variant["runs"] for variant in read(folder)["variants"])


def test_a_table_of_an_earlier_release_is_shown(complete: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    study = read(complete)
    for key in ("goals", "commands"):
        del study[key]
    for claim in study["claims"]:
        del claim["seeds"]
    (folder / "study.json").write_text(json.dumps(study))
    shown = read_study(folder, STUDY)
    assert shown is not None
    assert json.loads(json.dumps(shown)) == read(complete) | {"commands": []}
    assert claim_lines(shown)
    assert goal_lines(shown)


def test_prefixes_with_dots_are_told_of(complete: Path, videos: Path, tmp_path: Path) -> None:
    factors = "training.lr_factors={layer4.1: 0.5, fc: 2}"
    known = told_of(videos, tmp_path, complete, replace(CHAIN, variants=CHAIN.variants[:2]), ["TSN", "8f"], factors)
    plan = plan_study(request(tmp_path / "here", videos, CHAIN, factors, known=known, seeds=(0,)))
    assert plan.known["TSN", 0].config.training.lr_factors == {"layer4.1": 0.5, "fc": 2.0}


def test_missing_videos_are_left_out_where_that_is_asked_for(videos: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(videos, fewer)
    next(fewer.rglob("*.mp4")).unlink()
    with pytest.raises(ValueError, match="1 of 24 videos are missing"):
        plan_study(request(tmp_path / "study", fewer))
    assert plan_study(request(tmp_path / "study", fewer, STUDY, "data.on_error=skip")).asked


def test_a_goal_that_is_missed_by_little_does_not_look_reached() -> None:
    goal = {"text": "TSN at least 72", "value": 71.96, "reached": False, "seeds": 3}
    assert goal_lines({"goals": [goal]}) == ["TSN at least 72: not reached, 71.96 (3 seeds)"]
