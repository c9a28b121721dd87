r"""Directed graphs of models: what depends on what, drawn with plates as in textbooks.

Circles are unknown, shaded ones observed, dots are known and held fixed, double circles follow from
their parents; a plate repeats what it holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Literal as Constant

from .density import Joint, leaves, log_total
from .errors import InputError
from .figures import LABELS
from .graph_layout import Placed, arrange
from .likelihood import Leafwise
from .model import HierarchicalModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["free", "fixed", "observed", "derived"]

_GREEK = re.compile(
    "(alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|"
    "upsilon|phi|chi|psi|omega)",
    re.IGNORECASE,
)
# Diameter of a circle, in points: daft's node_unit of one centimetre.
_DIAMETER = 72 / 2.54
_FONT_SIZE, _PLATE_SIZE = 11.0, 9.0


class Node(NamedTuple):
    """A variable of a model, and the plates that it is in, from the outermost inwards."""

    kind: Kind
    label: str
    plates: tuple[str, ...] = ()


class Graph(NamedTuple):
    """Nodes by name, edges (parent, child), and the text of each plate."""

    nodes: dict[str, Node]
    edges: tuple[tuple[str, str], ...]
    plates: dict[str, str]


def draw_graph(
    model: Any,
    *args: Any,
    labels: Mapping[str, str] | None = None,
    known: Sequence[str] = (),
    dpi: float = 120.0,
    **kwargs: Any,
) -> Figure:
    """Draw the graph of a `HierarchicalModel`, or of a NumPyro model called with `args`, `kwargs`.

    Args:
        model: what to draw; see `population_graph` and `numpyro_graph`.
        labels: name -> text, where the one made from the name (`mu_r`, `ln_sigma`) does not do.
        known: columns of the objects' data that are known without error, such as uncertainties.
        dpi: dots per inch.

    Raises:
        InputError: `model` is neither, or daft is not installed.
    """
    if isinstance(model, HierarchicalModel):
        graph = population_graph(model, known=known)
    elif callable(model):
        graph = numpyro_graph(model, *args, **kwargs)
    else:
        raise InputError(
            f"draw_graph takes a HierarchicalModel or a NumPyro model (a function), not a "
            f"{type(model).__name__}."
        )
    # Axis labels without their units.
    texts = {name: re.sub(r"(\\ )?\[.*\]", "", text) for name, text in LABELS.items()}
    texts |= labels or {}
    nodes = {n: node._replace(label=texts.get(n, node.label)) for n, node in graph.nodes.items()}
    plates = {name: texts.get(name, text) for name, text in graph.plates.items()}
    return _draw(Graph(nodes, graph.edges, plates), dpi)


# ---- structure of a hierarchical model -----------------------------------------------------------


def population_graph(model: HierarchicalModel, *, known: Sequence[str] = ()) -> Graph:
    r"""Graph of hyperparameters, the objects' parameters and their data, with one plate of objects.

    An edge means that the parent enters the child's density, found by tracing the population:
    hyperparameters and earlier parameters enter the factor of a parameter, and the weights of a
    mixture the leaf `k` that an object belongs to. With a Poisson rate the number of objects is
    observed. Detection is a property of the data.
    """
    density = _population_parts(model)
    nodes: dict[str, Node] = {}
    edges: list[tuple[str, str]] = []
    inside = ("objects",)
    source = {name: _followed(name, model.prior.same_as) for name in density.hyperparameters}
    for name in dict.fromkeys(source.values()):
        kind: Kind = "fixed" if name in model.prior.fixed else "free"
        nodes[name] = Node(kind, as_label(name))
    clash = {n: f"{n} " if n in nodes else n for n in density.parents}
    if density.weights is not None:
        nodes["k"] = Node("free", "$k$", inside)
        edges += [(source[h], "k") for h in density.weights]
        edges += [("k", clash[name]) for name in density.by_leaf]
    for name, parents in density.parents.items():
        nodes[clash[name]] = Node("free", as_label(name), inside)
        edges += [(source[h], clash[name]) for h in parents if h in source]
        for other in parents:
            if other in clash and other not in source:
                edges.append((clash[other], clash[name]))
            elif other not in source:
                nodes.setdefault(other, Node("fixed", as_label(other), inside))
                edges.append((other, clash[name]))
    seen = [c for c in getattr(model.likelihood, "data", ()) if c not in known]
    label = as_label(seen[0]) if len(seen) == 1 else "$d$"
    nodes["data"] = Node("observed", label, inside)
    edges += [(clash[name], "data") for name in density.parents]
    for name in known:
        nodes[name] = Node("fixed", as_label(name), inside)
        edges.append((name, "data"))
    if model.selection is not None:
        nodes["detected"] = Node("observed", "det", inside)
        edges.append(("data", "detected"))
    count = len(model.likelihood.names)
    if model.rate == "poisson":
        nodes["N"] = Node("observed", "$N$")
        edges += [(source[h], "N") for h in density.rate]
    return Graph(nodes, tuple(dict.fromkeys(edges)), {"objects": f"{count} objects"})


class _Parts(NamedTuple):
    """What a population's factors, its mixture's weights and its total rate depend on."""

    hyperparameters: tuple[str, ...]
    parents: dict[str, tuple[str, ...]]
    weights: tuple[str, ...] | None
    by_leaf: tuple[str, ...]
    rate: tuple[str, ...]


def _population_parts(model: HierarchicalModel) -> _Parts:
    points = _prior_points(model)
    h = {name: jnp.asarray(x[0]) for name, x in points.items()}
    theta = {name: jnp.full((), 0.5) for name in _asked(model, h)}
    parents: dict[str, list[str]] = {}
    different: dict[str, None] = {}
    first: dict[str, Any] = {}
    paths = list(leaves(model.population(h)))
    for path in paths:
        for key, factor in _factors(leaves(model.population(h))[path][1]).items():
            mine, others = _factor_parents(model, path, key, h, theta)
            names = key if isinstance(key, tuple) else (key,)
            for name in names:
                parents.setdefault(name, []).extend((*mine, *(o for o in others if o not in names)))
            kind = (type(factor), mine, others) if mine or others else factor
            if first.setdefault(str(names), kind) != kind:
                different |= dict.fromkeys(names)
    weights = None
    if len(paths) > 1:
        weights = _moves(
            points, lambda p: jax.nn.softmax(jnp.stack([w for w, _ in _tree(model, p).values()]))
        )
    rate = _moves(points, lambda p: _log_number(model, p)[None])
    used = {name for found in parents.values() for name in found} | set(weights or ()) | set(rate)
    return _Parts(
        tuple(name for name in h if name in used),
        {name: tuple(dict.fromkeys(found)) for name, found in parents.items()},
        weights,
        tuple(different),
        rate,
    )


def _log_number(model: HierarchicalModel, h: Any) -> Array:
    """What the number of objects follows from: leaves with forms of their own may each say it."""
    if isinstance(model.selection, Leafwise):
        return model.detected(h, model.data).value
    return jnp.asarray(log_total(model.population(h)))


def _tree(model: HierarchicalModel, h: Any) -> dict[str, tuple[Array, Any]]:
    return leaves(model.population(h))


def _factors(leaf: Any) -> dict[Any, Any]:
    """The factors of a leaf, those of joints within it included."""
    if not isinstance(leaf, Joint):
        return {tuple(leaf.names): leaf}
    out: dict[Any, Any] = {}
    for key, factor in leaf.factors.items():
        out |= _factors(factor) if isinstance(factor, Joint) else {key: factor}
    return out


def _factor_parents(
    model: HierarchicalModel, path: str, key: Any, h: Any, theta: Any
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Hyperparameters, and other parameters or columns, that enter one factor."""

    def value(point: Any, parameters: Any) -> Array:
        factor = _factors(_tree(model, point)[path][1])[key]
        found = Joint({key: factor}).log_prob(parameters)
        # What only a form of its own asks a leaf for, as the place of a source.
        return jnp.append(found, getattr(factor, "settings", np.zeros(0)))

    mine = _reach(lambda point: value(point, theta), h)
    names = key if isinstance(key, tuple) else (key,)
    others = _reach(lambda parameters: value(h, parameters), theta)
    return mine, tuple(name for name in others if name not in names)


