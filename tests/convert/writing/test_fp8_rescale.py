"""FP8 codes times a factor, each of the 256, against torch."""

from __future__ import annotations

import numpy as np
import pytest

from minitron_trt.convert.writing.fp8_rescale import recoded

torch = pytest.importorskip("torch")

CODES = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("factor", [1.0, 0.9999999, 0.75, 0.5, 0.3333333, 1 / 448, 1e-4])
def test_codes_of_a_larger_scale_are_the_nearest_numbers(factor: float) -> None:
    numbers = torch.from_numpy(CODES).view(torch.float8_e4m3fn).double() * factor
    wanted = numbers.float().to(torch.float8_e4m3fn).view(torch.uint8)

    assert recoded(CODES, factor).tolist() == wanted.tolist()


def test_a_code_that_is_no_number_stays_one() -> None:
    assert recoded(CODES, 0.3)[[0x7F, 0xFF]].tolist() == [0x7F, 0xFF]
