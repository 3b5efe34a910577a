"""The page of results says what the committed files say, and the files say how they were made."""

import hashlib
import importlib.util
import json
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
FILES = sorted(RESULTS.glob("*.json"))


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "benchmarks/page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """The committed results in a folder where they may be changed."""
    return Path(shutil.copytree(RESULTS, tmp_path / "results"))


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def row(text: str, label: str) -> list[str]:
    """The cells of the table's line that begins so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


# The committed page


def test_the_page_is_what_the_files_give(page: ModuleType) -> None:
    shown = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert shown == page.make(RESULTS, ROOT / "docs/results.md"), "run python benchmarks/page.py"


def test_a_figure_that_changes_makes_the_page_out_of_date(copies: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks/page.py", "--results", copies, "--output", copies.parent / "page.md"]
    assert subprocess.run(command).returncode == 0
    assert subprocess.run([*command, "--check"]).returncode == 0
    file = copies / "overhead_adl_stm_seed0_cpu_bf16.json"
    record = read(file)
    record["video"]["mean_class_accuracy"] = 12.345
    file.write_text(json.dumps(record), encoding="utf-8")
    checked = subprocess.run([*command, "--check"], capture_output=True, text=True)
    assert checked.returncode == 1
    lines = checked.stderr.splitlines()
    assert [line[:2] for line in lines if "mean-class" in line] == ["-|", "+|"]
    assert "**12.3**" in checked.stderr
    assert len(lines) < 8


SHOWN = {  # which of a part's figures its table shows
    "mean_accuracy_in_pairs": "",
    "groups": "over_ours_wall",
    "readers": "1 process .* (torchcodec|decord2|opencv) ours_is_times_cpu median",
    "stores": "(shards|pack) .* times_originals",
}


def places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys that lead to each figure."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from places(one, (*path, key))
    elif isinstance(value, float):
        yield path


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("demo_seed1_cpu_2cores", "mean_accuracy_in_pairs"),
        ("reader_cpu_2cores_sparse8", "groups"),
        ("loader_cpu_2cores", "readers"),
        ("loader_cpu_2cores", "stores"),
    ],
)
def test_no_figure_of_a_table_is_written_by_hand(page: ModuleType, copies: Path, name: str, part: str) -> None:
    before = page.make(copies, copies)
    file = copies / f"{name}.json"
    record = read(file)
    shown = [path for path in places(record[part]) if re.search(SHOWN[part], " ".join(path))]
    assert shown
    for path in shown[:: max(1, len(shown) // 6)]:
        *way, last = path
        place = record[part]
        for key in way:
            place = place[key]
        place[last], kept = 7654.321, place[last]
        file.write_text(json.dumps(record), encoding="utf-8")
        changed = [line for line in page.make(copies, copies).splitlines() if line not in before.splitlines()]
        assert any("7654" in line for line in changed), path
        place[last] = kept


def test_a_file_that_no_section_knows_is_listed_with_its_command(page: ModuleType, copies: Path) -> None:
    (copies / "zoo_cpu.json").write_text('{"command": "clipwise models"}', encoding="utf-8")
    assert "- `zoo_cpu.json`: `clipwise models`" in page.make(copies, copies)


def test_the_readme_quotes_the_files() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    study = {variant["label"]: variant for variant in read(RESULTS / "study_overhead_adl.json")["variants"]}
    for name in ("TSM", "STM", "TSN"):
        cells = re.search(rf"^\| {name}\b[^|]*\| ([\d.± ]+) \| ([\d.± ]+) \|$", text, re.M)
        assert cells is not None
        mean, deviation = study[name]["mean"], study[name]["deviation"]
        figures = (f"{mean[key]:.1f} ± {deviation[key]:.1f}" for key in ("mean_class_accuracy", "top1"))
        assert cells.groups() == tuple(figures)
    speed = read(RESULTS / "speed_cpu_2threads.json")["groups"]["stm inference"]["results"]
    rows = {(row["network"], row["formulation"], row["form"], row["dtype"]): row for row in speed}
    for key in (
        ("stm_resnet50", "authors.py:as_written", "eager", "fp32"),
        ("stm_resnet50", "clipwise", "deployed", "fp32"),
        ("stm_resnet50", "clipwise", "deployed", "bf16"),
        ("tsn_resnet50", "clipwise", "deployed", "bf16"),
    ):
        assert re.search(rf"\b{rows[key]['milliseconds_a_step']['median']:.0f}\b", text)
    for name in ("STM", "TSN"):
        means = [read(file)["mean_accuracy_in_pairs"][name] for file in FILES if file.name.startswith("demo_")]
        assert f"{name} {min(means):.1f}–{max(means):.1f} %" in " ".join(text.split())


# The committed files


def objects(value: Any) -> Iterator[dict[str, Any]]:
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(one)
    if isinstance(value, dict):
        yield value


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_result_tells_how_it_was_made(file: Path) -> None:
    record = read(file)
    assert record["command"].split()[0] in ("clipwise", "python")
    assert record["versions"]["python"]
    assert record["device"]
    told = list(objects(record))
    assert any(one.get(key) for one in told for key in ("config", "config_sha256", "condition")), "no configuration"
    for one in told:
        if "config_sha256" in one and "config" in one:
            config = one["config"] if "study" not in record else nested(record["config"], one["config"])
            digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
            assert digest == one["config_sha256"]


def nested(study: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration from its study's and what differs from that, by dotted names."""
    config = json.loads(json.dumps(study))
    for name, value in changes.items():
        *way, last = name.split(".")
        place = config
        for key in way:
            place = place.setdefault(key, {})
        place[last] = value
        if way == ["model", "options"] and value is None:  # an option that the network does not take
            del place[last]
    return dict(config)


def test_a_study_is_the_sum_of_its_runs() -> None:
    for record in [read(file) for file in FILES if file.name.startswith("study_")]:
        assert sorted((one["variant"], one["seed"]) for one in record["missing"]) == sorted(
            (variant["label"], seed)
            for variant in record["variants"]
            for seed in set(record["seeds"]) - {run["seed"] for run in variant["runs"]}
        )
        for variant in record["variants"]:
            for metric, mean in variant["mean"].items():
                figures = [run["figures"][metric] for run in variant["runs"]]
                assert mean == pytest.approx(statistics.fmean(figures), abs=0.01)
                if len(figures) > 1:
                    assert variant["deviation"][metric] == pytest.approx(statistics.stdev(figures), abs=0.01)


# Studies; this one is invented


def run_of(seed: int, accuracy: float) -> dict[str, Any]:
    return {"seed": seed, "figures": {"top1": accuracy}, "seconds": 90.0 + seed}


def variant_of(label: str, parameters: float, macs: float, *accuracies: float, **published: float) -> dict[str, Any]:
    many = len(accuracies) > 1
    return {
        "label": label,
        "parameters": parameters,
        "macs": macs,
        "views_per_video": 1,
        "published": {key.replace("_", " "): value for key, value in published.items()},
        "mean": {"top1": statistics.fmean(accuracies)} if accuracies else {},
        "deviation": {"top1": statistics.stdev(accuracies)} if many else {"top1": None} if accuracies else {},
        "runs": [run_of(seed, accuracy) for seed, accuracy in enumerate(accuracies)],
    }


def claim_of(
    text: str, difference: float | None, deviation: float | None, holds: bool | None, *seeds: int
) -> dict[str, Any]:
    return {"text": text, "seeds": [*seeds], "difference": difference, "deviation": deviation, "holds": holds}


STUDY = {
    "study": "invented_modules",
    "title": "Impact of modules",
    "source": "A paper, Table 5",
    "note": "Rendered video in place of Something-Something.",
    "command": "clipwise reproduce invented_modules --output runs/invented",
    "data": {"source": "runs/invented/data", "classes": 16, "training_videos": 960, "validation_videos": 320},
    "recipe": "synthetic_study",
    "backbone": "resnet18",
    "metric": "top1",
    "device": "an invented device",
    "versions": {"python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6"},
    "seeds": [0, 1, 2],
    "variants": [
        variant_of("TSN", 23.9e6, 32.9e9, 50.0, 51.0, 52.0, SSv1_top_1=19.5),
        variant_of("CMM", 24.1e6, 33.1e9, 49.0, 51.5, 50.0),
        variant_of("CSTM", 24.0e6, 33.0e9, 70.0, SSv1_top_1=44.25),
        variant_of("STM", 24.2e6, 33.2e9),
    ],
    "claims": [
        claim_of("CSTM ≥ TSN", 19.0, None, True, 0),
        claim_of("CMM ≥ TSN", -0.8, 1.6, False, 0, 1, 2),
        claim_of("CMM ≥ CSTM", -19.8, 1.3, False, 0, 1),
        claim_of("STM ≥ CSTM", None, None, None),
    ],
    "goals": [
        {"text": "TSN at most 58", "seeds": 3, "value": 51.0, "reached": True},
        {"text": "CSTM at least 71.7", "seeds": 1, "value": 70.0, "reached": False},
        {"text": "STM at least 73.7", "seeds": 0, "value": None, "reached": None},
    ],
    "commands": [
        "clipwise reproduce invented_modules --output runs/invented --seeds 0,1,2 --variants tsn,cmm",
        "clipwise reproduce invented_modules --output runs/invented --seeds 0 --variants cstm",
    ],
    "missing": [{"variant": "CSTM", "seed": seed} for seed in (1, 2)]
    + [{"variant": "STM", "seed": seed} for seed in (0, 1, 2)],
}


@pytest.fixture
def study(page: ModuleType, copies: Path) -> str:
    for file in copies.glob("study_*"):
        file.unlink()
    (copies / "study_invented_modules_rendered.json").write_text(json.dumps(STUDY), encoding="utf-8")
    (copies / "study_invented_modules_rendered.png").touch()
    text: str = page.make(copies, copies.parent / "page.md")
    return text[text.index("## Studies") : text.index("## Reading")]


def test_a_study_shows_means_with_seeds_beside_the_papers_figures(study: str) -> None:
    assert "### Impact of modules on rendered\n" in study
    assert row(study, "TSN") == ["TSN", "23.90", "32.90", "51.0 ± 1.0", "3", "19.5"]
    assert row(study, "CSTM") == ["CSTM", "24.00", "33.00", "70.0", "1", "44.25"]
    assert row(study, "CMM")[-1] == "–"
    assert "](results/study_invented_modules_rendered.png)" in study
    for what in (
        "A paper, Table 5. Rendered video in place of Something-Something.",
        "an invented device",
        "torch 2.13.0",
        "recipe synthetic_study",
        " ".join(STUDY["commands"]),
    ):
        assert what in " ".join(study.split())


def test_an_incomplete_study_says_which_runs_are_missing(study: str) -> None:
    assert row(study, "STM")[3:5] == ["–", "0"]
    assert "**Missing:** CSTM (seed 1, 2); STM (seed 0, 1, 2)." in " ".join(study.split())
    assert row(study, "[Impact of modules on rendered](#impact-of-modules-on-rendered)")[1] == "7 of 12"


def test_a_study_that_was_never_run_says_so(page: ModuleType) -> None:
    variants = [{**variant, "mean": {}, "deviation": {}, "runs": []} for variant in STUDY["variants"]]
    parts = page.study({**STUDY, "variants": variants, "claims": [], "commands": [], "device": None, "versions": {}})
    text = " ".join(" ".join(parts).split())
    assert f"resnet18; nothing was run yet. ``` {STUDY['command']} ```" in text
    assert "None" not in text


def test_a_claim_that_fails_says_so(study: str) -> None:
    assert row(study, "CMM ≥ CSTM")[1:] == ["−19.8 ± 1.3", "does not"]
    assert row(study, "CMM ≥ TSN")[1:] == ["−0.8 ± 1.6", "within the seeds' deviation"]
    assert row(study, "CSTM ≥ TSN")[1:] == ["+19.0, seed 0", "one seed alone"]
    assert row(study, "STM ≥ CSTM")[1:] == ["–", "not measured"]
    assert row(study, "[Impact of modules on rendered](#impact-of-modules-on-rendered)")[2:] == [
        *["0", "1", "1", "1", "1"],
        "1 of 3",
    ]


def test_a_goal_that_is_missed_says_so(study: str) -> None:
    assert row(study, "TSN at most 58")[1:] == ["51.00", "3", "yes"]
    assert row(study, "CSTM at least 71.7")[1:] == ["70.00", "1", "**no**"]
    assert row(study, "STM at least 73.7")[1:] == ["–", "0", "not measured"]
