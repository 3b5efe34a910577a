"""The Triton kernels against the torch forms; ``test_kernels.py`` runs this file, in a process of its own.

    TRITON_INTERPRET=1 python -m pytest --noconftest tests/kernels_numerics.py     on a CPU
    python -m pytest --noconftest tests/kernels_numerics.py                        on a GPU

The reference is computed in double precision, for which ``ops`` takes no kernel, and compared by norm.
"""

import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import clipwise
from clipwise import kernels, ops

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}
GROUPS = [(1, 1), (2, -1), (1, 0), (1, -2)]  # of 5 channels

pytestmark = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(),
    reason="needs a GPU, or TRITON_INTERPRET=1 before Python starts",
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False


def _clip(n: int, t: int, c: int, h: int, w: int, dtype: torch.dtype = torch.float32) -> Tensor:
    frames = torch.randn(n * t, c, h, w, device=DEVICE, dtype=dtype)
    return frames.contiguous(memory_format=torch.channels_last).unflatten(0, (n, t))


def _close(ours: Tensor, reference: Tensor, tolerance: float) -> None:
    assert ours.shape == reference.shape
    error = (ours.double() - reference.double()).norm() / reference.double().norm().clamp(min=1e-12)
    assert error <= tolerance, f"relative error {error:.2e} above {tolerance:.0e}"


def _check(
    ours: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: tuple[Tensor, ...], *, gradients: bool = True
) -> None:
    """Outputs and gradients of both; the reference sees the same numbers in double precision."""
    tolerance = TOLERANCE[inputs[0].dtype]
    exact = tuple(tensor.detach().double().requires_grad_(gradients) for tensor in inputs)
    leaves = tuple(tensor.detach().requires_grad_(gradients) for tensor in inputs)
    y, wanted = ours(*leaves), reference(*exact)
    assert y.dtype == inputs[0].dtype
    _close(y, wanted, tolerance)
    if gradients:
        g = torch.randn_like(y)
        for leaf, grad, wanted_grad in zip(
            leaves, torch.autograd.grad(y, leaves, g), torch.autograd.grad(wanted, exact, g.double()), strict=True
        ):
            assert grad.dtype == leaf.dtype
            _close(grad, wanted_grad, tolerance)


def _motion(x: Tensor, weight: Tensor, causal: bool) -> Tensor:
    convolved = F.conv2d(ops.fold(x), weight, padding=1, groups=x.shape[2])
    return ops.motion_difference(ops.unfold(convolved, x.shape[1]), x, causal=causal)


@pytest.mark.parametrize(
    ("shape", "dtype", "causal"),
    [
        ((2, 1, 4, 3, 3), torch.float32, False),
        ((1, 1, 3, 2, 2), torch.float32, True),
        ((1, 2, 66, 1, 3), torch.float32, False),  # more channels than a program takes
        ((1, 2, 5, 3, 1), torch.float32, True),
        ((2, 3, 5, 5, 3), torch.float32, False),
        ((2, 3, 3, 2, 3), torch.float32, True),
        ((1, 8, 6, 2, 3), torch.float32, False),
        ((1, 8, 24, 2, 1), torch.float32, True),
        ((2, 3, 5, 3, 2), torch.float16, False),
        ((1, 4, 9, 2, 3), torch.float16, True),
        ((1, 4, 8, 3, 2), torch.bfloat16, False),
        ((2, 3, 5, 2, 3), torch.bfloat16, True),
    ],
)
def test_temporal_conv_and_motion_equal_their_references(
    shape: tuple[int, ...], dtype: torch.dtype, causal: bool
) -> None:
    x = _clip(*shape, dtype=dtype)
    taps = torch.randn(shape[2], 1, 3, device=DEVICE)  # in single precision, as parameters under autocast are
    _check(
        lambda x, w: kernels.temporal_conv(x, w, causal=causal),
        lambda x, w: ops.temporal_conv(x, w, causal=causal),
        (x, taps),
    )
    weight = torch.randn(shape[2], 1, 3, 3, device=DEVICE, dtype=dtype)
    if shape[1] > 1:
        _check(lambda x, w: kernels.motion(x, w, causal=causal), lambda x, w: _motion(x, w, causal), (x, weight))
    else:
        assert not kernels.motion(x, weight, causal=causal).any()


