r"""Changes of variables between the parameters of a binary, with their Jacobians.

A density changes with its coordinates: if $p$ is a density in $x$ then in $y$ it is
$p(x(y))\,|\partial x/\partial y|$. Everything here is applied to draws once, when they are read.
The Jacobians are products over three blocks, each a change to a common set of coordinates

| block    | common coordinates               | others                                        |
|----------|----------------------------------|-----------------------------------------------|
| masses   | mass_1_source, mass_2_source     | detector frame, mass ratio, chirp, total mass |
| distance | redshift                         | luminosity_distance                           |
| spins    | a_1, cos_tilt_1, a_2, cos_tilt_2 | tilt angles, Cartesian components             |

The full Jacobian is triangular in (masses, redshift): the detector-frame masses depend on the
redshift, the redshift on no mass. So the determinant is the product of the blocks', with the
masses' taken at fixed redshift.

Masses are in solar masses, distances in Mpc, angles in radians, spins dimensionless. The functions
of arrays are elementwise and take NumPy or JAX arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..blocks import in_blocks
from ..errors import InputError, did_you_mean

Theta = Mapping[str, Any]


# ---- functions of arrays ------------------------------------------------------------------------


def chirp_mass(mass_1: Any, mass_2: Any) -> Any:
    r"""Return $\mathcal{M} = (m_1 m_2)^{3/5} (m_1+m_2)^{-1/5}$, in the frame of the masses."""
    return (mass_1 * mass_2) ** 0.6 / (mass_1 + mass_2) ** 0.2


def symmetric_mass_ratio(mass_ratio: Any) -> Any:
    r"""Return $\eta = q/(1+q)^2$, in (0, 1/4]."""
    return mass_ratio / (1.0 + mass_ratio) ** 2


def mass_ratio_from_symmetric(eta: Any) -> Any:
    r"""Return $q = 2\eta / (1 - 2\eta + \sqrt{1-4\eta})$, the root in (0, 1] of $\eta = q/(1+q)^2$.

    NaN for $\eta > 1/4$, which no pair of masses has.
    """
    return 2.0 * eta / (1.0 - 2.0 * eta + (1.0 - 4.0 * eta) ** 0.5)


def component_masses(chirp_mass: Any, mass_ratio: Any) -> tuple[Any, Any]:
    r"""Return $m_1 = \mathcal{M} q^{-3/5} (1+q)^{1/5}$ and $m_2 = q m_1$."""
    mass_1 = chirp_mass * (1.0 + mass_ratio) ** 0.2 / mass_ratio**0.6
    return mass_1, mass_1 * mass_ratio


def effective_spin(chi_1: Any, chi_2: Any, mass_ratio: Any) -> Any:
    r"""Return $\chi_\mathrm{eff} = (\chi_1 + q \chi_2)/(1+q)$ of spins along the orbit's axis."""
    return (chi_1 + mass_ratio * chi_2) / (1.0 + mass_ratio)


def precession_weight(mass_ratio: Any) -> Any:
    r"""Return $\kappa(q) = q(4q+3)/(4+3q)$, the weight of the second spin in $\chi_p$."""
    return mass_ratio * (4.0 * mass_ratio + 3.0) / (4.0 + 3.0 * mass_ratio)


def precessing_spin(a_1: Any, cos_tilt_1: Any, a_2: Any, cos_tilt_2: Any, mass_ratio: Any) -> Any:
    r"""Return $\chi_p = \max(a_1 \sin t_1,\; \kappa(q)\, a_2 \sin t_2)$.

    Schmidt, Ohme & Hannam 2015 (arXiv:1408.1810).
    """
    one = a_1 * (1.0 - cos_tilt_1**2) ** 0.5
    two = precession_weight(mass_ratio) * a_2 * (1.0 - cos_tilt_2**2) ** 0.5
    # The larger of the two, spelt so that NumPy and JAX arrays both do.
    return 0.5 * (one + two + abs(one - two))


