"""What the outputs of a network stand for: one class a video, one of each of several heads, or a set of labels.

kind          label of a video                       loss                        score
one class     its index                              cross-entropy               softmax
heads         an index for each head (verb, noun)    mean of theirs              softmax of each head's outputs
label set     which of the classes hold, or none     binary cross-entropy        sigmoid
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Head", "LabelSpace", "partner_label"]

LABEL = "label"
"""The name of the only head, where none was given."""


@dataclass(frozen=True)
class Head:
    """One question that a network answers with one of its classes, such as the verb."""

    name: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class LabelSpace:
    """Heads in the order of the network's outputs; with ``multi_label`` one head, any of whose classes may hold."""

    heads: tuple[Head, ...]
    multi_label: bool = False

    @classmethod
    def of(cls, classes: Sequence[str]) -> LabelSpace:
        """The usual: one class a video."""
        return cls((Head(LABEL, tuple(classes)),))

    @property
    def classes(self) -> tuple[str, ...]:
        """(C,) a name for each output; of several heads with the head's before it: ``verb:take``."""
        if len(self.heads) == 1:
            return self.heads[0].classes
        return tuple(f"{head.name}:{name}" for head in self.heads for name in head.classes)

    @property
    def sizes(self) -> list[int]:
        """How many outputs each head has."""
        return [len(head.classes) for head in self.heads]

    @property
    def single(self) -> bool:
        """Whether a video has exactly one class."""
        return len(self.heads) == 1 and not self.multi_label

    def names(self, label: NDArray[Any] | np.integer[Any] | int) -> tuple[str, ...]:
        """The names of one video's label: one, one of each head, or those of the set."""
        if self.multi_label:
            return tuple(self.heads[0].classes[index] for index in np.flatnonzero(label))
        return tuple(head.classes[index] for head, index in zip(self.heads, np.atleast_1d(label), strict=True))

    def to_json(self) -> dict[str, Any]:
        """``classes``, and what else it takes to say that they are not simply one class a video."""
        plain: dict[str, Any] = {"classes": list(self.classes)}
        if not self.single or self.heads[0].name != LABEL:
            plain["heads"] = [{"name": head.name, "classes": list(head.classes)} for head in self.heads]
            plain["multi_label"] = self.multi_label
        return plain

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LabelSpace:
        """What :meth:`to_json` gave. Raises KeyError or TypeError for anything else."""
        if "heads" not in values:
            return cls.of(values["classes"])
        heads = tuple(Head(head["name"], tuple(head["classes"])) for head in values["heads"])
        return cls(heads, bool(values["multi_label"]))


def partner_label(
    label: NDArray[Any] | np.integer[Any], partners: Sequence[Sequence[int | None]]
) -> NDArray[Any] | None:
    """The label of a clip that was mirrored (or played backwards), in the same form; None: that must not be done to it.

    partners: for each head, ``mirror_labels`` (``reverse_labels``) of its classes. Each label of the clip needs a
    partner, which may be itself.
    """
    is_set = label.dtype == bool
    indices = np.flatnonzero(label) if is_set else np.atleast_1d(label)
    of_head = [partners[0]] * len(indices) if is_set else partners
    partner = [of[index] for of, index in zip(of_head, indices, strict=True)]
    if None in partner:
        return None
    if not is_set:
        return np.array(partner, np.int64).reshape(np.shape(label))
    changed = np.zeros_like(label)
    changed[np.array(partner, np.int64)] = True
    return changed
