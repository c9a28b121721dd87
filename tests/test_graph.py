"""Graphs of models: their structure, a layout without collisions, and that they can be drawn."""

import itertools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from skycensus import Grid, HierarchicalModel, InputError, Joint, Mixture, Prior
from skycensus.graph import as_label, draw_graph, numpyro_graph, population_graph
from skycensus.graph_layout import arrange
from skycensus.likelihood import Leafwise, LogMarginal

NODES = np.linspace(0.1, 0.9, 5)


def model(population, prior, names, **more):
    table = Grid(dict.fromkeys(names, NODES), np.zeros((3, 5)), 0.0)
    return HierarchicalModel(Prior(prior), population, table, **{"rate": "shape", **more})


def cluster():
    def population(h):
        return Joint(r=dist.TruncatedNormal(h["mu_r"], jnp.exp(h["ln_std_r"]), low=0.0))

    prior = {"mu_r": dist.Normal(), "ln_std_r": dist.Normal()}
    return model(population, prior, ["r"])


def test_hyperparameters_parameters_and_data_of_a_cluster():
    graph = population_graph(cluster(), known=["sigma"])
    assert {n: (x.kind, x.plates) for n, x in graph.nodes.items()} == {
        "mu_r": ("free", ()),
        "ln_std_r": ("free", ()),
        "r": ("free", ("objects",)),
        "data": ("observed", ("objects",)),
        "sigma": ("fixed", ("objects",)),
    }
    assert set(graph.edges) == {
        ("mu_r", "r"), ("ln_std_r", "r"), ("r", "data"), ("sigma", "data"),
    }  # fmt: skip
    assert graph.plates == {"objects": "3 objects"}


def test_conditional_factors_fixed_and_tied_hyperparameters_and_selection():
    def population(h):
        return Mixture(
            {
                "all": Joint(
                    {
                        "m": dist.TruncatedNormal(h["mu"], h["width"], low=h["low"]),
                        "q": lambda t: dist.Normal(h["slope"] * t["m"], h["other"]),
                    }
                )
            },
            log_weights={"all": h["log_rate"]},
        )

    prior = {
        "mu": dist.Normal(), "width": dist.Uniform(1.0, 2.0), "low": 0.0, "slope": dist.Normal(),
        "other": "width", "log_rate": dist.Normal(),
    }  # fmt: skip
    detected = Grid({"m": NODES, "q": NODES}, np.zeros((1, 5)), 0.0)
    graph = population_graph(
        model(population, prior, ["m", "q"], selection=detected, rate="poisson")
    )
    assert graph.nodes["low"].kind == "fixed"
    assert "other" not in graph.nodes
    assert set(graph.edges) == {
        ("mu", "m"), ("width", "m"), ("low", "m"), ("m", "q"), ("slope", "q"), ("width", "q"),
        ("m", "data"), ("q", "data"), ("data", "detected"), ("log_rate", "N"),
    }  # fmt: skip


def test_mixtures_have_a_component_and_known_columns_are_dots():
    def population(h):
        line = Joint(y=lambda t: dist.Normal(h["slope"] * t["x"], 0.1))
        rest = Joint(y=dist.Normal(0.0, h["width"]))
        weights = {"line": jnp.log(h["w"]), "rest": jnp.log1p(-h["w"])}
        return Mixture({"line": line, "rest": rest}, log_weights=weights)

    prior = {"slope": dist.Normal(), "width": dist.Uniform(1.0, 2.0), "w": dist.Uniform(0.0, 1.0)}
    graph = population_graph(model(population, prior, ["y", "x"]))
    assert graph.nodes["x"].kind == "fixed" and graph.nodes["x"].plates == ("objects",)
    assert set(graph.edges) == {
        ("w", "k"), ("k", "y"), ("slope", "y"), ("width", "y"), ("x", "y"), ("y", "data"),
    }  # fmt: skip


def binaries(t, y):
    mu = numpyro.sample("mu", dist.Normal())
    ln_sigma = numpyro.sample("ln_sigma", dist.Normal())
    sigma = numpyro.deterministic("sigma", jnp.exp(ln_sigma))
    with numpyro.plate("stars", 4):
        ln_p = numpyro.sample("lnP", dist.Normal(mu, sigma))
        v0 = numpyro.sample("v0", dist.Normal())
        with numpyro.plate("epochs", 7):
            numpyro.sample("v", dist.Normal(jnp.cos(t / jnp.exp(ln_p)) + v0, 1.0), obs=y)


