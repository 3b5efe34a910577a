"""The state a run continues from: weights, optimiser and the number of steps done.

Everything else – the order of videos, crops, flips, dropout, the learning rate – follows from the seed and the step,
so a run that was stopped ends with the weights of one that was not.
"""

import contextlib
import pickle
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from clipwise.files import written_whole

__all__ = ["Resumed", "StopRequest", "load_state", "save_state"]

STATE = "resume.ckpt"


class Resumed(NamedTuple):
    """What :func:`load_state` does not put into the network."""

    step: int
    optimizer: dict[str, Any]
    best: float | None


def save_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, step: int, best: float | None
) -> None:
    """Write the state after ``step`` steps; the one before stays until this one is whole."""
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "best": best}
    with written_whole(folder / STATE) as partial:
        torch.save(state, partial)


def load_state(folder: Path, model: nn.Module) -> Resumed:
    """Put the saved weights into the network and return the rest.

    Raises:
        ValueError: if there is no such state, or it is damaged or of another network.
    """
    path = folder / STATE
    if not path.is_file():
        raise ValueError(f"{folder}: holds no {STATE} to resume from; start anew with --overwrite or another --output")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        return Resumed(int(state["step"]), state["optimizer"], state["best"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(f"{path}: cannot be resumed from ({str(error).splitlines()[0]}); start anew") from error


class StopRequest:
    """Whether the user asked to stop, by Ctrl-C or SIGTERM: the run then stops after the step it is in."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the first signal of either kind; a second Ctrl-C interrupts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals reach only the main thread; the caller's program decides about them
            return

        def note(number: int, _frame: object) -> None:
            self.signal = number
            signal.signal(signal.SIGINT, signal.default_int_handler)

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
