"""The command line, in real processes where a process matters: exit status, streams, signals, messages."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import PATIENCE, SMALL, clipwise

from clipwise.data.pack import PackedFile
from clipwise.demo import run_demo


def settings(*more: str) -> list[str]:
    return [part for override in (*SMALL, *more) for part in ("--set", override)]


@pytest.mark.parametrize(
    "verb",
    [
        [],
        ["train"],
        ["evaluate"],
        ["predict"],
        ["models"],
        ["demo"],
        ["reproduce"],
        ["data"],
        ["data", "pack"],
        ["data", "synthesize"],
    ],
)
def test_help_shows_an_example(
    verb: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clipwise(*verb, "--help", monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert "Usage" in out
    if verb not in ([], ["data"]):
        assert "Example" in out


def test_train_evaluate_predict(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert clipwise("train", videos, "-o", run, "--json", *settings(), monkeypatch=monkeypatch) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["epoch"] for line in out.splitlines()] == [1, 2]
    assert "learning rate 0.01 at 6 clips a step" in err
    assert "clips/s" in err

    assert clipwise("evaluate", run, "--json", "-s", "views.crops=3", monkeypatch=monkeypatch) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["protocol"]["views"]["crops"] == 3
    assert (run / "evaluation_val_middle_1x3_best.json").is_file()
    assert (run / "evaluation_val_middle_1x3_best.png").read_bytes().startswith(b"\x89PNG")
    before = (run / "model.json").read_text()
    for wrong in ("model.json", "out.png"):
        assert clipwise("evaluate", run, "-o", run / wrong, monkeypatch=monkeypatch) == 1
        assert wrong in capsys.readouterr().err
    assert (run / "model.json").read_text() == before

    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    video = videos / "moves_up/moves_up_00000.mp4"
    status = clipwise("predict", run, broken, video, "--json", "-k", "2", monkeypatch=monkeypatch)
    out, err = capsys.readouterr()
    first, second = map(json.loads, out.splitlines())
    assert status == 1
    assert first["video"] == str(broken)
    assert "error" in first
    assert len(second["top"]) == 2
    assert "broken.mp4" in err

    assert clipwise("predict", run, f"{videos}/moves_up/*0.mp4", monkeypatch=monkeypatch) == 0
    assert "moves_up_00000.mp4" in capsys.readouterr().out
    assert clipwise("predict", run, videos / "moves_up", "--json", monkeypatch=monkeypatch) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_training_from_a_pack_needs_no_decoder(videos: Path, tmp_path: Path) -> None:
    pack = tmp_path / "v.pack"
    command = [sys.executable, "-m", "clipwise", "data", "pack", videos, pack, "--format", "uint8", "--workers", "1"]
    subprocess.run(command, check=True)
    assert len(PackedFile.open(pack)) == 24
    code = f"""
import importlib.abc, sys
class Bare(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"av", "kornia", "pydantic", "tensorboard", "typer"}}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Bare())
import clipwise
from clipwise.config import Config, ModelConfig, TrainingConfig, ViewsConfig, DataConfig
config = Config(ModelConfig("stm_resnet18", 4, None, {{"base_width": 16}}), DataConfig(workers=0),
                views=ViewsConfig(size=32), training=TrainingConfig(epochs=1, batch_size=8, precision="fp32"))
assert clipwise.train({str(pack)!r}, {str(tmp_path / "run")!r}, recipe=config).finished
assert clipwise.train(None, {str(tmp_path / "run")!r}, resume=True).finished
assert len(clipwise.evaluate({str(tmp_path / "run")!r}, workers=0).evaluation.names) == 8
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_leaves_a_run_to_resume(
    number: signal.Signals, videos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "clipwise", "train", str(videos), "-o", str(run)]
    more = settings("training.epochs=500", "data.workers=2")
    process = subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (run / "epochs.csv").is_file() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as a terminal does: the loader's workers get it too
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "go on with: clipwise train --resume --output " in err
    assert "Traceback" not in err
    assert (run / "resume.ckpt").is_file()


