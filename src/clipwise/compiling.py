"""Whether what translates code at run time can work here: torch.compile, and Triton."""

import functools
import importlib.util
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["compile_frozen", "compile_static", "compiler_missing", "triton_missing"]

P = ParamSpec("P")
R = TypeVar("R")


def compile_static(function: Callable[P, R]) -> Callable[P, R]:
    """A network, or a function of one, through torch.compile, with a program for each size that comes."""
    import torch

    # Else all networks of a class share the room for eight programs, and the ninth runs as it is. Not every torch that
    # will do offers it.
    through: Callable[..., Callable[P, R]] = torch.compile
    own = {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(through).parameters else {}
    return through(function, dynamic=False, **own)


def compile_frozen(function: Callable[P, R]) -> Callable[P, R]:
    """A network, or a function of one, through torch.compile for inference: its weights are constants of the program,
    so that a CPU has them packed as its convolutions read them. To be called without gradients."""
    from torch._inductor import config

    compiled = compile_static(function)

    def run(*arguments: P.args, **keywords: P.kwargs) -> R:
        # Asked for by torch.compile's `options` it has no effect: Dynamo looks at the setting before they are in force.
        with config.patch(freezing=True):
            answer: R = compiled(*arguments, **keywords)
        return answer

    return run


@functools.cache
def triton_missing() -> str:
    """What Triton lacks to start on this machine's GPU, in words with the remedy; empty if nothing."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    try:
        from triton.runtime.driver import driver

        driver.active.get_current_target()
    except Exception as error:  # whatever its own build of a helper meets, such as no C compiler
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return (
            f"Triton does not start ({reason}); it needs a C compiler and Python's headers, install gcc and python3-dev"
        )
    return ""


@functools.cache
def compiler_missing(device_type: str) -> str:
    """What torch.compile lacks for a kind of device (``cpu``, ``cuda``), in words with the remedy; empty if nothing."""
    if device_type == "cuda":
        return f"torch.compile needs Triton on a GPU: {missing}" if (missing := triton_missing()) else ""
    if device_type != "cpu":
        return ""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "torch.compile needs a C++ compiler on a CPU, and there is none; install g++"
    return ""