@pytest.mark.parametrize("rate", ["poisson", "shape"])
def test_what_only_the_form_of_a_leaf_asks_for_is_there(rate):
    """A place or a norm that the density over theta does not show: of sources that move."""

    class Placed:
        names = ("energy",)

        def __init__(self, place, slope):
            self.settings, self.slope = jnp.asarray(place)[None], slope

        def log_prob(self, theta):
            return -self.slope * jnp.log(theta["energy"])

    class Seen:
        names = ("expected number",)

        def log_marginal(self, density):
            return LogMarginal(-((1e-20 * density.settings) ** 2), jnp.zeros(1))

    def population(h):
        return Mixture({"star": Placed(h["lon"], h["index"])}, log_weights={"star": 0.0})

    table = Leafwise({"star": Grid(dict.fromkeys(["energy"], NODES), np.zeros((3, 5)), 0.0)})
    prior = Prior({"lon": dist.Uniform(0.1e20, 1e20), "index": dist.Uniform(1.0, 3.0)})
    selection = Leafwise({"star": Seen()}) if rate == "poisson" else None
    graph = population_graph(
        HierarchicalModel(prior, population, table, selection=selection, rate=rate)
    )
    assert ("lon", "energy") in graph.edges and ("index", "energy") in graph.edges
    # The number of photons follows from the place here, and from nothing else.
    assert [p for p, child in graph.edges if child == "N"] == (["lon"] if rate == "poisson" else [])


def test_a_numpyro_model_has_its_plates_and_sites():
    graph = numpyro_graph(binaries, np.ones((7, 4)), np.ones((7, 4)))
    assert graph.nodes["v"].kind == "observed"
    assert graph.nodes["v"].plates == ("stars", "epochs")
    assert graph.nodes["sigma"].kind == "derived"
    assert graph.nodes["lnP"].plates == ("stars",)
    assert set(graph.edges) == {
        ("ln_sigma", "sigma"), ("mu", "lnP"), ("sigma", "lnP"), ("lnP", "v"), ("v0", "v"),
    }  # fmt: skip


def test_layout_keeps_nodes_apart_and_plates_to_their_members():
    edges = [(f"h{i}", f"t{i % 4}") for i in range(9)]
    edges += [("t0", "t1"), *((f"t{i}", "d") for i in range(4)), ("d", "s"), ("rate", "N")]
    edges += [("h8", "N"), ("t2", "inner"), ("dot", "inner")]
    names = dict.fromkeys(n for edge in edges for n in edge)
    plates = {n: () if n[0] in "hrN" else ("objects",) for n in names}
    plates |= {"inner": ("objects", "rows"), "dot": ("objects", "rows")}
    width = {n: 1.0 + 0.3 * (len(n) > 2) for n in names}
    placed = arrange(plates, edges, width, ["dot"])
    for a, b in itertools.combinations(names, 2):
        (x, y), (u, v) = placed.nodes[a], placed.nodes[b]
        assert abs(y - v) >= 1.0 or abs(x - u) >= 0.3, (a, b)
    for plate, (left, bottom, wide, high) in placed.plates.items():
        for n, (x, y) in placed.nodes.items():
            inside = left < x < left + wide and bottom < y < bottom + high
            assert inside == (plate in plates[n]), (plate, n)
    for parent, child in edges:
        if parent != "dot":
            assert placed.nodes[parent][1] > placed.nodes[child][1]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("mu_r", r"$\mu_{r}$"),
        ("lnsigma", r"$\ln\,\sigma$"),
        ("ln_std_r", r"$\ln\,\mathrm{std}_{r}$"),
        ("lnP", r"$\ln\,P$"),
        ("v0", "$v_{0}$"),
        ("login", r"$\mathrm{login}$"),
        ("r[0]", "r[0]"),
    ],
)
def test_names_become_mathematics(name, label):
    assert as_label(name) == label


def test_both_kinds_are_drawn(tmp_path):
    from matplotlib import pyplot as plt

    one = draw_graph(cluster(), labels={"data": r"$\varpi$"}, known=["sigma"])
    two = draw_graph(binaries, np.ones((7, 4)), np.ones((7, 4)))
    for i, figure in enumerate((one, two)):
        figure.savefig(tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").stat().st_size > 2000
    texts = {text.get_text() for axes in one.axes for text in axes.texts}
    assert {r"$\varpi$", r"$\mu_{r}$", "3 objects"} <= texts
    assert not plt.get_fignums()
    with pytest.raises(InputError, match="HierarchicalModel or a NumPyro model"):
        draw_graph(3)
