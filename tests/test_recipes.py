"""Every shipped recipe: its network and counts, its data, its views, its commands, and the page that lists them all.

A recipe opens with comments that this file reads: a title, then ``Paper:``, ``Data:``, ``Start:``, ``Train:``,
``Test:`` (commands, the published figure behind ``#``), ``Also:`` (overrides, likewise) and ``Open:``.
"""

import csv
import json
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from clipwise.cli import application
from clipwise.config import Config, load_config, recipe_names, recipe_text
from clipwise.data.sets import SETS
from clipwise.data.transforms import mirror_labels
from clipwise.evaluation.presets import protocol_entry
from clipwise.models.complexity import count_macs, count_parameters
from clipwise.models.registry import create_model

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
OWN = ["demo", "synthetic_study", "handwash12"]
OWN += ["overhead_adl", "overhead_adl_reversed", "overhead_adl_stm", "overhead_adl_tsn"]


@cache
def recipe(name: str) -> Config:
    return load_config(name)


@cache
def header(name: str) -> dict[str, list[str]]:
    """What a recipe's opening comment says, line by line under its keys; the first line under ``Title``."""
    first, *lines = recipe_text(name).splitlines()
    found: dict[str, list[str]] = {"Title": [first.removeprefix("# ")]}
    key = "Title"
    for line in [line[1:] for line in lines if line.startswith("#")]:
        begun = re.match(r" ([A-Z][a-z]+): +(.*)", line)
        if begun:
            key, text = begun.groups()
            found[key] = [text]
        elif found[key][-1].endswith("\\"):
            found[key][-1] = f"{found[key][-1][:-1].strip()} {line.strip()}"
        else:
            found[key].append(line.strip())
    return found


PAPERS = [name for name in recipe_names() if "Paper" in header(name)]
MINIS = [name for name in PAPERS if re.fullmatch(r"deep_analysis_\d+f_mini_(ssv2|kinetics|mit)", name)]


def commands(name: str) -> list[str]:
    return [line.split("#")[0].strip() for key in ("Data", "Train", "Test") for line in header(name).get(key, ())]


def option(command: str, name: str) -> str | None:
    """What follows an option in a command; "" for a flag."""
    words = shlex.split(command)
    if name not in words:
        return None
    following = [*words[words.index(name) + 1 :], "--"][0]
    return "" if following.startswith("-") else following


@dataclass(frozen=True)
class Figure:
    """A published figure: where it stands, how it is reached, and its value."""

    recipe: str
    row: str
    how: str
    value: str


def figures(name: str) -> list[Figure]:
    """What the tests and the variants of a recipe have in the papers' tables."""
    found = []
    protocol = f"`--protocol {option(commands(name)[2], '--protocol')}`"
    for line in header(name)["Test"]:
        command, published = line.split("  # ")
        row, value = published.split(": ", 1)
        with_others = [word for word in shlex.split(command) if word.startswith("runs/")][:-1]
        how = f"`--protocol {option(command, '--protocol')}`"
        how += "".join(f" with `{other.removeprefix('runs/')}`" for other in with_others)
        found.append(Figure(name, row, how, value))
    for line in header(name).get("Also", ()):
        if "  # " in line:
            overrides, published = line.split("  # ")
            row, value = published.split(": ", 1)
            found.append(Figure(name, row, f"`{overrides}`, {protocol}", value))
    return found


def grid(name: str) -> dict[str, tuple[str, str]]:
    """Of a recipe for 24 networks: network → published top-1 without and with temporal pooling."""
    cells = re.findall(r"(\w+) ([\d.]+), ([\d.]+)", " ".join(header(name)["Also"][1:]))
    return {network: (without, pooled) for network, without, pooled in cells}


def data_set(name: str) -> tuple[str, str]:
    """The name by which `clipwise data prepare` knows the recipe's data set, and the head."""
    words = shlex.split(header(name)["Data"][0])
    return words[words.index("prepare") + 1], recipe(name).data.head or "label"


def classes_of(name: str) -> int:
    if name not in PAPERS:
        return 12
    prepared, head = data_set(name)
    return 200 if name.endswith("mini_mit") else SETS[prepared].classes[head]


@cache
def counts(network: str, frames: int, classes: int, size: int) -> tuple[int, int]:
    """Parameters and MACs."""
    with torch.device("meta"):
        model = create_model(network, num_classes=classes, num_frames=frames)
    return count_parameters(model), count_macs(model, size)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_read_and_its_network_built(name: str) -> None:
    config = recipe(name)
    assert recipe_text(name).startswith("# "), "the first line is its title in `clipwise recipes`"
    with torch.device("meta"):
        model = create_model(
            config.model.name,
            num_classes=classes_of(name),
            num_frames=config.model.num_frames,
            **config.model.options,
        )
    assert (model.num_frames, model.fc.out_features) == (config.model.num_frames, classes_of(name))
    assert name in PAPERS + OWN


