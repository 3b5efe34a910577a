"""What the README and the docs show is what the program takes."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import typer

import clipwise
from clipwise.cli import application
from clipwise.models.complexity import count_macs, count_parameters
from clipwise.models.registry import create_model, model_entry

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def commands() -> list[str]:
    lines = [line for page in PAGES for _, block in BLOCK.findall(page.read_text()) for line in block.splitlines()]
    inline = [code for page in PAGES for code in re.findall(r"`(clipwise [^`]+)`", page.read_text())]
    return sorted({line.split("#")[0].strip() for line in lines + inline if line.startswith("clipwise ")})


@pytest.mark.parametrize("command", commands())
def test_every_command_shown_is_understood(command: str) -> None:
    _, *arguments = shlex.split(command)
    current = typer.main.get_command(application())
    context = typer.Context(current)
    while hasattr(current, "resolve_command"):  # a bare `clipwise models` lists
        _, current, arguments = current.resolve_command(context, arguments)
        context = typer.Context(current, parent=context)
    current.make_context(current.name, list(arguments), parent=context.parent)


def test_every_public_name_shown_exists() -> None:
    for page in PAGES:
        for language, block in BLOCK.findall(page.read_text()):
            if language == "python":
                compile(block, str(page), "exec")
                for name in re.findall(r"clipwise\.(\w+)\(", block):
                    assert name in clipwise.__all__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_linked_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


NETWORKS = re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+) \| ([\d.]+) \|$", (ROOT / "docs/networks.md").read_text(), re.M)


@pytest.mark.parametrize(("name", "millions", "gmacs"), NETWORKS)
def test_every_count_shown_is_the_networks(name: str, millions: str, gmacs: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=174)
    assert f"{count_parameters(model) / 1e6:.2f}" == millions
    assert f"{count_macs(model, model_entry(name).size) / 1e9:.2f}" == gmacs


def test_the_table_of_networks_leaves_none_out() -> None:
    shown = {name for name, *_ in NETWORKS}
    assert {re.sub(r"resnet\d+$", "resnet50", name) for name in clipwise.list_models()} == shown
