"""The demonstration's figure: accuracy inside pairs of classes."""

import numpy as np
import torch

from clipwise.demo import accuracy_in_pairs
from clipwise.evaluation.metrics import video_metrics
from clipwise.evaluation.protocols import Evaluation

CLASSES = ("closes", "falls", "opens")


def accuracy(rows: list[tuple[str, list[float]]]) -> float:
    labels = np.array([CLASSES.index(name) for name, _ in rows])
    scores = np.array([row for _, row in rows], np.float32)
    metrics = video_metrics(torch.from_numpy(scores), labels, CLASSES)
    indices = np.arange(len(labels))
    evaluation = Evaluation(
        names=tuple(map(str, labels)),
        indices=indices,
        labels=labels,
        scores=scores,
        clip=metrics,
        video=metrics,
        unreadable=(),
    )
    return accuracy_in_pairs(evaluation, CLASSES, (("opens", "closes"),))[0]


def test_only_the_two_classes_of_a_pair_are_compared() -> None:
    assert accuracy([("opens", [0.1, 0.7, 0.2]), ("closes", [0.2, 0.7, 0.1]), ("falls", [0.9, 0.0, 0.1])]) == 100
    assert accuracy([("opens", [0.3, 0.5, 0.2]), ("closes", [0.6, 0.2, 0.2])]) == 50


def test_a_network_that_cannot_decide_is_at_chance() -> None:
    assert accuracy([("opens", [0.4, 0.2, 0.4]), ("closes", [0.4, 0.2, 0.4]), ("closes", [0.4, 0.2, 0.4])]) == 50
