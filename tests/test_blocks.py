import numpy as np
import pytest

from skycensus.blocks import in_blocks


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
