"""Products in 16 bits: many tokens go another way than a few, to the same sums."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from minitron_trt.executor import products


@pytest.mark.parametrize("is_slow", [True, False], ids=["no 16-bit kernels", "16-bit kernels"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("tokens", [1, 15, 16, 70])
def test_products_of_many_tokens_are_those_of_float32_rounded(
    tokens: int, dtype: torch.dtype, is_slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_IS_SLOW", is_slow)
    monkeypatch.setattr(products, "_BLOCK_ROWS", 40)
    random = torch.Generator().manual_seed(tokens)
    values = torch.randn(tokens, 96, generator=random).to(dtype)
    weight = torch.randn(130, 96, generator=random).to(dtype)
    found = products.product(values, weight)
    exact = F.linear(values.double(), weight.double())
    step = torch.finfo(dtype).eps

    assert found.dtype is dtype
    assert found.shape == (tokens, 130)
    # Half a step of rounding, and what float32 takes from sums of numbers larger than they are.
    torch.testing.assert_close(found.double(), exact, rtol=0.6 * step, atol=96 * 2**-20)
