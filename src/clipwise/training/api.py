"""Training in one call, as the command line does it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipwise.config import Config, load_config
from clipwise.data.manifest import Manifest
from clipwise.training.account import RunAccount

if TYPE_CHECKING:
    from clipwise.training.run import Reporter, RunResult

__all__ = ["train"]


def train(
    data: str | Path | Manifest | None,
    output: str | Path,
    *,
    recipe: str | Path | Config | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    reporter: "Reporter | None" = None,
) -> "RunResult":
    """Train a network on labelled videos and keep the run in a folder, for ``clipwise.load`` and ``evaluate``.

    Args:
        data: a folder with one folder of videos per class, a manifest CSV, a ``*.pack`` file, or a Manifest; None with
            ``resume`` for the data that the run was begun with.
        output: the run's folder.
        recipe: a recipe's name or file, or a configuration; the defaults when None.
        overrides: such as ``training.epochs=20``.
        resume: continue the run in ``output`` as it was begun.
        overwrite: delete the run in ``output`` first.
        reporter: hears of progress.

    Raises:
        ValueError: for anything that cannot be used as given; see :func:`clipwise.training.run.train_model`.
        DecodeError: if a training video cannot be read.
    """
    from clipwise.training.run import train_model

    if resume:
        if recipe is not None or overrides or overwrite:
            raise ValueError("a resumed run goes on as it was begun: leave out the recipe, overrides and overwriting")
        begun = RunAccount.read(Path(output))
        config, named = begun.config, begun.origin["recipe"]
        data = data if data is not None else begun.origin["data"]["source"]
    elif isinstance(recipe, Config):
        config, named = recipe, None
    else:
        config, named = load_config(recipe, overrides), str(recipe) if recipe else None
    if data is None:
        raise ValueError("nothing to train on: give a folder of class folders, a manifest CSV or a *.pack file")
    manifest = data if isinstance(data, Manifest) else Manifest.read(data)
    return train_model(config, manifest, output, recipe=named, resume=resume, overwrite=overwrite, reporter=reporter)
