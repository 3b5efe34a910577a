"""The state a run continues from: weights and their mean, optimiser and the number of steps done.

Everything else – the order of videos, crops, flips, dropout, the learning rate – follows from the seed and the step,
so a run that was stopped ends with the weights of one that was not: bit for bit on a CPU, and on a GPU as far as two
runs that were never stopped agree there. With several processes, whose number may change, it does to rounding, for the
order in which gradients are added is the library's affair.
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
from torch.optim.swa_utils import AveragedModel

from clipwise.files import written_whole

__all__ = [
    "STATE",
    "EpochSoFar",
    "Resumed",
    "StopRequest",
    "hear_of_deaths_between_steps",
    "load_state",
    "save_state",
    "signals_restored",
]

STATE = "resume.ckpt"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class EpochSoFar(NamedTuple):
    """The sums that an epoch's line in the log is made from."""

    loss: float = 0.0
    """Of the clips' losses."""
    clips: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    """Of those, for data."""


class Resumed(NamedTuple):
    """What :func:`load_state` does not put into the network."""

    step: int
    optimizer: dict[str, Any]
    best: float | None
    epoch: EpochSoFar
    mean: dict[str, Any] | None
    """Of ``AveragedModel``, where the run keeps a mean of its weights."""


def save_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    mean: AveragedModel | None,
    *,
    step: int,
    best: float | None,
    epoch: EpochSoFar,
) -> None:
    """Write the state after ``step`` steps; the one before stays until this one is whole."""
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": best,
        "epoch": tuple(epoch),
        "mean": mean.state_dict() if mean else None,
    }
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
        epoch = EpochSoFar(*state["epoch"])
        return Resumed(int(state["step"]), state["optimizer"], state["best"], epoch, state.get("mean"))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: cannot be resumed from ({(str(error) or repr(error)).splitlines()[0]}); start anew"
        ) from error


class StopRequest:
    """Whether the user asked to stop, by Ctrl-C or SIGTERM: the run then stops after the step it is in, or after the
    validation that follows it. The next Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self._asked = False

    def __bool__(self) -> bool:
        return self._asked

    def listen(self) -> None:
        """From now on, note the signals. Only a program's main thread can; elsewhere the program decides about them."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._note)

    def _note(self, _number: int, _frame: object) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


def hear_of_deaths_between_steps() -> None:
    """Let the death of a loader process be noticed where the next batch is asked for.

    PyTorch, once it has such processes, raises it from a signal handler wherever the program is: between the step that
    was made and its being counted, or where other processes wait for this one's gradients.
    """
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@contextlib.contextmanager
def signals_restored() -> Iterator[None]:
    """Put the handlers of all these signals back at the end, whoever changed them."""
    numbers = [*_SIGNALS, *([signal.SIGCHLD] if hasattr(signal, "SIGCHLD") else [])]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
