"""`skycensus fit`: a file of draws in, a density out, and what bad input gets."""

import re

import numpy as np
import pytest

from skycensus import cli, load_density


@pytest.fixture(scope="module", autouse=True)
def no_cache():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKYCENSUS_CACHE", "off")
        yield


@pytest.fixture
def chains(tmp_path):
    """Draws of a normal cut at zero, and of one that is not, with weights."""
    rng = np.random.default_rng(0)
    rows = np.column_stack([np.abs(rng.normal(size=800)), rng.normal(size=800), np.ones(800)])
    path = tmp_path / "chains.csv"
    np.savetxt(path, rows, delimiter=",", header="a,b,w", comments="")
    return path


def run(chains, *options):
    out = chains.parent / "density.skc"
    return cli.main(["fit", str(chains), "--out", str(out), *options])


COMMON = ("--columns", "a,b", "--weights", "w")


def test_a_density_is_written_with_its_report(chains, capsys):
    figure = chains.parent / "figure.png"
    options = (*COMMON, "--kind", "cut", "--support", "a=0:", "--figure", str(figure))
    assert run(chains, *options) == 0
    told = capsys.readouterr()
    assert "cut over a, b" in told.out and "a between 0 and inf" in told.out
    assert "held-out log score" in told.out and "cut Gaussian: 2/2" in told.err
    density = load_density(chains.parent / "density.skc")
    assert density.names == ("a", "b")
    assert density.provenance["seed"] == 1
    assert list(density.provenance["inputs"]) == [str(chains)]
    assert density.report.status.converged
    peak = density.log_prob({"a": 0.0, "b": 0.0})
    assert float(peak) == pytest.approx(np.log(2 / (2 * np.pi)), abs=0.15)
    assert figure.stat().st_size > 10_000
    again = run(chains, *options)
    assert again == 2 and "exists" in capsys.readouterr().err


def test_a_density_that_is_not_to_be_believed(chains, capsys):
    """A Gaussian for draws at a bound that nobody declared."""
    rows = np.loadtxt(chains, delimiter=",", skiprows=1)
    rows[:, 0] **= 3
    np.savetxt(chains, rows, delimiter=",", header="a,b,w", comments="")
    assert run(chains, *COMMON, "--kind", "gaussian") == 3
    assert "not converged (density_" in capsys.readouterr().out
    assert (chains.parent / "density.skc").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (("--columns", "a,bb"), r"no column 'bb' \(did you mean 'b'\?\)"),
        (("--weights", "v"), "no column 'v'"),
        (("--weights", "w", "--log-weights", "w"), "exclude each other"),
        ((*COMMON, "--kind", "kdee"), "did you mean 'kde'"),
        ((*COMMON, "--support", "a=0:0.1"), r"column 'a' has .* outside its support"),
        ((*COMMON, "--support", "a"), "write NAME=LOW:HIGH"),
        ((*COMMON, "--support", "a=0:x"), "'0' and 'x' are not two numbers"),
        ((*COMMON, "--support", "aa=0:1"), "no column 'aa'"),
        (("--columns", "a,b,w"), "column 'w' is constant"),
    ],
)
def test_bad_input(chains, capsys, options, message):
    assert run(chains, *options) == 2
    told = capsys.readouterr()
    assert told.out == "" and "Traceback" not in told.err
    assert re.search(message, told.err), told.err
    assert [p.name for p in chains.parent.iterdir()] == ["chains.csv"]
