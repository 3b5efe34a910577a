"""Whether torch.compile can work here."""

import functools
import importlib.util

__all__ = ["compiler_missing"]


@functools.cache
def compiler_missing(device_type: str) -> str:
    """What torch.compile lacks for a kind of device (``cpu``, ``cuda``), in words with the remedy; empty if nothing."""
    if device_type == "cuda":
        found = importlib.util.find_spec("triton") is not None
        return "" if found else "torch.compile needs triton on a GPU; install it (pip install triton)"
    if device_type != "cpu":
        return ""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "torch.compile needs a C++ compiler on a CPU, and there is none; install g++"
    return ""
