import jax
import numpy as np
import pytest

from skycensus.blocks import in_blocks, on_all_cores, over_blocks


@pytest.mark.parametrize("num", [0, 1, 5, 10, 13])
def test_blocks_give_what_the_whole_gives(num):
    shapes = []

    def function(columns):
        shapes.append(columns["x"].shape)
        return columns["x"] + columns["y"], {"twice": 2 * columns["x"]}

    x, y = np.arange(num, dtype=np.float32), 0.5 * np.ones(num)
    total, more = in_blocks(function, {"x": x, "y": y}, 5)
    np.testing.assert_array_equal(total, x + 0.5)
    np.testing.assert_array_equal(more["twice"], 2 * x)
    assert total.dtype == more["twice"].dtype == np.float64
    assert set(shapes) == {(5,)}


def test_calls_on_all_cores_keep_their_order():
    calls = []

    def function(x):
        calls.append(x)
        return np.asarray(x**2)

    assert list(on_all_cores(function, list(range(20)))) == [x**2 for x in range(20)]
    assert calls[0] == 0 and sorted(calls) == list(range(20))
    assert list(on_all_cores(function, [])) == []


def test_an_error_on_another_core_comes_here():
    def function(x):
        if x == 3:
            raise ValueError("at 3")
        return np.asarray(x)

    with pytest.raises(ValueError, match="at 3"):
        list(on_all_cores(function, range(6)))


@pytest.mark.parametrize("size", [1, 4, 13, 20])
def test_blocks_within_compiled_code(size):
    rows = {"x": np.arange(13.0), "y": np.arange(26.0).reshape(13, 2)}
    out = jax.jit(lambda r: over_blocks(lambda b: (b["x"] + 1, b["y"].sum(1)), r, size))(rows)
    np.testing.assert_array_equal(out[0], rows["x"] + 1)
    np.testing.assert_array_equal(out[1], rows["y"].sum(axis=1))
