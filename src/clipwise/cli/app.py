"""What all verbs share: the application, the console, and small helpers."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table

__all__ = ["app", "console", "counted", "counting", "importing", "say", "table_of_figures"]

app = typer.Typer(
    name="clipwise",
    help="Efficient action recognition in video: train, test and use networks that model motion.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from clipwise import __version__

        typer.echo(__version__)
        raise typer.Exit


@cache
def console() -> "Console":
    """Where messages go: stderr, so that what a program reads from stdout is the result alone."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def importing() -> Iterator[None]:
    """Leave the garbage collector out of the imports of a fresh process, and what they made out of its later passes.

    PyTorch's modules are hundreds of thousands of objects and no garbage, which it would go through again and again
    while they grow, and once more at the end: some 40 % of the time of a process that does nothing but import it.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar as a function of what is done and how much there is; no bar where stderr is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(),
        transient=True,
        disable=not console().is_terminal,
    )
    with bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def table_of_figures(*columns: "Column", title: str | None = None) -> "Table":
    """A table without rules between its columns, so that many figures find room in 80."""
    from rich import box
    from rich.table import Table

    return Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def counted(number: int, what: str, many: str | None = None) -> str:
    """``1 video``, ``2 videos``; ``many`` where an s is not enough."""
    return f"{number} {what if number == 1 else many or what + 's'}"


def say(message: str, *, error: bool = False) -> None:
    """Print a line to stderr as it is, without wrapping it or reading markup in it; ``error`` puts that word before."""
    if error:
        console().print("[bold red]error:[/] ", end="")
    console().print(message, markup=False, highlight=False, soft_wrap=True)