# GMACs as the papers print them, normalisation and pooling counted; STW's table has no decimals.
PRINTED = {
    ("stm_resnet50", 8): 33.3,
    ("stm_resnet50", 16): 66.5,
    ("stm_resnet18", 8): 14.6,
    ("stm_resnet34", 8): 29.4,
    ("stc_resnet50", 8): 26.9,
    ("stc_resnet50", 16): 53.6,
    ("stc_light_resnet50", 8): 26.8,
    ("stc_light_resnet50", 16): 53.5,
    ("stw_resnet50", 8): 33.5,
    ("stw_resnet50", 16): 67,
    ("tam_resnet50", 32): 171.5,
}
# Of several rows for a network, the one that is the network as the paper proposes it.
CHOSEN = {"stc_resnet50": "alpha=0.75", "stc_light_resnet50": "r=4"}


@pytest.mark.parametrize("name", [name for name in PAPERS if name not in MINIS])
def test_counts_are_the_published_ones(name: str, shared: Path) -> None:
    network, frames = recipe(name).model.name, recipe(name).model.num_frames
    size, usual = (256, 32) if network == "tam_resnet50" else (224, 8)
    assert counts(network, frames, 174, size)[1] / 1e9 == pytest.approx(PRINTED[network, frames], rel=0.025)
    with (shared / "reference/complexity.csv").open() as file:
        rows = {row["options"]: row for row in csv.DictReader(file) if row["model"] == network}
    row = rows[CHOSEN.get(network, "32 frames; 256x256" if size == 256 else "")]
    parameters, macs = counts(network, usual, 174, size)
    assert macs / 1e9 == pytest.approx(float(row["gmacs_convolutions"]), abs=0.0051)
    if row["params_millions"]:
        assert parameters / 1e6 == pytest.approx(float(row["params_millions"]), abs=0.0051)


@pytest.mark.parametrize("name", MINIS)
def test_the_mini_recipes_are_rows_of_the_benchmark(name: str, shared: Path) -> None:
    frames, mini = re.fullmatch(r"deep_analysis_(\d+)f_mini_(\w+)", name).groups()  # type: ignore[union-attr]
    with (shared / "reference/mini_benchmark.csv").open() as file:
        rows = {
            (f"{row['module']}_{row['backbone']}", row["temporal_pooling"]): row
            for row in csv.DictReader(file)
            if (row["dataset"], row["frames"]) == (f"mini-{mini}", frames)
        }
    own = rows[recipe(name).model.name, "0"]
    assert counts(recipe(name).model.name, int(frames), classes_of(name), 224) == (int(own["params"]), int(own["macs"]))
    assert figures(name)[0].value == f"top-1 {float(own['top1']):.1f}, top-5 {float(own['top5']):.1f}"
    published = {
        network: tuple(f"{float(rows[network, pooled]['top1']):.1f}" for pooled in "01") for network, _ in rows
    }
    assert grid(name) == published


@pytest.mark.parametrize("pooled", ["false", "true"])
def test_the_mini_recipes_take_all_their_networks(pooled: str) -> None:
    for network in grid(MINIS[0]):
        overrides = [f"model.name={network}", f"model.options.temporal_pooling={pooled}"]
        config = load_config(MINIS[0], overrides)
        assert config.views.mean == ((0.5,) * 3 if "inception" in network else (0.485, 0.456, 0.406))
        with torch.device("meta"):
            create_model(network, num_classes=87, num_frames=config.model.num_frames, **config.model.options)


