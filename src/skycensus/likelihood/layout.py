"""How ragged draws are laid out in equal blocks: without waste, and without a number to tune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """Where each object's draws lie in `num_blocks` blocks of `rows` x `length` numbers.

    An object occupies one or more whole rows. Either every block holds whole objects, or
    (`spanning`) every block belongs to one object, which may have several blocks.

    Attributes:
        segment: (num_blocks, rows) the object of each row, counted within the block; unused rows
            point at `num_segments`.
        owner: (num_blocks, num_segments) the number of each object within the whole batch, -1 where
            there is none.
        start: (num_blocks, rows) index of the row's first draw within its object.
    """

    length: int
    segment: np.ndarray
    owner: np.ndarray
    start: np.ndarray
    spanning: bool

    @property
    def num_segments(self) -> int:
        return self.owner.shape[1]


def plan(counts: np.ndarray, block_size: int) -> list[Layout]:
    """Lay out objects with these draw counts in blocks of about `block_size` numbers."""
    length = min(_row_length(counts), block_size)
    rows_of = -(-counts // length)
    rows = max(1, block_size // length)
    large = rows_of > 2 * rows
    layouts = []
    if np.any(~large):
        layouts.append(_whole_objects(np.flatnonzero(~large), rows_of, rows, length))
        # All blocks have one shape: a density is traced for it once.
        rows = layouts[0].segment.shape[1]
    if np.any(large):
        layouts.append(_spanning_objects(np.flatnonzero(large), rows_of, rows, length))
    return layouts


def fill(layout: Layout, objects: Sequence[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """Copy one column of every object into the blocks of `layout`.

    Padding repeats a real draw: a zero would leave the support, and its gradient would be NaN.
    """
    blocks = np.empty((*layout.segment.shape, layout.length), dtype)
    for block, row, owner, start in _occupied(layout):
        if owner < 0:
            blocks[block, row] = objects[int(layout.owner[block, 0])][0]
            continue
        part = objects[owner][start : start + layout.length]
        blocks[block, row, : len(part)] = part
        blocks[block, row, len(part) :] = part[-1]
    return blocks


def padding(layout: Layout, counts: np.ndarray) -> np.ndarray:
    """True where a block holds no draw."""
    empty = np.ones((*layout.segment.shape, layout.length), bool)
    for block, row, owner, start in _occupied(layout):
        if owner >= 0:
            empty[block, row, : max(0, int(counts[owner]) - start)] = False
    return empty


def _occupied(layout: Layout) -> list[tuple[int, int, int, int]]:
    segments = np.concatenate([layout.owner, np.full((len(layout.owner), 1), -1)], axis=1)
    owner = np.take_along_axis(segments, layout.segment, axis=1)
    return [
        (int(b), int(r), int(owner[b, r]), int(layout.start[b, r]))
        for b, r in np.ndindex(*layout.segment.shape)
    ]


def _row_length(counts: np.ndarray) -> int:
    """The row length that wastes least, where each row also costs about as much as 8 draws."""
    longest = int(counts.max())
    candidates = {-(-longest // k) for k in range(1, 33)} | {int(np.median(counts))}
    candidates.update(np.geomspace(64, max(64, longest), 48).astype(int).tolist())
    candidates = {c for c in candidates if c >= min(64, longest)}
    return min(candidates, key=lambda c: (int(np.sum(-(-counts // c))) * (c + 8), -c))


def _whole_objects(index: np.ndarray, rows_of: np.ndarray, rows: int, length: int) -> Layout:
    bins = _best_packing(index, rows_of, rows)
    rows = max(int(rows_of[b].sum()) for b in bins)
    num_segments = max(len(b) for b in bins)
    segment = np.full((len(bins), rows), num_segments)
    owner = np.full((len(bins), num_segments), -1)
    start = np.zeros((len(bins), rows), int)
    for i, members in enumerate(bins):
        owner[i, : len(members)] = members
        row = 0
        for local, obj in enumerate(members):
            k = int(rows_of[obj])
            segment[i, row : row + k] = local
            start[i, row : row + k] = length * np.arange(k)
            row += k
    return Layout(length, segment, owner, start, spanning=False)


def _best_packing(index: np.ndarray, rows_of: np.ndarray, rows: int) -> list[list[int]]:
    """Objects in bins of at most about `rows` rows, with few rows unused in the fullest shape."""
    total, largest = int(rows_of[index].sum()), int(rows_of[index].max())
    fewest = -(-total // max(rows, largest))
    best: list[list[int]] = []
    size = np.inf
    # Slightly more blocks than the fewest possible often fit better, and so do higher ones.
    for num_blocks in range(fewest, 2 * fewest + 2):
        for slack in (1.0, 1.02, 1.05, 1.1):
            bins = _pack(index, rows_of, max(largest, int(slack * -(-total // num_blocks))))
            used = len(bins) * max(int(rows_of[b].sum()) for b in bins)
            if used < size:
                best, size = bins, used
            if size <= 1.02 * total:
                return best
    return best


def _pack(index: np.ndarray, rows_of: np.ndarray, rows: int) -> list[list[int]]:
    """First-fit-decreasing bin packing of objects into blocks of `rows` rows."""
    bins: list[list[int]] = []
    room: list[int] = []
    for obj in sorted(index.tolist(), key=lambda i: -rows_of[i]):
        need = int(rows_of[obj])
        place = next((i for i, free in enumerate(room) if free >= need), None)
        if place is None:
            bins.append([])
            room.append(rows)
            place = len(bins) - 1
        bins[place].append(obj)
        room[place] -= need
    return bins


def _spanning_objects(index: np.ndarray, rows_of: np.ndarray, rows: int, length: int) -> Layout:
    segment, owner, start = [], [], []
    for obj in index.tolist():
        for first in range(0, int(rows_of[obj]), rows):
            used = np.arange(first, first + rows) < rows_of[obj]
            segment.append(np.where(used, 0, 1))
            start.append(np.where(used, length * np.arange(first, first + rows), 0))
            owner.append([obj])
    return Layout(length, np.array(segment), np.array(owner), np.array(start), spanning=True)


def bandwidths(x: np.ndarray, owner: np.ndarray, neighbours: int) -> np.ndarray:
    """Local spacing of the draws of each owner: half the mean distance to the `neighbours`-th ones.

    `x` and `owner` are flat; the spacing of a draw is measured among draws of the same owner only.
    """
    order = np.lexsort((x, owner))
    x_sorted, who = x[order], owner[order]
    first = np.searchsorted(who, who, side="left")
    last = np.searchsorted(who, who, side="right") - 1
    i = np.arange(len(x))
    low, high = np.maximum(i - neighbours, first), np.minimum(i + neighbours, last)
    spread = 0.5 * (x_sorted[high] - x_sorted[low]) * (2 * neighbours / np.maximum(high - low, 1))
    width = np.empty_like(x_sorted)
    # Repeated draws have no spacing; a tiny one keeps the kernel proper.
    width[order] = np.maximum(spread, 1e-9 * (np.abs(x_sorted) + 1.0))
    return width


def spread_subset(x: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Which `num` of the points `x` (point, dim) to keep, in order; all where there are no more.

    Each has the same chance. The points are put in the order of a tree that halves them at the
    median of one coordinate after the other, and one is taken at random from each of `num` equal
    lengths of it (stratified sampling): sums of functions over the points taken scatter less than
    over as many taken from all.
    """
    size, dim = x.shape
    if num >= size:
        return np.arange(size)
    order = np.arange(size)
    for level in range(int(np.ceil(np.log2(num)))):
        node = np.arange(size) * 2**level // size
        order = order[np.lexsort((x[order, level % dim], node))]
    return np.sort(order[((rng.random(num) + np.arange(num)) * size / num).astype(int)])


def as_columns(draws: Sequence[Mapping[str, np.ndarray]], name: str) -> list[np.ndarray]:
    """One parameter of every object, as one-dimensional arrays; none is copied."""
    return [np.asarray(d[name]).reshape(-1) for d in draws]
