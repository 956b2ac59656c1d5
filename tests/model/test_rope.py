"""The rotary table, against numbers worked out from the formulas."""

from __future__ import annotations

import math

import numpy as np

from waferline.model.rope import RopeScaling, inverse_frequencies, rotary_table


def test_the_table_has_cosines_then_sines() -> None:
    table = rotary_table(4, 100.0, None, max_model_len=3)
    assert table.shape == (3, 4)
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table[0], [1, 1, 0, 0])
    expected = [math.cos(2), math.cos(0.2), math.sin(2), math.sin(0.2)]
    np.testing.assert_allclose(table[2], expected, rtol=0, atol=1e-7)


def test_linear_scaling_divides_every_frequency() -> None:
    plain = inverse_frequencies(8, 10000.0, None)
    np.testing.assert_array_equal(inverse_frequencies(8, 10000.0, RopeScaling("linear", 4.0)), plain / 4)


def test_llama3_scaling_slows_long_waves_only() -> None:
    scaling = RopeScaling(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    )
    plain, scaled = (inverse_frequencies(8, 10000.0, how) for how in (None, scaling))
    # Wavelengths 6.28, 62.8, 628 and 6283: short (below 64 / 4), between, and long (above 64 / 1).
    smooth = (64 * 0.1 / (2 * math.pi) - 1) / 3
    expected = [1.0, 0.1 * (smooth + (1 - smooth) / 8), plain[2] / 8, plain[3] / 8]
    np.testing.assert_allclose(scaled, expected, rtol=1e-6)
