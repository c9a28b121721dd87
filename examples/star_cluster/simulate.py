"""Write the parallaxes of 256 stars of a cluster at 500 pc, 8.7 pc deep: cluster_parallax.ecsv.

The numbers are those of the tutorial "Hierarchical Models 1" by A. Price-Whelan.
"""

from pathlib import Path

from skycensus.stars.parallax import simulate_cluster

path = Path(__file__).with_name("cluster_parallax.ecsv")
simulate_cluster(seed=42).write(path, overwrite=True)
print(f"256 parallaxes written to {path}")
