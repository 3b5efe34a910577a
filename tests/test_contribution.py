"""Φ and Ψ of the Deep Analysis paper: its own table from its own results, and what is said where cells are missing."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import clipwise

from clipwise.evaluation.contribution import TABLE_7, Contributions, Result, contributions, read_results
from clipwise.evaluation.run import evaluate


def result(module: str, accuracy: float, backbone: str = "resnet50", frames: int = 8, **more: Any) -> Result:
    values = {"dataset": "set", "temporal_pooling": False, "source": module, **more}
    return Result(module=module, backbone=backbone, frames=frames, accuracy=accuracy, **values)


def only(found: Contributions, module: str, pooling: bool = False) -> Any:
    return next(row for row in found.rows if (row.module, row.temporal_pooling) == (module, pooling))


def test_equation_1_by_hand() -> None:
    found = contributions(
        [
            result("tsn", 40.0),
            result("stm", 80.0),
            result("tsn", 60.0, frames=16),
            result("stm", 50.0, frames=16),
            result("tsn", 30.0, temporal_pooling=True),
            result("tsn", 70.0, temporal_pooling=True, frames=16),
        ]
    )
    stm = only(found, "stm")
    assert [cell.phi for cell in stm.cells] == [0.5, 1.0]
    assert [cell.psi for cell in stm.cells] == [40 / 60, -10 / 40]
    assert stm.phi == pytest.approx(0.75)
    assert stm.psi == pytest.approx((40 / 60 - 10 / 40) / 2)
    pooled = only(found, "tsn", pooling=True)
    assert pooled.psi == pytest.approx((-10 / 60 + 10 / 40) / 2)
    assert found.complete
    assert not found.notes


def test_table_7_from_the_authors_results(shared: Path) -> None:
    found = contributions(read_results([shared / "reference" / "mini_benchmark.csv"]))
    assert found.complete
    rows = {(row.dataset, row.module, row.temporal_pooling): row for row in found.rows}
    # As printed, but for I3D's and S3D's columns in the rows without pooling.
    prints_it = {"i3d": "s3d", "s3d": "i3d", "tam": "tam"}
    straight = 0
    for dataset, columns in TABLE_7.items():
        for module in columns:
            alone, pooled = rows[dataset, module, False], rows[dataset, module, True]
            assert alone.expected == pooled.expected == 12
            phi, psi, _ = TABLE_7[dataset][prints_it[module]]
            assert abs(alone.phi - phi) < 0.0051
            assert abs(alone.psi - psi) < 0.0051
            assert abs(pooled.psi - columns[module][2]) < 0.0051
            straight += abs(alone.psi - columns[module][1]) < 0.0051
    assert straight == 3  # TAM's alone
    assert any("exchanged" in note for note in found.notes)


def test_a_missing_cell_is_named_and_no_mean_is_given(shared: Path, tmp_path: Path) -> None:
    with (shared / "reference" / "mini_benchmark.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    def is_(row: dict[str, str], module: str, frames: str) -> bool:
        wanted = ("mini-mit", module, "resnet18", frames, "0")
        return tuple(row[key] for key in ("dataset", "module", "backbone", "frames", "temporal_pooling")) == wanted

    fewer = tmp_path / "fewer.csv"
    with fewer.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row for row in rows if not (is_(row, "tam", "16") or is_(row, "tsn", "64")))
    found = contributions(read_results([fewer]))
    here = {(row.module, row.temporal_pooling): row for row in found.rows if row.dataset == "mini-mit"}
    assert found.baseline_missing == {"mini-mit": ("resnet18 at 64 frames",)}
    assert here["tam", False].missing == ("resnet18 at 16 frames",)
    assert not here["i3d", False].missing
    # Without the baseline there is no complete row; elsewhere nothing has changed.
    assert all(row.phi is None and row.psi is None for row in here.values())
    assert all(row.phi is not None for row in found.rows if row.dataset != "mini-mit")
    partly = contributions(read_results([fewer]), partial=True)
    row = next(row for row in partly.rows if (row.dataset, row.module) == ("mini-mit", "tam"))
    assert len(row.cells) == 10
    assert row.psi is not None
    assert not partly.complete


def test_a_module_without_any_result_on_a_data_set_is_said() -> None:
    both = [result("tsn", 50.0, dataset=name) for name in ("one", "two")]
    found = contributions([*both, result("stm", 60.0, dataset="one")])
    missing = next(row for row in found.rows if row.dataset == "two")
    assert (missing.module, missing.psi, missing.missing) == ("stm", None, ("resnet50 at 8 frames",))


def test_the_grid_has_cells_that_nobody_measured() -> None:
    found = contributions([result("tsn", 50.0), result("stm", 60.0), result("stm", 60.0, "resnet18", 16)])
    assert found.baseline_missing["set"] == (
        "resnet18 at 8 frames",
        "resnet18 at 16 frames",
        "resnet50 at 16 frames",
    )
    assert only(found, "stm").psi is None


def test_seeds_are_averaged_and_that_is_said() -> None:
    seeds = [result("stm", value) for value in (60.0, 70.0)]
    found = contributions([result("tsn", 50.0), *seeds])
    assert only(found, "stm").cells[0].accuracy == 65.0
    assert found.notes == ("cells are means of 1 to 2 runs, not of the same number",)


def test_a_baseline_that_is_always_right_leaves_nothing_to_improve() -> None:
    found = contributions([result("tsn", 100.0), result("stm", 90.0)])
    assert only(found, "stm").phi == 1.0
    assert only(found, "stm").psi is None
    assert "Ψ is not defined where tsn is always right: resnet50 at 8 frames" in found.notes[0]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "no results"),
        ([result("tsn", 101.0)], "0 to 100 percent, got 101"),
        ([result("tsn", 0.5), result("stm", 0.6)], "give percent"),
        ([result("stm", 60.0)], "no result of 'tsn' without temporal pooling.*--baseline"),
        ([result("tsn", 50.0, protocol="crops=1"), result("stm", 60.0, protocol="crops=3")], "tested otherwise"),
    ],
)
def test_what_cannot_be_compared_is_refused(results: list[Result], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contributions(results)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset,module,backbone,frames,top5\n", "no column top1; there is: dataset"),
        ("dataset,module,backbone,frames,top1\na,tsn,resnet50,eight,5\n", "line 2: frames must be a whole number"),
        ("dataset,module,backbone,frames,temporal_pooling,top1\na,tsn,r,8,no,5\n", "temporal_pooling must be 0 or 1"),
    ],
)
def test_a_csv_mistake_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_results([tmp_path / "a.csv"])


def test_results_of_evaluate_are_read(run: Path, tmp_path: Path) -> None:
    record = evaluate(run).record
    (tmp_path / "stm.json").write_text(json.dumps(record))
    (found,) = read_results([tmp_path / "stm.json"])
    assert (found.module, found.backbone, found.frames) == ("stm", "resnet18(base_width=16)", 4)
    assert (found.temporal_pooling, found.accuracy) == (False, record["video"]["top1"])
    assert found.dataset.endswith(" val")
    (by_class,) = read_results([tmp_path / "stm.json"], metric="mean_class_accuracy")
    assert by_class.accuracy == record["video"]["mean_class_accuracy"]
    (tmp_path / "again.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"again.json: has the weights of .*stm.json"):
        read_results([tmp_path / "stm.json", tmp_path / "again.json"])
    with pytest.raises(ValueError, match="not a result of clipwise evaluate"):
        read_results([run / "model.json"])


def test_a_study_is_read(tmp_path: Path) -> None:
    def variant(model: str, top1: float, frames: int = 8, runs: int = 3, **more: Any) -> dict[str, Any]:
        own = {"model.num_frames": frames, "training.twins": "training.twins=true" in more.get("training", ())}
        base = {"model.num_frames": 8, "training.twins": False}
        config = {"model.name": model} | {key: own[key] for key in own if own[key] != base[key]}
        told = [{"config": config, "weights_sha256": f"{model} {top1} {seed} {more}"} for seed in range(runs)]
        values = {"label": model, "model": model, "options": {"caffe_stride": True}, "training": [], "views": []}
        return {**values, "mean": {"top1": top1} if runs else {}, "runs": told, **more}

    study = {
        "data": {"source": "data/overhead_adl/clips.csv"},
        "config": {
            "model": {"name": "stm_resnet50", "num_frames": 8, "options": {"caffe_stride": True}},
            "training": {"twins": False},
            "views": {"size": 112, "crops": 1, "stride": 8},
        },
        "variants": [
            variant("tsn_resnet50", 50.0, training=["training.twins=false"]),  # as all of this study are but one
            variant("tsn_resnet50", 52.0, 16, training=["model.num_frames=16"]),
            variant("stm_resnet50", 60.0, options={"modules": "cmm"}),
            variant("stm_resnet50", 61.0, training=["training.twins=true"]),
            variant("tam_resnet50", 40.0, options={"temporal_pooling": True}),
            variant("i3d_inception_v1", 55.0, options={"last_pool": "padded"}),
            variant("stc_resnet50", 0.0, runs=0, training=["model.num_frames=16", "training.twins=false"]),
        ],
    }
    (tmp_path / "study.json").write_text(json.dumps(study))
    found = read_results([tmp_path / "study.json"])
    assert [(one.module, one.backbone, one.frames, one.temporal_pooling) for one in found] == [
        ("tsn", "resnet50", 8, False),
        ("tsn", "resnet50", 16, False),
        ("stm(modules=cmm)", "resnet50", 8, False),
        ("stm(training.twins=true)", "resnet50", 8, False),
        ("tam", "resnet50", 8, True),
        ("i3d", "inception_v1", 8, False),
        ("stc", "resnet50", 16, False),
    ]
    assert [one.accuracy for one in found] == [50.0, 52.0, 60.0, 61.0, 40.0, 55.0, None]
    assert {one.runs for one in found[:-1]} == {3}
    # What was not run has its place in the grid, and is missing there.
    told = contributions(found)
    assert told.grids == {"overhead_adl/clips.csv": (("inception_v1", "resnet50"), (8, 16))}
    assert only(told, "stc").missing == tuple(
        f"{name} at {t} frames" for name in ("inception_v1", "resnet50") for t in (8, 16)
    )
    with pytest.raises(ValueError, match="nothing of these studies was run yet"):
        contributions([found[-1]])
    (tmp_path / "again.json").write_text(json.dumps(study))
    with pytest.raises(ValueError, match=r"again.json: has the weights of .*study.json"):
        read_results([tmp_path / "study.json", tmp_path / "again.json"])
    assert {one.dataset for one in found} == {"overhead_adl/clips.csv"}
    assert {one.protocol for one in found} == {"size=112, crops=1"}
    study["variants"] = [variant("tsn_resnet50", 50.0, views=["views.crops=3"])]
    (tmp_path / "other.json").write_text(json.dumps(study))
    with pytest.raises(ValueError, match=r"tested otherwise than .*size=112, crops=3 and size=112, crops=1"):
        contributions(read_results([tmp_path / "study.json", tmp_path / "other.json"]))


def test_the_command_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["dataset,module,backbone,frames,top1", "a,tsn,resnet50,8,40", "a,stm,resnet50,8,70", "a,stm,resnet18,8,60"]
    (tmp_path / "a.csv").write_text("\n".join(rows) + "\n")
    output = tmp_path / "a.json"
    arguments = ("analyze", "contribution", tmp_path / "a.csv", "--output", output)
    assert clipwise(*arguments, monkeypatch=monkeypatch) == 1
    said = capsys.readouterr()
    assert "1 of 2" in said.out
    assert "a: no result of tsn without temporal pooling for 1 cell: resnet18 at 8 frames" in said.err
    assert json.loads(output.read_text())["datasets"][0]["modules"][0]["psi"] is None
    assert clipwise(*arguments, "--partial", "--json", monkeypatch=monkeypatch) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["datasets"][0]["modules"][0]["psi"] == pytest.approx(0.5)
    assert record["datasets"][0]["baseline_missing"] == ["resnet18 at 8 frames"]
