"""Runs that are cut off: what is kept, what is refused, and that the result is the same."""

from __future__ import annotations

import errno
import inspect
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from contracts import SAMPLERS

from skycensus import NUTS, InputError, Prior, Target, Until, cli
from skycensus.checkpoint import Checkpoint, Record, pack, saved, unfinished, unpack
from skycensus.config import build, read_config
from skycensus.folders import locked
from skycensus.output import fingerprint
from skycensus.result import Result
from skycensus.samplers import evaluate, keep_record

SAME = {"seed": 1, "config": {"data": {"path": "/a"}}}


def checkpoint(folder: Path, **more) -> Checkpoint:
    return Checkpoint(folder / "checkpoint", SAME, **{"every": 0.0} | more)


def offer(to: Checkpoint, value: float, part: str = "a") -> None:
    to.part(part).offer(lambda: {"x": np.array([value])}, f"value {value:g}")


def stored(folder: Path, part: str = "a") -> float | None:
    arrays = checkpoint(folder).part(part).load()
    return None if arrays is None else float(arrays["x"][0])


# ---- the file ------------------------------------------------------------------------------------


def test_what_was_offered_is_found_again(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    first = checkpoint(tmp_path)
    assert first.part("a").load() is None
    offer(first, 1.0)
    offer(first, 2.0, "b")
    again = checkpoint(tmp_path)
    assert "resuming at value 2 (saved " in caplog.text
    assert again.resumed == 1 and again.earlier > 0
    # What this run has not come to again stays.
    offer(again, 3.0, "b")
    assert (stored(tmp_path), stored(tmp_path, "b")) == (1.0, 3.0)
    assert checkpoint(tmp_path).resumed == 2


def test_a_checkpoint_is_written_when_it_is_due(tmp_path):
    late = checkpoint(tmp_path, every=1000.0)
    offer(late, 1.0)
    assert not saved(late.path)
    offer(late, 2.0)
    assert late.write()
    assert stored(tmp_path) == 2.0


def test_an_interrupt_waits_until_a_checkpoint_is_written(tmp_path):
    kept = checkpoint(tmp_path, every=1000.0)

    def interrupted():
        signal.raise_signal(signal.SIGINT)
        return {"x": np.array([4.0])}

    kept.part("a").offer(interrupted, "value 4")
    with pytest.raises(KeyboardInterrupt):
        kept.write()
    assert stored(tmp_path) == 4.0


def test_the_interval_is_a_number_of_seconds(tmp_path, monkeypatch):
    monkeypatch.setenv("SKYCENSUS_CHECKPOINT_SECONDS", "soon")
    with pytest.raises(InputError, match="SKYCENSUS_CHECKPOINT_SECONDS='soon'"):
        Checkpoint(tmp_path / "checkpoint", SAME)


def test_trees_become_arrays_and_back():
    tree = {"key": jax.random.split(jax.random.key(3, impl="rbg"), 2), "x": (jnp.arange(3), True)}
    tree["x"] = (tree["x"][0], jnp.asarray(True))
    back = unpack(pack(tree), jax.eval_shape(lambda: tree))
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert jax.random.normal(back["key"][1]) == jax.random.normal(tree["key"][1])
    assert back["x"][0].dtype == tree["x"][0].dtype
    assert bool(back["x"][1])


# ---- damage --------------------------------------------------------------------------------------

DAMAGE = {
    "cut short": lambda content: content[:-10],
    "empty": lambda content: b"",
    "one bit": lambda content: content[:-50] + bytes([content[-50] ^ 1]) + content[-49:],
    "header": lambda content: content.replace(b'"seed": 1', b'"seed": 2'),
    "another file": lambda content: b"PK\x03\x04 hello",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, name):
    run = checkpoint(tmp_path)
    offer(run, 1.0)
    offer(run, 2.0)
    run.path.write_bytes(DAMAGE[name](run.path.read_bytes()))
    assert stored(tmp_path) == 1.0
    assert "is damaged" in caplog.text


def test_without_any_whole_checkpoint_a_run_starts_anew(tmp_path, caplog):
    run = checkpoint(tmp_path)
    offer(run, 1.0)
    run.path.write_bytes(b"")
    assert stored(tmp_path) is None
    assert "starts anew" in caplog.text


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, caplog):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = checkpoint(tmp_path)
    offer(run, 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        offer(run, 2.0)
    assert "No space left on device; the last one is kept" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert stored(tmp_path) == 1.0
    # There is room again.
    offer(run, 3.0)
    assert stored(tmp_path) == 3.0


# ---- the folder ----------------------------------------------------------------------------------


def cut_off(out: Path, error: BaseException, **more) -> BaseException:
    with pytest.raises(type(error)) as caught, unfinished(out, SAME, **more) as kept:
        offer(kept, 1.0)
        raise error
    return caught.value


def test_a_run_that_ends_well_leaves_no_checkpoint(tmp_path):
    with unfinished(tmp_path / "out", SAME) as kept:
        offer(kept, 1.0)
        kept.write()
        assert kept.folder == tmp_path / "out.unfinished"
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_is_saved_and_told_how_to_resume(tmp_path):
    command = "skycensus run 'my config.toml' --out out --restart"
    error = cut_off(tmp_path / "out", KeyboardInterrupt(), command=command)
    assert error.__notes__ == [
        f"what was found so far is in '{tmp_path}/out.unfinished'; "
        "resume with: skycensus run 'my config.toml' --out out"
    ]
    another = {**SAME, "seed": 2}
    refused = pytest.raises(InputError, match=r"seed was 1 and is 2.*--restart")
    with refused, unfinished(tmp_path / "out", another):
        pytest.fail("another problem")
    with unfinished(tmp_path / "out", SAME) as kept:
        assert kept.part("a").load()["x"] == 1.0


def test_bad_input_leaves_nothing(tmp_path):
    cut_off(tmp_path / "out", InputError("no"))
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_restarted_where_asked(tmp_path):
    cut_off(tmp_path / "out", KeyboardInterrupt())
    with unfinished(tmp_path / "out", {"seed": 2}, restart=True) as kept:
        assert kept.part("a").load() is None


def test_a_changed_problem_is_named(tmp_path):
    cut_off(tmp_path / "out", KeyboardInterrupt())
    changed = {"seed": 1, "config": {"data": {"path": "/b", "columns": "x" * 50}}}
    with pytest.raises(InputError) as caught, unfinished(tmp_path / "out", changed):
        pass
    told = str(caught.value)
    assert "config.data.path was /a and is /b; config.data.columns has changed" in told


def test_no_space_is_told_before_sampling(tmp_path, monkeypatch):
    from skycensus import checkpoint as module

    monkeypatch.setattr(module, "_LEAST_FREE", 2**62)
    with pytest.raises(InputError, match="MB are free"), unfinished(tmp_path / "out", SAME):
        pytest.fail("no space")
    assert list(tmp_path.iterdir()) == []


# ---- log densities -------------------------------------------------------------------------------


def target(shift: float = 0.0) -> Target:
    """Correlated and bent, so that samplers have something to do."""

    def log_likelihood(h, data):
        bent = h["b"] - 0.3 * h["a"] ** 2 + shift
        return -0.5 * jnp.sum((h["a"] - data) ** 2) - 2.0 * bent**2

    prior = Prior({"a": dist.Normal(0.0, 3.0), "b": dist.Normal(0.0, 3.0)})
    return Target(prior, log_likelihood, data=jnp.array([0.5, 1.0]))


def test_log_densities_are_computed_once(tmp_path):
    x = np.random.default_rng(1).normal(size=(150, 2))  # in three batches
    one = target()
    keep_record(one, (first := checkpoint(tmp_path)).part("a"))
    expected = evaluate(one, x)
    assert len(first.part("b").load() or ()) == 0
    two = target()
    keep_record(two, checkpoint(tmp_path).part("a"))
    two._compiled["evaluate"] = None  # type: ignore[attr-defined]
    assert np.array_equal(evaluate(two, x), expected)


def test_batches_that_were_missed_are_computed(tmp_path):
    x = np.random.default_rng(1).normal(size=(150, 2))
    expected = evaluate(target(), x)
    cut = Record(checkpoint(tmp_path).part("a"))
    cut.known(x)
    cut.add(x, np.stack(expected, axis=1)[:64])
    rest = target()
    keep_record(rest, checkpoint(tmp_path).part("a"))
    assert np.array_equal(evaluate(rest, x), expected)


def test_another_model_is_refused(tmp_path):
    one = target()
    keep_record(one, checkpoint(tmp_path).part("a"))
    evaluate(one, np.zeros((1, 2)))
    with pytest.raises(InputError, match=r"another model: at a=0, b=0 .*--restart"):
        keep_record(target(shift=0.1), checkpoint(tmp_path).part("a"))


# ---- samplers ------------------------------------------------------------------------------------


class CutOff(Exception):
    """The run ends here."""


def run_until(sampler, folder: Path, stop: int | None) -> Result:
    """A run that is cut off at the `stop`-th point where it could be resumed."""
    kept, count = checkpoint(folder), 0
    write = kept._write_if_due

    def write_or_stop():
        nonlocal count
        count += 1
        if count == stop:
            write()
            raise CutOff

    kept._write_if_due = write_or_stop  # type: ignore[method-assign]
    one = target()
    keep_record(one, kept.part("evaluations"))
    takes = "checkpoint" in inspect.signature(sampler.run).parameters
    more = {"checkpoint": kept.part("sampler")} if takes else {}
    return sampler.run(one, jax.random.key(2), **more)


CUT_OFF = {
    "importance": SAMPLERS["importance"],
    "quadrature": SAMPLERS["quadrature"],
    "nuts": NUTS(num_warmup=60, num_samples=161, num_chains=2, num_start=32, thinning=2),
    "nuts, one by one": NUTS(
        num_warmup=60, num_samples=81, num_chains=3, num_start=32, chain_method="sequential"
    ),
    "flow_mcmc": SAMPLERS["flow_mcmc"],
    "until": Until(
        NUTS(num_warmup=60, num_samples=31, num_chains=2, num_start=32, thinning=2), target_ess=60
    ),
    "coarse to exact": SAMPLERS["coarse to exact"],
}
QUICK = ("importance", "nuts")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n not in QUICK else ()) for n in CUT_OFF],
)
def test_a_sampler_that_is_cut_off_gives_the_same(tmp_path, name):
    sampler = CUT_OFF[name]
    whole = sampler.run(target(), jax.random.key(2))
    rng = np.random.default_rng(8)
    num_cut = 0
    for _ in range(2):
        try:
            run_until(sampler, tmp_path, int(rng.integers(1, 12)))
            break
        except CutOff:
            num_cut += 1
    assert num_cut > 0
    pieced = run_until(sampler, tmp_path, None)
    for group in ("draws", "sample_stats"):
        for key, array in getattr(whole, group).items():
            np.testing.assert_array_equal(getattr(pieced, group)[key], array)
    assert pieced.log_evidence == whole.log_evidence
    assert pieced.measures == whole.measures


