import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from skycensus import plots
from skycensus.calibration import Calibration
from skycensus.errors import InputError
from skycensus.gamma.fold import Cut
from skycensus.gamma.photons import Background, Observation, Source
from skycensus.gamma.response import synthetic_tables
from skycensus.gamma.sky import Cone, Point
from skycensus.gamma.spectra import PowerLaw
from skycensus.plots import draws
from skycensus.plots.photons import counts_map, counts_spectrum
from skycensus.plots.velocities import phase_folded
from skycensus.result import Result, Status


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def result(rng):
    draws = {"a": rng.normal(3, 0.5, size=(2, 200)), "b": rng.normal(size=(2, 200))}
    return Result(draws, Status(True), derived={"r": np.exp(draws["b"])}, truth={"a": 3.0})


def drawn(figure):
    """The figure rendered to an array of pixels, which finds what only drawing finds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    assert isinstance(figure, Figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def words(figure):
    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


@pytest.mark.parametrize("function", [plots.corner, plots.trace])
class TestDraws:
    def test_labels_and_derived(self, function, result):
        figure = function(result, ["a", "r"], labels={"a": r"$\alpha\ [M_\odot]$"})
        drawn(figure)
        assert r"$\alpha\ [M_\odot]$" in words(figure) and "r" in words(figure).split()

    @pytest.mark.parametrize("shape", [(1, 1), (3, 2)])
    def test_few_draws(self, function, rng, shape):
        draws = {name: rng.normal(size=shape) for name in "abc"}
        drawn(function(Result(draws, Status(True))))

    def test_one_parameter(self, function, result):
        drawn(function(result, ["a"]))

    def test_constants(self, function, rng):
        constant = np.full((2, 50), 4.0)
        drawn(function(Result({"a": constant}, Status(True), truth={"a": 4.0})))
        drawn(function(Result({"a": constant, "b": rng.normal(size=(2, 50))}, Status(True))))

    def test_weights(self, function, rng):
        x = rng.normal(size=(1, 500))
        weight = np.where(x > 0, -0.5 * x, -np.inf)
        drawn(function(Result({"a": x, "b": x**2}, Status(True), log_weight=weight)))

    def test_array_parameters_and_draws_that_are_not_finite(self, function, rng):
        x = rng.normal(size=(2, 60, 2))
        x[0, 3, 1] = np.nan
        truth = {"a": [0.1, 0.2]}
        drawn(function(Result({"a": x}, Status(True), truth=truth)))

    def test_unknown_name(self, function, result):
        with pytest.raises(InputError, match=r"no draws of \['c'\]; this result has"):
            function(result, ["c"])


def test_corner_says_median_and_interval():
    n = 4001
    x = np.linspace(0, 1, n).reshape(1, n)
    figure = plots.corner(Result({"x": 2 * x}, Status(True)))
    assert "x = $1.00^{+0.90}_{-0.90}$" in words(figure)


@pytest.mark.parametrize(
    ("label", "title"),
    [
        (r"$m_\mathrm{min}\ [M_\odot]$", r"$m_\mathrm{min}$ = v"),
        (r"mass [kg]", "mass = v"),
        (r"$\alpha$", r"$\alpha$ = v"),
        (r"$\ln(R\ [\mathrm{Gpc}^{-3}])$", r"$\ln(R\ [\mathrm{Gpc}^{-3}])$" + "\nv"),
        ("amplitude[3]", "amplitude[3]\nv"),
    ],
)
def test_titles_leave_units_to_the_axis(label, title):
    assert draws._title(label, "v") == title


def test_corner_writes_a_file(result, tmp_path):
    plots.corner(result, path=tmp_path / "corner.pdf")
    assert (tmp_path / "corner.pdf").read_bytes().startswith(b"%PDF")


def test_density_bands(rng):
    x = np.linspace(1, 10, 40)
    curves = x ** -rng.normal(2, 0.1, size=(101, 1))
    figure = plots.density_bands(x, {"all": curves}, truth=x**-2.0, yscale="log")
    drawn(figure)
    median = np.asarray(figure.axes[0].lines[0].get_ydata())
    np.testing.assert_allclose(median, np.median(curves, axis=0))
    assert {"all", "truth"} <= set(words(figure).split())


def test_density_bands_over_each_other_and_in_a_panel(rng):
    x = np.geomspace(1, 100, 30)
    curves = rng.random((20, 30)) * (x > 5)
    axes = Figure().subplots(1, 2)
    sets = {"one": curves, "two": 2 * curves}
    figure = plots.density_bands(x, sets, axes=axes[1], xscale="log", yscale="log")
    assert figure is axes[1].figure and len(axes[1].lines) == 2
    np.testing.assert_allclose(axes[1].lines[1].get_ydata(), 2 * np.median(curves, axis=0))
    drawn(figure)


@pytest.mark.parametrize("count", [1, 10, 300])
def test_cumulative_bands(rng, count):
    predicted, observed = rng.lognormal(size=(2, 80, count))
    figure = plots.cumulative_bands({"predicted": predicted, "observed": observed}, xscale="log")
    drawn(figure)
    low, high, middle = figure.axes[0].lines[1:]
    ranked = np.sort(observed, axis=1)
    np.testing.assert_allclose(middle.get_xdata(), np.median(ranked, axis=0))
    assert (low.get_xdata() <= middle.get_xdata()).all()
    assert np.mean(ranked > high.get_xdata()) < 0.06
    assert {"predicted", "observed"} <= set(words(figure).split())


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_density_bands_of_nothing(value):
    x = np.linspace(0, 1, 5)
    drawn(plots.density_bands(x, np.full((3, 5), value), yscale="log"))
    drawn(plots.density_bands(x, np.full((3, 5), value)))


def test_density_bands_of_the_wrong_shape():
    with pytest.raises(ValueError, match="grid of 5 points"):
        plots.density_bands(np.arange(5.0), np.ones((2, 4)))


@pytest.mark.parametrize("count", [1, 12, 300])
def test_object_posteriors(rng, count):
    names = [f"GW{k}" for k in range(count)]
    centre = rng.uniform(5, 50, size=count)
    alone = [rng.normal(c, 2, size=50 + k) for k, c in enumerate(centre)]
    informed = [0.9 * x for x in alone]
    figure = plots.object_posteriors(names, alone, informed, truth=centre, xlabel=r"$m\ [M_\odot]$")
    drawn(figure)
    shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(shown) == (count if count < 120 else 0)
    medians = figure.axes[0].lines[1].get_xdata()
    assert (np.diff(medians) >= 0).all()


def test_object_posteriors_of_unequal_numbers():
    with pytest.raises(ValueError, match="1, 2 and 1"):
        plots.object_posteriors(["a"], [np.ones(3)] * 2, [np.ones(3)])


@pytest.mark.parametrize("count", [1, 20, 100])
def test_n_eff(rng, count):
    values = rng.uniform(20, 500, size=(3, 7, count))
    values[..., 0] = 2.0
    figure = plots.n_eff(values, [f"event {k}" for k in range(count)])
    drawn(figure)
    assert f"(1 of {count} objects below)" in words(figure)
    drawn(plots.n_eff(values[0, 0]))


def test_save_figures(result, tmp_path):
    figures = {"one": plots.trace(result), "two": plots.corner(result)}
    paths = plots.save_figures(figures, tmp_path / "figures", formats=("png", "svg"))
    names = ["one.png", "one.svg", "two.png", "two.svg"]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == names
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        plots.save_figures(figures, tmp_path / "file")


def test_no_global_state(result):
    before = dict(matplotlib.rcParams)
    plots.corner(result)
    plots.trace(result)
    assert dict(matplotlib.rcParams) == before
    from matplotlib import pyplot

    assert not pyplot.get_fignums()


def test_velocities_are_folded_with_the_best_of_the_drawn_periods():
    rng = np.random.default_rng(2)
    time = np.sort(rng.uniform(0, 100, 12))
    velocity = 5.0 * np.cos(2 * np.pi * time / 7.0) + 1.0
    draws = {
        "P": np.array([[7.0], [3.1], [7.001]]),
        "a": np.full((3, 1), 5.0),
        "b": np.zeros((3, 1)),
        "v0": np.ones((3, 1)),
    }
    figure = phase_folded(["star"], [time], [velocity], [np.full(12, 0.1)], draws)
    axes = figure.axes[0]
    assert axes.get_title() == "star\n7 d, K = 5 km/s"
    # The best orbit passes through the data, and the draw in another mode is not shown.
    curves = [line for line in axes.lines if len(line.get_xdata()) == 201]
    assert len(curves) == 3
    best = curves[-1]
    at = np.interp(time / 7.0 % 1.0, best.get_xdata(), best.get_ydata())
    np.testing.assert_allclose(at, velocity, atol=0.01)


def test_pp_plot_tells_a_curve_that_leaves_its_bands(rng):
    ranks = rng.uniform(size=(50, 2))
    ranks[:, 1] **= 3
    found = Calibration(("a", "b"), ranks, ranks, ((),) * 50)
    figure = plots.pp_plot(found, labels={"a": r"$\alpha$"})
    drawn(figure)
    tests = found.p_values()
    assert rf"$\alpha$ ({tests['a'][0]:.2g}, {tests['a'][1]:.2g})" in words(figure)
    assert tests["b"].kolmogorov_smirnov < 0.01
    # Outside the 99 % band exactly where the test says so.
    band = figure.axes[0].collections[0].get_paths()[0]
    for i, outside in enumerate([False, True]):
        height = (np.arange(50) + 0.5) / 50
        points = np.stack([np.sort(ranks[:, i]), height], axis=1)
        assert (not band.contains_points(points, radius=1e-6).all()) == outside


def test_photons_on_the_sky_and_in_energy(rng):
    region = Cone(10.0, 20.0, 1.0)
    columns = {"energy": 0.5 * rng.uniform(size=300) ** -0.6}
    columns |= {"lon": rng.normal(10.0, 0.3, 300), "lat": rng.normal(20.0, 0.3, 300)}
    run = Observation(
        tables=synthetic_tables(),
        pointing=(10.2, 20.3),
        livetime=600.0,
        cut=Cut(region, 0.5, 20.0),
        **columns,
    )
    place = rng.normal([10.0, 20.0], 0.01, (50, 2)).T
    figure = counts_map([run], region, place=place)
    drawn(figure)
    assert "source, 95%" in words(figure)
    image = figure.axes[0].collections[0].get_array()
    assert image.sum() == np.sum(run.used)
    source = Source(Point(10.0, 20.0), PowerLaw(2.5, low=0.1, high=100.0, log_amplitude=-24.0))
    tree = {"star": source, "ccr": Background()}
    figure = counts_spectrum([run], tree, {"star": 1.0, "ccr": 0.1}, per_decade=3)
    drawn(figure)
    assert {"star", "ccr", "photons"} <= set(words(figure).split())


def test_regions_hold_what_they_say_and_fill_the_axes():
    from skycensus.plots.regions import _edges, regions

    x, y = np.meshgrid(np.linspace(-10, 10, 201), np.linspace(-10, 10, 201))
    log_density = -0.5 * (x**2 + (y / 0.5) ** 2)
    held = np.exp(log_density)
    for level, edge in zip((0.95, 0.68), _edges(log_density, (0.68, 0.95)), strict=True):
        assert abs(held[log_density >= edge].sum() / held.sum() - level) < 0.01
    figure = regions(x, y, {"a": log_density}, lines={"b": log_density}, truth=(0.1, 0.2))
    low, high = figure.axes[0].get_xlim()
    # Of a normal distribution in two dimensions, 95 % lie within 2.45 standard deviations.
    assert -3.2 < low < -2.4 and 2.4 < high < 3.2
