"""One joint model of a hierarchical problem, sampled by a peer, as a user of it would write it.

    python hierarchical_worker.py PROGRAM PROBLEM FOLDER DATA

PROGRAM is pymc, nutpie or numpyro; prints one JSON line with times, effective sample sizes, means
and standard deviations. The models and the numbers of draws are those of the tutorial (2 chains of
2000 + 1000 for the cluster, 1000 + 1000 for binaries), started as it does.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

BEGAN = time.perf_counter()


# ---- data ----------------------------------------------------------------------------------------


def cluster(folder):
    from astropy.table import Table

    table = Table.read(f"{folder}/cluster_parallax.ecsv")
    return np.array(table["parallax"]), np.array(table["parallax_error"])


def line(folder):
    from astropy.table import Table

    table = Table.read(f"{folder}/line_outliers.ecsv")
    return tuple(np.array(table[name]) for name in ("x", "y", "y_err"))


def binaries(folder, data):
    """Times, velocities, errors and start values, star by star."""
    from astropy.table import Table

    table = Table.read(data)
    start = json.loads(Path(f"{folder}/init_values.json").read_text())["rv_init"]
    stars = []
    for name, first in zip(np.unique(table["APOGEE_ID"]), start, strict=True):
        rows = table[table["APOGEE_ID"] == name]
        t, y, e = (np.array(rows[c], float) for c in ("JD", "VHELIO", "VHELIO_ERR"))
        stars.append((t - t.min(), y, e, first))
    return stars


# ---- PyMC and nutpie -----------------------------------------------------------------------------


def pymc_model(problem, folder, data):
    import pymc as pm

    start = {}
    with pm.Model() as model:
        if problem == "cluster":
            plx, error = cluster(folder)
            mu = pm.TruncatedNormal("mu_r", mu=1.0, sigma=2.0, lower=0)
            ln_std = pm.Uniform("ln_std_r", -8, 0)
            r = pm.TruncatedNormal("r", mu, pm.math.exp(ln_std), shape=len(plx), lower=0)
            pm.Normal("plx", 1 / r, error, observed=plx)
            mean = 1 / np.average(plx, weights=error**-2)
            start = {"mu_r": mean, "ln_std_r": -3.0, "r": np.full(len(plx), mean)}
            names = ["mu_r", "ln_std_r"]
        elif problem == "line":
            x, y, e = line(folder)
            m = pm.Uniform("m", -20, 20, initval=2.0)
            b = pm.Normal("b", 0, 25, initval=-8.0)
            w0 = pm.Uniform("w0", 0, 1)
            ln_s = pm.Uniform("ln_s_out", -5, 5, initval=2.0)
            on = pm.Normal.dist(m * x + b, e)
            out = pm.Normal.dist(np.zeros(len(x)), pm.math.sqrt(e**2 + pm.math.exp(2 * ln_s)))
            pm.Mixture("y", w=pm.math.stack([w0, 1 - w0]), comp_dists=[on, out], observed=y)
            names = ["m", "b", "w0", "ln_s_out"]
        else:
            stars = binaries(folder, data)
            if problem == "one_binary":
                stars = stars[:1]
                names = ["P", "a", "b", "v0"]
            else:
                mu = pm.Uniform("mu", 1.0, 10.0)
                ln_sigma = pm.Uniform("lnsigma", -2.0, 3.0)
                names = ["mu", "lnsigma"]
            for n, (t, y, e, first) in enumerate(stars):
                label = "" if problem == "one_binary" else f"[{n}]"
                if problem == "one_binary":
                    period = pm.Uniform("P", 1.5, 20, initval=first["P"])
                else:
                    ln_p = pm.Normal(
                        f"lnP{label}", mu, pm.math.exp(ln_sigma), initval=np.log(first["P"])
                    )
                    period = pm.math.exp(ln_p)
                a = pm.Normal(f"a{label}", 0, 100, initval=first["a"])
                b = pm.Normal(f"b{label}", 0, 100, initval=first["b"])
                v0 = pm.Normal(f"v0{label}", 0, 150, initval=first["v0"])
                phase = 2 * np.pi * t / period
                v = a * pm.math.cos(phase) + b * pm.math.sin(phase) + v0
                pm.Normal(f"v{label}", v, e, observed=y)
    return model, start, names


def run_pymc(problem, folder, data, *, nutpie):
    model, start, names = pymc_model(problem, folder, data)
    tune = 2000 if problem == "cluster" else 1000
    if nutpie:
        import nutpie

        began = time.perf_counter()
        compiled = nutpie.compile_pymc_model(model)
        compiling = time.perf_counter() - began
        began = time.perf_counter()
        trace = nutpie.sample(
            compiled, draws=1000, tune=tune, chains=2, cores=2, seed=1, progress_bar=False
        )
        return trace, names, compiling, time.perf_counter() - began
    import pymc as pm

    began = time.perf_counter()
    with model:
        model.compile_logp()
        model.compile_dlogp()
        compiling = time.perf_counter() - began
        began = time.perf_counter()
        trace = pm.sample(
            draws=1000,
            tune=tune,
            chains=2,
            cores=2,
            random_seed=1,
            initvals=start or None,
            init={"one_binary": "adapt_full", "binaries": "adapt_diag"}.get(problem, "auto"),
            progressbar=False,
        )
    return trace, names, compiling, time.perf_counter() - began


# ---- plain NumPyro -------------------------------------------------------------------------------


def numpyro_model(problem, folder, data):
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    start = {}
    if problem == "cluster":
        plx, error = cluster(folder)
        mean = 1 / np.average(plx, weights=error**-2)
        start = {"mu_r": mean, "ln_std_r": -3.0, "r": np.full(len(plx), mean)}

        def model():
            mu = numpyro.sample("mu_r", dist.TruncatedNormal(1.0, 2.0, low=0.0))
            ln_std = numpyro.sample("ln_std_r", dist.Uniform(-8.0, 0.0))
            with numpyro.plate("star", len(plx)):
                r = numpyro.sample("r", dist.TruncatedNormal(mu, jnp.exp(ln_std), low=0.0))
                numpyro.sample("plx", dist.Normal(1 / r, error), obs=plx)

        return model, start, ["mu_r", "ln_std_r"]
    if problem == "line":
        x, y, e = line(folder)
        start = {"m": 2.0, "b": -8.0, "ln_s_out": 2.0}

        def model():
            m = numpyro.sample("m", dist.Uniform(-20.0, 20.0))
            b = numpyro.sample("b", dist.Normal(0.0, 25.0))
            w0 = numpyro.sample("w0", dist.Uniform(0.0, 1.0))
            ln_s = numpyro.sample("ln_s_out", dist.Uniform(-5.0, 5.0))
            on = dist.Normal(m * x + b, e).log_prob(y) + jnp.log(w0)
            out = dist.Normal(0.0, jnp.sqrt(e**2 + jnp.exp(2 * ln_s))).log_prob(y)
            numpyro.factor("y", jnp.logaddexp(on, out + jnp.log1p(-w0)).sum())

        return model, start, ["m", "b", "w0", "ln_s_out"]
    stars = binaries(folder, data)
    one = problem == "one_binary"
    stars = stars[:1] if one else stars
    for n, (*_, first) in enumerate(stars):
        label = "" if one else f"[{n}]"
        start |= {f"{name}{label}": first[name] for name in ("a", "b", "v0")}
        start["P" if one else f"lnP{label}"] = first["P"] if one else np.log(first["P"])

    def model():
        if not one:
            mu = numpyro.sample("mu", dist.Uniform(1.0, 10.0))
            ln_sigma = numpyro.sample("lnsigma", dist.Uniform(-2.0, 3.0))
        for n, (t, y, e, _) in enumerate(stars):
            label = "" if one else f"[{n}]"
            if one:
                period = numpyro.sample("P", dist.Uniform(1.5, 20.0))
            else:
                period = jnp.exp(numpyro.sample(f"lnP{label}", dist.Normal(mu, jnp.exp(ln_sigma))))
            a = numpyro.sample(f"a{label}", dist.Normal(0.0, 100.0))
            b = numpyro.sample(f"b{label}", dist.Normal(0.0, 100.0))
            v0 = numpyro.sample(f"v0{label}", dist.Normal(0.0, 150.0))
            phase = 2 * jnp.pi * t / period
            v = a * jnp.cos(phase) + b * jnp.sin(phase) + v0
            numpyro.sample(f"v{label}", dist.Normal(v, e), obs=y)

    return model, start, ["P", "a", "b", "v0"] if one else ["mu", "lnsigma"]


def run_numpyro(problem, folder, data):
    import jax

    jax.config.update("jax_enable_x64", True)
    import arviz as az
    from numpyro.infer import MCMC, NUTS, init_to_value

    model, start, names = numpyro_model(problem, folder, data)
    kernel = NUTS(model, init_strategy=init_to_value(values=start))
    mcmc = MCMC(
        kernel,
        num_warmup=2000 if problem == "cluster" else 1000,
        num_samples=1000,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    began = time.perf_counter()
    mcmc.warmup(jax.random.key(1))
    mcmc.run(jax.random.key(2))
    spent = time.perf_counter() - began
    return az.from_numpyro(mcmc), names, 0.0, spent


# ---- what is told --------------------------------------------------------------------------------


def main():
    program, problem, folder, data = sys.argv[1:5]
    if program == "numpyro":
        trace, names, compiling, sampling = run_numpyro(problem, folder, data)
    else:
        trace, names, compiling, sampling = run_pymc(
            problem, folder, data, nutpie=program == "nutpie"
        )
    import arviz as az

    ess = az.ess(trace, var_names=names)
    rhat = az.rhat(trace, var_names=names)
    posterior = trace["posterior"]
    print(
        json.dumps(
            {
                "wall": time.perf_counter() - BEGAN,
                "compiling": compiling,
                "sampling": sampling,
                "ess": {n: float(np.asarray(ess[n])) for n in names},
                "r_hat": {n: float(np.asarray(rhat[n])) for n in names},
                "mean": {n: float(np.mean(posterior[n])) for n in names},
                "sd": {n: float(np.std(posterior[n])) for n in names},
            }
        )
    )


if __name__ == "__main__":
    main()
