"""The command line: one file per verb."""

import os
import sys

import typer

from clipwise.cli.app import app, say

__all__ = ["application", "main"]


def application() -> typer.Typer:
    """The application with all its verbs; they are imported here, since each registers itself."""
    from clipwise.cli import (  # noqa: F401
        analyze,
        data,
        data_prepare,
        data_tools,
        demo,
        evaluate,
        import_weights,
        models,
        predict,
        protocols,
        recipes,
        reproduce,
        train,
    )

    return app


def main() -> None:
    """Run a verb. Exit status: 0 on success, 1 where something the user can mend went wrong, 2 for wrong usage,
    130 after Ctrl-C. ``CLIPWISE_TRACEBACK=1`` shows where an error came from."""
    try:
        application()()
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