@pytest.mark.parametrize("causal", [False, True], ids=["two-sided", "causal"])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_what_stands_around_the_temporal_convolution(frames: int, causal: bool) -> None:
    x, weight = _clip(1, frames, 5, 2, 1), torch.randn(5, 1, 3, device=DEVICE)
    bias, input_bias = torch.randn(5, device=DEVICE), torch.randn(5, device=DEVICE)

    def reference(x: Tensor, weight: Tensor, bias: Tensor, input_bias: Tensor) -> Tensor:
        # A frame outside the clip is zero, not ReLU(input_bias).
        inner = (x + input_bias[:, None, None]).relu()
        return (ops.temporal_conv(inner, weight, causal=causal) + bias[:, None, None]).relu()

    def ours(x: Tensor, weight: Tensor, bias: Tensor, input_bias: Tensor) -> Tensor:
        return kernels.temporal_conv(x, weight, bias, causal=causal, input_bias=input_bias, relu_input=True, relu=True)

    _check(ours, reference, (x, weight, bias, input_bias), gradients=False)
    _check(
        lambda x, w: kernels.temporal_conv(x, w, causal=causal, relu=True),
        lambda x, w: ops.temporal_conv(x, w, causal=causal).relu(),
        (x, weight),
    )


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "NCHW": lambda: _clip(2, 2, 5, 2, 3).contiguous(),
    "every other pixel": lambda: _clip(2, 2, 5, 3, 5)[..., ::2, ::2],
    "some channels": lambda: _clip(2, 2, 16, 2, 3)[:, :, 3:8],
    "some frames": lambda: _clip(2, 4, 5, 2, 3)[:, 1:3],
    "one map expanded": lambda: torch.randn(2, 1, 5, 1, 1, device=DEVICE).expand(2, 2, 5, 2, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_give_the_same_numbers(layout: str) -> None:
    x = LAYOUTS[layout]()
    taps, weight = torch.randn(5, 1, 3, device=DEVICE), torch.randn(5, 1, 3, 3, device=DEVICE)
    dense = _clip(2, 2, 5, 2, 3).copy_(x)
    matrix = torch.randn(6, 5, device=DEVICE)
    with torch.no_grad():
        _close(kernels.temporal_conv(x, taps), kernels.temporal_conv(dense, taps), 1e-6)
        _close(kernels.motion(x, weight), kernels.motion(dense, weight), 1e-6)
        assert torch.equal(kernels.shift(x, GROUPS), ops.shift(x.double(), GROUPS).float())
        _close(
            kernels.pointwise(x, matrix, frames=2, groups=GROUPS),
            kernels.pointwise(dense, matrix, frames=2, groups=GROUPS),
            1e-6,
        )


@pytest.mark.parametrize("layout", ["NCHW", "every other pixel", "one map expanded"])
def test_gradients_of_any_strides(layout: str) -> None:
    """The gradient that arrives can have other strides than the input, and an expanded one has none at all."""
    weights = torch.randn(5, 1, 3, device=DEVICE), torch.randn(5, 1, 3, 3, device=DEVICE)
    g, x = LAYOUTS[layout](), _clip(2, 2, 5, 2, 3)
    for kernel, weight in zip((kernels.temporal_conv, kernels.motion), weights, strict=True):
        results = []
        for grad in (g, g.clone(memory_format=torch.contiguous_format)):
            leaves = (x.clone().requires_grad_(), weight.clone().requires_grad_())
            results.append(torch.autograd.grad(kernel(*leaves), leaves, grad))
        for ours, wanted in zip(*results, strict=True):
            _close(ours, wanted, 1e-6)


def test_taps_may_lie_beside_those_of_other_channels() -> None:
    """Which the GPU can read in one piece."""
    x, weight = _clip(1, 2, 5, 2, 3), torch.randn(5, 1, 3, 3, device=DEVICE)
    spread = weight.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    _close(kernels.motion(x, spread), kernels.motion(x, weight), 1e-6)


def test_channels_last_stays() -> None:
    x = _clip(2, 2, 8, 2, 3).requires_grad_()
    taps, weight = torch.randn(8, 1, 3, device=DEVICE), torch.randn(8, 1, 3, 3, device=DEVICE)
    for y in (kernels.temporal_conv(x, taps), kernels.motion(x, weight), kernels.shift(x, [(8, 1)])):
        assert y.stride() == x.stride()
        assert torch.autograd.grad(y, x, torch.ones_like(y))[0].stride() == x.stride()
    with torch.no_grad():
        y = kernels.pointwise(ops.fold(x), torch.randn(6, 8, device=DEVICE), frames=2)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("frames", "dtype"), [(1, torch.float32), (2, torch.float16), (3, torch.bfloat16), (8, torch.float32)]
)
def test_shift_equals_its_reference(frames: int, dtype: torch.dtype) -> None:
    x = _clip(1, frames, 9, 2, 2, dtype=dtype)
    # More groups than one launch tells apart, an empty one, and neighbours that are one.
    groups = [(1, 1), (0, 5), (2, -1), (1, 0), (1, 0), (1, -2), (1, 3), (2, 0)]
    _check(lambda x: kernels.shift(x, groups), lambda x: ops.shift(x, groups), (x,))
    assert torch.equal(kernels.shift(x, groups).double(), ops.shift(x.double(), groups))


