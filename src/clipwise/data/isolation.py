"""Work on files in processes of which one may die or hang: that costs one file's result, not the whole run.

A pool of executors gives up when a process dies. Here each process has a pipe of its own; whoever dies is replaced, and
what it was at is tried once more by itself (the system may have ended it for somebody else's memory) before it is given
up. A process that shows no sign of life for a while is killed; what it was at is not tried again.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from clipwise.data.workers import leave_signals_to_parent

__all__ = ["Outcome", "run_isolated"]

Beat = Callable[[], None]
"""Called by the work now and then, to say that it is not hanging."""

_START_SECONDS = 120  # for a process to start and import what it needs
_BEAT_SECONDS = 0.5  # between two signs of life that are sent on


class Outcome(NamedTuple):
    """What became of one task.

    value: what the work returned; None where it was given up.
    deaths: why the process died, each time it did; at most one if ``value`` is there.
    hung: it was given up because the process gave no sign of life.
    """

    value: Any
    deaths: tuple[str, ...]
    hung: bool = False


@dataclass
class _Worker:
    process: Any
    connection: multiprocessing.connection.Connection
    seen: float = field(default_factory=time.monotonic)
    ready: bool = False
    task: int | None = None


def run_isolated(
    work: Callable[[Any, Beat], Any], tasks: Sequence[Any], *, workers: int, timeout: float, attempts: int = 2
) -> Generator[tuple[int, Outcome], None, None]:
    """(number of the task, what became of it) for every task, in the order in which they are done.

    Args:
        work: a function of a module, called in another process with a task and a function that says "still alive";
            it returns something that can be pickled and raises nothing (that counts as its death).
        tasks: what to call it with.
        workers: processes, at least 1.
        timeout: seconds without a sign of life after which a process is killed.
        attempts: how often a task may cost a process its life.

    Raises ChildProcessError if processes die before they get to work. When closed, all processes are ended.
    """
    waiting = deque(range(len(tasks)))
    deaths: dict[int, list[str]] = {}
    running: list[_Worker] = []
    try:
        while waiting or any(worker.task is not None for worker in running):
            for worker in running:
                if worker.ready and worker.task is None and waiting:
                    _hand_out(worker, waiting, tasks)
            busy = sum(worker.task is not None for worker in running)
            while len(running) < min(workers, busy + len(waiting)):
                running.append(_start(work))

            now = time.monotonic()
            patience = min(60.0, max(0.0, min(_deadline(worker, timeout) for worker in running) - now) + 0.05)
            ready = multiprocessing.connection.wait([worker.connection for worker in running], patience)
            if time.monotonic() - now > patience + 5:  # this process was stopped (Ctrl-Z), and they with it
                for worker in running:
                    worker.seen = time.monotonic()
            for worker in list(running):
                number, ended, hung = worker.task, False, False
                if worker.connection in ready:
                    try:
                        message = worker.connection.recv()
                    except (EOFError, OSError):
                        ended = True
                    else:
                        worker.seen, worker.ready = time.monotonic(), True
                        if message is not None:
                            worker.task = None
                            assert number is not None
                            yield number, Outcome(message[0], tuple(deaths.get(number, ())))
                elif time.monotonic() > _deadline(worker, timeout):
                    ended = hung = True
                if not ended:
                    continue
                running.remove(worker)
                reason = _end(worker, patience=0 if hung else 1)  # one that died by itself is to be asked why
                if hung and worker.ready:
                    reason = f"no sign of life for {timeout:g} s"
                if not worker.ready:
                    raise ChildProcessError(
                        f"a process that should read videos died at its start ({reason}); a script needs "
                        "if __name__ == '__main__': around what it calls"
                    )
                if number is None:
                    continue
                deaths.setdefault(number, []).append(reason)
                if hung or len(deaths[number]) >= attempts:
                    yield number, Outcome(None, tuple(deaths[number]), hung)
                else:
                    waiting.appendleft(number)
    finally:
        for worker in running:
            _end(worker)


def _deadline(worker: _Worker, timeout: float) -> float:
    if worker.ready and worker.task is None:
        return math.inf
    return worker.seen + (timeout if worker.ready else max(timeout, _START_SECONDS))


def _hand_out(worker: _Worker, waiting: deque[int], tasks: Sequence[Any]) -> None:
    number = waiting.popleft()
    worker.task, worker.seen = number, time.monotonic()
    with contextlib.suppress(OSError):  # dead already: its end of the pipe tells, and the task is tried again
        worker.connection.send(tasks[number])


def _start(work: Callable[[Any, Beat], Any]) -> _Worker:
    context = multiprocessing.get_context("spawn")  # not fork: this process may hold threads and a CUDA context
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work), daemon=True)
    # Ctrl-C reaches the whole group of processes: one that is only starting must not answer it with a traceback.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
    try:
        process.start()
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()  # so that the pipe ends when the process does
    return _Worker(process, ours)


def _end(worker: _Worker, patience: float = 0) -> str:
    """Kill the process, if it has not ended after ``patience`` seconds, and say what it died of."""
    worker.connection.close()
    worker.process.join(patience)
    if worker.process.exitcode is None:
        worker.process.kill()
        worker.process.join(5)  # one that waits for a broken disk cannot even be killed
    status = worker.process.exitcode
    if status is not None and status < 0:
        with contextlib.suppress(ValueError):
            return f"ended by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"


def _serve(connection: multiprocessing.connection.Connection, work: Callable[[Any, Beat], Any]) -> None:
    leave_signals_to_parent()
    _write_no_core()
    sent = time.monotonic()

    def beat() -> None:
        nonlocal sent
        if time.monotonic() - sent > _BEAT_SECONDS:
            connection.send(None)
            sent = time.monotonic()

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone or done
        connection.send(None)
        while True:
            task = connection.recv()
            connection.send((work(task, beat),))


def _write_no_core() -> None:
    """A decoder that crashes on a thousand files is not to fill the disk with its memory."""
    if os.name == "posix":
        import resource

        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
