from __future__ import annotations

import numpy as np
import pytest

from skycensus.likelihood.layout import bandwidths, fill, padding, plan

RNG = np.random.default_rng(11)
COUNTS = {
    "one draw": np.array([1]),
    "equal": np.full(40, 500),
    "few draws": RNG.integers(1, 30, 50),
    "ragged": RNG.integers(500, 5000, 60),
    "log-normal": np.exp(RNG.normal(6.0, 1.2, 150)).astype(int) + 1,
    "one giant": np.append(RNG.integers(50, 900, 30), 60_000),
    "two sizes": np.append(np.full(6, 7), np.full(5, 9_000)),
}


@pytest.mark.parametrize("block_size", [64, 1000, 2**17])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=list(COUNTS))
def test_every_draw_lies_in_exactly_one_place(counts, block_size):
    first = np.cumsum(counts) - counts
    objects = [f + np.arange(n, dtype=float) for f, n in zip(first, counts, strict=True)]
    found, owners = [], []
    shapes = set()
    for layout in plan(counts, block_size):
        blocks, empty = fill(layout, objects, np.dtype(float)), padding(layout, counts)
        assert blocks.shape == empty.shape == (*layout.segment.shape, layout.length)
        shapes.add(blocks.shape[1:])
        found.append(blocks[~empty])
        segments = np.pad(layout.owner, ((0, 0), (0, 1)), constant_values=-1)
        owner = np.take_along_axis(segments, layout.segment, axis=1)[..., None]
        owners.append(np.broadcast_to(owner, blocks.shape)[~empty])
        # Padding repeats a draw of the same object, and unused rows one of the block's.
        assert np.all(np.isin(blocks, np.concatenate(objects)))
        if layout.spanning:
            assert layout.num_segments == 1
    values, who = np.concatenate(found).astype(int), np.concatenate(owners)
    np.testing.assert_array_equal(np.sort(values), np.arange(counts.sum()))
    np.testing.assert_array_equal(who, np.searchsorted(np.cumsum(counts), values, side="right"))
    # A density is traced for one shape of block.
    assert len(shapes) == 1


@pytest.mark.parametrize("seed", range(12))
def test_ragged_counts_waste_little(seed):
    rng = np.random.default_rng(seed)
    num = rng.integers(5, 800)
    counts = np.exp(rng.normal(rng.uniform(5.5, 9.0), rng.uniform(0.0, 1.2), num)).astype(int) + 1
    layouts = plan(counts, 2**17)
    cells = sum(layout.segment.size * layout.length for layout in layouts)
    # A row costs about as much as eight draws, so rows of about 4 sqrt(count) are best: the waste
    # is half a row for each object.
    allowed = 0.05 + 3.0 / np.sqrt(counts.mean())
    assert cells / counts.sum() - 1 < allowed
    assert max(layout.segment[0].size * layout.length for layout in layouts) <= 2.2 * 2**17


def test_equal_counts_waste_nothing():
    (layout,) = plan(np.full(100, 5000), 2**17)
    assert layout.segment.size * layout.length == 500_000


def naive_bandwidths(x, neighbours):
    order = np.argsort(x)
    out = np.empty_like(x)
    for place, i in enumerate(order):
        low, high = max(place - neighbours, 0), min(place + neighbours, len(x) - 1)
        gap = x[order[high]] - x[order[low]]
        out[i] = 0.5 * gap * 2 * neighbours / max(high - low, 1)
    return out


def test_bandwidths_are_the_local_spacing_within_each_object():
    rng = np.random.default_rng(0)
    x, owner = rng.normal(size=300), rng.integers(0, 3, 300)
    got = bandwidths(x, owner, 4)
    for i in range(3):
        np.testing.assert_allclose(got[owner == i], naive_bandwidths(x[owner == i], 4), rtol=1e-12)


def test_bandwidths_of_repeated_draws_are_positive():
    x, owner = np.array([5.0, 5.0, 5.0, 1.0]), np.array([0, 0, 0, 1])
    width = bandwidths(x, owner, 2)
    assert np.all(width > 0)
    assert np.all(width < 1e-7)