def _asked(model: HierarchicalModel, h: Mapping[str, Any]) -> tuple[str, ...]:
    """Parameters and known columns that the population looks up in theta."""
    seen: dict[str, None] = {}

    class Noting(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            seen[name] = None
            return jnp.full((), 0.5)

        def __contains__(self, name: object) -> bool:
            return True

    jax.eval_shape(lambda point: model.population(point).log_prob(Noting()), dict(h))
    return tuple(seen)


def _reach(function: Callable[[Any], Array], example: Mapping[str, Any]) -> tuple[str, ...]:
    """The entries of its argument that the value of `function` follows from."""
    example = {name: jnp.asarray(x, float) for name, x in example.items()}
    jaxpr = jax.make_jaxpr(function)(example).jaxpr
    needed = {v for v in jaxpr.outvars if not isinstance(v, Constant)}
    for equation in reversed(jaxpr.eqns):
        if any(v in needed for v in equation.outvars):
            needed.update(v for v in equation.invars if not isinstance(v, Constant))
    # A mapping is flattened in the order of its sorted names.
    order = dict(zip(sorted(example), jaxpr.invars, strict=True))
    return tuple(name for name in example if order[name] in needed)


def _prior_points(model: HierarchicalModel, num: int = 8) -> dict[str, np.ndarray]:
    """Some values of all hyperparameters, (num,) each."""
    # One program: step by step every operation would be compiled by itself.
    drawn = jax.jit(lambda key: model.prior.sample(key, (num,)))(jax.random.key(0))
    every = model.prior.complete({name: np.asarray(x) for name, x in drawn.items()})
    return {name: np.broadcast_to(np.asarray(x, float), num) for name, x in every.items()}


def _moves(points: Mapping[str, np.ndarray], function: Callable[[Any], Array]) -> tuple[str, ...]:
    """Hyperparameters with which a vector changes, by its derivatives at some points.

    Fractions that sum to one enter a total rate only in form.
    """
    if not points:
        return ()
    slopes = jax.jit(jax.vmap(jax.jacfwd(function)))(dict(points))
    # By their logarithms: a lifetime in seconds has slopes of 1e-26.
    steps = {name: np.where(x == 0.0, 1.0, x)[:, None] for name, x in points.items()}
    return tuple(name for name, x in steps.items() if np.any(np.abs(slopes[name] * x) > 1e-6))


def _followed(name: str, same_as: Mapping[str, str]) -> str:
    while name in same_as:
        name = same_as[name]
    return name


# ---- structure of a NumPyro model ----------------------------------------------------------------


def numpyro_graph(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Graph:
    """Graph of a NumPyro model: its sample and deterministic sites, and its plates."""
    from numpyro.infer.inspect import get_model_relations

    found = get_model_relations(model, args, kwargs)
    plates_of: dict[str, list[tuple[int, str]]] = {}
    for plate, members in found["plate_sample"].items():
        for site in members:
            # A plate that holds more lies further out.
            plates_of.setdefault(site, []).append((-len(members), plate))
    nodes = {}
    for site, kind in found["sample_dist"].items():
        how: Kind = "observed" if site in found["observed"] else "free"
        if kind == "Deterministic":
            how = "derived"
        inside = tuple(plate for _, plate in sorted(plates_of.get(site, [])))
        nodes[site] = Node(how, as_label(site), inside)
    edges = [(p, site) for site, parents in found["sample_sample"].items() for p in parents]
    return _deterministic_inside(Graph(nodes, tuple(edges), {p: p for p in found["plate_sample"]}))


def _deterministic_inside(graph: Graph) -> Graph:
    """Put deterministic sites into the plates of their parents: NumPyro records none for them."""
    nodes = dict(graph.nodes)
    for site, node in graph.nodes.items():
        if node.kind == "derived" and not node.plates:
            inside = [nodes[p].plates for p, child in graph.edges if child == site]
            nodes[site] = node._replace(plates=max(inside, key=len, default=()))
    return graph._replace(nodes=nodes)


# ---- text and drawing ----------------------------------------------------------------------------


def as_label(name: str) -> str:
    r"""A name as mathematics: `mu_r` is $\mu_r$, `lnsigma` $\ln\sigma$, `mass_1` $\mathrm{mass}_1$.

    A name in brackets or with other signs is left as it is.
    """
    if not re.fullmatch(r"\w+", name):
        return name
    prefix, rest = "", name
    if found := re.fullmatch(r"(ln|log)_?(?=.)([A-Za-z]\w*)", name):
        head = found[2].split("_")[0]
        if f"{found[1]}_" in name[:4] or _GREEK.fullmatch(head) or len(head) == 1:
            prefix, rest = rf"\{found[1]}\,", found[2]
    main, *below = [part for part in rest.split("_") if part] or [rest]
    if (digits := re.fullmatch(r"([A-Za-z]+)(\d+)", main)) is not None:
        main, below = digits[1], [digits[2], *below]
    subscript = r",\,".join(_symbol(part) for part in below)
    return f"${prefix}{_symbol(main)}" + (f"_{{{subscript}}}$" if below else "$")


def _symbol(word: str) -> str:
    if _GREEK.fullmatch(word):
        return "\\" + word
    return word if len(word) == 1 or word.isdigit() else rf"\mathrm{{{word}}}"


def _text_width(text: str, size: float) -> float:
    """Width of a text over the height of a circle."""
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), text, size=size).get_extents().width) / _DIAMETER


