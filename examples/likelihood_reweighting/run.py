"""A decaying oscillation read with long exposures: a cheap likelihood for a costly one.

    python run.py [--exact]

--exact integrates the costly likelihood over a grid of all three parameters as well.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from skycensus import LearnedProposal, Nested, Prior, QuadratureSampler, Result, Target

TRUTH = {"amplitude": 2.0, "frequency": 0.35, "decay": 0.15}
EXPOSURE, NOISE, NUM_STEPS = 0.8, 0.3, 256


def prior() -> Prior:
    return Prior(
        {
            "amplitude": dist.Uniform(0.0, 5.0),
            "frequency": dist.Uniform(0.2, 0.5),
            "decay": dist.Uniform(0.0, 1.0),
        }
    )


def signal(h, time):
    """The oscillation at one moment."""
    wave = jnp.cos(2 * jnp.pi * h["frequency"] * time)
    return h["amplitude"] * jnp.exp(-h["decay"] * time) * wave


def exposed(h, time):
    """What a reading holds: the mean over its exposure, here by many small steps."""
    steps = EXPOSURE * ((jnp.arange(NUM_STEPS) + 0.5) / NUM_STEPS - 0.5)
    return signal(h, time[:, None] + steps).mean(axis=-1)


def readings() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(8)
    time = np.linspace(0.5, 15.0, 30)
    return time, np.asarray(exposed(TRUTH, jnp.asarray(time))) + NOISE * rng.normal(size=30)


def target(model) -> Target:
    """The posterior where a reading is what `model` says, with Gaussian noise."""

    def log_likelihood(h, data):
        time, value = data
        return dist.Normal(model(h, time), NOISE).log_prob(value).sum()

    return Target(prior(), log_likelihood, data=tuple(map(jnp.asarray, readings())))


def reweighted(target_ess: float = 2000.0) -> Result:
    """The costly posterior, by way of the cheap one."""
    cheap, costly = target(signal), target(exposed)
    sampler = LearnedProposal(first=Nested(num_live=200), cheap=cheap, target_ess=target_ess)
    return sampler.run(costly, jax.random.key(1))


def tell(name: str, result: Result) -> None:
    rows = result.summary()
    numbers = ", ".join(f"{n} {row['mean']:.4f} ± {row['sd']:.4f}" for n, row in rows.items())
    print(f"{name}: {numbers}, ln Z {result.log_evidence:.3f} ± {result.log_evidence_error:.3f}")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    result = reweighted()
    tell("reweighted", result)
    m = result.measures
    print(f"{m['num_likelihoods']:.0f} costly likelihoods, {m['num_first_likelihoods']:.0f} cheap")
    print(f"effective draws {m['n_eff']:.0f}, k-hat {m['k_hat']:.2f}\n{result.status}")
    if "--exact" in sys.argv:
        exact = QuadratureSampler().run(target(exposed), jax.random.key(0))
        tell("exact", exact)
        tell("the cheap one alone", QuadratureSampler().run(target(signal), jax.random.key(0)))
    sys.exit(result.status.exit_code)
