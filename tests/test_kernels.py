"""Triton kernels: equality with the torch forms (``kernels_numerics.py``), what the compiler sees of them, and that a
GPU's machine code comes out of them, which needs no GPU.

Under the interpreter a kernel never meets Triton's compiler, and it must be switched on before Triton is imported;
hence the other file, in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from clipwise import kernels

NUMERICS = Path(__file__).with_name("kernels_numerics.py")


def test_kernels_equal_their_references() -> None:
    """On a GPU where there is one, else under Triton's interpreter."""
    pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", str(NUMERICS)]
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_needs_triton() -> None:
    code = """
import sys, torch
sys.modules["triton"] = None  # as if it were not installed
import clipwise
from clipwise import kernels, ops
x = torch.ones(1, 2, 4, 1, 1)
assert not kernels.usable(x)
ops.temporal_conv(x, torch.ones(4, 1, 3)), ops.shift(x, [(4, 1)])
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_kernels_are_for_gpus() -> None:
    assert not kernels.usable(torch.ones(1, 2, 4, 1, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: kernels.temporal_conv(x, x.new_ones(4, 1, 5)),
            r"weight must have shape \(4, 1, 3\), got \(4, 1, 5\)",
        ),
        (lambda x: kernels.motion(x, x.new_ones(4, 4, 3, 3)), r"weight must have shape \(4, 1, 3, 3\)"),
        (lambda x: kernels.shift(x, [(1, 1), (2, -1)]), "do not add up to 4 channels"),
        (lambda x: kernels.pointwise(x, x.new_ones(8, 4), frames=3), "no whole number of clips of 3 frames"),
        (
            lambda x: kernels.pointwise(
                x.repeat(1, 1, 2, 1, 1), x.new_ones(8, 8), frames=2, groups=[(1, offset) for offset in range(8)]
            ),
            "at most 4 groups apart, got 8",
        ),
        (
            lambda x: kernels.pointwise(x.requires_grad_(), x.new_ones(8, 4), frames=2),
            "pointwise has no gradient; call it under torch.no_grad",
        ),
        (
            lambda x: kernels.temporal_conv(x.requires_grad_(), x.new_ones(4, 1, 3), relu_input=True),
            "no gradient through bias, input_bias or relu_input",
        ),
    ],
)
def test_a_wrong_call_says_what_is_wrong(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.ones(1, 2, 4, 1, 1))


def _training(x: Tensor, taps: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    y = kernels.temporal_conv(x, taps, relu=True)
    y = kernels.shift(kernels.motion(y, weight), [(8, 1), (8, -1), (48, 0)])
    return torch.autograd.grad(y, (x, taps, weight), torch.ones_like(y))


def _inference(x: Tensor, taps: Tensor, weight: Tensor) -> Tensor:
    with torch.no_grad():
        y = kernels.temporal_conv(x, taps, input_bias=taps[:, 0, 0], relu_input=True, causal=True)
        matrix, groups = taps.reshape(48, 4).to(x.dtype), [(8, 1), (8, -1), (48, 0)]
        narrow = y[:, :, :4]
        return kernels.pointwise(y, taps.new_ones(48, 64).to(x.dtype), frames=3, groups=groups, also=(narrow, matrix))


@pytest.fixture
def launches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every launch in a traced function, as a compiler for a GPU would see it."""
    pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    class Hopper:
        """A driver that says what to compile for, and can launch nothing."""

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

    function, mode = request.param
    x = torch.empty(6, 64, 4, 4, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    inputs = (x.unflatten(0, (2, 3)).requires_grad_(), torch.ones(64, 1, 3), torch.ones(64, 1, 3, 3))
    for weight in inputs[1:]:
        weight.requires_grad_()
    monkeypatch.setattr(driver, "_active", Hopper())
    graph = make_fx(dispatch_functionalize(function), tracing_mode=mode)(*inputs).graph
    return [node.kwargs for node in graph.nodes if "tensors_to_clone" in node.kwargs]


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(
    "launches", [(_training, "fake"), (_training, "symbolic"), (_inference, "symbolic")], indirect=True
)
def test_the_compiler_sees_that_only_outputs_are_written(launches: list[dict[str, Any]]) -> None:
    """Else it would copy the inputs before every launch."""
    assert launches
    for launch in launches:
        assert set(launch["tensors_to_clone"]) <= {"y", "grad_x", "sums"}


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("launches", [(_training, "fake"), (_inference, "fake")], indirect=True)
def test_kernels_become_machine_code(
    launches: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a Hopper GPU, reading 16 bytes at a time, and the product on its matrix units.

    The interpreter takes what the compiler refuses, such as a name whose type changes in a loop.
    """
    import triton
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    names = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}
    seen = set()
    for launch in launches:
        kernel = kernel_side_table.get_kernel(launch["kernel_idx"])
        config, values = kernel.configs[0], dict(launch["kwargs"])
        values |= kernel_side_table.get_constant_args(launch["constant_args_idx"]) | config.kwargs
        signature, constants, hints = {}, {}, {}
        for position, parameter in enumerate(kernel.fn.params):
            value = values[parameter.name]
            value = value.meta["val"] if isinstance(value, torch.fx.Node) else value
            if parameter.is_constexpr or (isinstance(value, int) and value == 1):
                signature[parameter.name], constants[parameter.name] = "constexpr", value
                continue
            signature[parameter.name] = names[value.dtype] if isinstance(value, Tensor) else "i32"
            if isinstance(value, Tensor) or value % 16 == 0:
                hints[(position,)] = [["tt.divisibility", 16]]
        if (key := (kernel.fn.__module__, kernel.fn.__name__)) in seen:
            continue
        seen.add(key)
        compiled = triton.compile(
            ASTSource(kernel.fn, signature, constants, hints),
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": config.num_warps, "num_stages": config.num_stages},
        )
        assert compiled.asm["cubin"]
        code = compiled.asm["ptx"]
        if kernel.fn.__name__ == "_product":
            assert "wgmma.mma_async" in code
        else:
            assert "ld.global.v4.b32" in code
            assert "st.global.v4.b32" in code
    assert len(seen) >= 2
