"""Measuring speed: what is compared with what, what is refused, and what is left when a run ends early."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, clipwise

from clipwise.benchmark import networks
from clipwise.benchmark.loader import enough_workers
from clipwise.benchmark.networks import Condition, Contender, Subject, measure, prepare, rows_of, subject_of
from clipwise.benchmark.timing import data_condition, in_turns, quartiles
from clipwise.data.manifest import Manifest
from clipwise.files import portable_path

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--frames", "4", "--size", "32", "--set", "model.options.base_width=16", "--rounds", "3", "--device", "cpu"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns of a few steps."""
    monkeypatch.setattr(networks, "_TURN", 0.01)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs ``clipwise benchmark model`` in an empty folder; gives the exit status."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: clipwise("benchmark", "model", *arguments, *TINY, monkeypatch=monkeypatch)


def one_record(folder: Path) -> tuple[str, dict[str, Any]]:
    (file,) = folder.glob("*.json")
    return file.name, json.loads(file.read_text(encoding="utf-8"))


# Turns and ratios


def test_everyone_goes_first_and_last_in_turn() -> None:
    orders = list(in_turns("abc", 6))
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert {order[0] for order in orders} == {order[-1] for order in orders} == set("abc")


def contender(network: str, form: str, seconds: list[float], formulation: str = networks.OURS) -> Contender:
    subject = Subject(network, torch.nn.Identity(), 10, 20, formulation)
    return Contender(subject, form, Condition("infer", "fp32", 4, 4, 32, CPU), seconds=seconds)


def test_ratios_are_taken_round_by_round_and_in_the_same_form() -> None:
    # The machine slows down for everyone from round to round: no network's own quartiles show the ratio.
    tsn = contender("tsn", "eager", [1.0, 2.0, 4.0])
    stm = contender("stm", "eager", [2.0, 4.0, 8.0])
    deployed = contender("stm", "deployed", [1.0, 1.0, 1.0])
    first, second, third = rows_of([tsn, stm, deployed], "tsn")
    assert second["to_against"] == {"median": 0.5, "q1": 0.5, "q3": 0.5}
    assert "to_against" not in first  # to itself
    assert "to_against" not in third  # TSN was not measured deployed
    assert second["clips_per_second"]["median"] == pytest.approx(1.0)
    assert second["milliseconds_a_step"] == {"median": 4000.0, "q1": 3000.0, "q3": 6000.0}


def test_the_rival_at_its_best_is_what_counts() -> None:
    ours = contender("stm", "deployed", [1.0, 1.0])
    slow = contender("stm", "eager", [9.0, 9.0], "authors.py:as_written")
    fast = contender("stm", "compiled", [3.0, 3.0], "authors.py:as_written")
    row, *rivals = rows_of([ours, slow, fast])
    assert row["to_rival"]["median"] == 3.0
    assert row["to_rival"]["rival"] == "authors.py:as_written, compiled, fp32"
    assert all("to_rival" not in rival for rival in rivals)


def test_quartiles() -> None:
    assert quartiles([5, 1, 2, 4, 3]) == {"median": 3.0, "q1": 2.0, "q3": 4.0}


# Networks


