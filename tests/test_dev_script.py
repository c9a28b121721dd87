"""`dev` with stand-ins for python and uv on a PATH of its own: no network, nothing installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="dev is a POSIX shell script")

# What `dev` may count on besides a shell, on any machine.
TOOLS = ("cat", "chmod", "cksum", "cp", "dirname", "mkdir", "rm", "rmdir", "sed", "sh")

# An interpreter that logs what it is asked to do. It makes environments that hold a copy of itself,
# and its pip "installs" a skycensus command that prints its arguments. $FAKE names what is broken.
PYTHON = """#!/bin/sh
echo "$(cat "$0.name" 2>/dev/null || echo venv-python) $*" >>"$FAKE_LOG"
broken() { case " $FAKE " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
install() {
    if broken network; then echo "no network" >&2; exit 1; fi
    printf '#!/bin/sh\\necho skycensus "$@"\\n' >"$1/skycensus"
    chmod +x "$1/skycensus"
}
case "$*" in
    *print*) echo 3.12 ;;
    "-c "*) exit 0 ;;
    "-m venv"*)
        for folder; do :; done
        mkdir -p "$folder/bin"
        cp "$0" "$folder/bin/python"
        echo >"$folder/pyvenv.cfg"
        if broken venv; then exit 1; fi
        # As on Debian without python3-venv: a failure that leaves half an environment behind.
        case $* in *--without-pip*) ;; *) if broken ensurepip; then exit 1; fi ;; esac ;;
    "-m pip --version") if broken ensurepip; then exit 1; fi ;;
    "-m pip --python "*" --version") if broken pip; then exit 1; fi ;;
    "-m pip --python "*" install "*) install "$(dirname "$4")" ;;
    "-m pip install "*) install "$(dirname "$0")" ;;
    *) exit 1 ;;
esac
"""

UV = """#!/bin/sh
echo "uv $*" >>"$FAKE_LOG"
case "$*" in
    "venv "*)
        for folder; do :; done
        python3 -m venv --without-pip "$folder" ;;
    *)
        case " $FAKE " in *" uv-network "*) exit 1 ;; esac
        printf '#!/bin/sh\\necho skycensus "$@"\\n' >"$VIRTUAL_ENV/bin/skycensus"
        chmod +x "$VIRTUAL_ENV/bin/skycensus" ;;
