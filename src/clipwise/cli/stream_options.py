"""Options that `stream` and `predict --timeline` share: which pictures are looked at, and what makes an event."""

from typing import Annotated, Literal

import typer

__all__ = [
    "EVENTS",
    "Background",
    "Consensus",
    "Delay",
    "MinSeconds",
    "Precision",
    "Rate",
    "Release",
    "SmoothingKind",
    "SmoothingSeconds",
    "Stride",
    "Temperature",
    "Threshold",
    "Weights",
]

EVENTS = "Events in time"

Stride = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Look at every Nth picture; at each if left out.", rich_help_panel=EVENTS),
]
Rate = Annotated[
    float | None,
    typer.Option(
        metavar="PER_SECOND",
        help="Look at so many pictures a second, by their times; not with --stride.",
        rich_help_panel=EVENTS,
    ),
]
SmoothingSeconds = Annotated[
    float,
    typer.Option(
        "--smoothing",
        min=0,
        metavar="SECONDS",
        help="Scores are averaged over about so long; 0: not at all.",
        rich_help_panel=EVENTS,
    ),
]
SmoothingKind = Annotated[
    Literal["exponential", "window"],
    typer.Option(
        help="The newest pictures count most (SECONDS is the time constant), or those of the last SECONDS alike.",
        rich_help_panel=EVENTS,
    ),
]
Threshold = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="An event begins when its score reaches this; below: none of these.", rich_help_panel=EVENTS
    ),
]
Release = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="It ends when its score falls below this; 0.8 of the threshold if left out.",
        rich_help_panel=EVENTS,
    ),
]
MinSeconds = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="Leave out events that last less.", rich_help_panel=EVENTS)
]
Delay = Annotated[
    float,
    typer.Option(
        min=0,
        metavar="SECONDS",
        help="So late are the network's answers: events are told of as so much earlier.",
        rich_help_panel=EVENTS,
    ),
]
Background = Annotated[
    list[str] | None,
    typer.Option(metavar="CLASS", help="A class that is no event; may be given again.", rich_help_panel=EVENTS),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="Divide the logits by this; what `clipwise calibrate` found for these weights if left out, else 1.",
        rich_help_panel=EVENTS,
    ),
]
Consensus = Annotated[
    bool,
    typer.Option(
        "--consensus/--no-consensus",
        help="Of a causal network: score the mean of the last T pictures looked at, T as in training, or the newest "
        "alone, which answers sooner and is less steady.",
        rich_help_panel=EVENTS,
    ),
]
Weights = Annotated[Literal["best", "last"], typer.Option(help="Which of the folder's weights.")]
Precision = Annotated[Literal["fp32", "bf16"], typer.Option(help="In which the layers compute.")]
