"""A population narrower than the spacing of its objects' draws: raw draws, and learned densities.

python run.py [OUT]
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from skycensus import Grid, HierarchicalModel, ImportanceSampler, Joint, Prior, Samples
from skycensus.estimators import fit_density
from skycensus.likelihood import learned_samples

NUM_OBJECTS, NUM_DRAWS = 100, 40
TRUTH = {"mean": 1.0, "width": 0.12}
SIGMA = np.array([0.6, 0.9])
PRIOR = Prior({"mean": dist.Uniform(-1.0, 3.0), "width": dist.Uniform(0.02, 1.0)})


def population(h):
    """x scatters about a mean; y is a nuisance of the same objects with a known distribution."""
    return Joint(x=dist.Normal(h["mean"], h["width"]), y=dist.Normal(0.0, 0.3))


def objects(seed: int = 1) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
    """What was measured of every object, and draws of its posterior under a flat prior."""
    rng = np.random.default_rng(seed)
    true = np.stack(
        [rng.normal(TRUTH["mean"], TRUTH["width"], NUM_OBJECTS), rng.normal(0, 0.3, NUM_OBJECTS)],
        axis=1,
    )
    seen = true + SIGMA * rng.normal(size=true.shape)
    draws = seen[:, None] + SIGMA * rng.normal(size=(NUM_OBJECTS, NUM_DRAWS, 2))
    return seen, [{"x": d[:, 0], "y": d[:, 1]} for d in draws]


def flat(theta):
    """The log prior that the draws were made with."""
    return jnp.zeros_like(theta["x"])


def forms(seen: np.ndarray, draws: list[dict[str, np.ndarray]]) -> dict[str, tuple]:
    """The same objects known by their draws, by densities of these, and exactly."""
    key = jax.random.key(1)
    densities = [
        fit_density(jax.random.fold_in(key, i), d, kind="gaussian", report=False)
        for i, d in enumerate(draws)
    ]
    x = np.linspace(-4.0, 6.0, 1001)
    # y integrates to a number; the rest is a Gaussian in x.
    exact = -0.5 * ((x - seen[:, :1]) / SIGMA[0]) ** 2
    return {
        "raw draws": (population, Samples(draws, [np.zeros(NUM_DRAWS)] * NUM_OBJECTS)),
        "learned": (population, learned_samples(densities, flat, key=key, num_draws=4000)),
        "exact": (
            lambda h: Joint(x=dist.Normal(h["mean"], h["width"])),
            Grid({"x": x}, exact, np.log(x[1] - x[0])),
        ),
    }


def posterior(form: tuple, key):
    """The posterior of the hyperparameters with this form of the objects."""
    density, likelihood = form
    model = HierarchicalModel(PRIOR, density, likelihood, rate="shape")
    return ImportanceSampler(target_ess=4000).run(model.target(), key)


def figure(results: dict, path: Path) -> None:
    from matplotlib.figure import Figure

    from skycensus.plots import save_figures
    from skycensus.plots.style import COLOURS, style

    with style():
        made = Figure(figsize=(7.0, 3.0))
        for axes, name in zip(made.subplots(1, 2), TRUTH, strict=True):
            for colour, (label, result) in zip(COLOURS, results.items(), strict=False):
                axes.hist(
                    result.draws[name].ravel(),
                    weights=result.weights.ravel(),
                    bins=60,
                    density=True,
                    histtype="step",
                    color="black" if label == "exact" else colour,
                    label=label,
                )
            axes.axvline(TRUTH[name], color="0.5", ls=":")
            axes.set(xlabel=name, yticks=[])
        axes.legend()
    save_figures({"posteriors": made}, path)


def main(out: str = "results") -> None:
    jax.config.update("jax_enable_x64", True)
    results = {}
    for name, form in forms(*objects()).items():
        results[name] = posterior(form, jax.random.key(2))
        rows = results[name].summary()
        told = ", ".join(f"{n} = {rows[n]['mean']:.3f} ± {rows[n]['sd']:.3f}" for n in TRUTH)
        print(f"{name:>9}: {told}")
    figure(results, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
