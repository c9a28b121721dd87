"""Every sampler on every target with a known answer: right, or not converged.

A new sampler is a line of `contracts.SAMPLERS`, a new target one of `targets.CASES`.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest
from contracts import SAMPLERS
from samplers.targets import CASES, Case

from skycensus import InputError, QuadratureSampler
from skycensus.result import Result

# Those of the default tier: what a sampler is for, and what it is not.
QUICK = {
    ("nested", "shells"),
    ("nuts", "edges"),
    ("importance", "banana"),
    ("quadrature", "banana"),
}

# What goes from point to point cannot know of a narrow mode that none of them has met, and nothing
# that it sees says so (docs/samplers.md).
BLIND = {(sampler, "five modes") for sampler in ("importance", "coarse to exact", "until")}

# Of these samplers only the cases that take less than a minute belong to the small size.
SOON_DONE = {
    "dynesty": ("conjugate Gaussian",),
    "flow_mcmc": ("conjugate Gaussian",),
    "nuts": tuple(name for name in CASES if name != "25 dimensions"),
}


def marks(sampler: str, name: str) -> list[pytest.MarkDecorator]:
    """A pair belongs to the small size where it suits and is soon done."""
    if (sampler, name) in QUICK:
        return []
    small = sampler in CASES[name].samplers and name in SOON_DONE.get(sampler, CASES)
    return [pytest.mark.slow] if small else [pytest.mark.slow, pytest.mark.full]


PAIRS = [
    pytest.param(sampler, name, id=f"{sampler}-{name}", marks=marks(sampler, name))
    for name in CASES
    for sampler in SAMPLERS
    if (sampler, name) not in BLIND
]


def check(result: Result, case: Case) -> None:
    """Evidence within 3 of its errors, means within 4 of theirs and sd within 5."""
    if result.log_evidence is not None:
        off = result.log_evidence - case.log_evidence
        # What quadrature promises is its tolerance; its estimate of the error is only that.
        assert abs(off) < max(3 * result.log_evidence_error, QuadratureSampler.tolerance)
    rows = result.summary()
    for name, (mean, sd) in case.moments.items():
        error = sd / np.sqrt(min(rows[name]["ess_bulk"], result.effective_sample_size()))
        assert abs(rows[name]["mean"] - mean) < 4 * error, name
        assert abs(rows[name]["sd"] - sd) < 5 * error, name


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "name"), PAIRS)
def test_known_posteriors(sampler, name):
    case = CASES[name]
    suits = sampler in case.samplers
    try:
        result = SAMPLERS[sampler].run(case.make(), jax.random.key(4))
    except InputError:
        # Refused, as quadrature in many dimensions is.
        assert not suits
        return
    if suits:
        assert result.status.converged, str(result.status)
    if result.status.converged:
        check(result, case)
