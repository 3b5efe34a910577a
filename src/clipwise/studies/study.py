"""What a study is: rows of a table that differ in a network's options or in its training, and claims about them."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Claim", "Goal", "Study", "Variant", "find_study", "study_names"]


@dataclass(frozen=True)
class Variant:
    """One row of a study."""

    label: str
    """Its name, unique in the study, such as ``CSTM``."""
    model: str
    """A registered network's name, in which ``{backbone}`` stands for the run's: ``stm_{backbone}``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of ``create_model`` beside the recipe's; None takes away what the recipe sets and the network lacks."""
    training: tuple[str, ...] = ()
    """Overrides of the recipe, such as ``model.num_frames=16``."""
    views: tuple[str, ...] = ()
    """Overrides of the views in testing alone: variants with the same training share one."""
    start: str | None = None
    """The label of the variant whose weights, of the same seed, this one starts from."""
    published: Mapping[str, float] = field(default_factory=dict)
    """The paper's figures by data set and metric, ``{"SSv1 top-1": 47.5}``, and its counts, ``M parameters`` and
    ``GMACs``."""

    @property
    def slug(self) -> str:
        """The label as a folder's name."""
        return re.sub(r"[^a-z0-9]+", "_", self.label.lower()).strip("_")


@dataclass(frozen=True)
class Claim:
    """An order between two rows."""

    text: str
    """As a reader would say it: ``sum ≥ concatenation``."""
    better: str
    """The label of the row that is to be no worse."""
    worse: str
    """The label of the other."""


@dataclass(frozen=True)
class Goal:
    """Bounds of a figure that a study is to reach."""

    text: str
    """As a reader would say it: ``STM − TSN at least 18``."""
    of: tuple[str, ...]
    """Labels of rows."""
    what: Literal["mean", "difference", "spread"] = "mean"
    """The mean of the one row, that of the first less that of the second, or the highest of all less the lowest."""
    low: float | None = None
    """Points; None for no such bound."""
    high: float | None = None


@dataclass(frozen=True)
class Study:
    """A table of a paper, or one of our own, that training can fill."""

    name: str
    """``<paper>_<what>``, such as ``stm_modules``."""
    title: str
    source: str
    """Where its rows and figures stand: ``STM, Table 5; STM-J, Table 6``."""
    variants: tuple[Variant, ...]
    claims: tuple[Claim, ...] = ()
    note: str = ""
    """What differs from the paper, and why."""
    goals: tuple[Goal, ...] = ()
    recipe: str | None = None
    """Of the package, for the videos that the study is about; None where it may be run on any."""

    def variant(self, label: str) -> Variant:
        """The row of a label.

        Raises:
            ValueError: if there is none.
        """
        for variant in self.variants:
            if variant.label == label:
                return variant
        raise ValueError(
            f"{self.name} has no variant {label!r}; it has {', '.join(row.label for row in self.variants)}"
        )

    def training_of(self, label: str) -> Variant:
        """The first row with the same training as this one: rows that differ in testing alone share its run.

        Raises:
            ValueError: if there is no such row.
        """
        wanted = self._training(self.variant(label))
        return next(variant for variant in self.variants if self._training(variant) == wanted)

    def _training(self, variant: Variant) -> tuple[object, ...]:
        start = self._training(self.variant(variant.start)) if variant.start is not None else None
        return (variant.model, dict(variant.options), sorted(variant.training), start)


def _all_studies() -> dict[str, Study]:
    # These modules need the classes above.
    from clipwise.studies import accuracy_macs, deep_analysis, own, stc, stm, stw

    modules = (stm, stc, stw, deep_analysis, accuracy_macs, own)
    return {study.name: study for module in modules for study in module.STUDIES}


def study_names() -> list[str]:
    """The names of all studies, paper by paper."""
    return list(_all_studies())


def find_study(name: str) -> Study:
    """The study of a name.

    Raises:
        ValueError: if there is none; the message gives the nearest names.
    """
    studies = _all_studies()
    if name not in studies:
        near = [known for known in studies if name in known] or difflib.get_close_matches(name, studies, n=4)
        raise ValueError(
            f"no study is called {name!r}; "
            + (f"near it: {', '.join(near[:4])}" if name and near else f"there are {', '.join(studies)}")
        )
    return studies[name]
