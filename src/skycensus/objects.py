r"""What a fitted population says of each object, for every form of likelihood.

$$p(\theta_i | \mathbf d) = \int p(\theta_i | d_i, \Lambda)\, p(\Lambda | \mathbf d)\, d\Lambda$$

is sampled by drawing $\Lambda$ from the posterior and $\theta_i$ from `Likelihood.draw`: estimates
shrink towards the population, the more the less an object's own data say.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .analysis import compile_clock, peak_memory
from .blocks import in_blocks
from .density import leaves, log_terms, logsumexp_terms
from .errors import InputError, did_you_mean
from .keys import generator
from .likelihood.leaves import memberships
from .model import HierarchicalModel
from .predictive import hyperparameter_draws
from .result import Result
from .status import Status

# Draws times objects that are kept; with more objects, fewer draws of each.
_MOST_NUMBERS = 2 * 10**7
_MOST_WEIGHTS = 5e7
# Parts in which they are drawn, for as many cores.
_PARTS = 8


class ObjectPosteriors(NamedTuple):
    """Posteriors of the objects of a fitted model.

    Attributes:
        names: of the objects.
        draws: parameter name -> (draw, object), of equal weight.
        membership: path of the leaf -> (object,) probability, for mixtures; else empty.
        most_probable: parameter name -> (object,) at the maximum of the posterior density, where
            it was sought; else empty.
    """

    names: tuple[str, ...]
    draws: dict[str, np.ndarray]
    membership: dict[str, np.ndarray]
    most_probable: Mapping[str, np.ndarray] = MappingProxyType({})

    def of(self, name: str) -> dict[str, np.ndarray]:
        """The draws of one object, parameter name -> (draw,).

        Raises:
            InputError: no such object.
        """
        if name not in self.names:
            raise InputError(f"there is no object '{name}'{did_you_mean(name, self.names)}.")
        index = self.names.index(name)
        return {parameter: x[:, index] for parameter, x in self.draws.items()}

    def summary(self) -> dict[str, np.ndarray]:
        """Column name -> (object,): mean, sd and 5, 16, 50, 84, 95 % of each parameter.

        And its most probable value, `map`, and the memberships, `p`, where they are known.
        """
        columns: dict[str, np.ndarray] = {}
        for parameter, x in self.draws.items():
            columns[f"{parameter}_mean"] = x.mean(axis=0)
            columns[f"{parameter}_sd"] = x.std(axis=0)
            levels = np.quantile(x, [0.05, 0.16, 0.5, 0.84, 0.95], axis=0)
            for label, level in zip(("5", "16", "50", "84", "95"), levels, strict=True):
                columns[f"{parameter}_{label}"] = level
            if parameter in self.most_probable:
                columns[f"{parameter}_map"] = self.most_probable[parameter]
        return columns | {f"p_{path}": p for path, p in self.membership.items()}


def object_posteriors(
    model: HierarchicalModel, result: Result, *, key: Any, num_draws: int = 1000
) -> ObjectPosteriors:
    """Draw every object's parameters from its posterior given all the data.

    Memberships are averaged over the same draws of the hyperparameters.

    Args:
        model: what was fitted.
        result: its posterior; `Latent` objects have their draws there.
        key: where all randomness comes from.
        num_draws: for each object; fewer where there are very many objects, or draws of them.

    Raises:
        InputError: a form of likelihood that cannot draw.
    """
    form = model.likelihood
    if result.latents:
        return _from_latents(model, result, key, num_draws)
    if not hasattr(form, "draw"):
        raise InputError(
            f"objects known by a {type(form).__name__} have no posteriors to draw: the form has no "
            "method `draw`."
        )
    # Objects known by draws are weighed anew, all of them, for each draw.
    cost = float(np.sum(getattr(form, "num_draws", 0.0)))
    most = min(_MOST_NUMBERS // max(len(form.names), 1), int(_MOST_WEIGHTS / max(cost, 1.0)))
    num = max(16, min(num_draws, most))
    hyper_key, draw_key = jax.random.split(key)
    every = hyperparameter_draws(result, num, key=hyper_key, prior=model.prior)
    hyper = {name: np.asarray(x, float) for name, x in every.items()}

    def one(form: Any, point: Any) -> Any:
        key, hyper = point[""], {n: x for n, x in point.items() if n}
        density = model.population(hyper)
        # Of a density that is no mixture every object is a member.
        tree = memberships(form, density) if len(leaves(density)) > 1 else {}
        return form.draw(density, jax.random.wrap_key_data(key)), tree

    many = jax.jit(lambda form, points: jax.lax.map(lambda point: one(form, point), points))
    keys = np.asarray(jax.random.key_data(jax.random.split(draw_key, num)))
    draws, tree = in_blocks(
        lambda points: many(form, points), {**hyper, "": keys}, -(-num // _PARTS)
    )
    membership = {path: p.mean(axis=0) for path, p in tree.items()}
    return ObjectPosteriors(tuple(form.names), draws, membership)


def _from_latents(
    model: HierarchicalModel, result: Result, key: Any, num_draws: int
) -> ObjectPosteriors:
    """Draws that were made together with the hyperparameters, and memberships at them."""
    num_draws = max(16, min(num_draws, _MOST_NUMBERS // max(len(result.object_names), 1)))
    draws: dict[str, Any] = dict(result.equal_weight_draws(generator(key), num_draws, latents=True))
    theta = {name: jnp.asarray(draws.pop(name)) for name in result.latents}
    hyper = model.prior.complete({name: draws[name] for name in model.prior.names})
    given = getattr(model.likelihood, "given", {})

    def shares(both: Any) -> dict[str, Any]:
        h, theta = both
        terms = log_terms(model.population(h), {**given, **theta})
        total = logsumexp_terms(terms)
        return {path: jnp.exp(term - total) for path, term in terms.items()}

    tree = jax.jit(lambda *both: jax.lax.map(shares, both))(
        {name: jnp.broadcast_to(jnp.asarray(x, float), num_draws) for name, x in hyper.items()},
        theta,
    )
    return ObjectPosteriors(
        tuple(result.object_names),
        {name: np.asarray(x) for name, x in theta.items()},
        {path: np.asarray(p).mean(axis=0) for path, p in tree.items()} if len(tree) > 1 else {},
    )


def single_object(
    model: HierarchicalModel, key: Any, *, truth: Any = None, num_draws: int = 100_000
) -> Result:
    """The posterior of the one object of a model whose population is fully known.

    The draws are independent; the log evidence is the object's log marginal.

    Raises:
        InputError: more than one object, or a form that cannot draw.
    """
    form = model.likelihood
    if len(form.names) != 1:
        raise InputError(
            f"the population has no free hyperparameters and there are {len(form.names)} objects: "
            "there is nothing to infer of them together; choose one object, or free a "
            "hyperparameter."
        )
    if not hasattr(form, "draw"):
        raise InputError(f"an object known by a {type(form).__name__} cannot be drawn.")

    def draw(form: Any, keys: Any) -> Any:
        density = model.population(model.prior.complete({}))
        drawn = jax.lax.map(lambda k: form.draw(density, k), keys, batch_size=256)
        return drawn, form.log_marginal(density)

    with compile_clock() as compiling:
        began = time.perf_counter()
        draws, marginal = jax.jit(draw)(form, jax.random.split(key, num_draws))
        draws = {name: np.asarray(x).reshape(1, -1) for name, x in draws.items()}
        spent = time.perf_counter() - began
    compiled = min(compiling(), spent)
    return Result(
        draws,
        Status(True),
        # Equal, for draws that are independent: nothing is to be looked for between them.
        log_weight=np.zeros((1, num_draws)),
        log_evidence=float(marginal.value[0]),
        log_evidence_error=float(np.sqrt(marginal.variance[0])),
        fixed=dict(model.prior.fixed),
        truth=None if truth is None else dict(truth),
        object_names=list(form.names),
        seconds={"compiling": compiled, "sampling": spent - compiled},
        peak_memory_bytes=peak_memory(),
    )
