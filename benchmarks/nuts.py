"""What the warm-up of NUTS costs, beside NumPyro, BlackJAX and nutpie on the same densities.

    python benchmarks/nuts.py [--problems population tutorial gaussian] [--seeds 1] [--small]

Gradients are what likelihoods cost, and do not depend on what else the machine does: those of the
warm-up, and of sampling per effective draw of the worst parameter (bulk). All start at the same
points and sample the same unconstrained density with each program's own defaults for the warm-up
(NumPyro with a full mass matrix). Every run is a process of its own; `wall` is all of it but the
imports and data, compiling included. `population` has 14 hyperparameters (a smoothed power law with
a peak, magnitudes and tilts of spins), `tutorial` the 70 events of the shared reference,
`gaussian` 25 correlated dimensions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from environments import python_of

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

PROBLEMS = ("population", "tutorial", "gaussian")
CHAINS = 4


# ---- problems ------------------------------------------------------------------------------------

TRUTH = {
    **{"alpha": 3.0, "beta": 1.1, "delta": 4.5, "lambda_peak": 0.15, "loc": 34.0, "scale": 4.0},
    **{"mmin": 5.0, "mmax": 85.0, "a_1_mean": 0.3, "a_1_variance": 0.03, "a_2_mean": 0.4},
    **{"a_2_variance": 0.04, "xi_spin": 0.6, "sigma_spin": 0.8},
}
RANGES = {
    **{"alpha": (-2.0, 8.0), "beta": (-2.0, 6.0), "delta": (0.5, 10.0), "lambda_peak": (0.0, 0.6)},
    **{"loc": (20.0, 50.0), "scale": (1.0, 10.0), "mmin": (2.0, 10.0), "mmax": (60.0, 100.0)},
    **{"a_1_mean": (0.1, 0.7), "a_1_variance": (0.005, 0.08), "a_2_mean": (0.1, 0.7)},
    **{"a_2_variance": (0.005, 0.08), "xi_spin": (0.0, 1.0), "sigma_spin": (0.1, 4.0)},
}
# Bounds of what is measured, and the error.
MEASURED = {
    "mass_1_source": ((2.0, 100.0), 3.0),
    "mass_ratio": ((0.01, 1.0), 0.1),
    **{name: ((0.0, 1.0), 0.2) for name in ("a_1", "a_2")},
    **{name: ((-1.0, 1.0), 0.35) for name in ("cos_tilt_1", "cos_tilt_2")},
}


def population(small: bool) -> Any:
    """Events with Gaussian errors, known by draws under flat priors within the bounds."""
    import jax
    import numpyro.distributions as dist
    from scipy.stats import truncnorm

    from skycensus import HierarchicalModel, Prior, Samples
    from skycensus.gw.families import product
    from skycensus.gw.mass_smoothed import smoothed_power_law_peak
    from skycensus.gw.spin import beta_magnitudes, tilt_mixture_iid

    def families(h: Any) -> Any:
        return product([smoothed_power_law_peak(h), beta_magnitudes(h), tilt_mixture_iid(h)])

    num, draws = (60, 100) if small else (100, 1000)
    true = families(TRUTH).sample(jax.random.key(5), (num,))
    rng, columns = np.random.default_rng(1), {}
    for name, ((low, high), error) in MEASURED.items():
        seen = np.asarray(true[name]) + error * rng.standard_normal(num)
        a, b = (low - seen) / error, (high - seen) / error
        u = rng.uniform(size=(num, draws))
        columns[name] = truncnorm.ppf(u, a[:, None], b[:, None], seen[:, None], error)
    events = [{name: column[i] for name, column in columns.items()} for i in range(num)]
    prior = Prior({name: dist.Uniform(*ends) for name, ends in RANGES.items()})
    samples = Samples(events, [np.zeros(draws)] * num)
    return HierarchicalModel(prior, families, samples, rate="shape").target()


def tutorial(small: bool) -> Any:
    from skycensus.config import build, read_config

    folder = ROOT.parent / "shared" / "reference" / "gwkokab"
    config = read_config(
        ROOT / "examples" / "gw_tutorial" / "config.toml",
        [f"data.path='{folder}'", f"data.max_draws={300 if small else 1000}"],
    )
    return build(config).model.target()


def gaussian(small: bool) -> Any:
    from samplers.targets import correlated

    return correlated()


# ---- programs: gradients of warm-up and of sampling (chain, step), and draws ---------------------


def run_skycensus(target: Any, start: Any, seed: int, num: int) -> tuple[Any, Any, Any]:
    import jax

    from skycensus import NUTS
    from skycensus.samplers import unconstrained

    # The same starts come of the same key.
    result = NUTS(num_samples=num, num_chains=CHAINS).run(target, jax.random.key(seed))
    x = unconstrained(target, result.draws).reshape(CHAINS, num, -1)
    warm = np.array([result.measures["num_warmup_likelihoods"]])
    return warm, result.sample_stats["num_steps"], x


def run_numpyro(target: Any, start: Any, seed: int, num: int) -> tuple[Any, Any, Any]:
    import jax
    from numpyro.infer import MCMC
    from numpyro.infer import NUTS as Kernel

    kernel = Kernel(potential_fn=lambda x: -target.log_density(x), dense_mass=True)
    settings = {"num_chains": CHAINS, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(kernel, num_warmup=500, num_samples=num, **settings)
    key, fields = jax.random.key(seed + 100), ("num_steps",)
    mcmc.warmup(key, init_params=start, extra_fields=fields, collect_warmup=True)
    warm = mcmc.get_extra_fields(group_by_chain=True)["num_steps"]
    mcmc.run(key, extra_fields=fields)
    steps = mcmc.get_extra_fields(group_by_chain=True)["num_steps"]
    return warm, steps, mcmc.get_samples(group_by_chain=True)


def run_blackjax(
    target: Any, start: Any, seed: int, num: int, *, low_rank: bool
) -> tuple[Any, Any, Any]:
    import blackjax
    import jax
    from blackjax.adaptation.low_rank_adaptation import window_adaptation_low_rank

    def chain(key: Any, x: Any, data: Any) -> Any:
        def log_density(x: Any) -> Any:
            return target.log_density(x, data)

        if low_rank:
            warmup = window_adaptation_low_rank(blackjax.nuts, log_density)
        else:
            warmup = blackjax.window_adaptation(
                blackjax.nuts, log_density, is_mass_matrix_diagonal=False
            )
        warm_key, run_key = jax.random.split(key)
        (state, tuned), info = warmup.run(warm_key, x, 500)
        kernel = blackjax.nuts(log_density, **tuned)

        def step(state: Any, key: Any) -> Any:
            state, told = kernel.step(key, state)
            return state, (state.position, told.num_integration_steps)

        # Where low rank begins is the centre of what it has seen.
        x, steps = jax.lax.scan(step, state, jax.random.split(run_key, num))[1]
        return info.info.num_integration_steps, steps, x

    keys = jax.random.split(jax.random.key(seed), CHAINS)
    return jax.jit(jax.vmap(chain, in_axes=(0, 0, None)))(keys, start, target.data)


def run_nutpie(
    target: Any, start: Any, seed: int, num: int, *, adaptation: str
) -> tuple[Any, Any, Any]:
    import jax
    import nutpie
    from nutpie.compiled_pyfunc import from_pyfunc

    slope = jax.jit(jax.value_and_grad(target.log_density))
    data, starts = target.data, iter(np.asarray(start))

    def make() -> Any:
        def log_density(x: np.ndarray) -> Any:
            value, gradient = slope(x, data)
            return float(value), np.asarray(gradient)

        return log_density

    def expanded(*_: Any) -> Any:
        return lambda x: {"x": np.asarray(x)}

    model = from_pyfunc(
        target.dim,
        make,
        expanded,
        [np.dtype("float64")],
        [(target.dim,)],
        ["x"],
        make_initial_point_fn=lambda _: next(starts),
    )
    trace = nutpie.sample(
        model, draws=num, chains=CHAINS, seed=seed, progress_bar=False, adaptation=adaptation
    )
    warm, steps = (np.asarray(trace[g]["n_steps"]) for g in ("warmup_sample_stats", "sample_stats"))
    return warm, steps, np.asarray(trace["posterior"]["x"])


PROGRAMS = {
    "skycensus": run_skycensus,
    "numpyro, full": run_numpyro,
    "blackjax, full": lambda *a: run_blackjax(*a, low_rank=False),
    "blackjax, low rank": lambda *a: run_blackjax(*a, low_rank=True),
    "nutpie, diagonal": lambda *a: run_nutpie(*a, adaptation="diag"),
    "nutpie, low rank": lambda *a: run_nutpie(*a, adaptation="low_rank"),
}


# ---- the table -----------------------------------------------------------------------------------


def one(program: str, problem: str, seed: int, small: bool) -> None:
    import jax

    jax.config.update("jax_enable_x64", True)
    from skycensus.diagnostics import effective_sample_size
    from skycensus.samplers.starts import start_points

    target = {"population": population, "tutorial": tutorial, "gaussian": gaussian}[problem](small)
    followed = target.smooth() if target.smooth is not None else target
    start_key, _ = jax.random.split(jax.random.key(seed))
    start = jax.numpy.asarray(start_points(followed, "prior", start_key, CHAINS, num_start=512))
    given = target if program == "skycensus" else followed
    began, num = time.perf_counter(), 300 if small else 1000
    warm, steps, x = (np.asarray(a) for a in PROGRAMS[program](given, start, seed, num))
    wall = time.perf_counter() - began
    ess = min(effective_sample_size(x[..., i], kind="bulk") for i in range(x.shape[-1]))
    row = {"warmup": int(warm.sum()), "sampling": int(steps.sum()), "ess": ess, "wall": wall}
    print(json.dumps(row))


def compare(problems: list[str], programs: list[str], seeds: int, small: bool) -> list[dict]:
    rows = []
    print("problem | program | warm-up | gradients per effective draw | ESS | wall [s] | ESS/s")
    for problem in problems:
        for program in programs:
            python = python_of("nutpie") if program.startswith("nutpie") else sys.executable
            if python is None:
                print(f"{problem} | {program} | left out: it cannot be installed here")
                continue
            found = []
            for seed in range(seeds):
                task = ["--one", program, problem, "--first", str(seed)]
                command = [python, __file__, *task, *(["--small"] if small else [])]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    print(f"{problem} | {program} | failed: {done.stderr.splitlines()[-1:]}")
                    break
                found.append(json.loads(done.stdout.splitlines()[-1]))
            if not found:
                continue
            middle = {key: float(np.median([f[key] for f in found])) for key in found[0]}
            rows.append({"problem": problem, "program": program, **middle})
            print(
                f"{problem} | {program} | {middle['warmup']:.0f} | "
                f"{middle['sampling'] / middle['ess']:.1f} | {middle['ess']:.0f} | "
                f"{middle['wall']:.1f} | {middle['ess'] / middle['wall']:.1f}",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS), choices=PROBLEMS)
    parser.add_argument("--programs", nargs="*", default=list(PROGRAMS), choices=list(PROGRAMS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="fewer events and draws")
    parser.add_argument("--one", nargs=2, metavar=("PROGRAM", "PROBLEM"))
    parser.add_argument("--first", type=int, default=0, help="the seed of --one")
    given = parser.parse_args()
    if given.one:
        return one(*given.one, given.first, given.small)
    rows = compare(given.problems, given.programs, given.seeds, given.small)
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "nuts.json").write_text(json.dumps(rows, indent=1))
    return None


if __name__ == "__main__":
    main()
