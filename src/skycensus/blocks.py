"""One compiled function called many times: on blocks of long columns, and on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def in_blocks(
    function: Callable[[dict[str, np.ndarray]], Any], columns: Mapping[str, Any], size: int
) -> Any:
    """Return what `function` makes of the columns, evaluated `size` rows at a time, on all cores.

    Args:
        function: name -> array of `size` rows to arrays of as many, in any pytree; jitted or not.
        columns: name -> array (row, ...), all of one length.
        size: rows in a block; the last block repeats its last row.

    Returns:
        The pytree of `function`, with 64-bit NumPy arrays of the columns' length.
    """
    rows = {name: np.asarray(x) for name, x in columns.items()}
    num = len(next(iter(rows.values())))
    missing = -num % size if num else size
    padded = {n: _longer(x, missing) for n, x in rows.items()}
    starts = range(0, num + missing, size)
    blocks = [{n: x[i : i + size] for n, x in padded.items()} for i in starts]
    parts = list(on_all_cores(function, blocks))
    return jax.tree.map(lambda *x: np.concatenate([np.asarray(p, float) for p in x])[:num], *parts)


def _longer(x: np.ndarray, by: int) -> np.ndarray:
    last = x[-1:] if len(x) else np.zeros((1, *x.shape[1:]), x.dtype)
    return np.concatenate([x, np.repeat(last, by, axis=0)])


def on_all_cores(function: Callable[[Any], Any], arguments: Sequence[Any]) -> Iterator[Any]:
    """`function` of every argument, in order; on a CPU as many calls at a time as it has cores.

    A program that scans over blocks keeps one core busy, whatever its size. The first call is made
    alone, so that nothing is compiled twice.
    """
    cores = os.cpu_count() or 1
    if len(arguments) < 2 or cores == 1 or jax.default_backend() != "cpu":
        yield from map(function, arguments)
        return
    yield jax.block_until_ready(function(arguments[0]))
    with ThreadPoolExecutor(cores) as threads:
        yield from threads.map(lambda a: jax.block_until_ready(function(a)), arguments[1:])


def over_blocks(function: Callable[[Any], Any], rows: Any, size: int) -> Any:
    """Apply `function` to equal blocks of about `size` rows, within compiled code.

    What it needs in between is then alive for a block at a time. The last block may overlap the one
    before it.
    """
    total = len(jax.tree.leaves(rows)[0])
    num = -(-total // size)
    if num == 1:
        # Outside of compiled code a program for each of its steps would take far longer to make.
        return jax.jit(lambda some: function(some))(rows)
    size = -(-total // num)

    def one(start: Array) -> Any:
        return function(jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), rows))

    out = jax.lax.map(one, jnp.minimum(jnp.arange(num) * size, total - size))
    rest = total - (num - 1) * size

    def join(x: Array) -> Array:
        return jnp.concatenate([x[:-1].reshape(-1, *x.shape[2:]), x[-1, size - rest :]])

    return jax.tree.map(join, out)
