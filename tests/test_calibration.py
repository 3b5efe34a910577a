"""A temperature that makes scores mean what they say, and that is used for no other weights."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import clipwise
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from clipwise.data.labels import Head, LabelSpace
from clipwise.evaluation.run import evaluate
from clipwise.inference.calibration import (
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    probabilities,
    read_temperature,
)
from clipwise.inference.stream_predictor import load_stream

SPACES = {
    "one class": LabelSpace.of(["a", "b", "c", "d"]),
    "heads": LabelSpace((Head("verb", ("take", "put")), Head("noun", ("cup", "pan", "egg")))),
    "label set": LabelSpace((Head("label", ("a", "b", "c")),), multi_label=True),
}


def drawn(space: LabelSpace, temperature: float, clips: int = 8000) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Logits, and labels that come as often as softmax (sigmoid) of logits / temperature says."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (clips, len(space.classes)))
    if space.multi_label:
        return logits, rng.random(logits.shape) < probabilities(logits, space, temperature)
    noisy = logits / temperature + rng.gumbel(size=logits.shape)
    labels = np.stack([part.argmax(1) for part in np.split(noisy, np.cumsum(space.sizes)[:-1], axis=1)], axis=1)
    return logits, labels[:, 0] if len(space.heads) == 1 else labels


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_temperature_that_labels_were_drawn_with_is_found(kind: str, temperature: float) -> None:
    space = SPACES[kind]
    logits, labels = drawn(space, temperature)
    fitted = fit_temperature(logits, labels, space)
    assert fitted == pytest.approx(temperature, rel=0.06)
    least = negative_log_likelihood(logits, labels, space, temperature=fitted)
    for other in (0.98 * fitted, 1.02 * fitted):
        assert negative_log_likelihood(logits, labels, space, temperature=other) > least


def test_negative_log_likelihood_is_the_loss_that_is_trained_with() -> None:
    for space in SPACES.values():
        logits, labels = drawn(space, 2.0, 50)
        z, y = torch.from_numpy(logits) / 1.7, torch.from_numpy(labels)
        if space.multi_label:
            expected = torch.nn.functional.binary_cross_entropy_with_logits(z, y.double())
        else:
            losses = [
                torch.nn.functional.cross_entropy(part, own)
                for part, own in zip(z.split(space.sizes, 1), y.reshape(50, -1).T, strict=True)
            ]
            expected = torch.stack(losses).mean()
        assert negative_log_likelihood(logits, labels, space, temperature=1.7) == pytest.approx(expected.item())


def test_calibration_error_by_hand() -> None:
    # 15 bins: 0.62 and 0.66 share (0.6, 0.667], 1.0 is in the last.
    scores, right = [0.62, 0.66, 1.0, 1.0], [True, False, True, False]
    assert expected_calibration_error(scores, right) == pytest.approx(2 / 4 * (0.64 - 0.5) + 2 / 4 * (1 - 0.5))
    assert expected_calibration_error([0.0, 1.0], [False, True]) == 0
    with pytest.raises(ValueError, match="scores must lie in"):
        expected_calibration_error([1.5], [True])


def test_scores_that_mean_what_they_say_have_next_to_no_error() -> None:
    space = SPACES["one class"]
    logits, labels = drawn(space, 4.0)
    for temperature, error in ((4.0, 0.01), (1.0, 0.2)):
        scores = probabilities(logits, space, temperature)
        measured = expected_calibration_error(scores.max(1), scores.argmax(1) == labels)
        assert measured < error if temperature == 4 else measured > error


def test_what_has_no_temperature_is_refused() -> None:
    logits = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 1.5]])
    with pytest.raises(ValueError, match="all answers to 3 clips are right"):
        fit_temperature(logits, [0, 1, 1])
    with pytest.raises(ValueError, match="no better than chance"):
        fit_temperature(logits, [1, 0, 0])
    with pytest.raises(ValueError, match="1 of 6 are not"):
        fit_temperature(np.where(logits == 3, np.nan, logits), [0, 1, 1])
    with pytest.raises(ValueError, match=r"labels one for each; got \(3, 2\) and \(2,\)"):
        fit_temperature(logits, [0, 1])


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture
def partly_right(run: Path, videos: Path, tmp_path: Path) -> Path:
    """The validation videos, labelled so that the network, which learnt little, is right about six of eight."""
    result = evaluate(run, precision="fp32", workers=0).evaluation
    ranked = (-result.scores).argsort(1)
    rows = [
        f"{videos / name},{result_class}"
        for number, name in enumerate(result.names)
        for result_class in [load_classes(run)[ranked[number, 0 if number < 6 else 1]]]
    ]
    manifest = tmp_path / "partly.csv"
    manifest.write_text("\n".join(["path,label", *rows]) + "\n")
    return manifest


def load_classes(run: Path) -> list[str]:
    return list(json.loads((run / "model.json").read_text())["classes"])


def test_calibrate_writes_what_a_stream_then_uses(
    folder: Path,
    partly_right: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert load_stream(folder).temperature == 1
    assert clipwise("calibrate", folder, partly_right, "--workers", "0", monkeypatch=monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "fitted on 8 clips" in printed
    assert "0.5  (default)" in printed
    record = json.loads((folder / "calibration.json").read_text())["best.safetensors"]
    assert record["after"]["nll"] < record["before"]["nll"]
    assert record["data"]["videos"] == 8
    assert [row["threshold"] for row in record["thresholds"]] == [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    nones = [row["none"] for row in record["thresholds"]]
    assert nones == sorted(nones)
    assert record["temperature"] != 1
    calibrated, plain = load_stream(folder), load_stream(folder, temperature=1.0)
    assert (calibrated.temperature, plain.temperature) == (record["temperature"], 1.0)
    picture = torch.randint(0, 256, (1, 3, calibrated.size, calibrated.size), dtype=torch.uint8)
    logits = np.log(plain.push(picture))
    np.testing.assert_allclose(
        calibrated.push(picture), probabilities(logits, plain.label_space, calibrated.temperature), atol=1e-4
    )

    # Of weights that it was not fitted for it is not used, and that is said.
    assert read_temperature(folder / "last.safetensors") is None
    assert not caplog.records
    state = load_file(folder / "best.safetensors")
    save_file({**state, "fc.bias": state["fc.bias"] + 1}, folder / "best.safetensors")
    with caplog.at_level(logging.WARNING):
        assert load_stream(folder).temperature == 1
    assert "was fitted for other weights than best.safetensors now has" in caplog.text


def test_each_weight_file_keeps_its_temperature(
    folder: Path, partly_right: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for which in ("best", "last"):
        arguments = ("calibrate", folder, partly_right, "--workers", "0", "--weights", which)
        assert clipwise(*arguments, monkeypatch=monkeypatch) == 0
    assert list(json.loads((folder / "calibration.json").read_text())) == ["best.safetensors", "last.safetensors"]


def test_an_unreadable_video_is_said_and_a_damaged_record_is_refused(
    folder: Path, partly_right: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = folder / "broken.mp4"
    broken.write_bytes(b"<html>")
    partly_right.write_text(partly_right.read_text() + f"{broken},{load_classes(folder)[0]}\n")
    assert clipwise("calibrate", folder, partly_right, "--workers", "0", monkeypatch=monkeypatch) == 1
    assert "1 video could not be read" in capsys.readouterr().err
    (folder / "calibration.json").write_text('{"best.safetensors": {"temperature": -1, "sha256": ""}}')
    with pytest.raises(ValueError, match=r"calibration\.json: damaged or not written by clipwise .*; delete it"):
        load_stream(folder)
