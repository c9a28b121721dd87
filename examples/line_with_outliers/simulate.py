"""Write 32 points of a line, 8 of them outliers: line_outliers.ecsv."""

from pathlib import Path

from skycensus.stars.lines import simulate

path = Path(__file__).with_name("line_outliers.ecsv")
simulate().write(path, overwrite=True)
print(f"32 points written to {path}")
