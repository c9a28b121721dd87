r"""Where the nodes of a small layered graph with plates are drawn.

Rows follow from the longest path to a node without children; within a row nodes lie as near to the
middle of their neighbours as their order and widths allow.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

# In units of daft's grid (two node diameters).
_NODE = 0.5
_GAP = 0.3
_MARGIN = 0.22
_LABEL_ROOM = 0.18
_EDGE = 0.1
_SWEEPS = 6

Edges = Sequence[tuple[str, str]]


class Placed(NamedTuple):
    """Positions of the nodes, (left, bottom, width, height) of the plates, and what holds all:
    left, bottom, right, top."""

    nodes: dict[str, tuple[float, float]]
    plates: dict[str, tuple[float, float, float, float]]
    extent: tuple[float, float, float, float]


def arrange(
    plates: Mapping[str, tuple[str, ...]],
    edges: Edges,
    widths: Mapping[str, float],
    dots: Collection[str] = (),
    *,
    labels: Mapping[str, float] | None = None,
) -> Placed:
    """Lay out a graph.

    Args:
        plates: node -> the plates that hold it, from the outermost inwards.
        edges: (parent, child).
        widths: node -> its width in diameters of a circle.
        dots: nodes that are small, with their text above.
        labels: plate -> the width of its text, in diameters of a circle.
    """
    rows = _rows(plates, edges, dots)
    width = {n: max(0.15, _NODE * widths[n]) for n in plates}
    x = _columns(plates, edges, rows, width)
    nodes = {n: (x[n], float(rows[n])) for n in plates}
    texts = {plate: _NODE * w + _LABEL_ROOM for plate, w in (labels or {}).items()}
    boxes = _boxes(plates, nodes, width, texts)
    all_boxes = list(boxes.values())
    all_boxes += [
        (x - 0.5 * width[n], y - 0.5 * _NODE, width[n], _NODE) for n, (x, y) in nodes.items()
    ]
    left, bottom = (min(box[i] for box in all_boxes) - _EDGE for i in (0, 1))
    right, top = (max(box[i] + box[i + 2] for box in all_boxes) + _EDGE for i in (0, 1))
    return Placed(nodes, boxes, (left, bottom, right, top))


def _rows(
    plates: Mapping[str, tuple[str, ...]], edges: Edges, dots: Collection[str]
) -> dict[str, int]:
    """Rows from the bottom up; what is in no plate lies above all plates that it leads to."""
    children: dict[str, list[str]] = {n: [] for n in plates}
    for parent, child in edges:
        children[parent].append(child)
    rows: dict[str, int] = {}

    def row(n: str) -> int:
        if n not in rows:
            below = [row(c) for c in children[n] if c != n]
            # A known quantity lies beside what it enters.
            step = 0 if n in dots and plates[n] and below else 1
            rows[n] = max(below, default=-step) + step
        return rows[n]

    for n in plates:
        row(n)
    top = max((rows[n] for n in plates if plates[n]), default=-1)
    outer = [n for n in plates if not plates[n]]
    # From the bottom up, so that a parent is lifted above what its child was lifted to.
    for n in sorted(outer, key=lambda n: rows[n]):
        below = [rows[c] for c in children[n]]
        has_inner = any(plates[c] for c in children[n])
        if has_inner or below:
            rows[n] = max(top + 1 if has_inner else 0, max(below) + 1)
    return rows


def _columns(
    plates: Mapping[str, tuple[str, ...]],
    edges: Edges,
    rows: Mapping[str, int],
    width: Mapping[str, float],
) -> dict[str, float]:
    order = {r: [n for n in plates if rows[n] == r] for r in sorted(set(rows.values()))}
    near: dict[str, list[str]] = {n: [] for n in plates}
    for parent, child in edges:
        near[parent].append(child)
        near[child].append(parent)
    x = {n: float(i) for row in order.values() for i, n in enumerate(row)}
    for sweep in range(_SWEEPS):
        for r in order if sweep % 2 == 0 else reversed(order):
            row = order[r]
            wish = {n: _wish(n, near[n], x, rows, sweep) for n in row}
            # Members of a plate stay together, with those of no inner plate to the left.
            place = {n: _middle([wish[m] for m in row if plates[m] == plates[n]]) for n in row}
            row.sort(key=lambda n: (not plates[n], place[n], plates[n], wish[n]))
            _spread(row, wish, width, x)
    _clear(edges, rows, width, x)
    _part(plates, rows, width, x)
    middle = 0.5 * (min(x.values()) + max(x.values()))
    return {n: v - middle for n, v in x.items()}


def _wish(
    n: str, near: Sequence[str], x: Mapping[str, float], rows: Mapping[str, int], sweep: int
) -> float:
    """Middle of the neighbours below (even sweeps at first) or above."""
    side = [m for m in near if (rows[m] < rows[n]) == (sweep % 2 == 0) and rows[m] != rows[n]]
    found = side or [m for m in near if rows[m] != rows[n]] or list(near)
    beside = [m for m in near if rows[m] == rows[n]]
    if beside and not side:
        # Beside its neighbour, to the right.
        return _middle([x[m] for m in beside]) + 0.01
    return _middle([x[m] for m in found]) if found else x[n]


def _middle(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _spread(
    row: Sequence[str], wish: Mapping[str, float], width: Mapping[str, float], x: dict[str, float]
) -> None:
    """Nearest positions to the wishes (least squares) that keep order and distance."""
    sizes = [width[n] for n in row]
    step = [0.0] + [0.5 * (a + b) + _GAP for a, b in pairwise(sizes)]
    offset = np.cumsum(step)
    # With the distances taken off, the positions must only not decrease: pooled means.
    blocks: list[list[float]] = []
    for value in np.array([wish[n] for n in row]) - offset:
        blocks.append([value, 1.0])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (a, m), (b, k) = blocks[-2:]
            blocks[-2:] = [[(a * m + b * k) / (m + k), m + k]]
    flat = np.repeat([b[0] for b in blocks], [int(b[1]) for b in blocks])
    x.update(zip(row, (flat + offset).tolist(), strict=True))


def _boxes(
    plates: Mapping[str, tuple[str, ...]],
    nodes: Mapping[str, tuple[float, float]],
    width: Mapping[str, float],
    texts: Mapping[str, float],
) -> dict[str, tuple[float, float, float, float]]:
    out = {}
    for plate in dict.fromkeys(p for path in plates.values() for p in path):
        members = [n for n, path in plates.items() if plate in path]
        # How many plates lie within this one: each needs a margin.
        depth = max(len(plates[n]) - plates[n].index(plate) for n in members)
        side, bottom = _MARGIN * depth, _MARGIN * depth + _LABEL_ROOM * depth
        left = min(nodes[n][0] - 0.5 * width[n] for n in members) - side
        right = max(nodes[n][0] + 0.5 * width[n] for n in members) + side
        # A text that is wider than the members widens their box on both sides.
        more = 0.5 * max(0.0, texts.get(plate, 0.0) - (right - left))
        left, right = left - more, right + more
        low = min(nodes[n][1] for n in members) - 0.5 * _NODE - bottom
        high = max(nodes[n][1] for n in members) + 0.5 * _NODE + side
        out[plate] = (left, low, right - left, high - low)
    return out


def _clear(
    edges: Edges, rows: Mapping[str, int], width: Mapping[str, float], x: dict[str, float]
) -> None:
    """Move nodes sideways, as little as it takes, that lie on an edge between two others."""
    shifts = sorted(np.linspace(-3.0, 3.0, 61), key=abs)
    for n in x:

        def free(at: float, n: str = n) -> bool:
            beside = [m for m in x if rows[m] == rows[n] and m != n]
            if any(abs(at - x[m]) < 0.5 * (width[n] + width[m]) + _GAP - 1e-9 for m in beside):
                return False
            over = [(a, b) for a, b in edges if rows[a] > rows[n] > rows[b]]
            own = [(n, b) if a == n else (a, n) for a, b in edges if n in (a, b)]
            place = {**x, n: at}
            return all(_passes(place, rows, width, e, n) for e in over) and all(
                _passes(place, rows, width, e, m)
                for e in own
                for m in x
                if m not in e and rows[e[0]] > rows[m] > rows[e[1]]
            )

        x[n] = next((x[n] + s for s in shifts if free(x[n] + s)), x[n])


def _passes(
    x: Mapping[str, float],
    rows: Mapping[str, int],
    width: Mapping[str, float],
    edge: tuple[str, str],
    n: str,
) -> bool:
    """Whether an edge that spans the row of `n` leaves it alone."""
    upper, lower = edge
    part = (rows[n] - rows[lower]) / (rows[upper] - rows[lower])
    return abs(x[lower] + part * (x[upper] - x[lower]) - x[n]) > 0.5 * width[n] + 0.1


def _part(
    plates: Mapping[str, tuple[str, ...]],
    rows: Mapping[str, int],
    width: Mapping[str, float],
    x: dict[str, float],
) -> None:
    """Move nodes that are in a plate's rows, but not in it, out of its way to the right."""
    for plate in dict.fromkeys(p for path in plates.values() for p in reversed(path)):
        members = [n for n, path in plates.items() if plate in path]
        inside = {rows[n] for n in members}
        low = min(x[n] - 0.5 * width[n] for n in members) - _MARGIN
        high = max(x[n] + 0.5 * width[n] for n in members) + _MARGIN
        for r in range(min(inside), max(inside) + 1):
            others = [n for n in plates if rows[n] == r and n not in members]
            blocked = [n for n in others if low - 0.4 < x[n] < high + 0.4]
            place = high + _GAP
            for n in sorted(blocked, key=lambda n: x[n]):
                x[n] = place + 0.5 * width[n]
                place = x[n] + 0.5 * width[n] + _GAP
