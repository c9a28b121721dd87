"""Settings that no sampler can work with."""

import pytest

from skycensus import (
    NUTS,
    FlowMCMC,
    HierarchicalModel,
    ImportanceSampler,
    InputError,
    Prior,
    QuadratureSampler,
)

WRONG = {
    "no draws": (lambda: NUTS(num_samples=0), "num_samples = 0 must be 1 or more"),
    "less than no warm-up": (lambda: NUTS(num_warmup=-1), "num_warmup = -1 must be 0 or more"),
    "certain": (lambda: NUTS(target_accept_prob=1.0), r"= 1.0 must be between 0 and 1"),
    "no tolerance": (
        lambda: QuadratureSampler(tolerance=-1.0),
        r"-1\.0 must be positive",
    ),
    "no nodes": (lambda: QuadratureSampler(max_nodes=-5), "max_nodes = -5 must be 1 or more"),
    "half": (lambda: ImportanceSampler(num_adapt=0.5), "num_adapt = 0.5 must be 1 or more"),
    "flow": (lambda: FlowMCMC(num_chains=0), "num_chains=0 must be a whole number"),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_out_of_range_are_told(name):
    make, said = WRONG[name]
    with pytest.raises(InputError, match=said):
        make()


def test_all_problems_are_told_at_once():
    with pytest.raises(InputError) as caught:
        ImportanceSampler(num_adapt=0, dof=0.0)
    assert str(caught.value).count("\n") == 1


def test_a_largest_variance_is_positive():
    with pytest.raises(InputError, match="max_variance = -1"):
        HierarchicalModel(Prior({}), lambda h: None, None, rate="shape", max_variance=-1.0)
