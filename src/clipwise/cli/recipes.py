"""``clipwise recipes``"""

import fnmatch
import json
from typing import Annotated

import typer

from clipwise.cli.app import app


@app.command()
def recipes(
    pattern: Annotated[str, typer.Argument(help="Shell-style, such as 'stm*'; a whole name prints that recipe.")] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the recipes of the package: those of the papers' tables, and its own.

    Example: `clipwise recipes 'stc_light*'`

    Each opens with its row of the paper, the published figures, the commands that prepare the data, train and test,
    and what the paper leaves open: `clipwise recipes stm_8f_ssv1`. `clipwise train … --recipe NAME` trains by it.
    """
    from clipwise.config import recipe_names, recipe_text

    names = fnmatch.filter(recipe_names(), pattern)
    if not names:
        recipe_text(pattern)  # says which names are near
    titles = {name: recipe_text(name).splitlines()[0].removeprefix("# ") for name in names}
    if as_json:
        rows = [{"name": name, "title": title} for name, title in titles.items()]
        typer.echo(json.dumps(rows, ensure_ascii=False))
    elif names == [pattern]:
        typer.echo(recipe_text(pattern).rstrip())
    else:
        width = max(map(len, names))
        for name, title in titles.items():
            typer.echo(f"{name:{width}}  {title}")
