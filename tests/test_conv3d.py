"""The 3D convolution's gradient in bfloat16, where PyTorch's own is wrong on a CPU."""

import pytest
import torch

from clipwise.models.conv3d import Conv3d


@pytest.mark.parametrize(("frames", "kernel"), [(1, 3), (2, 3), (3, 3), (2, 5), (4, 5), (5, 5)])
def test_gradient_in_half_precision(frames: int, kernel: int) -> None:
    """bfloat16 and float agree to bfloat16's precision on clips shorter and longer than the kernel."""
    conv = Conv3d(32, 32, (kernel, 3, 3), padding=(kernel // 2, 1, 1), bias=False)
    x = torch.randn(2, 32, frames, 14, 14)
    out = conv(x)
    with torch.no_grad():
        torch.testing.assert_close(out, torch.nn.Conv3d.forward(conv, x))
    out.sum().backward()
    expected = conv.weight.grad
    assert expected is not None
    conv.weight.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        conv(x).float().sum().backward()
    assert conv.weight.grad is not None
    assert (conv.weight.grad - expected).abs().max() < 0.02 * expected.abs().max()