def _draw(graph: Graph, dpi: float) -> Figure:
    try:
        import daft
    except ImportError as error:
        raise InputError(
            "drawing graphs needs the package daft-pgm (pip install daft-pgm)."
        ) from error
    import matplotlib.pyplot as plt

    texts = {name: _text_width(node.label, _FONT_SIZE) for name, node in graph.nodes.items()}
    names = {plate: _text_width(text, _PLATE_SIZE) for plate, text in graph.plates.items()}
    aspects = {name: max(1.0, width + 0.3) for name, width in texts.items()}
    plates = {name: node.plates for name, node in graph.nodes.items()}
    dots = {name for name, node in graph.nodes.items() if node.kind == "fixed"}
    # The text of a dot stands above it.
    widths = texts | {name: a for name, a in aspects.items() if name not in dots}
    placed = arrange(plates, graph.edges, widths, dots, labels=names)
    left, bottom, right, top = placed.extent
    pgm = daft.PGM(shape=(right - left, top - bottom), origin=(left, bottom), dpi=dpi)
    for name, node in graph.nodes.items():
        x, y = placed.nodes[name]
        pgm.add_node(
            name,
            node.label,
            x,
            y,
            aspect=1.0 if name in dots else aspects[name],
            fixed=node.kind == "fixed",
            observed=node.kind == "observed",
            alternate=node.kind == "derived",
            fontsize=_FONT_SIZE,
        )
    for parent, child in graph.edges:
        pgm.add_edge(parent, child)
    for name, box in _boxes(graph, placed):
        pgm.add_plate(
            list(box), label=graph.plates[name], position="bottom left", fontsize=_PLATE_SIZE
        )
    figure = pgm.render(dpi=dpi).figure
    # A figure of ours is shown by whoever asked for it, not by pyplot.
    plt.close(figure)
    return figure


def _boxes(graph: Graph, placed: Placed) -> Iterable[tuple[str, tuple[float, ...]]]:
    return ((name, placed.plates[name]) for name in graph.plates if name in placed.plates)
