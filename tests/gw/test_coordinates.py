import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skycensus.errors import InputError
from skycensus.gw import coordinates as c
from skycensus.gw.cosmology import FlatLambdaCDM

COSMOLOGY = FlatLambdaCDM(67.74, 0.3075)

# One binary, everything about it worked out by hand or from a definition.
M1, Q, Z, A1, C1, A2, C2 = 30.0, 0.6, 0.25, 0.7, 0.4, 0.5, -0.3
COMMON = {
    "mass_1_source": M1,
    "mass_2_source": Q * M1,
    "redshift": Z,
    "a_1": A1,
    "cos_tilt_1": C1,
    "a_2": A2,
    "cos_tilt_2": C2,
}
MC = M1 * Q**0.6 / (1 + Q) ** 0.2
BINARY = COMMON | {
    "mass_1": M1 * (1 + Z),
    "mass_2": Q * M1 * (1 + Z),
    "mass_ratio": Q,
    "symmetric_mass_ratio": Q / (1 + Q) ** 2,
    "chirp_mass_source": MC,
    "chirp_mass": MC * (1 + Z),
    "total_mass_source": M1 * (1 + Q),
    "total_mass": M1 * (1 + Q) * (1 + Z),
    "luminosity_distance": float(COSMOLOGY.luminosity_distance(Z)),
    "chi_1": A1 * C1,
    "chi_2": A2 * C2,
    "tilt_1": np.arccos(C1),
    "tilt_2": np.arccos(C2),
    "chi_eff": (A1 * C1 + Q * A2 * C2) / (1 + Q),
    "chi_p": max(A1 * np.sqrt(1 - C1**2), Q * (4 * Q + 3) / (4 + 3 * Q) * A2 * np.sqrt(1 - C2**2)),
}

PAIRS = [
    ("mass_1_source", "mass_2_source"),
    ("mass_1", "mass_2"),
    ("mass_1_source", "mass_ratio"),
    ("mass_1", "mass_ratio"),
    ("mass_2_source", "mass_ratio"),
    ("mass_1", "mass_2_source"),
    ("chirp_mass", "mass_ratio"),
    ("chirp_mass_source", "mass_ratio"),
    ("chirp_mass", "symmetric_mass_ratio"),
    ("chirp_mass_source", "symmetric_mass_ratio"),
    ("total_mass", "mass_ratio"),
    ("total_mass_source", "symmetric_mass_ratio"),
]


def table(names, scale=1.0):
    return {name: np.array([BINARY[name] * scale]) for name in names}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("distance", ["redshift", "luminosity_distance"])
def test_every_parameter_follows_from_any_pair_and_distance(pair, distance):
    spins = ("a_1", "tilt_1", "a_2", "cos_tilt_2")
    columns = c.Columns(table((*pair, distance, *spins)), COSMOLOGY)
    for name, value in BINARY.items():
        assert name in columns
        np.testing.assert_allclose(columns[name], value, rtol=1e-9, err_msg=name)


def from_common(x, pair, distance):
    """The other coordinates as JAX functions of the common ones, written out once more."""
    m1, m2, z = x
    q = m2 / m1
    mc = (m1 * m2) ** 0.6 / (m1 + m2) ** 0.2
    source = {"mass_1": m1, "mass_2": m2, "chirp_mass": mc, "total_mass": m1 + m2}
    values = {f"{k}_source": v for k, v in source.items()}
    values |= {k: v * (1 + z) for k, v in source.items()}
    values |= {"mass_ratio": q, "symmetric_mass_ratio": q / (1 + q) ** 2, "redshift": z}
    values["luminosity_distance"] = COSMOLOGY.luminosity_distance(z)
    return jnp.stack([values[name] for name in (*pair, distance)])


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("distance", ["redshift", "luminosity_distance"])
def test_jacobian_is_that_of_automatic_differentiation(pair, distance):
    jacobian = jax.jacobian(from_common)(jnp.array([M1, Q * M1, Z]), pair, distance)
    expected = -jnp.linalg.slogdet(jacobian)[1]
    columns = table(("mass_1_source", "mass_2_source", "redshift"))
    theta, value = c.to_parameters(
        columns,
        (*pair, distance),
        COSMOLOGY,
        given=("mass_1_source", "mass_2_source", "redshift"),
    )
    np.testing.assert_allclose(value, expected, atol=1e-9)
    assert list(theta) == [*pair, distance]
    # And back again is the inverse.
    _, back = c.to_parameters(
        columns,
        ("mass_1_source", "mass_2_source", "redshift"),
        COSMOLOGY,
        given=(*pair, distance),
    )
    np.testing.assert_allclose(back, -value, atol=1e-12)


