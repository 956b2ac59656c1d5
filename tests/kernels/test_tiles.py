"""Packing and its inverse, and the exact statement of quantisation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waferline_kernels import tiles
from waferline_kernels.tiles import BF16, F32, Q4, Q8, TILE_N, pack_matrix, quantize_rows, unpack_matrix

SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 200))


def random_matrix(n: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


def test_the_worked_example_of_the_module() -> None:
    strip = pack_matrix(np.array([[0.5, -1.0, 0.0, 1.0]], np.float32), Q8)
    assert strip.shape == (1, 128)
    assert strip[0, :64].tobytes().hex() == "013c" + "00" * 62
    assert strip[0, 64:].tobytes().hex() == "4081007f" + "00000000" * 15


@given(SHAPES)
@settings(max_examples=50, deadline=None)
def test_f32_strips_unpack_to_the_same_bits(shape: tuple[int, int]) -> None:
    weight = random_matrix(*shape)
    packed = pack_matrix(weight, F32)
    assert packed.shape == (tiles.num_strips(shape[0]), F32.strip_bytes(shape[1]))
    assert (unpack_matrix(packed, *shape, F32) == weight).all()


@given(SHAPES)
@settings(max_examples=50, deadline=None)
def test_bf16_strips_unpack_to_the_nearest_bfloat16(shape: tuple[int, int]) -> None:
    weight = random_matrix(*shape)
    unpacked = unpack_matrix(pack_matrix(weight, BF16), *shape, BF16)
    assert (unpacked == tiles.bfloat16_to_float32(tiles.bfloat16_bits(weight))).all()
    assert (np.abs(unpacked - weight) <= np.abs(weight) * 2**-8).all()


@given(SHAPES)
@settings(max_examples=50, deadline=None)
def test_q4_beats_rounding_to_the_largest_weight(shape: tuple[int, int]) -> None:
    n, k = shape
    weight = random_matrix(n, k)
    packed = pack_matrix(weight, Q4)
    assert packed.shape == (tiles.num_strips(n), Q4.strip_bytes(k))
    unpacked = unpack_matrix(packed, n, k, Q4)
    padded = np.zeros((n, tiles.round_up(k, tiles.SUBGROUP)), np.float32)
    padded[:, :k] = weight
    grouped = padded.reshape(n, -1, tiles.SUBGROUP)
    scale = tiles.bfloat16_to_float32(tiles.bfloat16_bits(np.abs(grouped).max(axis=2, keepdims=True) / 7))
    plain = (np.rint(grouped / np.where(scale > 0, scale, 1)) * scale).reshape(n, -1)[:, :k]
    allowed = 1.01 * ((plain - weight) ** 2).sum() + 1e-5 * (weight**2).sum()  # the scale's own rounding
    assert ((unpacked - weight) ** 2).sum() <= allowed


@given(SHAPES)
@settings(max_examples=50, deadline=None)
def test_q8_is_within_half_a_step_and_packs_again_to_the_same_bytes(shape: tuple[int, int]) -> None:
    n, k = shape
    weight = random_matrix(n, k)
    packed = pack_matrix(weight, Q8)
    assert packed.shape == (tiles.num_strips(n), Q8.strip_bytes(k))
    unpacked = unpack_matrix(packed, n, k, Q8)
    scales = np.repeat(tiles.strip_scales(packed, k, Q8)[:n], Q8.group, axis=1)[:, :k]
    # A scale is rounded to bfloat16, so the largest code of a group may be off by 127 times its relative error.
    assert (np.abs(unpacked - weight) <= scales * (0.5 + 127 * 2**-8)).all()
    assert tiles.strip_integers(packed, k, Q8).min() >= -127


@pytest.mark.parametrize("format", [F32, BF16, Q8, Q4], ids=lambda f: f.name)
def test_columns_beyond_n_weigh_nothing(format: tiles.TileFormat) -> None:
    packed = pack_matrix(random_matrix(17, 40), format)
    assert (unpack_matrix(packed, 2 * TILE_N, 40, format)[17:] == 0).all()


def test_interleaved_strips_alternate() -> None:
    first, second = pack_matrix(random_matrix(32, 8, 1), F32), pack_matrix(random_matrix(32, 8, 2), F32)
    both = tiles.interleave_strips(first, second)
    assert (both[0::2] == first).all()
    assert (both[1::2] == second).all()


@pytest.mark.parametrize("weight", [np.zeros((0, 4), np.float32), np.zeros(4, np.float32)])
def test_a_weight_that_is_no_matrix_is_refused(weight: np.ndarray) -> None:
    with pytest.raises(ValueError, match="weight: shape"):
        pack_matrix(weight, Q8)


def test_a_weight_that_is_not_finite_is_refused() -> None:
    weight = random_matrix(4, 4)
    weight[2, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        pack_matrix(weight, Q8)


def test_unpacking_checks_the_shape() -> None:
    with pytest.raises(ValueError, match="packed: uint8"):
        unpack_matrix(np.zeros((1, 3), np.uint8), 16, 4, Q8)


@given(SHAPES, st.sampled_from([1e-38, 1e-31, 1.0, 1e30]))
@settings(max_examples=50, deadline=None)
def test_activations_are_within_half_a_step(shape: tuple[int, int], magnitude: float) -> None:
    x = random_matrix(*shape) * np.float32(magnitude)
    codes, scales = quantize_rows(x, 64)
    restored = codes * np.repeat(scales, 64, axis=1)[:, : shape[1]]
    step = np.repeat(scales, 64, axis=1)[:, : shape[1]]
    assert (np.abs(restored - x) <= np.maximum(step * 0.501, 1e-30)).all()


def test_zero_activations_have_no_scale() -> None:
    codes, scales = quantize_rows(np.zeros((2, 65), np.float32), 64)
    assert (codes == 0).all()
    assert (scales == 0).all()


def test_bfloat16_rounds_to_even_and_comes_back_exactly() -> None:
    x = np.array([1.0, 1.00390625, 1.01171875, -2.5, 0.0], np.float32)  # the second and third lie midway
    assert tiles.bfloat16_to_float32(tiles.bfloat16_bits(x)).tolist() == [1.0, 1.0, 1.015625, -2.5, 0.0]


def test_bfloat16_is_finite() -> None:
    largest = np.float32((2 - 2**-7) * 2.0**127)
    x = np.array([np.inf, -np.inf, np.finfo(np.float32).max, largest, np.nan], np.float32)
    rounded = tiles.bfloat16_to_float32(tiles.bfloat16_bits(x))
    assert rounded[:4].tolist() == [largest, -largest, largest, largest]
    assert np.isfinite(rounded).all()