# SPEC section 7: epochs, where the rate falls to a tenth (none: cosine), rate, batch; of 8 frames and of 16.
LARGE, SMALL = r"(ssv[12]|jester|kinetics400)", r"(ucf101|hmdb51)"
SCHEDULES = {
    rf"stm_8f_{LARGE}": (50, (30, 40, 45), 0.01, 64),
    rf"stm_16f_{LARGE}": (50, (30, 40, 45), 0.01, 32),
    rf"stm_16f_{SMALL}": (25, (15,), 0.001, 32),
    rf"stm_j_twins_(resnet\d+_)?8f_{LARGE}": (70, (30, 40, 60), 0.01, 64),
    rf"stm_j_twins_16f_{LARGE}": (70, (30, 40, 60), 0.01, 32),
    rf"stm_j_twins_16f_{SMALL}": (50, (15, 30, 45), 0.001, 32),
    r"stc_\w+": (50, (30, 40), 0.01, 40),
    rf"stw_(8|16)f_{LARGE}": (50, (30, 40, 45), 0.01, 64),
    rf"stw_16f_{SMALL}": (50, (15, 30, 45), 0.001, 64),
    r"deep_analysis_8f_mini_(ssv2|mit)": (75, None, 0.01, 72),
    r"deep_analysis_8f_mini_kinetics": (100, None, 0.01, 72),
    r"deep_analysis_16f_mini_ssv2": (35, (15, 30), 0.01, 48),
    r"deep_analysis_16f_mini_mit": (35, (15, 30), 0.01, 36),
    r"deep_analysis_16f_mini_kinetics": (45, (15, 30), 0.01, 48),
    r"deep_analysis_(32|64)f_mini_(ssv2|mit)": (35, (15, 30), 0.01, 36),
    r"deep_analysis_(32|64)f_mini_kinetics": (45, (15, 30), 0.01, 36),
    r"deep_analysis_32f_(kinetics400(_uniform)?|ssv2|mit)": (118, (44, 88), 0.01, 64),
    r"deep_analysis_32f_(ucf101|hmdb51|jester|mini_ssv2_transfer)": (45, None, 0.01, 48),
}


@pytest.mark.parametrize("name", PAPERS)
def test_the_schedule_is_the_papers(name: str) -> None:
    (wanted,) = [schedule for pattern, schedule in SCHEDULES.items() if re.fullmatch(pattern, name)]
    training = recipe(name).training
    milestones = training.milestones if training.schedule == "steps" else None
    assert (training.epochs, milestones, training.effective_lr, training.batch_size) == wanted
    assert training.lr == training.effective_lr  # the paper's rate is that of the paper's batch
    assert training.momentum == 0.9
    assert training.weight_decay == (1e-4 if wanted[0] == 118 else 5e-4)
    assert training.twins == name.startswith("stm_j_twins")
    assert training.batch_norm == "train"
    assert recipe(name).model.options.get("dropout", 0.5) == 0.5


@pytest.mark.parametrize("name", PAPERS)
def test_views_are_the_papers_protocol(name: str) -> None:
    config = recipe(name)
    protocols = [option(command, "--protocol") for command in commands(name)[2:]]
    wanted = protocol_entry(protocols[0] or "").views(config.model.num_frames)
    if wanted["size"] == 256:  # trained at 224 pixels, tested at 256
        wanted["size"] = 224
    assert {field: getattr(config.views, field) for field in wanted} == wanted
    for protocol in protocols[1:]:
        protocol_entry(protocol or "")
    dense = wanted["sampling"] == "dense"
    assert (config.data.sampling, config.data.stride) == (("dense", wanted["stride"]) if dense else ("segments", 8))


# The classes that a flip exchanges, and those that are never flipped; no others change.
FLIPPED = {
    "sthv1": {2: 4, 30: 41, 52: 66, 104: None},
    "sthv2": {86: 87, 93: 94, 166: 167, 50: None},
    "jester": {0: 1, 6: 7, 14: 15},
    "mini_ssv2": {41: None, 46: None, 83: None},
}
LISTS = {"ssv1": "sthv1", "ssv2": "sthv2", "moments_in_time": "mit", "mini_kinetics": "mini_kinetics400"}


@pytest.mark.parametrize("name", PAPERS)
def test_classes_and_flips_fit_the_data_set(name: str, shared: Path) -> None:
    prepared, _ = data_set(name)
    config = recipe(name)
    official = SETS[prepared].splits
    assert config.data.train_split in official
    assert config.data.validation_split in official
    listed = shared / "reference/labels" / f"{LISTS.get(prepared, prepared)}.txt"
    if not listed.is_file() or name.endswith("mini_mit"):  # EGTEA, EPIC-KITCHENS and mini-MiT have no list there
        return
    names = [line for line in listed.read_text().splitlines() if line]
    assert len(names) == classes_of(name)
    changed = {label: other for label, other in enumerate(mirror_labels(names)) if other != label}
    pairs = FLIPPED.get(listed.stem, {})
    assert changed == pairs | {other: label for label, other in pairs.items() if other is not None}
    assert config.augmentation.flip == (not re.match("stm_(8|16)f|stw", name))


PROGRAM = typer.main.get_command(application())


def understood(command: str) -> None:
    program, *arguments = shlex.split(command)
    assert program == "clipwise"
    current = PROGRAM
    context = typer.Context(current)
    while hasattr(current, "resolve_command"):
        _, current, arguments = current.resolve_command(context, arguments)
        context = typer.Context(current, parent=context)
    current.make_context(current.name, list(arguments), parent=context.parent)


