"""Fixtures shared by all tests, and the closing account of what was skipped and why."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clipwise import train
from clipwise.cli import main
from clipwise.data.synthetic import synthesize

SHARED = Path(__file__).resolve().parents[2] / "shared"

# Trainings here are compared to the bit with those of other processes, and how many threads share a sum changes it.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# Tests press Ctrl-C; what a script starts in its background ignores it, and so would all that is started here.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# How long tests wait for another process or thread, in seconds. Machines may be slow and busy: only a hang takes this.
PATIENCE = 300


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds; fails, and says what was waited for, when patience ends."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited {PATIENCE} s in vain: {what}"
        time.sleep(0.05)


def clipwise(*arguments: str | Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command line in this process; returns the exit status."""
    monkeypatch.setattr(sys, "argv", ["clipwise", *map(str, arguments)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real videos, weights and published numbers beside the repository; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (real videos, weights, published numbers), which is not here")
    return SHARED


@pytest.fixture(autouse=True)
def _as_at_first() -> None:
    """Whatever the tests before did to this process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # `clipwise benchmark --threads`
    # Of root, the AV1 encoder makes the process that calls it a real-time one, which leaves others next to no time.
    if sys.platform == "linux" and os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small rendered set: 4 classes of 6 encoded videos of 48×48, train and val."""
    folder = tmp_path_factory.mktemp("rendered") / "videos"
    return synthesize(folder, pairs=2, videos_per_class=6, size=48, frames=(12, 16), seed=0, val_share=0.34).parent


# A network and a schedule as small as they come; two epochs of three steps on `videos`.
SMALL = [
    "model.name=stm_resnet18",
    "model.weights=null",
    "model.num_frames=4",
    "model.options.base_width=16",
    "views.size=32",
    "training.epochs=2",
    "training.batch_size=6",
    "training.reference_batch=6",
    "training.precision=fp32",
    "data.workers=0",
]


@pytest.fixture(scope="session")
def run(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training run on `videos`; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(videos, folder, overrides=SMALL)
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests were skipped even if none was; the reasons stand above, by ``-ra``."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = sorted({report.longrepr[2].removeprefix("Skipped: ") for report in skipped})
    terminalreporter.write_line(f"skipped tests: {len(skipped)}" + (f" ({'; '.join(reasons)})" if reasons else ""))
