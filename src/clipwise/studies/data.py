"""The rendered videos that studies run on where no others are named."""

from pathlib import Path

from clipwise.data.manifest import Manifest
from clipwise.data.pack import pack
from clipwise.data.synthetic import synthesize
from clipwise.data.workers import available_cores

__all__ = ["RECIPE", "rendered_there", "rendered_videos"]

RECIPE = "synthetic_study"
"""The recipe for them."""


def rendered_there(folder: Path) -> bool:
    """Whether they are in a study's folder already."""
    return (folder / "data.pack").is_file()


def rendered_videos(folder: Path) -> Path:
    """The rendered videos of a study's folder, made where they are not there yet: ``data``, and packed ``data.pack``.

    Raises:
        ValueError: if they cannot be written.
    """
    videos, packed = folder / "data", folder / "data.pack"
    if not rendered_there(folder):
        workers = available_cores()
        if not (videos / "manifest.csv").is_file():
            synthesize(videos, pairs=4, videos_per_class=100, size=48, seed=0, val_share=0.4, workers=workers)
        pack(Manifest.read(videos), packed, format="uint8", workers=workers)
    return packed