@pytest.mark.parametrize("name", recipe_names())
def test_every_command_of_a_recipe_is_understood(name: str) -> None:
    for command in commands(name):
        understood(command)
    for line in header(name).get("Also", ()):
        if "  # " in line:
            load_config(name, shlex.split(line.split("  # ")[0])[1::2])
    assert [option(command, "--recipe") for command in commands(name) if " train " in command] in ([name], [])


def trained_in(name: str) -> str:
    return option(header(name)["Train"][0], "--output") or ""


@pytest.mark.parametrize("name", PAPERS)
def test_commands_follow_from_one_another(name: str) -> None:
    data, train, *tests = commands(name)
    config = recipe(name)
    assert shlex.split(train)[2] == option(data, "--output")
    for test in tests:
        *others, tested = [word for word in shlex.split(test) if word.startswith("runs/")]
        assert tested == trained_in(name)
        assert all(other == trained_in(other.removeprefix("runs/")) for other in others)
        assert option(test, "--weights") == "last"
    others = [line for line in header(name).get("Also", ()) if "model.name=" in line]
    if config.model.weights == "imagenet":
        assert "Start" not in header(name)
        assert option(train, "--reset-head") is None
        return
    before = config.model.weights.removesuffix("/last.safetensors").removeprefix("runs/")  # type: ignore[union-attr]
    assert header(name)["Start"][0].startswith(f"the run of {before}")
    assert config.model.weights == f"{trained_in(before)}/last.safetensors"
    assert recipe(before).model.name == config.model.name
    # Another network starts from a run of its own, not from this one's.
    assert all(re.search(rf"model\.weights=runs/{before}_\w+/last\.safetensors", line) for line in others)
    assert (option(train, "--reset-head") is not None) == (data_set(before) != data_set(name))


def test_the_recipes_of_overhead_adl_differ_in_what_they_say() -> None:
    def of(name: str, *overrides: str) -> dict[str, object]:
        return load_config(name, overrides).to_dict()

    assert of("overhead_adl_stm") == of("overhead_adl", "model.name=stm_resnet50")
    assert of("overhead_adl_tsn") == of("overhead_adl", "model.name=tsn_resnet50")
    assert of("overhead_adl_reversed") == of("overhead_adl", "training.balanced=false")
    assert of("handwash12") == of("overhead_adl", "augmentation.flip=false", "training.epochs=20")


def tables() -> list[str]:
    """The tables of docs/recipes.md."""
    found = []
    for prefix in ("stm_[0-9]", "stm_j_twins", "stc_[0-9l]", "stw", "deep_analysis_32f_(?!mini_(ssv2|kinetics|mit)$)"):
        names = sorted(filter(re.compile(prefix).match, PAPERS), key=_by_number)
        lines = ["| recipe | data | row | test | published |", "|---|---|---|---|---|"]
        for name in names:
            for number, figure in enumerate(figures(name)):
                opening = f"`{name}` | {data_set(name)[0]}" if number == 0 else " | "
                lines.append(f"| {opening} | {figure.row} | {figure.how} | {figure.value} |")
        found.append("\n".join(lines))
    for mini in ("ssv2", "kinetics", "mit"):
        names = [f"deep_analysis_{frames}f_mini_{mini}" for frames in (8, 16, 32, 64)]
        lines = [f"| | {' | '.join(f'`{name}`' for name in names)} |", f"|---|{'---|' * len(names)}"]
        for network in grid(names[0]):
            lines.append(f"| `{network}` | {' | '.join(' · '.join(grid(name)[network]) for name in names)} |")
        found.append("\n".join(lines))
    return found


def _by_number(name: str) -> list[object]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def test_the_page_lists_every_recipe_with_its_figures() -> None:
    page = PAGE.read_text()
    for table in tables():
        assert table in page, f"docs/recipes.md should have:\n{table}"
    for name in recipe_names():
        assert f"`{name}`" in page, name


def test_recipes_are_listed_and_printed() -> None:
    runner = CliRunner()
    listed = runner.invoke(application(), ["recipes", "stc_light*"]).stdout.splitlines()
    assert [line.split()[0] for line in listed] == [name for name in recipe_names() if name.startswith("stc_light")]
    assert runner.invoke(application(), ["recipes", "stm_8f_ssv1"]).stdout.strip() == recipe_text("stm_8f_ssv1").strip()
    rows = json.loads(runner.invoke(application(), ["recipes", "--json"]).stdout)
    assert rows == [{"name": name, "title": header(name)["Title"][0]} for name in recipe_names()]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stm_8f", "near it: stm_8f_jester, stm_8f_ssv1, stm_8f_ssv2$"),
        ("stm_8f_sv1", "near it: stm_8f_ssv1, "),
        ("nothing at all", "`clipwise recipes` lists those$"),
    ],
)
def test_a_wrong_name_is_answered_with_near_ones(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"no recipe '{name}': .*{message}"):
        load_config(name)