def test_the_file_names_the_condition_and_holds_how_it_was_measured(model: Any, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    command = ["stm_resnet18", "--against", "tsn_resnet18", "--batch", "1,2", "--form", "eager,deployed"]
    rival = ["--rival", f"{ROOT / 'benchmarks/authors.py'}:as_written"]
    assert model(*command, *rival, "--plot", "speed.png") == 0
    name, record = one_record(tmp_path)
    assert name == f"speed_infer_fp32_b1-2_4x32_cpu_{threads}threads.json"
    assert (tmp_path / "speed.png").stat().st_size > 5000
    assert record["command"].startswith("clipwise benchmark model stm_resnet18")
    assert record["versions"]["torch"] in torch.__version__
    assert record["device"]
    assert record["threads"] == threads
    assert record["condition"]["options"] == {
        "tsn_resnet18": {"base_width": 16},
        "stm_resnet18": {"base_width": 16},
    }
    agreement = record["rival"]["outputs"]["stm_resnet18"]
    assert agreement["of_the_largest"] < 1e-5
    rows = {(row["network"], row["formulation"], row["form"], row["batch"]): row for row in record["results"]}
    ours, authors = "clipwise", "authors.py:as_written"
    assert set(rows) == {
        (network, formulation, form, batch)
        for batch in (1, 2)
        for network, formulation, form in [
            ("tsn_resnet18", ours, "eager"),
            ("tsn_resnet18", ours, "deployed"),
            ("stm_resnet18", ours, "eager"),
            ("stm_resnet18", ours, "deployed"),
            ("stm_resnet18", authors, "eager"),
        ]
    }
    for (network, formulation, form, _), row in rows.items():
        assert row["rounds"] == 3
        assert 0 < row["milliseconds_a_step"]["q1"] <= row["milliseconds_a_step"]["q3"]
        assert row["peak_memory_bytes"] is None
        assert ("to_against" in row) == (network != "tsn_resnet18")
        assert ("to_rival" in row) == ((network, formulation) == ("stm_resnet18", ours)), form
    assert rows["stm_resnet18", ours, "eager", 2]["layout"] == "channels_last"
    assert rows["stm_resnet18", authors, "eager", 2]["layout"] == "contiguous_format"


def test_the_network_to_compare_with_gets_the_options_that_it_has(
    model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    causal = ["--set", "model.options.causal=true"]
    assert model("stm_resnet18", "--against", "tsn_resnet18", *causal) == 0
    _, record = one_record(tmp_path)
    given = {"stm_resnet18": {"base_width": 16, "causal": True}, "tsn_resnet18": {"base_width": 16}}
    assert record["condition"]["options"] == given
    capsys.readouterr()
    assert model("stm_resnet18", "tsn_resnet18", *causal) == 1
    assert "causal" in capsys.readouterr().err


def test_training_steps_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    condition = Condition("train", "bf16", 2, 4, 32, CPU)
    subject = subject_of("stm_resnet18", condition, {"base_width": 16})
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    ready = prepare(subject, "eager", condition)
    assert ready.step is not None
    losses = [float(ready.step().detach()) for _ in range(25)]  # type: ignore[attr-defined]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())
    status = clipwise("benchmark", "model", "stm_resnet18", "--mode", "train", "--dtype", "bf16", "--batch", "2",
                      *TINY, "--output", tmp_path / "t.json", "--json", monkeypatch=monkeypatch)  # fmt: skip
    assert status == 0
    assert json.loads((tmp_path / "t.json").read_text())["results"][0]["clips_per_second"]["median"] > 0


def test_what_runs_out_of_memory_is_named_and_the_others_go_on(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = networks._inference_step

    def scarce(subject: Subject, form: str, condition: Condition) -> Any:
        step = build(subject, form, condition)
        if subject.network == "stm_resnet18":  # of which the CPU says so by a RuntimeError
            torch.empty(2**60)
        return step

    monkeypatch.setattr(networks, "_inference_step", scarce)
    assert model("stm_resnet18", "tsm_resnet18", "--against", "tsn_resnet18") == 0
    _, record = one_record(tmp_path)
    rows = {row["network"]: row for row in record["results"]}
    assert rows["stm_resnet18"]["failed"] == "out of memory"
    assert "to_against" in rows["tsm_resnet18"]
    assert "out of memory" in capsys.readouterr().out


def test_another_network_is_no_rival(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rivals.py").write_text(
        "import copy, torch\n"
        "def other(model):\n"
        "    model = copy.deepcopy(model)\n"
        "    torch.nn.init.normal_(model.conv1.weight)\n"
        "    return model\n"
        "def same(model):\n"
        "    return model\n"
    )
    assert model("tsn_resnet18", "--rival", "rivals.py:other") == 1
    assert "differ from ours by" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))
    assert model("tsn_resnet18", "--rival", "rivals.py:same") == 0
    capsys.readouterr()
    assert model("tsn_resnet18", "--rival", "rivals.py:missing") == 1
    assert "no function 'missing'; there is other, same" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stm_resnet19"], "near it: stm_resnet18"),
        (["tsn_resnet18", "--against", "tsn_resnet19"], "near it: tsn_resnet18"),
        (["tsn_resnet18", "tsn_resnet18"], "'tsn_resnet18' is named twice"),
        (["tsn_resnet18", "--form", "eager,deployed,eager"], "'eager' is given twice"),
        (["tsn_resnet18", "--form", "fast"], "no form 'fast'; there are eager"),
        (["tsn_resnet18", "--form", "cuda-graph"], "needs a CUDA GPU"),
        (["tsn_resnet18", "--form", "deployed", "--mode", "train"], "is for inference"),
        (["tsn_resnet18", "--dtype", "tf32"], "tf32 is a mode of NVIDIA GPUs"),
        (["tsn_resnet18", "--dtype", "fp16", "--mode", "train"], "needs a loss scaler"),
        (["tsn_resnet18", "--dtype", "int8"], "one of fp32, tf32, bf16, fp16"),
        (["tsn_resnet18", "--batch", "1,1"], "batch 1 is given twice"),
        (["tsn_resnet18", "--batch", "many"], "whole numbers"),
        (["tsn_resnet18", "--set", "views.size=64"], "only options of the networks"),
        (["tsn_resnet18", "--set", "model.options.alpha=0.5"], "alpha"),
        (["tsn_resnet18", "--rival", "authors.py"], "PATH.py:FUNCTION"),
        (["tsn_resnet18", "--rival", "nothing.py:f"], "no such file"),
        (["tsn_resnet18", "--rival", "a.py:f", "--form", "deployed"], "no such file"),
        (["tsn_resnet18", "--plot", "speed.gif"], ".png, .svg or .pdf"),
        (["tsn_resnet18", "--output", "speed.csv"], "give a name in .json"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    model: Any, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert model(*arguments) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_compiling_on_a_cpu_needs_a_compiler(
    model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(networks, "compiler_missing", lambda kind: f"none for a {kind}; install g++")
    assert model("tsn_resnet18", "--form", "compiled") == 1
    assert "none for a cpu; install g++; or leave the form out" in capsys.readouterr().err


def test_ctrl_c_keeps_whole_rounds() -> None:
    condition = Condition("infer", "fp32", 2, 4, 32, CPU)
    calls = []

    def step() -> None:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt

    subject = Subject("tsn_resnet18", torch.nn.Identity(), 0, 0)
    contenders = [Contender(subject, form, condition, step=step) for form in ("eager", "deployed")]
    assert measure(contenders, 10) is False
    assert [len(one.seconds) for one in contenders] == [3, 3]
    assert all(row["rounds"] == 3 for row in rows_of(contenders))


def test_ctrl_c_writes_what_was_measured(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    take_turn, turns = Contender.take_turn, []

    def pressed(self: Contender) -> None:
        turns.append(self.condition.batch)
        if len(turns) == 5:  # batch 1 had its three rounds, batch 2 one
            signal.raise_signal(signal.SIGINT)
        take_turn(self)

    monkeypatch.setattr(Contender, "take_turn", pressed)
    assert model("tsn_resnet18", "--batch", "1,2,3") == 130
    told = capsys.readouterr().err
    assert "stopped: what was measured until then is written" in told
    name, record = one_record(tmp_path)
    assert name in told
    assert record["interrupted"]
    assert [(row["batch"], row["rounds"]) for row in record["results"]] == [(1, 3), (2, 1)]


def test_ctrl_c_before_the_first_round_writes_nothing(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(networks, "_inference_step", lambda *_: signal.raise_signal(signal.SIGINT))
    assert model("tsn_resnet18") == 130
    assert "stopped before anything was measured" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# The loader


def test_the_loader_by_its_workers(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = clipwise(
        *("benchmark", "loader", videos, "--workers", "0,1", "--rounds", "2", "--seconds", "0.2"),
        *(part for setting in SMALL for part in ("--set", setting)),
        *("--output", tmp_path / "loader.json"),
        monkeypatch=monkeypatch,
    )
    assert status == 0
    record = json.loads((tmp_path / "loader.json").read_text())
    assert [row["workers"] for row in record["results"]] == [0, 1]
    assert all(row["rounds"] == 2 and row["clips_per_second"]["median"] > 0 for row in record["results"])
    clip = record["of_a_clip"]
    assert clip["reading"] + clip["crop_resize_flip"] == pytest.approx(1)
    assert 0 < clip["reading"] < 1
    assert record["condition"]["videos"] == 16  # those to train on
    assert record["condition"]["data"]["source"] == portable_path(videos / "manifest.csv", Path.cwd())
    others = Manifest.read(videos).select("val")
    assert data_condition(others)["videos_sha256"] != record["condition"]["data"]["videos_sha256"]
    told = capsys.readouterr()
    assert "workers read as much as any number of these" in told.err


def test_enough_workers_are_the_fewest_that_keep_up() -> None:
    assert enough_workers({0: 10.0, 1: 9.0, 2: 19.0, 4: 37.0, 8: 38.0}) == 4
    assert enough_workers({0: 10.0, 1: 10.2}) == 0


def test_a_loader_that_reads_nothing_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        (tmp_path / "videos" / name / "one.mp4").write_bytes(b"no video")
    status = clipwise(
        *("benchmark", "loader", tmp_path / "videos", "--workers", "0", "--seconds", "0.1"),
        *("--output", tmp_path / "loader.json"),
        monkeypatch=monkeypatch,
    )
    assert status == 1
    assert "no video that was tried can be read" in capsys.readouterr().err
    assert not (tmp_path / "loader.json").exists()


# End to end


def test_from_a_file_to_its_label_stage_by_stage(
    run: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(videos.rglob("*.mp4"))[:2]
    monkeypatch.chdir(tmp_path)
    status = clipwise(
        "benchmark", "end-to-end", *files, "--checkpoint", run, "--rounds", "3", "--device", "cpu",
        monkeypatch=monkeypatch,
    )  # fmt: skip
    assert status == 0
    name, record = one_record(tmp_path)
    assert name == f"end_to_end_stm_resnet18_deployed_fp32_cpu_{torch.get_num_threads()}threads.json"
    assert [row["video"] for row in record["videos"]] == [file.name for file in files]
    assert record["condition"] | {"frames": 4, "size": 32, "rounds": 3} == record["condition"]
    for row in record["videos"]:
        parts = [row[stage]["median"] for stage in ("decode", "preprocess", "network")]
        assert min(parts) > 0
        assert max(parts) < row["whole"]["median"]


def test_a_result_of_something_else_gets_a_file_of_its_own(
    run: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other videos, other views, other options and other weights are other conditions; the same again is not."""
    monkeypatch.chdir(tmp_path)
    one, two, *_ = sorted(videos.rglob("*.mp4"))
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "last.safetensors").replace(other / "best.safetensors")

    def measured(*arguments: str | Path) -> None:
        command = ["benchmark", "end-to-end", *arguments, "--rounds", "1", "--device", "cpu"]
        assert clipwise(*command, monkeypatch=monkeypatch) == 0

    small = ["--set", "model.name=stm_resnet18", "--set", "views.size=32", "--set", "model.num_frames=4"]
    width = ["--set", "model.options.base_width=16"]
    for arguments in (
        [one, "--checkpoint", run],
        [two, "--checkpoint", run],
        [one, two, "--checkpoint", run],
        [one, "--checkpoint", other],
        [one, *small, *width],
        [one, *small, *width, "--set", "model.options.modules=cstm"],
        [one, *small, *width, "--set", "views.crops=3"],
        [one, *small, *width, "--set", "views.crop_ratio=1"],
    ):
        before = set(tmp_path.glob("*.json"))
        measured(*arguments)
        assert len(set(tmp_path.glob("*.json")) - before) == 1, arguments
    measured(one, "--checkpoint", run)
    found = [json.loads(path.read_text())["condition"] for path in tmp_path.glob("*.json")]
    assert len(found) == 8
    assert {"name": one.name, "bytes": one.stat().st_size} in found[0]["videos"] + found[1]["videos"]


def test_epochs_an_hour(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "epochs.json"
    status = clipwise(
        *("benchmark", "end-to-end", "--data", videos, "--steps", "4", "--output", target),
        *(part for setting in SMALL for part in ("--set", setting)),
        monkeypatch=monkeypatch,
    )
    assert status == 0
    record = json.loads(target.read_text())
    assert record["condition"]["steps_an_epoch"] == 3
    assert record["condition"]["steps"] == 4
    assert record["condition"]["data"] == data_condition(Manifest.read(videos))
    assert record["condition"]["options"] == {"base_width": 16}
    assert record["epochs_per_hour"] == pytest.approx(
        3600 * record["clips_per_second"] / record["condition"]["videos"], rel=1e-2
    )
    assert list(tmp_path.iterdir()) == [target]


def test_end_to_end_is_one_of_two(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert clipwise("benchmark", "end-to-end", monkeypatch=monkeypatch) == 1
    assert "one of the two" in capsys.readouterr().err
    assert clipwise("benchmark", "end-to-end", "--data", "videos", "--form", "eager", monkeypatch=monkeypatch) == 1
    assert "--form is for video files" in capsys.readouterr().err
    assert clipwise("benchmark", "end-to-end", "clip.mp4", "--steps", "3", monkeypatch=monkeypatch) == 1
    assert "--steps is for --data" in capsys.readouterr().err


# The script with the project's goals


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    spec = importlib.util.spec_from_file_location("speed", ROOT / "benchmarks/speed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["speed"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_goals_are_the_issues(speed: ModuleType) -> None:
    groups = {group.name for group in speed.GPU}
    limits = {goal.name: goal.least or goal.most for goal in speed.GPU_GOALS}
    assert all(set(goal.groups) <= groups for goal in speed.GPU_GOALS)
    assert sorted(limits.values()) == [0.88, 0.9, 0.9, 0.92, 0.98, 1.0, 1.15, 1.15, 1.8, 2.2, 1500, 3200]


def test_a_goal_is_judged_by_each_ones_fastest_form_and_the_harder_rival(speed: ModuleType) -> None:
    tsn = [
        contender("tsn_resnet50", "deployed", [1.0, 1.0]),
        contender("tsn_resnet50", "deployed+compiled", [0.9, 0.9]),
    ]
    stm = [
        contender("stm_resnet50", "deployed", [1.0, 1.0]),
        contender("stm_resnet50", "deployed+compiled", [1.2, 1.2]),
    ]
    rival = contender("stm_resnet50", "compiled", [1.9, 1.9], "authors.py:channels_last")
    first, written = speed.GPU[0], speed.GPU[-2]
    record: dict[str, Any] = {"groups": {first.name: {}, written.name: {}}}
    goals = [goal for goal in speed.GPU_GOALS if goal.name.startswith("STM inference")]
    missed = speed.judge(goals, first, [*tsn, *stm, rival], record)
    assert not missed
    faster = contender("stm_resnet50", "compiled", [1.5, 1.5], "authors.py:as_written")
    assert [goal.name for goal in speed.judge(goals, written, [*stm, faster], record)] == [goals[1].name]
    found = speed.verdicts(goals, record["groups"])
    assert found[goals[0].name]["median"] == pytest.approx(0.9)
    assert found[goals[0].name]["reached"]
    assert found[goals[1].name]["median"] == pytest.approx(1.5)
    assert found[goals[1].name]["group"] == written.name
    assert not found[goals[1].name]["reached"]


def test_the_script_writes_goals_kernels_and_a_page(
    speed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [
        speed.Entry("tsn", ("deployed",), dtype="fp32"),
        speed.Entry("stm", ("deployed",), dtype="fp32"),
        speed.Entry("stm", ("eager",), "as_written", "fp32"),
    ]
    broken = speed.Group("stm latency", (speed.Entry("stm", ("cuda-graph",)),), batch=1)
    monkeypatch.setattr(speed, "CPU", (speed.Group("stm inference", tuple(entries), batch=1), broken))
    goals = [speed.Goal(goal.name, goal.groups, goal.figure, least=1e3) for goal in speed.CPU_GOALS]  # out of reach
    monkeypatch.setattr(speed, "CPU_GOALS", goals)
    target = tmp_path / "speed_cpu.json"
    arguments = ["--cpu", "--small", "--rounds", "2", "--threads", str(torch.get_num_threads()), "--output", target]
    monkeypatch.setattr(sys, "argv", ["speed.py", *map(str, arguments)])
    assert speed.main() == 1  # a group failed, and the others were measured
    record = json.loads(target.read_text(encoding="utf-8"))
    assert record["command"].endswith("--output …")
    assert "needs a CUDA GPU" in record["left_out"]["stm latency"]
    assert record["authors"]["as_written"]["of_the_largest"] < 1e-5
    for goal in goals:
        found = record["goals"][goal.name]
        assert not found["reached"]
        assert "aten::" in (tmp_path / found["profile"]).read_text(encoding="utf-8")
    page = tmp_path / "page.md"
    subprocess.run([sys.executable, ROOT / "benchmarks/page.py", "--results", tmp_path, "--output", page], check=True)
    text = page.read_text(encoding="utf-8")
    assert "## Speed" in text
    assert f"| {goals[0].name} | ≥ 1000 | **{record['goals'][goals[0].name]['median']:.2f} " in text
    assert "**Not measured:** stm latency (ValueError: form 'cuda-graph' needs a CUDA GPU" in " ".join(text.split())
    assert "| stm_resnet18 (authors.py:as_written) | eager, fp32 | 1 |" in text
    # A part anew, in the same file.
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--groups", "stm inference"])
    assert speed.main() == 0
    assert set(json.loads(target.read_text(encoding="utf-8"))["goals"]) == {goal.name for goal in goals}


def test_the_numerical_half_needs_no_video_library(tmp_path: Path) -> None:
    """On a bare GPU machine: PyTorch, numpy, safetensors."""
    blocked = "av kornia pytorch_lightning torchmetrics pydantic yaml typer rich matplotlib PIL"
    code = (
        "import sys\n"
        f"for name in {blocked.split()!r}: sys.modules[name] = None\n"
        "import torch, clipwise, clipwise.benchmark.networks as n\n"
        "model = clipwise.create_model('stm_resnet18', num_classes=174, num_frames=4, base_width=16)\n"
        "condition = n.Condition('infer', 'fp32', 2, 4, 32, torch.device('cpu'))\n"
        "ready = n.prepare(n.Subject('stm_resnet18', model, 0, 0), 'eager', condition)\n"
        "assert n.measure([ready], 2) and n.rows_of([ready])[0]['rounds'] == 2\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