# ---- the command ---------------------------------------------------------------------------------

CONFIG = """
seed = 3
[data]
kind = "points"
path = "points.csv"
[population]
line = "line"
[prior]
m = {dist = "Normal", loc = 0, scale = 5}
b = {dist = "Normal", loc = 0, scale = 5}
[sampler]
kind = "nuts"
num_warmup = 200
num_samples = 8_000
num_chains = 2
num_start = 32
[output]
figures = false
num_object_draws = 0
num_marginal_draws = 10
"""


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """A folder with a config and points along a line."""
    folder = tmp_path_factory.mktemp("line")
    rng = np.random.default_rng(1)
    x = rng.uniform(0.0, 10.0, 20)
    rows = np.column_stack([x, 1.5 * x + 2.0 + 0.5 * rng.normal(size=20), np.full(20, 0.5)])
    np.savetxt(folder / "points.csv", rows, delimiter=",", header="x,y,y_err", comments="")
    (folder / "config.toml").write_text(CONFIG)
    return folder


def start(line: Path, out: str = "out") -> subprocess.Popen[str]:
    source = str(Path(cli.__file__).parents[1])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    settings = {
        "PYTHONPATH": path,
        "SKYCENSUS_CACHE": str(line / "cache"),
        "SKYCENSUS_CHECKPOINT_SECONDS": "0.02",
    }
    command = [sys.executable, "-m", "skycensus", "run", "config.toml", "--out", out]
    return subprocess.Popen(
        command, cwd=line, env=os.environ | settings, stderr=subprocess.PIPE, text=True
    )