def is_binary(theta: Theta) -> Any:
    """Return whether the masses are positive and ordered, of those that `theta` has, elementwise.

    Elsewhere a density may have weight, but no binary is there.
    """
    inside: Any = True
    for first, second in (("mass_1", "mass_2"), ("mass_1_source", "mass_2_source")):
        inside = inside & (theta[first] > 0.0 if first in theta else True)
        inside = inside & (theta[second] > 0.0 if second in theta else True)
        if first in theta and second in theta:
            inside = inside & (theta[second] <= theta[first])
    if "mass_ratio" in theta:
        inside = inside & (theta["mass_ratio"] > 0.0) & (theta["mass_ratio"] <= 1.0)
    return inside


# ---- columns, and all that follows from them ----------------------------------------------------


def _elementwise(function: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    """Apply a JAX function block by block: compiled for one shape, not for every event's."""
    flat = in_blocks(lambda block: function(block["x"]), {"x": np.ravel(x)}, 4096)
    return flat.reshape(np.shape(x))


def _redshift_at(distance: np.ndarray, cosmology: Any) -> np.ndarray:
    return _elementwise(cosmology.redshift_at, distance)


def _luminosity_distance(redshift: np.ndarray, cosmology: Any) -> np.ndarray:
    return _elementwise(cosmology.luminosity_distance, redshift)


def _comoving_volume_slope(redshift: np.ndarray, cosmology: Any) -> np.ndarray:
    return _elementwise(cosmology.differential_comoving_volume, redshift)


def _distance_slope(distance: np.ndarray, redshift: np.ndarray, slope: np.ndarray) -> np.ndarray:
    r"""$dD_L/dz = D_C + (1+z) c/H$, with $c/H = (dV_C/dz) / 4\pi D_C^2$: flat space."""
    comoving = distance / (1.0 + redshift)
    return comoving + (1.0 + redshift) * 1e9 * slope / (4.0 * math.pi * comoving**2)


def _norm(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return np.sqrt(x**2 + y**2 + z**2)


def _product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x * y


def _quotient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x / y


Rule = tuple[tuple[str, ...], Callable[..., np.ndarray]]


def _mass_rules(s: str) -> dict[str, list[Rule]]:
    """How the masses of one frame follow from each other; `s` is "" (detector) or "_source"."""
    m1, m2, mc, total = (f"{name}{s}" for name in ("mass_1", "mass_2", "chirp_mass", "total_mass"))
    q = "mass_ratio"
    other = "" if s else "_source"

    def from_other_frame(name: str) -> Rule:
        if s:
            return (name + other, "redshift"), lambda mass, z: mass / (1.0 + z)
        return (name + other, "redshift"), lambda mass, z: mass * (1.0 + z)

    return {
        m1: [
            ((m2, q), _quotient),
            ((mc, q), lambda mass, ratio: component_masses(mass, ratio)[0]),
            ((total, q), lambda mass, ratio: mass / (1.0 + ratio)),
            from_other_frame("mass_1"),
        ],
        m2: [((m1, q), _product), from_other_frame("mass_2")],
        mc: [((m1, m2), chirp_mass), from_other_frame("chirp_mass")],
        total: [((m1, m2), np.add), from_other_frame("total_mass")],
    }


def _spin_rules(i: int) -> dict[str, list[Rule]]:
    cartesian = (f"spin_{i}x", f"spin_{i}y", f"spin_{i}z")
    return {
        f"a_{i}": [(cartesian, _norm)],
        f"cos_tilt_{i}": [
            ((f"tilt_{i}",), np.cos),
            ((f"spin_{i}z", f"a_{i}"), _quotient),
            ((f"chi_{i}", f"a_{i}"), _quotient),
        ],
        f"tilt_{i}": [((f"cos_tilt_{i}",), np.arccos)],
        f"chi_{i}": [((f"spin_{i}z",), np.asarray), ((f"a_{i}", f"cos_tilt_{i}"), _product)],
    }


# Parameter -> the ways to it, in order of preference. "cosmology" stands for the cosmology itself.
RULES: dict[str, list[Rule]] = {
    **_mass_rules("_source"),
    **_mass_rules(""),
    "mass_ratio": [
        (("mass_1_source", "mass_2_source"), lambda m1, m2: m2 / m1),
        (("mass_1", "mass_2"), lambda m1, m2: m2 / m1),
        (("symmetric_mass_ratio",), mass_ratio_from_symmetric),
    ],
    "symmetric_mass_ratio": [(("mass_ratio",), symmetric_mass_ratio)],
    "redshift": [
        (("luminosity_distance", "cosmology"), _redshift_at),
        (("mass_1", "mass_1_source"), lambda detector, source: detector / source - 1.0),
    ],
    "luminosity_distance": [(("redshift", "cosmology"), _luminosity_distance)],
    "comoving_volume_slope": [(("redshift", "cosmology"), _comoving_volume_slope)],
    "luminosity_distance_slope": [
        (("luminosity_distance", "redshift", "comoving_volume_slope"), _distance_slope)
    ],
    **_spin_rules(1),
    **_spin_rules(2),
    "chi_eff": [(("chi_1", "chi_2", "mass_ratio"), effective_spin)],
    "chi_p": [(("a_1", "cos_tilt_1", "a_2", "cos_tilt_2", "mass_ratio"), precessing_spin)],
}


class Columns(Mapping[str, np.ndarray]):
    """A table of columns by parameter name, and every parameter that follows from them.

    `columns[name]` is the table's own column where it has one; otherwise it is derived by `RULES`.
    `consulted` holds everything that was looked up or passed through on the way.

    Args:
        table: parameter name -> one-dimensional array; all of one length.
        cosmology: an object with `luminosity_distance(z)` [Mpc], `redshift_at(distance)` and
            `differential_comoving_volume(z)` [Gpc³]; needed only between distance and redshift.
        where: what the table is, for error messages.

    Raises:
        InputError: columns of different lengths; on look-up, a parameter that does not follow from
            the columns (the message says which columns would give it).
    """

    def __init__(self, table: Theta, cosmology: Any = None, *, where: str = "the table"):
        self.where = where
        self.cosmology = cosmology
        self.consulted: dict[str, np.ndarray] = {}
        self._table = {name: np.asarray(column, float) for name, column in table.items()}
        lengths = {name: column.shape for name, column in self._table.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"{where}: every draw is one row, but the lengths differ: {lengths}.")
        # The shortest route to everything that follows, found by names alone.
        self._route: dict[str, Rule] = {}
        known = set(self._table) | ({"cosmology"} if cosmology is not None else set())
        while step := {
            name: rule
            for name, rules in RULES.items()
            if name not in known
            for rule in reversed(rules)
            if known.issuperset(rule[0])
        }:
            self._route |= step
            known |= set(step)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.consulted:
            if name in self._table:
                self.consulted[name] = self._table[name]
            elif name in self._route:
                inputs, function = self._route[name]
                values = [self.cosmology if n == "cosmology" else self[n] for n in inputs]
                # Bad draws give NaN here and are counted by whoever reads the result.
                with np.errstate(all="ignore"):
                    self.consulted[name] = function(*values)
            else:
                raise InputError(self._explain(name))
        return self.consulted[name]

    def __contains__(self, name: object) -> bool:
        return name in self._table or name in self._route

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def _explain(self, name: str) -> str:
        have = f"{self.where} has columns {sorted(self._table)}"
        if name not in RULES:
            return f"no column '{name}'{did_you_mean(name, self._table)}: {have}."
        ways = [" + ".join(inputs) for inputs, _ in RULES[name]]
        hint = ""
        if self.cosmology is None and {"redshift", "luminosity_distance"} & set(self._table):
            hint = " No cosmology was given to go between luminosity_distance and redshift."
        return (
            f"'{name}' does not follow from the columns: {have}; it would follow from "
            f"{', or '.join(ways)}.{hint}"
        )


# ---- Jacobians ----------------------------------------------------------------------------------

_RATIOS = {"mass_ratio", "symmetric_mass_ratio"}
_MASSES = {"mass_1", "mass_2", "chirp_mass", "total_mass"}
MASS_NAMES = _RATIOS | _MASSES | {f"{name}_source" for name in _MASSES}
DISTANCE_NAMES = {"redshift", "luminosity_distance"}
SPIN_NAMES = {"chi_eff", "chi_p"} | {
    f"{stem}_{i}{axis}"
    for i in (1, 2)
    for stem, axes in {
        "a": [""],
        "cos_tilt": [""],
        "tilt": [""],
        "azimuth": [""],
        "chi": [""],
        "spin": ["x", "y", "z"],
    }.items()
    for axis in axes
}


def block(names: Iterable[str], members: set[str]) -> tuple[str, ...]:
    """Return those of `names` that belong to a block (`MASS_NAMES`, ...), in their own order."""
    return tuple(name for name in names if name in members)


def log_volume_masses(theta: Theta, pair: Iterable[str]) -> Any:
    r"""Return $\ln|\partial(m_1^s, m_2^s)/\partial(\mathrm{pair})|$ at fixed redshift.

    With $m_1, m_2$ of the source frame: $m_1$ for $(m_1, q)$; $m_1^2/\mathcal{M}$ for
    $(\mathcal{M}, q)$; $m_1^2/M$ for $(M, q)$; for $\eta$ in place of $q$ divided by $d\eta/dq =
    (1-q)/(1+q)^3$; and $(1+z)^{-1}$ for each mass of the pair that is in the detector frame.
    """
    pair = tuple(pair)
    frames = [name for name in pair if name in _MASSES]
    kind = frozenset(name.removesuffix("_source") for name in pair)
    with np.errstate(all="ignore"):
        value = _log_volume_source(theta, kind, pair)
        return value - len(frames) * np.log1p(theta["redshift"]) if frames else value


def _log_volume_source(theta: Theta, kind: frozenset[str], pair: tuple[str, ...]) -> Any:
    if len(pair) != 2 or len(kind) != 2:
        raise InputError(
            f"masses {list(pair)}: expected two independent mass parameters, one of "
            "(mass_1, mass_2), (mass_1 or mass_2 or chirp_mass or total_mass, mass_ratio), "
            "(chirp_mass or total_mass, symmetric_mass_ratio), each also with '_source'."
        )
    m1 = theta["mass_1_source"]
    if kind == {"mass_1", "mass_2"}:
        return np.zeros(np.shape(m1))
    q = theta["mass_ratio"]
    # The derivative of the pair's ratio with respect to q.
    slope = np.log1p(-q) - 3.0 * np.log1p(q) if "symmetric_mass_ratio" in kind else 0.0
    others = kind - _RATIOS
    if others == {"mass_1"}:
        return np.log(m1) - slope
    if others == {"mass_2"}:
        return np.log(m1) - np.log(q) - slope
    if others in ({"chirp_mass"}, {"total_mass"}):
        return 2.0 * np.log(m1) - np.log(theta[f"{next(iter(others))}_source"]) - slope
    raise InputError(f"masses {list(pair)}: no Jacobian for this pair; use one with mass_ratio.")


def log_volume_distance(theta: Theta, name: str) -> Any:
    r"""Return $\ln|dz/d(\mathrm{name})|$: 0 for redshift, $-\ln dD_L/dz$ for the distance."""
    if name == "redshift":
        return np.zeros(np.shape(theta["redshift"]))
    with np.errstate(all="ignore"):
        return -np.log(theta["luminosity_distance_slope"])


def log_volume_spin(theta: Theta, names: Iterable[str], i: int) -> Any:
    r"""Return $\ln|\partial(a, \cos t)/\partial(\mathrm{names})|$ of spin `i`.

    Zero for (a, cos t); $\ln \sin t$ for (a, t). Where the coordinates include the azimuth, its
    density is taken to be uniform and integrated out: $-\ln 2\pi$ for (a, cos t, azimuth) and
    $-\ln 2\pi a^2$ for the Cartesian components.
    """
    names = frozenset(names)
    a, cos, tilt, azimuth = f"a_{i}", f"cos_tilt_{i}", f"tilt_{i}", f"azimuth_{i}"
    with np.errstate(all="ignore"):
        if names == {f"spin_{i}x", f"spin_{i}y", f"spin_{i}z"}:
            return -2.0 * np.log(theta[a]) - math.log(2.0 * math.pi)
        turned = -math.log(2.0 * math.pi) if azimuth in names else 0.0
        if names - {azimuth} == {a, cos}:
            return np.zeros(np.shape(theta[a])) + turned
        if names - {azimuth} == {a, tilt}:
            return np.log(np.sin(theta[tilt])) + turned
    raise InputError(
        f"spin {i} as {sorted(names)}: expected (a_{i}, cos_tilt_{i}), (a_{i}, tilt_{i}), either "
        f"with azimuth_{i}, or (spin_{i}x, spin_{i}y, spin_{i}z). Other spin parameters are no "
        "change of coordinates; they need a spin prior by name."
    )


def log_volume(theta: Theta, names: Iterable[str]) -> Any:
    r"""Return $\ln|\partial(\text{common coordinates})/\partial(\mathrm{names})|$.

    Parameters of no block are left as they are and contribute nothing.
    """
    names = tuple(names)
    total: Any = 0.0
    if masses := block(names, MASS_NAMES):
        total = total + log_volume_masses(theta, masses)
    for name in block(names, DISTANCE_NAMES):
        total = total + log_volume_distance(theta, name)
    spins = block(names, SPIN_NAMES)
    if effective := {"chi_eff", "chi_p"} & set(spins):
        raise InputError(
            f"{sorted(effective)} is no change of coordinates of the spins: several spins give the "
            "same value; state the spins' reference prior by name."
        )
    for i in (1, 2):
        if own := [name for name in spins if f"_{i}" in name]:
            total = total + log_volume_spin(theta, own, i)
    return total


def blocks_of(names: Iterable[str]) -> set[str]:
    """Return which coordinates `names` is over: blocks, and names that are in no block."""
    tables = {"masses": MASS_NAMES, "distance": DISTANCE_NAMES, "spins": SPIN_NAMES}
    found = set()
    for name in names:
        found.add(next((title for title, members in tables.items() if name in members), name))
    return found


def to_parameters(
    columns: Theta,
    wanted: Iterable[str],
    cosmology: Any = None,
    *,
    given: Iterable[str] | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    r"""Derive the wanted parameters, and $\ln|\partial(\mathrm{given})/\partial(\mathrm{wanted})|$.

    A log density in the coordinates `given` plus the second result is one in those `wanted`.

    Args:
        columns: parameter name -> array, e.g. a `Columns` or what `read_posterior` returns.
        wanted: names of the parameters to derive.
        cosmology: see `Columns`.
        given: the coordinates that a reference density is stated in; the wanted ones if None.

    Raises:
        InputError: a parameter that does not follow from the columns; `given` and `wanted` that
            are not coordinates of the same things (integrating something out is no Jacobian).
    """
    table = columns if isinstance(columns, Columns) else Columns(columns, cosmology)
    wanted = tuple(wanted)
    theta = {name: table[name] for name in wanted}
    shape = np.shape(next(iter(theta.values()))) if theta else ()
    if given is None or set(given) == set(wanted):
        return theta, np.zeros(shape)
    given = tuple(given)
    if differ := blocks_of(given) ^ blocks_of(wanted):
        raise InputError(
            f"{table.where}: a density over {list(given)} does not give one over {list(wanted)}: "
            f"{sorted(differ)} would have to be integrated out or added."
        )
    with np.errstate(invalid="ignore"):
        return theta, log_volume(table, wanted) - log_volume(table, given)
