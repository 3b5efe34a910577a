"""The command line: one file per verb."""

import importlib
import os
import sys

import typer

from clipwise.allocator import keep_freed_memory
from clipwise.cli.app import app, importing, say

__all__ = ["application", "main"]

# The files that a verb, the first word of a command, is made of.
_VERBS = {
    "analyze": ("analyze",),
    "benchmark": ("benchmark",),
    "calibrate": ("calibrate",),
    "data": ("data", "data_prepare", "data_tools"),
    "demo": ("demo",),
    "evaluate": ("evaluate",),
    "models": ("models", "import_weights"),
    "predict": ("predict",),
    "protocols": ("protocols",),
    "recipes": ("recipes",),
    "reproduce": ("reproduce",),
    "stream": ("stream",),
    "train": ("train",),
}


def application(*verbs: str) -> typer.Typer:
    """The application with these verbs, all of them where none is named; they are imported here, since each registers
    itself."""
    for verb in verbs or _VERBS:
        for file in _VERBS[verb]:
            importlib.import_module(f"clipwise.cli.{file}")
    return app


def main() -> None:
    """Run a verb. Exit status: 0 on success, 1 where something the user can mend went wrong, 2 for wrong usage,
    130 after Ctrl-C. ``CLIPWISE_TRACEBACK=1`` shows where an error came from."""
    keep_freed_memory()
    try:
        with importing():
            verbs = application(*(verb for verb in sys.argv[1:2] if verb in _VERBS))
        verbs()
    except SystemExit as ended:
        # Typer makes an exit of Ctrl-C; a verb that ends so by itself has said what there is to say.
        if isinstance(ended.__context__, BaseException) and isinstance(ended.__context__.__cause__, KeyboardInterrupt):
            say("stopped")
        raise
    except BrokenPipeError:
        # The reader of our output, such as `head`, is gone: that is its right.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("CLIPWISE_TRACEBACK"):
            raise
        say(str(error), error=True)
        sys.exit(1)