def test_spin_jacobians():
    columns = c.Columns(table(("a_1", "cos_tilt_1", "a_2", "cos_tilt_2")))
    np.testing.assert_allclose(
        c.log_volume(columns, ("a_1", "tilt_1", "a_2", "cos_tilt_2")),
        np.log(np.sin(np.arccos(C1))),
    )
    # An isotropic density in Cartesian components, 1 / 4 pi a^2, is 1/2 in (a, cos tilt).
    cartesian = c.Columns({"spin_1x": np.array([0.3]), "spin_1y": [-0.2], "spin_1z": [0.4]})
    volume = c.log_volume(cartesian, ("spin_1x", "spin_1y", "spin_1z"))
    a = np.sqrt(0.29)
    np.testing.assert_allclose(-np.log(4 * np.pi * a**2) - volume, np.log(0.5))
    np.testing.assert_allclose(cartesian["cos_tilt_1"], 0.4 / a)


@pytest.mark.parametrize("q", [1e-3, 0.1, 0.999999, 1.0])
def test_symmetric_mass_ratio_and_back(q):
    back = c.mass_ratio_from_symmetric(c.symmetric_mass_ratio(np.float64(q)))
    # Near q = 1 eta is flat: half of the digits are gone.
    np.testing.assert_allclose(back, q, rtol=1e-7 if q > 0.9 else 1e-12)


def test_functions_take_jax_arrays_under_jit_and_grad():
    def both(q):
        m1, m2 = c.component_masses(20.0, q)
        chi_p = c.precessing_spin(0.5, 0.2, 0.9, 0.1, q)
        return c.chirp_mass(m1, m2) + c.effective_spin(0.1, 0.2, q) + chi_p

    assert jnp.isfinite(jax.jit(jax.grad(both))(0.7))


def test_own_columns_are_preferred_to_derived_ones():
    columns = c.Columns({"mass_1": [36.0], "redshift": [0.2], "mass_1_source": [29.0]})
    assert columns["mass_1_source"] == 29.0
    assert set(columns.consulted) == {"mass_1_source"}


def test_what_is_missing_is_named():
    with pytest.raises(InputError, match=r"mass_2_source.*mass_1_source \+ mass_ratio"):
        c.Columns({"mass_1_source": [30.0]}, where="a.csv")["mass_2_source"]
    with pytest.raises(InputError, match="No cosmology"):
        c.Columns({"luminosity_distance": [400.0]})["redshift"]
    with pytest.raises(InputError, match="did you mean 'eccentricity'"):
        c.Columns({"eccentricity": [0.1]})["eccentricty"]
    with pytest.raises(InputError, match="lengths differ"):
        c.Columns({"mass_1": [1.0, 2.0], "mass_2": [1.0]})


def test_integrating_out_is_no_jacobian():
    columns = table(("mass_1", "mass_2", "redshift"))
    with pytest.raises(InputError, match=r"\['distance'\] would have to be integrated out"):
        c.to_parameters(
            columns,
            ("mass_1_source", "mass_2_source"),
            given=("mass_1", "mass_2", "luminosity_distance"),
        )
    with pytest.raises(InputError, match="no change of coordinates"):
        c.log_volume(columns, ("chi_eff",))
    with pytest.raises(InputError, match="two independent mass parameters"):
        c.log_volume(c.Columns(columns), ("mass_1", "mass_2", "mass_ratio"))
