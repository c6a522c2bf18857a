#!/usr/bin/env python3
"""Collect the tables of a benchmark's comparisons in one CSV file, with the commit.

    python scripts/collect_benchmark.py WORK

reads WORK/ITERATIONS_PATIENTS_PLANS/table.csv, writes WORK/results.csv. The commit is that of the
checkout when a comparison's table was first collected, "+changes" if it had uncommitted ones.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd

ARCHIVED = "$Format:%h$"  # git archive writes the commit here (.gitattributes)


def commit_of_checkout() -> str:
    """Short commit of the checkout, or of the archive made from it, that this script lies in."""
    if not ARCHIVED.startswith("$"):
        return ARCHIVED

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "unknown") + (
        "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    )


def main() -> None:
    work = Path(sys.argv[1])
    tables = []
    for file in sorted(work.glob("*_*_*/table.csv")):
        iterations, patients, plans = file.parent.name.split("_", 2)
        noted = file.with_name("commit.txt")
        if not noted.is_file() or noted.stat().st_mtime < file.stat().st_mtime:
            noted.write_text(commit_of_checkout())
        table = pd.read_csv(file)
        table.insert(0, "commit", noted.read_text())
        table.insert(1, "plans", plans)
        table.insert(2, "iterations", int(iterations))
        table.insert(3, "labelled patients", int(patients))
        table["trainer"] = table["trainer"].str.removesuffix("_benchmark")
        tables.append(table)
    if not tables:
        sys.exit(f"There is no table in {work}.")
    pd.concat(tables).to_csv(work / "results.csv", index=False)
    print(f"Written: {work / 'results.csv'}")


if __name__ == "__main__":
    main()
