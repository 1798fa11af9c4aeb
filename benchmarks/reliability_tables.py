"""Fills the tables of docs/reliability.md from results/batch_invariance.json and serving.json; see `page`.

python benchmarks/reliability_tables.py [--check]
"""

from __future__ import annotations

from page import DOCS, command
from performance_tables import invariance
from serving_tables import abuse, minute

PAGE = DOCS / "reliability.md"
TABLES = (invariance, minute, abuse)


if __name__ == "__main__":
    command(PAGE, TABLES)()
