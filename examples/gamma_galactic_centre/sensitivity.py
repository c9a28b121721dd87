"""Limits on the cross-section to be expected without dark matter, and the evidence for it."""

import sys
from pathlib import Path

import jax

from skycensus.config import read_config
from skycensus.config.gamma import parts
from skycensus.gamma.limits import expected_limits, signal_evidence

CONFIG = Path(__file__).with_name("limit.toml")
NULL = {"sigma_v": 0.0, "DM": 1.0, "CCR": 1.0, "HESS": 1.0}


def main(photons: str = "background", num_catalogues: int = 100) -> None:
    jax.config.update("jax_enable_x64", True)
    empty, tree, prior = parts(read_config(CONFIG), simulated=True)
    found = expected_limits(
        empty,
        tree,
        prior,
        NULL,
        "sigma_v",
        jax.random.key(1),
        num_catalogues=int(num_catalogues),
        num_draws=2000,
    )
    low, near, middle, far, high = found.quantiles()
    print(
        f"{found.counts.mean():.0f} photons in a catalogue, {found.n_eff.min():.0f} draws or more"
    )
    print(f"95 % limits on <sigma v>: median {middle:.3g} cm3/s,")
    print(f"68 % of them {near:.3g} to {far:.3g}, 95 % of them {low:.3g} to {high:.3g}")
    if not Path(photons).is_dir():
        return
    seen, tree, prior = parts(read_config(CONFIG, [f"data.path='{photons}'"]))
    evidence = signal_evidence(seen, tree, prior, "DM", jax.random.key(2))
    print(f"ln of the Bayes factor for dark matter in {photons}: {evidence.log_bayes_factor:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