def cut(line: Path, number: int, delay: float) -> tuple[int, str]:
    """Start the run, or resume it, send it a signal `delay` after it has saved a step."""
    process = start(line)
    kept = line / "out.unfinished" / "checkpoint"
    before = kept.read_bytes() if kept.exists() else b""
    now = before
    while process.poll() is None and (now == before or b'"what": "step' not in now):
        time.sleep(0.02)
        with suppress(FileNotFoundError):
            now = kept.read_bytes()
    time.sleep(delay)
    process.send_signal(number)
    said = process.communicate()[1]
    return process.returncode, said


def cut_often(line: Path, numbers: list[int], seed: int) -> None:
    """A run that is cut off at random moments, and at last finished, against a whole one."""
    rng = np.random.default_rng(seed)
    for number in numbers:
        code, said = cut(line, number, rng.uniform(0.0, 0.15))
        assert "Traceback" not in said
        assert not (line / "out").exists()
        assert code == (130 if number == signal.SIGINT else -number), said
        if number == signal.SIGINT:
            told = said.splitlines()[-1]
            assert told.startswith("interrupted: what was found so far is in ")
            assert told.endswith("resume with: skycensus run config.toml --out out.")
    last = start(line)
    said = last.communicate()[1]
    assert last.returncode == 0, said
    assert "resuming at step" in said
    one, two = (Result.load(line / name / "result.nc") for name in ("whole", "out"))
    for name, draws in one.draws.items():
        np.testing.assert_array_equal(two.draws[name], draws)
    assert two.provenance["resumed"] == len(numbers)
    assert two.seconds["earlier"] > 0
    assert not (line / "out.unfinished").exists()


