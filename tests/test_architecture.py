"""The rules of the design that a machine can hold: which way imports run, what is kept out."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"
PACKAGE = "skycensus"

CORE = {
    "analysis",
    "blocks",
    "calibration",
    "checkpoint",
    "costs",
    "density",
    "diagnostics",
    "distributions",
    "errors",
    "estimators",
    "folders",
    "informed",
    "keys",
    "latent_checks",
    "latents",
    "likelihood",
    "model",
    "nuisance_free",
    "numpyro_target",
    "objects",
    "precision",
    "predictive",
    "predictive_checks",
    "prior",
    "result",
    "samplers",
    "statistics",
    "status",
    "target",
    "unit_cube",
    "weights",
}
SCIENCE = {"gamma", "gw", "stars"}
FRONT = {
    "__main__",
    "cli",
    "config",
    "data",
    "figures",
    "graph",
    "graph_layout",
    "gwkokab",
    "output",
    "plots",
    "report",
}

# What each room of the package may import from the others.
MAY_IMPORT = (
    {room: CORE for room in CORE}
    | {room: CORE | {room} for room in SCIENCE}
    | {room: CORE | SCIENCE | FRONT for room in FRONT}
)
# Third-party packages and the rooms that may import them; none for what is kept out altogether.
ONLY_IN = {
    "corner": {"plots"},
    "daft": {"graph"},
    "matplotlib": {"graph", "plots"},
    "pickle": set(),
    "cloudpickle": set(),
    "dill": set(),
}


# ---- reading the tree ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """One imported module, by absolute name; `eager` where importing the importer imports it."""

    source: str
    target: str
    line: int
    eager: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def lineage(module: str) -> set[str]:
    """The module and the packages that it lies in."""
    parts = module.split(".")
    return {".".join(parts[: n + 1]) for n in range(len(parts))}


FILES = {module_name(path): path for path in sorted((SRC / PACKAGE).rglob("*.py"))}
TREES = {module: ast.parse(path.read_bytes(), str(path)) for module, path in FILES.items()}

needs_package = pytest.mark.skipif(not FILES, reason=f"absent: {SRC / PACKAGE}")


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def statements(node: ast.AST, eager: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below `node`, with whether it runs when the module is imported."""
    for child in ast.iter_child_nodes(node):
        yield child, eager
        if isinstance(child, ast.If) and is_type_checking(child.test):
            for part, runs in ((child.body, False), (child.orelse, eager)):
                for statement in part:
                    yield statement, runs
                    yield from statements(statement, runs)
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from statements(child, eager and not function)


