"""Reading configs: overrides, what is wrong with them, and writing them back."""

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from skycensus import (
    NUTS,
    BoostedNested,
    Coarse,
    CoarseToExact,
    ImportanceSampler,
    LearnedProposal,
    Nested,
    Until,
)
from skycensus.config import as_run, build, parse_config, read_config, to_toml
from skycensus.config.sampler import make_sampler
from skycensus.config.schema import SECTIONS, SELECTIONS, described, fits
from skycensus.errors import InputError

GOOD = """
seed = 3
[data]
path = "catalogue"
events = "posteriors/*.dat"
reference_prior = {masses = "uniform-source-components"}
[population]
mass = "power_law_masses"
[selection]
kind = "injections"
file = "injections_found.hdf5"
[prior]
alpha = {dist = "Uniform", low = 0.0, high = 4.0}
"beta|mm.*" = 1.0
[sampler]
kind = "importance"
"""


def parse(text: str, *overrides: str, path: str = "/somewhere/config.toml"):
    return parse_config(text, Path(path), overrides)


def test_sections_have_their_values_and_defaults():
    config = parse(GOOD)
    assert config.problems == []
    assert config.seed == 3
    assert config.sections["data"].events == "posteriors/*.dat"
    assert config.sections["data"].on_low_n_eff == "error"
    assert config.sections["selection"].file == "injections_found.hdf5"
    assert config.sections["model"].rate is None
    assert config.in_data("x.json") == Path("/somewhere/catalogue/x.json")


@pytest.mark.parametrize(
    ("override", "keys", "value"),
    [
        ("seed=9", ("seed",), 9),
        ("sampler.num_adapt=500", ("sampler", "num_adapt"), 500),
        ("model.rate=shape", ("model", "rate"), "shape"),
        ("model.rate='shape'", ("model", "rate"), "shape"),
        ("data.exclude=['a', 'b']", ("data", "exclude"), ["a", "b"]),
        ("prior.alpha=2.5", ("prior", "alpha"), 2.5),
        ('prior."beta|mm.*"={same_as="alpha"}', ("prior", "beta|mm.*"), {"same_as": "alpha"}),
        ("data.path = other folder", ("data", "path"), "other folder"),
    ],
)
def test_any_key_can_be_set(override, keys, value):
    found = parse(GOOD, override).raw
    for key in keys:
        found = found[key]
    assert found == value


@pytest.mark.parametrize("override", ["seed", "=3", "a b=3", "seed.x=1"])
def test_overrides_that_make_no_sense(override):
    with pytest.raises(InputError, match=re.escape(override)):
        parse(GOOD, override)


def test_a_path_on_the_command_line_is_from_where_it_was_typed(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse(GOOD, "data.path=here").data_folder == tmp_path / "here"
    # One that is not there is from the config, like those in it.
    assert parse(GOOD, "data.path=elsewhere").data_folder == Path("/somewhere/elsewhere")


def test_all_problems_are_told_at_once():
    bad = GOOD.replace("events =", "evnts =").replace("[sampler]", "[smapler]")
    config = parse(
        bad, "model.rate=poison", "data.max_draws=many", "seed=-1", "data.min_n_eff=true"
    )
    told = "\n".join(config.problems)
    for part in (
        "'evnts' (did you mean 'events'?)",
        "'events' is missing",
        "'smapler' (did you mean 'sampler'?)",
        "rate = 'poison' is not one of 'poisson', 'shape' (did you mean 'poisson'?)",
        "max_draws = 'many' is not a whole number",
        "min_n_eff = True is not a number",
        "seed = -1",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("selection.kind=injection", "did you mean 'injections'?"),
        ("selection={file='x'}", "'kind' is missing"),
        ("selection.snr=8", "'snr'"),
        ("prior=3", "'prior' is a section"),
        ("selection={kind='semi_analytic'}", "'time' is missing"),
        ("data.columns={mass_1_source=3}", "is not a table"),
    ],
)
def test_problems_of_sections(override, told):
    assert any(told in problem for problem in parse(GOOD, override).problems)


def test_not_toml():
    with pytest.raises(InputError, match="not valid TOML"):
        parse("seed = = 3")


