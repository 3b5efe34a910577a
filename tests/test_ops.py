"""The forms of each temporal operation agree, whichever runs where."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from clipwise import ops


def clip(n: int, t: int, c: int, h: int, w: int, *, channels_last: bool = True) -> Tensor:
    x = torch.randn(n, t, h, w, c).permute(0, 1, 4, 2, 3)
    return x if channels_last else x.contiguous()


sizes = st.tuples(*(st.integers(1, most) for most in (2, 6, 12, 3, 3)))


@settings(deadline=None)
@given(sizes, st.booleans(), st.lists(st.integers(-7, 7), min_size=1, max_size=5))
def test_slices_assigned_are_the_shift_that_has_gradients(
    size: tuple[int, ...], channels_last: bool, offsets: list[int]
) -> None:
    x = clip(*size, channels_last=channels_last)  # type: ignore[arg-type]
    channels = size[2]
    share = channels // len(offsets)
    groups = [(share, offset) for offset in offsets[:-1]] + [(channels - share * (len(offsets) - 1), offsets[-1])]
    assert ops.is_plain_inference(x)
    assert torch.equal(ops.shift(x, groups), ops.shift(x.clone().requires_grad_(), groups))


@settings(deadline=None)
@given(sizes, st.booleans(), st.booleans(), st.booleans())
def test_a_compilers_sum_is_the_convolution(
    size: tuple[int, ...], channels_last: bool, causal: bool, with_bias: bool
) -> None:
    x = clip(*size, channels_last=channels_last).requires_grad_()  # type: ignore[arg-type]
    weight = torch.randn(size[2], 1, 3, requires_grad=True)
    bias = torch.randn(size[2]) if with_bias else None
    expected = ops.temporal_conv(x, weight, bias, causal=causal)
    found = ops._sum_of_shifted(x, weight, bias, causal=causal)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    gradient = torch.randn_like(expected)
    for of_found, of_expected in zip(
        torch.autograd.grad(found, (x, weight), gradient),
        torch.autograd.grad(expected, (x, weight), gradient),
        strict=True,
    ):
        torch.testing.assert_close(of_found, of_expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_motion_is_equation_2(causal: bool) -> None:
    x = clip(2, 4, 3, 5, 4)
    conv = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
    after = torch.stack([conv(x[:, t]) for t in range(4)], dim=1)
    expected = torch.zeros_like(x)
    for t in range(3):
        expected[:, t + causal] = after[:, t + 1] - x[:, t]
    torch.testing.assert_close(ops.motion(x, conv, causal=causal), expected)


@pytest.mark.parametrize("layout", ["channels last", "contiguous", "every other pixel"])
def test_a_gpus_compiler_sees_the_same_views_by_another_way(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = clip(2, 3, 4, 5, 6, channels_last=layout != "contiguous")
    if layout == "every other pixel":
        x = x[..., ::2, ::2]
    folded, features = ops.fold(x), torch.randn(2, 3, 4)
    monkeypatch.setattr(ops, "_is_compiled_for_gpu", lambda x: True)
    for view, expected in (
        (ops.fold(x), folded),
        (ops.unfold(folded, 3), x),
        (ops.fold(features), features.flatten(0, 1)),
        (ops.unfold(features.flatten(0, 1), 3), features),
    ):
        assert torch.equal(view, expected)
    assert ops.fold(x).stride() == folded.stride()
    assert ops.fold(x).data_ptr() == x.data_ptr()
