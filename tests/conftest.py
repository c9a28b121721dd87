import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Most of a test's time is compilation, and few repay optimised code: without it they take half as
# long. The validation tier runs what users run: XLA_FLAGS= ./dev test -m slow
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
)

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]

# By default a tenth of the time goes into the search for cycles of garbage (see skycensus.cli).
gc.set_threshold(100_000, 20, 50)

# Tests compare with exact answers in double precision; the command line switches it on as well.
jax.config.update("jax_enable_x64", True)

# Where in Python each step of a program was written is not asked for, and a tenth to look up.
jax.config.update("jax_traceback_in_locations_limit", 0)

# The cache of programs lies in the environment, so it goes when the versions do; each parallel
# worker has its own, because JAX does not write entries atomically.
if sys.prefix != sys.base_prefix:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    jax.config.update("jax_compilation_cache_dir", f"{sys.prefix}/.cache/jax/{worker}")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(scope="module", autouse=True)
def _few_programs() -> Iterator[None]:
    yield
    from skycensus.analysis import forget_programs

    forget_programs()


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def require_path() -> Callable[[str | Path], Path]:
    """`require_path(path)` is the path, or skips the test naming it where it is absent."""

    def require(path: str | Path) -> Path:
        path = Path(path)
        if not path.exists():
            pytest.skip(f"absent: {path}")
        return path

    return require


@pytest.fixture(scope="session")
def sized() -> Callable[..., int]:
    """`sized(full=100, small=20)` is how much of something a validation test does.

    It is the first, unless $SKYCENSUS_VALIDATION is "small", as it is where CI runs these tests.
    """
    size = os.environ.get("SKYCENSUS_VALIDATION", "full")
    if size not in ("small", "full"):
        raise pytest.UsageError(f"SKYCENSUS_VALIDATION='{size}'; use 'small' or 'full'.")
    return lambda *, full, small: small if size == "small" else full


@pytest.fixture(autouse=True)
def _at_full_size(request: pytest.FixtureRequest, sized: Callable[..., int]) -> None:
    if request.node.get_closest_marker("full") and not sized(full=1, small=0):
        pytest.skip("at the full size only")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared reference data: $SKYCENSUS_SHARED, else `shared` beside the checkout.

    It need not exist; use `require_path(shared / "data" / "name")`.
    """
    return Path(os.environ.get("SKYCENSUS_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def data_set() -> Callable[[str], Path]:
    """`data_set(name)` is the path of a public data set, or skips saying why it is not here."""
    from skycensus import InputError, data

    missing: dict[str, str] = {}

    def have(name: str) -> Path:
        if name not in missing:
            try:
                return data.path(name)
            except InputError as error:
                missing[name] = str(error)
        pytest.skip(missing[name])

    return have
