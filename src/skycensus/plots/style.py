"""How figures look, and how they get into files."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..errors import InputError
from ..folders import write_whole

# The palette of Okabe & Ito, darkest first: blue, vermilion, green, orange, purple, sky blue.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
TRUTH = "black"
FAINT = "#9a9a9a"

STYLE: Any = {
    "font.size": 10,
    "axes.labelsize": 11,
    "axes.titlesize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.use_mathtext": True,
    "xtick.direction": "out",
    "ytick.direction": "out",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.4,
    "mathtext.fontset": "dejavusans",
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in this style, without touching matplotlib's own settings."""
    with rc_context(STYLE):
        yield


def plain_log_ticks(axis: Axis, low: float, high: float) -> None:
    """Ticks 5, 10, 20, 50, ... in plain numbers, where an axis spans two decades or so."""
    if 0 < low < high < 300 * low and low >= 1e-3 and high <= 1e5:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def save_figures(
    figures: Mapping[str, Figure], folder: str | Path, *, formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Write every figure as `folder`/name.format, each whole or not at all; the paths.

    Raises:
        InputError: the folder cannot be written to.
    """
    paths = []
    for name, figure in figures.items():
        for end in formats:
            path = Path(folder) / f"{name}.{end}"
            content = io.BytesIO()
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with rc_context(STYLE):
                    figure.savefig(content, format=end, bbox_inches="tight")
                write_whole(path, content.getbuffer())
            except OSError as error:
                raise InputError(
                    f"cannot write {path}: {error.strerror}; choose a folder that is writable "
                    "and has space."
                ) from error
            paths.append(path)
    return paths