esac
"""


class Checkout:
    """A copy of what `dev` reads, in a folder with a blank in its name, and a PATH to run it on."""

    def __init__(self, folder: Path) -> None:
        self.here = folder / "check out"
        self.bin = folder / "bin"
        self.log_file = folder / "log"
        self.here.mkdir()
        self.bin.mkdir()
        for name in ("dev", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.here)
        for tool in TOOLS:
            path = shutil.which(tool)
            assert path, tool
            (self.bin / tool).symlink_to(path)

    @property
    def venv(self) -> Path:
        return self.here / ".venv"

    def put(self, name: str, script: str) -> None:
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)
        (self.bin / f"{name}.name").write_text(name)

    def dev(self, *args: str, fake: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        """Run `dev`; afterwards `log` is what this run asked of the stand-ins."""
        self.log_file.write_text("")
        env = {"PATH": str(self.bin), "FAKE": fake, "FAKE_LOG": str(self.log_file), **env}
        return subprocess.run(
            [str(self.here / "dev"), *args],
            env=env,
            cwd=self.bin.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    @property
    def installs(self) -> list[str]:
        return [line for line in self.log_file.read_text().splitlines() if " install " in line]

    @property
    def makes(self) -> list[str]:
        lines = self.log_file.read_text().splitlines()
        return [line for line in lines if "-m venv" in line or line.startswith("uv venv")]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def machine(checkout: Checkout) -> Checkout:
    """A checkout on a machine with a good python3."""
    checkout.put("python3", PYTHON)
    return checkout


def works(done: subprocess.CompletedProcess[str]) -> bool:
    return done.returncode == 0 and done.stdout == "skycensus fit a.toml\n"


RUN = ("run", "fit", "a.toml")


@pytest.mark.parametrize("shell", ["sh", "dash", "bash"])
def test_syntax(shell):
    if not shutil.which(shell):
        pytest.skip(f"absent: {shell}")
    subprocess.run([shell, "-n", str(ROOT / "dev")], check=True)


def test_help_makes_nothing(checkout):
    done = checkout.dev("help")
    assert done.returncode == 0
    assert "./dev test" in done.stdout or "test ARGS" in done.stdout
    assert not checkout.venv.exists()


def test_unknown_command(checkout):
    done = checkout.dev("tset")
    assert done.returncode == 1
    assert "no command 'tset'" in done.stderr
    assert not checkout.venv.exists()


def test_first_use_installs_wheels_and_later_use_nothing(machine):
    assert works(machine.dev(*RUN))
    assert len(machine.installs) == 1
    assert "--only-binary=:all: -c constraints.txt -e .[test]" in machine.installs[0]
    assert works(machine.dev(*RUN))
    assert not machine.installs and not machine.makes


def test_demo_passes_its_arguments(machine):
    assert machine.dev("demo", "--out", "my results").stdout == "skycensus demo --out my results\n"


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_installs_again_in_place(machine, name):
    machine.dev("setup")
    with (machine.here / name).open("a") as file:
        file.write("# changed\n")
    assert works(machine.dev(*RUN))
    assert len(machine.installs) == 1 and not machine.makes


def test_a_failed_update_makes_it_anew(machine):
    machine.dev("setup")
    (machine.here / "constraints.txt").write_text("")
    assert machine.dev(*RUN, fake="network").returncode == 1
    assert works(machine.dev(*RUN))
    assert machine.makes


def test_a_moved_folder_makes_it_anew(machine):
    machine.dev("setup")
    machine.here = machine.here.rename(machine.here.with_name("moved"))
    assert works(machine.dev(*RUN))
    assert machine.makes and machine.installs


def test_a_half_made_environment_is_made_anew(machine):
    (machine.venv / "bin").mkdir(parents=True)
    shutil.copy(machine.bin / "python3", machine.venv / "bin" / "python")
    (machine.venv / "left-over").touch()
    assert works(machine.dev(*RUN))
    assert machine.makes and not (machine.venv / "left-over").exists()


def test_an_environment_whose_interpreter_is_gone_is_made_anew(machine):
    machine.dev("setup")
    (machine.venv / "bin" / "python").unlink()
    (machine.venv / "bin" / "python").symlink_to("/nowhere/python3.11")
    assert works(machine.dev(*RUN))
    assert machine.makes


def test_a_failed_installation_is_not_taken_for_a_finished_one(machine):
    done = machine.dev(*RUN, fake="network")
    assert done.returncode == 1
    assert "no network" in done.stderr and "could not be installed" in done.stderr
    assert works(machine.dev(*RUN))


def test_uv_is_used_where_it_is(machine):
    machine.put("uv", UV)
    assert works(machine.dev(*RUN))
    assert len(machine.installs) == 2
    assert all(line.startswith("uv pip install") for line in machine.installs)
    assert "--only-binary :all:" in machine.installs[0]


def test_pip_is_tried_where_uv_cannot_install(machine):
    machine.put("uv", UV)
    done = machine.dev(*RUN, fake="uv-network")
    assert works(done)
    assert "trying pip" in done.stderr
    assert machine.installs[-1].startswith("venv-python -m pip install")


def test_without_ensurepip_an_outer_pip_installs(machine):
    assert works(machine.dev(*RUN, fake="ensurepip"))
    (install,) = machine.installs
    assert install.startswith(f"python3 -m pip --python {machine.venv}/bin/python install")


@pytest.mark.parametrize("fake", ["venv", "ensurepip pip"])
def test_the_remedy_where_no_environment_can_be_made(machine, fake):
    done = machine.dev(*RUN, fake=fake)
    assert done.returncode == 1
    assert "apt-get install python3-venv" in done.stderr.splitlines()[-1]
    assert not machine.venv.exists()


def test_the_remedy_where_there_is_no_python(checkout):
    done = checkout.dev(*RUN)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "no Python 3.11 or later" in line and "apt-get install" in line and "uv" in line


def test_a_python_that_does_not_run_is_passed_over(checkout):
    checkout.put("python3", "#!/bin/sh\nexit 127\n")
    checkout.put("python3.12", PYTHON)
    assert works(checkout.dev(*RUN))
    assert checkout.log_file.read_text().startswith("python3.12 ")


def test_python_names_the_interpreter(machine):
    machine.put("my-python", PYTHON)
    assert works(machine.dev(*RUN, PYTHON="my-python"))
    assert machine.makes[0].startswith("my-python ")


def test_a_python_that_cannot_be_used_is_said(machine):
    done = machine.dev(*RUN, PYTHON="no-python")
    assert works(done)
    assert "PYTHON=no-python does not run" in done.stderr


def test_the_environment_may_live_elsewhere(machine, tmp_path):
    assert works(machine.dev(*RUN, SKYCENSUS_VENV=".venv-other"))
    assert (machine.here / ".venv-other").exists() and not machine.venv.exists()
    assert works(machine.dev(*RUN, SKYCENSUS_VENV=str(tmp_path / "elsewhere")))
    assert (tmp_path / "elsewhere").exists()


def test_a_folder_that_is_no_environment_is_left_alone(machine, tmp_path):
    precious = tmp_path / "home" / "precious"
    precious.parent.mkdir()
    precious.touch()
    done = machine.dev(*RUN, SKYCENSUS_VENV=str(precious.parent))
    assert done.returncode == 1 and "no Python environment" in done.stderr
    assert precious.exists()


def test_ci_runs_dev_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "\n./dev test\n" in script.read_text()