def find_imports(module: str) -> Iterator[Import]:
    is_package = FILES[module].name == "__init__.py"
    for node, eager in statements(TREES[module]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, eager)
        elif isinstance(node, ast.ImportFrom):
            # One dot is the package that the module is in, each further dot the one above.
            above = module.split(".")
            above = above[: len(above) + is_package - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                # `from package import name` imports a module where there is one of that name.
                name = f"{base}.{alias.name}"
                yield Import(module, name if name in FILES else base, node.lineno, eager)


IMPORTS = [found for module in FILES for found in find_imports(module)]


def where(found: Import) -> str:
    return f"{FILES[found.source].relative_to(ROOT)}:{found.line} imports {found.target}"


# ---- imports -------------------------------------------------------------------------------------


@needs_package
def test_every_module_is_in_a_room_of_the_design():
    unknown = sorted({room(module) for module in FILES} - set(MAY_IMPORT) - {""})
    assert not unknown, f"say in the tables of {Path(__file__).name} what {unknown} may import"


@needs_package
def test_imports_run_one_way():
    wrong = [
        where(found)
        for found in IMPORTS
        if found.target.split(".")[0] == PACKAGE
        and room(found.source)
        and room(found.target) not in MAY_IMPORT.get(room(found.source), set())
        # The package itself holds the version; its public names are imported from their rooms.
        and not (found.target == PACKAGE and room(found.source) in FRONT)
    ]
    assert not wrong, "\n".join(wrong)


@needs_package
@pytest.mark.parametrize("package", sorted(ONLY_IN))
def test_only_its_own_room_imports(package):
    wrong = [
        where(found)
        for found in IMPORTS
        if found.target.split(".")[0] == package and room(found.source) not in ONLY_IN[package]
    ]
    assert not wrong, "\n".join(wrong)


@needs_package
def test_no_import_cycles():
    # Importing a module first imports the packages it is in. A module's own packages do not count:
    # they have always begun before it, so what it finds in them does not depend on who is first.
    edges: dict[str, set[str]] = {module: set() for module in FILES}
    for found in IMPORTS:
        if found.eager and found.target in FILES:
            edges[found.source] |= lineage(found.target) - lineage(found.source)

    finished: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        cycle = " -> ".join([*trail[trail.index(module) :], module]) if module in trail else ""
        assert not cycle, f"import cycle: {cycle}"
        if module not in finished:
            for target in sorted(edges[module]):
                visit(target, [*trail, module])
            finished.add(module)

    for module in FILES:
        visit(module, [])


def python(code: str) -> str:
    """What a fresh interpreter prints that runs `code` and sees the package of this checkout."""
    path = os.pathsep.join(filter(None, [str(SRC), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Importing any of these takes longer than a user waits for a help text.
SLOW = {"arviz", "astropy", "corner", "equinox", "flowMC", "h5py", "jax", "matplotlib", "numpyro"}
SLOW |= {"pandas", "scipy", "xarray"}


@pytest.mark.skipif(f"{PACKAGE}.cli" not in FILES, reason=f"absent: {SRC / PACKAGE / 'cli.py'}")
def test_help_imports_nothing_slow():
    loaded = python(
        "import sys\n"
        "from skycensus.cli import main\n"
        "sys.argv = ['skycensus', '--help']\n"
        "try:\n"
        "    status = main()\n"
        "except SystemExit as exit:\n"
        "    status = exit.code\n"
        "assert not status, status\n"
        "print(*sys.modules)"
    )
    assert not SLOW & set(loaded.splitlines()[-1].split())


@needs_package
def test_importing_the_package_imports_nothing_slow():
    loaded = python("import sys, skycensus; print(*sys.modules)")
    assert not SLOW & set(loaded.split())


@needs_package
def test_public_names_are_there():
    import skycensus

    assert len(set(skycensus.__all__)) == len(skycensus.__all__)
    assert set(skycensus.__all__) <= set(dir(skycensus))
    missing = [name for name in skycensus.__all__ if not hasattr(skycensus, name)]
    assert not missing
    with pytest.raises(AttributeError):
        getattr(skycensus, "no_such" + "_name")


# ---- what is kept out ----------------------------------------------------------------------------


@needs_package
def test_no_bare_except():
    wrong = [
        f"{FILES[module].relative_to(ROOT)}:{node.lineno}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert not wrong


@needs_package
def test_no_nan_to_num():
    """A NaN is an error that names its parameter point, never a number in its place."""
    wrong = [
        f"{FILES[module].relative_to(ROOT)}:{node.lineno}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr == "nan_to_num")
        or (isinstance(node, ast.Name) and node.id == "nan_to_num")
    ]
    wrong += [where(found) for found in IMPORTS if "nan_to_num" in found.target]
    assert not wrong


def repository_files() -> list[Path]:
    """The files that are or would be committed; in an unpacked archive, those that usually are."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
        names = listed.decode().split("\0")
    else:
        folders = ("src", "tests", "examples", "benchmarks", "docs", ".ci")
        names = [str(path) for folder in folders for path in (ROOT / folder).rglob("*")]
        names += [str(path) for path in ROOT.iterdir()]
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_no_file_names_a_package_registry():
    """Where packages come from is the installing machine's business."""
    # Written in pieces, or this file would be found.
    hosts = [name + "." + end for name, end in [("pypi", "org"), ("pythonhosted", "org")]]
    hosts += [name + "." + end for name, end in [("anaconda", "org"), ("anaconda", "com")]]
    pattern = re.compile("|".join(map(re.escape, hosts)).encode(), re.IGNORECASE)
    wrong = [str(path) for path in repository_files() if pattern.search(path.read_bytes())]
    assert not wrong


CONSTRAINT = re.compile(r"([\w.-]+)==[\w.]+(; python_version (?:<|>=) \"3\.\d+\")?")


def test_constraints_name_versions_and_nothing_else():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    wrong = [line for line in lines if not CONSTRAINT.fullmatch(line)]
    assert not wrong


def test_constraints_cover_what_is_asked_for():
    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {normal(re.split(r"[\[<>=!~; ]", line)[0]) for lines in asked for line in lines}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    known = {normal(line.split("==")[0]) for line in lines if "==" in line}
    assert names <= known, f"constraints.txt has no version of {sorted(names - known)}"
