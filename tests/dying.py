"""Work that dies in many ways, for processes of its own: they import this and not what tests import."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path


def dies_or_not(task: str, beat: Callable[[], None]) -> str:
    kind, _, where = task.partition(" ")
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "exit":
        os._exit(3)
    if kind == "once" and not Path(where).exists():
        Path(where).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":
        time.sleep(60)
    if kind == "slow":
        for _ in range(15):
            time.sleep(0.1)
            beat()
    return f"done {kind}"
