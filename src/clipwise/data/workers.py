"""What processes that read data have in common."""

import multiprocessing
import os
import signal
import threading

__all__ = ["available_cores", "end_with_parent", "leave_signals_to_parent"]


def available_cores() -> int:
    """The cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _main_process_gone(error: threading.ExceptHookArgs) -> None:
    """Say nothing in a worker's thread that hands tensors to a main process which has ended and said why."""
    if error.exc_type not in (ConnectionResetError, BrokenPipeError, EOFError):
        threading.__excepthook__(error)


def leave_signals_to_parent(*_: object) -> None:
    """Leave Ctrl-C and SIGTERM, which reach a whole group of processes, to the main one.

    A worker that died of them would hide the reason. After SIGTERM it lives for half a minute more, in which the main
    process ends the step in hand; a worker that hangs is thus still ended by it.
    """
    threading.excepthook = _main_process_gone
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))


def end_with_parent() -> None:
    """End this process once the one that started it is gone: killed, it can tell its workers nothing."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