@pytest.mark.parametrize(
    ("frames", "channels", "outputs", "dtype"),
    [
        (1, 5, 7, torch.float32),
        (3, 40, 33, torch.float32),
        (8, 16, 8, torch.float32),
        (3, 21, 5, torch.float16),
        (2, 24, 9, torch.bfloat16),
    ],
)
def test_pointwise_equals_its_reference(frames: int, channels: int, outputs: int, dtype: torch.dtype) -> None:
    groups = [(2, 1), (2, -1), (channels - 4, 0)]
    x, second = _clip(2, frames, channels, 3, 3, dtype=dtype), _clip(2, frames, 3, 3, 3, dtype=dtype)
    weight, second_weight = (torch.randn(outputs, c, 1, 1, device=DEVICE, dtype=dtype) for c in (channels, 3))
    bias = torch.randn(outputs, device=DEVICE)
    residual = _clip(2, frames, outputs, 3, 3, dtype=dtype)

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return kernels.pointwise(ops.fold(x), weight, frames=frames)

    def everything(x: Tensor, w: Tensor, bias: Tensor, x2: Tensor, w2: Tensor, residual: Tensor) -> Tensor:
        return kernels.pointwise(x, w, bias, frames=frames, groups=groups, also=(x2, w2), residual=residual, relu=True)

    def reference(x: Tensor, w: Tensor, bias: Tensor, x2: Tensor, w2: Tensor, residual: Tensor) -> Tensor:
        y = F.conv2d(ops.fold(ops.shift(x, groups)), w, bias) + F.conv2d(ops.fold(x2), w2)
        return (ops.unfold(y, frames) + residual).relu()

    _check(plain, lambda x, weight: F.conv2d(ops.fold(x), weight), (x, weight), gradients=False)
    _check(everything, reference, (x, weight, bias, second, second_weight, residual), gradients=False)