def bad_inputs(folder: Path, videos: Path) -> dict[str, tuple[list[str | Path], str]]:
    """Arguments of `clipwise train` that a user can get wrong, and what the message must say."""
    good = videos / "moves_left/moves_left_00000.mp4"
    (folder / "empty").mkdir()
    (folder / "one/only").mkdir(parents=True)
    (folder / "one/only/a.mp4").write_bytes(good.read_bytes())
    (folder / "one/only/b.mp4").write_bytes(good.read_bytes())
    (folder / "label").mkdir()
    (folder / "label/list.csv").write_text(f"path,label\n{good},jump\n")
    (folder / "label/classes.txt").write_text("jumps\nruns\n")
    (folder / "missing.csv").write_text(f"path,label\n{good},a\ngone.mp4,b\nlost.mp4,b\n")
    (folder / "columns.csv").write_text("file,action\na,b\n")
    (folder / "split.csv").write_text(f"path,label,split\n{good},a,test\n")
    return {
        "no such data": ([folder / "nowhere"], r"nowhere: no such file or folder"),
        "no data": ([], "nothing to train on"),
        "empty folder": ([folder / "empty"], r"empty: no videos in class folders \(the folder is empty\); expected"),
        "one class": ([folder / "one"], r"at least 2 classes, got 1 \('only'\)"),
        "unknown label": ([folder / "label/list.csv"], r"list.csv.*'jump'.*jumps"),
        "missing file": ([folder / "missing.csv"], r"(?s)2 of 3 videos are missing.*gone.mp4"),
        "columns": ([folder / "columns.csv"], r"columns.csv.*path.*file"),
        "split": ([folder / "split.csv"], "no split 'train' to train on; there is: test; name them by"),
        "image size": ([videos, "--set", "views.size=16"], "at least 32 pixels"),
        "model": ([videos, "--set", "model.name=stm_resnet20"], "no network is called 'stm_resnet20'; near it"),
        "weights": ([videos, "--set", "model.weights=gone.pth"], "gone.pth: no such weight file"),
        "recipe": (
            [videos, "--recipe", "gone"],
            "no recipe 'gone': neither a file nor one that comes.*`clipwise recipes` lists those",
        ),
        "resume of nothing": (["--resume"], r"run: holds no training run \(run.json is missing\)"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "no such data",
        "no data",
        "empty folder",
        "one class",
        "unknown label",
        "missing file",
        "columns",
        "split",
        "image size",
        "model",
        "weights",
        "recipe",
        "resume of nothing",
    ],
)
def test_bad_input_to_train_is_explained_and_leaves_nothing(
    case: str, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    arguments, message = bad_inputs(tmp_path, videos)[case]
    base = ["train", *arguments, "-o", tmp_path / "run"]
    if case not in ("resume of nothing", "weights", "model"):
        base += ["--set", "model.weights=null"]
    assert clipwise(*base, monkeypatch=monkeypatch) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert re.search(message, err)
    assert not (tmp_path / "run").exists()


def one_frame_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 48
        frame = av.VideoFrame.from_ndarray(np.full((48, 48, 3), 90, np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_a_video_shorter_than_a_clip_is_used_and_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one_frame_video(tmp_path / "one.mp4")
    assert clipwise("predict", run, tmp_path / "one.mp4", monkeypatch=monkeypatch) == 0
    assert "one.mp4: 1 frames, the network takes 4: some were repeated" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html></html>", bytes(range(256)) * 40])
def test_predict_names_what_is_no_video(
    content: bytes, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.mp4").write_bytes(content)
    assert clipwise("predict", run, tmp_path / "bad.mp4", monkeypatch=monkeypatch) == 1
    err = capsys.readouterr().err
    assert "bad.mp4: " in err
    assert "Traceback" not in err


def test_a_demo_that_is_stopped_gives_no_result(tmp_path: Path) -> None:
    class Impatient:
        def __enter__(self) -> "Impatient":
            return self

        def __exit__(self, *_: object) -> None: ...

        def started(self, *_: object) -> None: ...

        def stepped(self, **_: object) -> None:
            os.kill(os.getpid(), signal.SIGINT)

        def epoch_ended(self, *_: object) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path / "demo", videos_per_class=4, display=Impatient, say=lambda _: None)
    assert not (tmp_path / "demo/demo.json").exists()


def test_models_lists_parameters_and_macs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert clipwise("models", "stm_resnet50", "--json", monkeypatch=monkeypatch) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (round(row["parameters"] / 1e6, 2), round(row["macs"] / 1e9, 2)) == (24.04, 33.07)
    assert clipwise("models", "foo*", monkeypatch=monkeypatch) == 1


def test_synthesize_refuses_a_folder_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/mine.txt").write_text("")
    assert clipwise("data", "synthesize", tmp_path / "set", "--videos", "2", monkeypatch=monkeypatch) == 1
    assert str(tmp_path / "set") in capsys.readouterr().err


@pytest.mark.parametrize(
    "call", ["pack(Manifest.read({data!r}), {out!r}, workers=2)", "synthesize({out!r}, workers=2)"]
)
def test_a_worker_that_dies_is_not_taken_for_an_output_that_cannot_be_written(
    call: str, videos: Path, tmp_path: Path
) -> None:
    """A script without the guard that spawned workers need: each dies when it starts."""
    script, out = tmp_path / "script.py", tmp_path / "out.pack"
    imports = "from clipwise.data.manifest import Manifest\nfrom clipwise.data.pack import pack\n"
    imports += "from clipwise.data.synthetic import synthesize\n"
    script.write_text(imports + call.format(data=str(videos), out=str(out)))
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 1
    assert "ChildProcessError: a worker process died" in ended.stderr
    assert "cannot be written" not in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_no_result_of_an_evaluation_takes_the_place_of_another(
    run: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for more in ([], ["--set", "views.size=48"], ["--set", "views.average=logits"], []):
        assert clipwise("evaluate", folder, videos, "--split", "val", *more, monkeypatch=monkeypatch) == 0
    results = [json.loads(path.read_text()) for path in folder.glob("evaluation_*.json")]
    assert len({json.dumps(result["protocol"], sort_keys=True) for result in results}) == len(results) == 3