@pytest.fixture
def whole(line):
    """The folder, with the result of a run that was left alone."""
    if not (line / "whole").exists():
        # In a process of its own too: here programs may be compiled in another way.
        alone = start(line, "whole")
        said = alone.communicate()[1]
        assert alone.returncode == 0, said
    shutil.rmtree(line / "out", ignore_errors=True)
    return line


@pytest.mark.slow
def test_a_run_that_is_killed_often_gives_the_same(whole, sized):
    cut_often(whole, [signal.SIGINT] + [signal.SIGKILL] * sized(full=8, small=2), seed=5)


def test_two_runs_in_one_folder_are_refused(line, monkeypatch, capsys):
    monkeypatch.chdir(line)
    with locked(line / "busy.unfinished", "'busy'"):
        assert cli.main(["run", "config.toml", "--out", "busy"]) == 2
    said = capsys.readouterr().err
    assert f"another run (process {os.getpid()} on " in said
    assert "is writing to" in said


def test_a_changed_config_is_refused(line, monkeypatch, capsys):
    monkeypatch.chdir(line)
    run = ["run", "config.toml", "--out", "other", "--set", "sampler.num_samples=20"]
    before = fingerprint(build(read_config("config.toml", ["sampler.num_samples=10"])))
    with pytest.raises(KeyboardInterrupt), unfinished("other", before) as kept:
        offer(kept, 1.0)
        raise KeyboardInterrupt
    assert cli.main(run) == 2
    assert "sampler.num_samples was 10 and is 20" in capsys.readouterr().err
    assert saved(line / "other.unfinished" / "checkpoint")
    # What is drawn of a result is none of a run's problem.
    drawn = build(read_config("config.toml", ["sampler.num_samples=10", "output.figures=true"]))
    assert fingerprint(drawn) == before