def test_a_config_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"none\.toml.*cannot be read: No such file"):
        read_config(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        read_config(tmp_path / "binary.toml")


def test_toml_round_trip():
    table = {
        "seed": 1,
        "empty": {},
        "prior": {"a|b": {"dist": "Uniform", "low": -1.0, "high": 1e-30}, "c": "a|b"},
        "data": {"list": ["x\n\"y'", "ü\x7f"], "yes": True, "deep": {"er": {"x": [1, 2.5]}}},
    }
    assert tomllib.loads(to_toml(table)) == table


def test_the_config_as_run_can_be_run_from_anywhere(tmp_path):
    (tmp_path / "catalogue").mkdir()
    (tmp_path / "catalogue" / "prior.json").write_text("{}")
    (tmp_path / "truth.json").write_text("{}")
    text = GOOD + "[truth]\nfile = 'truth.json'\n"
    config = parse(text, "prior.file=prior.json", path=str(tmp_path / "config.toml"))
    written = as_run(config)
    assert tomllib.loads(to_toml(written)) == written
    assert written["data"]["path"] == str(tmp_path / "catalogue")
    assert written["data"]["events"] == str(tmp_path / "catalogue/posteriors/*.dat")
    assert written["selection"]["file"] == str(tmp_path / "catalogue/injections_found.hdf5")
    assert written["prior"]["file"] == str(tmp_path / "catalogue/prior.json")
    assert written["truth"]["file"] == str(tmp_path / "truth.json")
    assert as_run(parse(to_toml(written), path="/else/where.toml")) == written
    # What was given is left as it was.
    assert config.raw["data"]["path"] == "catalogue"


def test_types():
    assert fits(1, float) and fits(1.5, float | None) and not fits(1.5, int)
    assert not fits(True, int) and not fits(True, float) and fits(True, bool)
    assert not fits(float("nan"), float)
    assert fits(["a"], str | list[str]) and not fits([1], str | list[str])
    assert described(float | str | None) == "a number or a string"
    assert described(list[str]) == "a list of strings"


def test_every_key_is_documented(root):
    text = (root / "docs" / "config.md").read_text()
    classes: list[Any] = [c for c in (*SECTIONS.values(), *SELECTIONS.values()) if c is not None]
    missing = [f.name for c in classes for f in dataclasses.fields(c) if f"`{f.name}`" not in text]
    missing += [name for name in SECTIONS if f"[{name}]" not in text]
    missing += [kind for kind in SELECTIONS if f"`{kind}`" not in text]
    assert not missing


def test_every_name_of_the_table_is_documented(root):
    from skycensus.config.names import FAMILIES

    text = (root / "docs" / "config.md").read_text()
    missing = [name for table in FAMILIES.values() for name in table if f"`{name}`" not in text]
    assert not missing


# ---- samplers ------------------------------------------------------------------------------------


def sampler_of(line: str):
    """The sampler of a `[sampler]` section, for a model that nothing is asked of."""
    return make_sampler(tomllib.loads(line))(None)


def test_goals_and_coarse_versions_go_with_any_kind():
    plain = sampler_of("kind = 'importance'\ntarget_ess = 300")
    assert plain == ImportanceSampler(target_ess=300.0)
    until = sampler_of("kind = 'nuts'\ntarget_ess = 300\ntime_limit = 60")
    assert until == Until(NUTS(), target_ess=300.0, time_limit=60.0)
    coarse = sampler_of("kind = 'nuts'\ncoarse = {draws = 500, float32 = true}")
    assert coarse == CoarseToExact(NUTS(), Coarse(draws=500, float32=True))
    both = sampler_of("kind = 'nested'\ncoarse.nodes = 3\ntarget_ess = 5\ntime_limit = 9.5")
    inner = CoarseToExact(Nested(), Coarse(nodes=3), target_ess=5.0)
    assert both == Until(inner, time_limit=9.5)


def test_samplers_within_samplers():
    boosted = sampler_of(
        "kind = 'boosted_nested'\nsampler = {kind = 'nested', num_live = 300}\ndensity = 'auto'"
    )
    assert boosted == BoostedNested(sampler=Nested(num_live=300), density="auto")
    learned = sampler_of(
        "kind = 'learned_proposal'\nfirst = {kind = 'nuts'}\ncheap = {draws = 50}\ntarget_ess = 9"
    )
    assert learned == LearnedProposal(first=NUTS(), cheap=Coarse(draws=50), target_ess=9.0)


def test_start_values_of_chains():
    for kind in ("nuts", "flow_mcmc"):
        assert sampler_of(f"kind = '{kind}'\nstart = 'mode'").start == "mode"
        assert sampler_of(f"kind = '{kind}'\nstart = {{a = 1.0}}").start == {"a": 1.0}
        assert sampler_of(f"kind = '{kind}'\nstart = [{{a = 1.0}}, {{a = 2.0}}]").start[1] == {
            "a": 2.0
        }
        with pytest.raises(InputError, match=r"start = 'modes'.*did you mean 'mode'"):
            make_sampler({"kind": kind, "start": "modes"})


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("kind = 'nuts'\ntime_limt = 3", "did you mean 'time_limit'"),
        ("kind = 'nuts'\ntime_limit = -3", "time_limit = -3.0 must be a positive number"),
        ("target_ess = 'many'", "target_ess = 'many' is not a number"),
        ("coarse = 500", "coarse = 500 is not a table"),
        ("coarse = {drws = 500}", "coarse: there is no key 'drws' .*did you mean 'draws'"),
        ("coarse = {}", "nothing is coarser"),
        ("coarse = {draws = 0}", "draws = 0 must be at least 1"),
        ("kind = 'boosted_nested'\nsampler = {kind = 'nuts'}", "is nested or dynesty, not NUTS"),
        ("kind = 'boosted_nested'\nfirst = 'nested'", "first = 'nested' is not a table"),
        ("kind = 'boosted_nested'\nfirst = {kind = 'nsted'}", "first: .*did you mean 'nested'"),
        (
            "kind = 'learned_proposal'\ncheap = {drws = 1}",
            "cheap: there is no key 'drws' .*did you mean 'draws'",
        ),
        ("kind = 'learned_proposal'\nprior_share = 2.0", "prior_share = 2.0 must be between 0"),
    ],
)
def test_bad_goals_are_named(line, told):
    with pytest.raises(InputError, match=told):
        make_sampler(tomllib.loads(line))


def test_output_that_cannot_be_is_told(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[output]\nnum_prior_draws = -3\nfigure_formats = ["pgn"]\n')
    with pytest.raises(InputError) as caught:
        build(read_config(path))
    told = str(caught.value)
    assert "num_prior_draws = -3 must be 0 or more" in told
    assert "'pgn' is none (did you mean 'png'?)" in told
