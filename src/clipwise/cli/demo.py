"""``clipwise demo``"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from clipwise.cli.app import app, say


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for videos, runs and pictures.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier demonstration.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show what a network with motion modules sees and one without does not, in a few minutes on two CPU cores.

    Example: `clipwise demo --output demo`
    """
    from clipwise.cli.train import TrainingDisplay
    from clipwise.demo import NETWORKS, run_demo

    result = run_demo(output, seed=seed, overwrite=overwrite, say=say, display=TrainingDisplay)
    if as_json:
        typer.echo((output / "demo.json").read_text(encoding="utf-8"))
        return
    table = Table("pair", *NETWORKS, title="accuracy inside pairs, percent (chance: 50)")
    for index, pair in enumerate(result.pairs):
        table.add_row(" / ".join(pair), *(f"{result.accuracy[network][index]:.1f}" for network in NETWORKS))
    table.add_section()
    table.add_row("mean", *(f"{result.mean(network):.1f}" for network in NETWORKS))
    Console().print(table)
    say(f"{result.seconds / 60:.1f} minutes; picture: {result.picture}")