def test_pytorch_accepts_the_operations() -> None:
    x = _clip(1, 2, 3, 1, 2).requires_grad_()
    taps, weight = (torch.randn(3, *shape, device=DEVICE, requires_grad=True) for shape in ((1, 3), (1, 3, 3)))
    kernels.temporal_conv(x, taps), kernels.motion(x, weight), kernels.shift(x, [(3, 1)])  # which registers them
    folded = ops.fold(x.detach())
    with torch.no_grad():
        kernels.pointwise(folded, taps[:, 0].detach(), frames=2)
    operations = torch.ops.clipwise
    for operation, arguments in (
        (operations.temporal_conv, (x, taps, None, None, False, False, True)),
        (operations.motion, (x, weight, True)),
        (operations.shift, (x, [1, 3], [1, 0])),
        (operations.pointwise, (folded, taps[:, 0].detach(), None, None, None, None, 2, [3], [0], True, False)),
    ):
        torch.library.opcheck(operation.default, arguments, rtol=1e-4, atol=1e-5)


def test_the_compiler_takes_them_without_a_break() -> None:
    x = _clip(1, 2, 5, 2, 2)
    taps, weight = torch.randn(5, 1, 3, device=DEVICE), torch.randn(5, 1, 3, 3, device=DEVICE)

    def network(x: Tensor, taps: Tensor, weight: Tensor) -> Tensor:
        assert kernels.usable(x)
        return kernels.motion(kernels.shift(kernels.temporal_conv(x, taps, relu=True), GROUPS), weight)

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager" if INTERPRETED else "inductor")
    results = []
    for form in (network, compiled):
        leaves = tuple(tensor.clone().requires_grad_() for tensor in (x, taps, weight))
        y = form(*leaves)
        results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    for ours, wanted in zip(*results, strict=True):
        _close(ours, wanted, 1e-5)


def test_equal_runs_give_equal_bits() -> None:
    x, weight = _clip(2, 2, 5, 3, 3), torch.randn(5, 1, 3, device=DEVICE, requires_grad=True)
    first, second = (torch.autograd.grad(kernels.temporal_conv(x, weight).square().sum(), weight)[0] for _ in "12")
    assert torch.equal(first, second)


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU of 40 GB: a tensor of more than 2³¹ elements")
def test_offsets_beyond_32_bits() -> None:
    if torch.cuda.get_device_properties(0).total_memory < 40e9:
        pytest.skip("needs a GPU of 40 GB: a tensor of more than 2³¹ elements")
    x = _clip(1, 3, 64, 3400, 3400, dtype=torch.bfloat16)
    assert x.numel() > 2**31
    taps, weight = torch.randn(64, 1, 3, device=DEVICE), torch.randn(64, 1, 3, 3, device=DEVICE)
    matrix, groups = torch.randn(16, 64, device=DEVICE, dtype=x.dtype), [(8, 1), (8, -1), (48, 0)]
    for kernel in (
        lambda x: kernels.temporal_conv(x, taps),
        lambda x: kernels.shift(x, groups),
        lambda x: kernels.motion(x, weight)[..., 1:, :],
        lambda x: kernels.pointwise(x, matrix, frames=3, groups=groups),
    ):
        _close(kernel(x)[..., -2:, :], kernel(x[..., -3:, :].clone())[..., -2:, :], 1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tsm_resnet50", {"caffe_stride": True}),
        ("tam_resnet18", {}),
        ("stm_resnet50", {"causal": True}),
    ],
)
def test_whole_networks(name: str, options: dict[str, Any]) -> None:
    """Trained ones, whose operations are kernels wherever there is one, and deployed ones, whose 1×1 are too."""
    model = clipwise.create_model(name, num_classes=5, num_frames=3, base_width=16, **options).eval().to(DEVICE)
    torch.nn.init.normal_(model.fc.weight)
    clips = torch.randn(1, 3, 3, 32, 33, device=DEVICE)
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(clips.double())
        tolerance = 1e-5 if INTERPRETED else 1e-4  # cuDNN may take an algorithm that rounds more
        _close(model(clips), expected, tolerance)
    _close(clipwise.deploy(model, with_kernels=True)(clips), expected, tolerance)
