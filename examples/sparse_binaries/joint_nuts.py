"""The joint NUTS of 64 sparse binaries, started at each star's best period: converged, and wrong.

    python joint_nuts.py rv_sparse_N64_J8_s1.npz

Every star keeps its period, amplitudes and velocity in the sampler. The chains agree with each
other and pass r_hat, but some stars start in a wrong period and never leave it. The check at the
end holds each star's periods against its posterior with all periods integrated, and says which.
Exit code 3, as for every run that is not to be trusted.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from skycensus import NUTS, HierarchicalModel, Joint, Prior, Target
from skycensus.latent_checks import latent_coverage, with_latent_check
from skycensus.result import Result
from skycensus.stars.radial_velocity import Velocities, circular_orbits, lomb_scargle

PERIODS = (1.5, 500.0)  # days
# Mean and half of the 68 % interval of mu and ln sigma, with all periods integrated.
EXACT = {"mu": (2.2995, 0.0659), "lnsigma": (-0.7094, 0.0972)}


def read(path: str) -> Velocities:
    """Velocities of the stars in a file with t [days], y [km/s], (star, epoch), and one err."""
    with np.load(path) as data:
        t, y, err = data["t"], data["y"], float(data["err"])
    names = tuple(f"star {i}" for i in range(len(t)))
    return Velocities(tuple(t), tuple(y), tuple(np.full_like(x, err) for x in t), names, t[:, 0])


def joint(t: jax.Array, y: jax.Array, err: jax.Array) -> None:
    """The model with all latent parameters, as one writes it down."""
    mu = numpyro.sample("mu", dist.Uniform(1.0, 10.0))
    sigma = jnp.exp(numpyro.sample("lnsigma", dist.Uniform(-2.0, 3.0)))
    with numpyro.plate("stars", len(t)):
        ln_p = numpyro.sample("lnP", dist.Normal(mu, sigma))
        a = numpyro.sample("a", dist.Normal(0.0, 100.0))
        b = numpyro.sample("b", dist.Normal(0.0, 100.0))
        v0 = numpyro.sample("v0", dist.Normal(0.0, 150.0))
    phase = 2 * jnp.pi * t / jnp.exp(ln_p)[:, None]
    v = a[:, None] * jnp.cos(phase) + b[:, None] * jnp.sin(phase) + v0[:, None]
    numpyro.sample("v", dist.Normal(v, err).to_event(2), obs=y)


def centred(stars: Velocities) -> np.ndarray:
    """Times from the middle of each star's: then its amplitudes hardly depend on its period."""
    return np.stack([t - t.mean() for t in stars.time])


def integrated(stars: Velocities) -> HierarchicalModel:
    """The same with a, b, v0 integrated in closed form and the periods over all maxima."""
    flat = {name: dist.Normal(0.0, 100.0) for name in "ab"} | {"v0": dist.Normal(0.0, 150.0)}

    def population(h):
        return Joint({**flat, "lnP": dist.Normal(h["mu"], jnp.exp(h["lnsigma"]))})

    prior = Prior({"mu": dist.Uniform(1.0, 10.0), "lnsigma": dist.Uniform(-2.0, 3.0)})
    objects = circular_orbits(stars, periods=PERIODS)
    return HierarchicalModel(prior, population, objects, rate="shape")


def starts(stars: Velocities, num_chains: int) -> list[dict[str, jax.Array]]:
    """Every star at its highest Lomb-Scargle peak; the chains differ in the hyperparameters."""
    at = lomb_scargle(stars._replace(time=tuple(centred(stars))), periods=PERIODS)
    ln_p = np.log(at["P"])
    latents = {"lnP": ln_p, "a": at["a"], "b": at["b"], "v0": at["v0"]}
    place = np.linspace(-0.1, 0.1, num_chains)
    return [{"mu": ln_p.mean() + d, "lnsigma": np.log(ln_p.std()) + d, **latents} for d in place]


def run(path: str, *, num_warmup: int, num_samples: int, num_chains: int) -> tuple[Result, list]:
    """The joint run with its check, and coverage of each star beside its name."""
    stars = read(path)
    columns = [jnp.asarray(x) for x in (centred(stars), stars.velocity, stars.error)]
    sampler = NUTS(
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        dense_mass=False,
        start=starts(stars, num_chains),
    )
    result = sampler.run(Target.from_numpyro(joint, *columns), jax.random.key(1))
    periods = np.stack([result.draws[f"lnP[{i}]"] for i in range(len(stars.names))], axis=-1)
    model = integrated(stars)
    key = jax.random.key(2)
    share = latent_coverage({"lnP": periods}, model, result, key=key)
    result = with_latent_check(result, model, key=key, visited={"lnP": periods})
    return result, sorted(zip(share, stars.names, strict=True))


def main(path: str, num_warmup: int = 500, num_samples: int = 1000, num_chains: int = 2) -> int:
    """Run, and print what each of the checks says."""
    result, share = run(path, num_warmup=num_warmup, num_samples=num_samples, num_chains=num_chains)
    rows = result.summary()
    for name, (mean, sd) in EXACT.items():
        row = rows[name]
        print(
            f"{name}: {row['mean']:.3f} +- {row['sd']:.3f}, r_hat {row['r_hat']:.3f}; exact "
            f"{mean:.3f} +- {sd:.3f}: {abs(row['mean'] - mean) / sd:.1f} sd away"
        )
    print(f"{sum(s < 0.9 for s, _ in share)} of {len(share)} stars outside their posterior:")
    print(", ".join(f"{name} ({s:.2f})" for s, name in share[:12]))
    print(result.status)
    return result.status.exit_code


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:])))
