"""Writes the results of docs/evidence.md from the files of its runs.

    python -m evidence results/evidence --readme=README.md

The folder holds one folder for each design of configs/evidence.py. Everything below the page's
marker is replaced. Figures and CSV files are written to a folder beside the page, docs/evidence for
docs/evidence.md. The page names missing runs. The README gets the answer, with which the page's
results begin. Run this command in the root of the repository.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evidence.page import write_page
from flexpool_jax.errors import UserError


def main() -> int:
    """Writes the page; returns the exit status."""
    parser = argparse.ArgumentParser(prog="evidence", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="results, one folder for each design")
    parser.add_argument("--page", type=Path, default=Path("docs/evidence.md"))
    parser.add_argument("--readme", type=Path, help="a README that shows the answer too")
    parser.add_argument(
        "--failed",
        action="append",
        default=[],
        metavar="CELL",
        help="a cell whose run diverged, e.g. e1/fashion_mnist/avg/seed-3; may be repeated",
    )
    parsed = parser.parse_args()
    try:
        lines = write_page(parsed.folder, parsed.page, readme=parsed.readme, failed=parsed.failed)
        print("\n".join(lines))
    except UserError as error:
        print(f"evidence: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
