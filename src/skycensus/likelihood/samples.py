r"""Objects known by draws of theta: the Monte Carlo form, and the one Monte Carlo estimator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..density import Density, Kernels, Population, log_terms
from ..errors import InputError, did_you_mean
from . import LogMarginal
from .estimator import add_up, log_sums, variance_of_log
from .layout import Layout, as_columns, bandwidths, fill, padding, plan, spread_subset
from .staging import Staged, stage

# Numbers per block: the few arrays that are alive at a time then stay in a core's cache on a CPU,
# and are large enough to be shared between cores; an accelerator wants more of them at once.
_BLOCK_SIZE = {"cpu": 2**17}
_BLOCK_SIZE_ACCELERATOR = 2**24


class _Blocks(eqx.Module):
    """The draws of some objects in equal blocks, (num_blocks, rows, length) per column."""

    data: Any
    log_ref: Array
    segment: Array
    owner: Array
    spanning: bool = eqx.field(static=True)
    one_row_each: bool = eqx.field(static=True)


class Rows(NamedTuple):
    """A block of rows of draws, each of one object.

    Attributes:
        theta: parameter name -> (rows, length).
        log_ref: (rows, length), +inf where there is no draw.
        owner: (rows,), the number of the object, -1 where there is none.
        number: of the block.
    """

    theta: Mapping[str, Array]
    log_ref: Array
    owner: Array
    number: Array


class Samples(eqx.Module):
    r"""Objects known by draws $\theta_{ij}$ from a density $e^{\ell_{ij}}$ (`log_ref`).

    $$\ln m_i = \ln \frac1{N_i} \sum_j \frac{p(\theta_{ij})}{e^{\ell_{ij}}},\qquad
      \operatorname{var} = \frac1{n_\mathrm{eff}} - \frac1{N_i},\quad
      n_\mathrm{eff} = \frac{(\sum_j w_j)^2}{\sum_j w_j^2},$$

    (Farr 2019, arXiv:1904.10879; Essick & Farr 2022, arXiv:2204.00461). Posterior draws have the
    prior that the analysis used as reference; found injections have the density that they were
    injected with, and `num_drawn` counts the missed ones too.

    Args:
        draws: one mapping per object, parameter name -> array of draws; counts may differ.
        log_ref: one array per object, the log reference density of each draw, in the coordinates of
            `draws`, up to a constant per object (which cancels in everything but the evidence).
        names: names of the objects, for messages and results.
        num_drawn: per object, the number of draws made, where more were made than are given.
        dtype: evaluate the density in this precision (sums are always accumulated in JAX's default
            one); 32-bit is about twice as fast and good to about 1e-6 per object.
        block_size: numbers per block; the default suits the machine.

    Raises:
        InputError: no objects or no draws, different parameters, lengths that do not match, or a
            value that is not finite; the object and the parameter are named.
    """

    blocks: tuple[_Blocks, ...]
    num_drawn: Array
    num_draws: Array
    names: tuple[str, ...] = eqx.field(static=True)
    parameters: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        draws: Sequence[Mapping[str, Any]],
        log_ref: Sequence[Any],
        *,
        names: Sequence[str] | None = None,
        num_drawn: Sequence[int] | None = None,
        dtype: Any = None,
        block_size: int | None = None,
    ):
        names = (
            tuple(names) if names is not None else tuple(f"object {i}" for i in range(len(draws)))
        )
        self.parameters = _check(draws, log_ref, names)
        self.names = names
        refs = [np.asarray(r).reshape(-1) for r in log_ref]
        counts = np.array([len(r) for r in refs])
        if num_drawn is not None:
            _check_num_drawn(num_drawn, counts, names)
        dtype = np.dtype(dtype or jnp.result_type(float))
        size = block_size or _BLOCK_SIZE.get(jax.default_backend(), _BLOCK_SIZE_ACCELERATOR)
        self.blocks = tuple(
            _blocks(layout, self.parameters, draws, refs, dtype) for layout in plan(counts, size)
        )
        self.num_draws = jnp.asarray(counts, float)
        self.num_drawn = jnp.asarray(counts if num_drawn is None else num_drawn, float)

    def log_marginal(self, density: Density) -> LogMarginal:
        r"""Estimate $\ln \int L_i(\theta)\,p(\theta)\,d\theta$ for every object; see the class."""
        staged = stage(lambda _, data: log_terms(density, _theta(data)), (), self._example())
        combine = partial(_both_parts, staged)
        return _log_marginal(combine, staged.parameters(()), self)

    def draw(self, density: Density, key: Any) -> dict[str, Array]:
        r"""Choose one of every object's draws with the weights $p(\theta_{ij}) / e^{\ell_{ij}}$.

        NaN for an object without a draw inside the population.
        """

        def best(rows: Rows) -> Any:
            # The largest of log weight + Gumbel noise is a draw with these weights.
            noise = jax.random.gumbel(jax.random.fold_in(key, rows.number), rows.log_ref.shape)
            score = density.log_prob(rows.theta) - rows.log_ref + noise
            at = jnp.argmax(score, axis=1)[:, None]
            chosen = {n: jnp.take_along_axis(x, at, 1)[:, 0] for n, x in rows.theta.items()}
            return jnp.take_along_axis(score, at, 1)[:, 0], chosen, rows.owner

        score, chosen, owner = self.map_rows(best)
        size = len(self.names)
        owner = jnp.where(owner < 0, size, owner)
        top = jax.ops.segment_max(score, owner, size + 1)
        row = jnp.where(score == top[owner], jnp.arange(len(score)), len(score))
        row = jax.ops.segment_min(row, owner, size + 1)[:size]
        # Finite: of -inf nothing can be drawn, and NaN stays NaN.
        some = jnp.isfinite(top[:size])
        return {n: jnp.where(some, x[row], jnp.nan) for n, x in chosen.items()}

    def stage(self, population: Population, hyperparameters: Mapping[str, Any]) -> StagedSamples:
        """Prepare for many evaluations of `population`: do now what depends on the draws alone.

        `hyperparameters` is any valid point; only its names and shapes matter.
        """
        dtype = self.blocks[0].log_ref.dtype
        hyper = _cast(dict(hyperparameters), dtype)
        staged = stage(
            lambda h, data: log_terms(population(h), _theta(data)), hyper, self._example()
        )
        columns = jax.jit(jax.vmap(staged.columns))
        blocks = tuple(eqx.tree_at(lambda b: b.data, b, columns(b.data)) for b in self.blocks)
        return StagedSamples(
            eqx.tree_at(lambda s: s.blocks, self, blocks),
            staged.parameters,
            staged.combine,
            tuple(hyper),
        )

    def softened(self, neighbours: int = 8, dtype: Any = jnp.float32) -> Samples:
        r"""The same objects, with every draw a small Gaussian kernel at the spacing of the draws.

        A hard edge of a population, as a function of its hyperparameters, makes the plain estimator
        jump where it passes a draw; here draws pass the edge gradually, so that the estimate is as
        smooth as the data allow. Weight by the ratio to the plain estimator for exact results;
        since that must be done anyway, 32-bit is precise enough.
        """
        blocks = tuple(_with_widths(b, neighbours) for b in self.blocks)
        blocks = tuple(
            eqx.tree_at(lambda b: (b.data, b.log_ref), b, _cast((b.data, b.log_ref), dtype))
            for b in blocks
        )
        return eqx.tree_at(lambda s: s.blocks, self, blocks)

    def map_rows(self, function: Callable[[Rows], Any]) -> Any:
        """Apply `function` to the draws, a block of rows at a time; see `Rows`.

        It returns arrays (rows, ...), which come back for all rows, an object's draws in order.
        """

        def one(number_and_block: Any) -> Any:
            number, block = number_and_block
            owner = jnp.append(block.owner, -1)[block.segment]
            return function(Rows(_theta(block.data), block.log_ref, owner, number))

        parts, first = [], 0
        for group in self.blocks:
            size = len(group.log_ref)
            parts.append(jax.lax.map(one, (jnp.arange(first, first + size), group)))
            first += size
        rows = [jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), part) for part in parts]
        return jax.tree.map(lambda *x: jnp.concatenate(x), *rows)

    def object_draws(self, index: int) -> dict[str, np.ndarray]:
        """The draws of one object, name -> (draw,), with `log_ref` among them."""
        return self._all_draws([index])[0]

    def _all_draws(self, objects: Sequence[int]) -> list[dict[str, np.ndarray]]:
        values = self.map_rows(lambda r: ({**r.theta, "log_ref": r.log_ref}, r.owner))
        rows, owner = jax.tree.map(np.asarray, values)
        found = []
        for index in objects:
            own = {name: x[owner == index].ravel() for name, x in rows.items()}
            found.append({name: x[own["log_ref"] < np.inf] for name, x in own.items()})
        return found

    def thinned(self, num: int | None, rng: np.random.Generator, *, dtype: Any = None) -> Samples:
        """The same objects with `num` of the draws of each (all, where it has no more).

        Every draw has the same chance to be chosen, so that sums over draws stay unbiased; those
        chosen are spread evenly over the object's draws (`spread_subset`).

        Args:
            num: draws of an object; None keeps them all.
            rng: chooses.
            dtype: evaluate the density in this precision; by default as before.
        """
        if num is not None and num < 1:
            raise InputError(f"Samples: {num} draws of each object are too few; give 1 or more.")
        draws, log_ref, num_drawn = [], [], []
        every = self._all_draws(range(len(self.names)))
        for own, drawn in zip(every, np.asarray(self.num_drawn), strict=True):
            ref = own.pop("log_ref")
            kept = spread_subset(np.stack(list(own.values()), axis=1), num or len(ref), rng)
            draws.append({name: x[kept] for name, x in own.items()})
            log_ref.append(ref[kept])
            num_drawn.append(max(drawn * len(kept) / len(ref), len(kept)))
        dtype = self.blocks[0].log_ref.dtype if dtype is None else dtype
        return Samples(draws, log_ref, names=self.names, num_drawn=num_drawn, dtype=dtype)

    def _example(self) -> Any:
        return jax.tree.map(lambda x: x[0], self.blocks[0].data)


class StagedSamples(eqx.Module):
    """`Samples` prepared for one population: log marginals as functions of hyperparameters."""

    samples: Samples
    _parameters: Callable[..., Any] = eqx.field(static=True)
    _combine: Callable[..., Any] = eqx.field(static=True)
    hyperparameters: tuple[str, ...] = eqx.field(static=True)

    def _values(self, hyperparameters: Mapping[str, Any]) -> tuple[Array, ...]:
        for name in self.hyperparameters:
            if name not in hyperparameters:
                raise InputError(
                    f"hyperparameter '{name}' is missing{did_you_mean(name, hyperparameters)}; the "
                    f"population was prepared with {list(self.hyperparameters)}."
                )
        point = {name: hyperparameters[name] for name in self.hyperparameters}
        return self._parameters(_cast(point, self.samples.blocks[0].log_ref.dtype))

    def log_marginal(self, hyperparameters: Mapping[str, Any]) -> LogMarginal:
        """Per-object log marginals of the population at `hyperparameters`."""
        return _log_marginal(self._combine, self._values(hyperparameters), self.samples)

    def inside(self, hyperparameters: Mapping[str, Any]) -> Array:
        """The number of draws inside the support of the population."""
        values = self._values(hyperparameters)

        def count(block: _Blocks) -> Array:
            terms = list(self._combine(values, block.data).values())
            top = [jnp.broadcast_to(t, block.log_ref.shape) > -jnp.inf for t in terms]
            return jnp.sum(jnp.any(jnp.stack(top), 0) & (block.log_ref < jnp.inf))

        return sum(
            (jnp.sum(jax.lax.map(count, b)) for b in self.samples.blocks), jnp.zeros((), int)
        )

    def total(self, hyperparameters: Mapping[str, Any], *, variance: bool = False) -> LogMarginal:
        r"""$\sum_i \ln m_i$ and, if asked for, the sum of the variances (else zero).

        Value and gradient come from one pass over the draws: the gradient of a block is made where
        the block is at hand, so nothing of the size of the draws is kept for a backward pass.
        """
        return _total(self._combine, self._values(hyperparameters), self.samples, variance)


def _check(
    draws: Sequence[Mapping[str, Any]], log_ref: Sequence[Any], names: tuple[str, ...]
) -> tuple[str, ...]:
    if not draws:
        raise InputError("Samples needs at least one object; the list of draws is empty.")
    if not len(draws) == len(log_ref) == len(names):
        raise InputError(
            f"Samples was given {len(draws)} objects, {len(log_ref)} log_ref arrays and "
            f"{len(names)} names; give one of each per object."
        )
    parameters = tuple(draws[0])
    for name, draw, ref in zip(names, draws, log_ref, strict=True):
        for p in draw:
            if p not in parameters:
                raise InputError(f"{name}: parameter '{p}' is not one of {list(parameters)}.")
        for p in parameters:
            if p not in draw:
                raise InputError(f"{name}: parameter '{p}' is missing{did_you_mean(p, draw)}.")
            value = np.asarray(draw[p])
            if value.size == 0:
                raise InputError(f"{name} has no draws; leave it out or give its draws.")
            if value.size != np.size(ref):
                raise InputError(
                    f"{name}: '{p}' has {value.size} draws but log_ref has {np.size(ref)}."
                )
            if bad := int(np.sum(~np.isfinite(value))):
                raise InputError(
                    f"{name}: {bad} of {value.size} draws of '{p}' are not finite; remove them "
                    "before, knowing why they are there."
                )
        if bad := int(np.sum(~np.isfinite(np.asarray(ref, float)))):
            raise InputError(
                f"{name}: log_ref is not finite for {bad} draws: a draw cannot come from where its "
                "reference density is zero; check the reference prior."
            )
    return parameters


def _check_num_drawn(num_drawn: Sequence[int], counts: np.ndarray, names: tuple[str, ...]) -> None:
    if len(num_drawn) != len(names):
        raise InputError(
            f"Samples was given {len(names)} objects but {len(num_drawn)} values of num_drawn; "
            "give one per object."
        )
    for name, drawn, count in zip(names, num_drawn, counts, strict=True):
        if not drawn >= count:
            raise InputError(
                f"{name}: num_drawn={drawn} is less than its {count} draws; it counts all draws "
                "that were made, those that are not given too."
            )


def _blocks(
    layout: Layout,
    parameters: tuple[str, ...],
    draws: Sequence[Mapping[str, Any]],
    refs: list[np.ndarray],
    dtype: np.dtype,
) -> _Blocks:
    # One column at a time goes straight into its blocks: the draws may fill most of the memory.
    theta = {p: jnp.asarray(fill(layout, as_columns(draws, p), dtype)) for p in parameters}
    log_ref = fill(layout, refs, dtype)
    log_ref[padding(layout, np.array([len(r) for r in refs]))] = np.inf  # no weight
    rows = layout.segment.shape[1]
    one_row_each = rows == layout.num_segments and bool(
        np.all(layout.segment == np.arange(rows)) or rows == 1
    )
    return _Blocks(
        data={"theta": theta},
        log_ref=jnp.asarray(log_ref),
        segment=jnp.asarray(layout.segment, jnp.int32),
        owner=jnp.asarray(layout.owner, jnp.int32),
        spanning=layout.spanning,
        one_row_each=one_row_each,
    )


def _with_widths(blocks: _Blocks, neighbours: int) -> _Blocks:
    num_blocks, rows, length = blocks.log_ref.shape
    # Unused rows and padded draws are given to nobody, so that they do not count as neighbours.
    segments = np.pad(np.asarray(blocks.owner), ((0, 0), (0, 1)), constant_values=-1)
    owner = np.take_along_axis(segments, np.asarray(blocks.segment), axis=1)
    owner = np.repeat(owner.reshape(-1), length)
    owner = np.where(np.isinf(np.asarray(blocks.log_ref).reshape(-1)), -1, owner)
    width = {
        p: jnp.asarray(
            bandwidths(np.asarray(x).reshape(-1), owner, neighbours).reshape(
                num_blocks, rows, length
            ),
            x.dtype,
        )
        for p, x in blocks.data["theta"].items()
    }
    return eqx.tree_at(lambda b: b.data, blocks, {**blocks.data, "width": width})


def _theta(data: Any) -> Mapping[str, Array]:
    return Kernels(data["theta"], data["width"]) if "width" in data else data["theta"]


def _both_parts(staged: Staged, values: Any, data: Any) -> Any:
    return staged.combine(values, staged.columns(data))


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


# --- sums over blocks -------------------------------------------------------------------------


def _block_sums(
    combine: Callable[..., Any], values: Any, block: _Blocks, squares: bool
) -> tuple[Array, Array]:
    """`log_sums` for every object of one block."""
    terms = list(combine(values, block.data).values())
    shape = block.log_ref.shape
    terms = [jnp.broadcast_to(t, shape) for t in terms]
    first, second = log_sums(terms, block.log_ref, squares=squares)
    if block.one_row_each:
        return first, second
    num_segments = block.owner.shape[-1]
    first = add_up(first, block.segment, num_segments)
    return first, add_up(second, block.segment, num_segments) if squares else first


def _log_marginal(combine: Callable[..., Any], values: Any, samples: Samples) -> LogMarginal:
    size = len(samples.names)
    value = jnp.full(size, -jnp.inf)
    second = jnp.full(size, -jnp.inf)
    for group in samples.blocks:
        one = jax.checkpoint(lambda block: _block_sums(combine, values, block, True))
        firsts, seconds = jax.lax.map(one, group)
        owner = jnp.where(group.owner < 0, size, group.owner).reshape(-1)
        value = jnp.logaddexp(value, add_up(firsts.reshape(-1), owner, size))
        second = jnp.logaddexp(second, add_up(seconds.reshape(-1), owner, size))
    variance = variance_of_log(value, second, samples.num_drawn)
    return LogMarginal(value - jnp.log(samples.num_drawn), variance)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _one_pass(function: Callable[..., Array], values: Any, block: Any) -> Array:
    """`function(values, block)`, a short vector, whose forward pass also makes its Jacobian."""
    return function(values, block)


def _one_pass_forward(function: Callable[..., Array], values: Any, block: Any) -> Any:
    out, pull = jax.vjp(lambda v: function(v, block), values)
    jacobian = [pull(row)[0] for row in jnp.eye(out.size, dtype=out.dtype)]
    return out, jacobian


def _one_pass_backward(function: Callable[..., Array], jacobian: Any, cotangent: Array) -> Any:
    del function
    rows = [jax.tree.map(lambda g, c=c: (c * g).astype(g.dtype), row)
            for c, row in zip(cotangent, jacobian, strict=True)]  # fmt: skip
    return jax.tree.map(lambda *g: sum(g), *rows), None


_one_pass.defvjp(_one_pass_forward, _one_pass_backward)


def _total(
    combine: Callable[..., Any], values: Any, samples: Samples, variance: bool
) -> LogMarginal:
    smooth, rest = eqx.partition(values, eqx.is_inexact_array)
    value = -jnp.sum(jnp.log(samples.num_drawn))
    spread = jnp.zeros(())

    def sums(smooth: Any, block_and_rest: Any) -> tuple[Array, Array, Array]:
        block, rest, num_drawn = block_and_rest
        both = _block_sums(combine, eqx.combine(smooth, rest), block, variance)
        return *both, jnp.where(block.owner < 0, 1.0, num_drawn[block.owner])

    def whole(smooth: Any, block_and_rest: Any) -> Array:
        first, second, drawn = sums(smooth, block_and_rest)
        used = block_and_rest[0].owner >= 0
        out = [jnp.sum(jnp.where(used, first, 0.0))]
        if variance:
            out.append(jnp.sum(jnp.where(used, variance_of_log(first, second, drawn), 0.0)))
        return jnp.stack(out)

    def part(smooth: Any, block_and_rest: Any) -> Array:
        first, second, _ = sums(smooth, block_and_rest)
        return jnp.stack([first[0], second[0]][: 2 if variance else 1])

    for group in samples.blocks:
        function = part if group.spanning else whole
        out = jax.lax.map(
            lambda b, f=function: _one_pass(f, smooth, (b, rest, samples.num_drawn)), group
        )
        if not group.spanning:
            value = value + jnp.sum(out[:, 0])
            spread = spread + (jnp.sum(out[:, 1]) if variance else 0.0)
            continue
        size = len(samples.names)
        owner = group.owner[:, 0]
        present = jnp.zeros(size, bool).at[owner].set(True)
        first = add_up(out[:, 0], owner, size)
        value = value + jnp.sum(jnp.where(present, first, 0.0))
        if variance:
            second = add_up(out[:, 1], owner, size)
            each = variance_of_log(first, second, samples.num_drawn)
            spread = spread + jnp.sum(jnp.where(present, each, 0.0))
    return LogMarginal(value, spread)
