#!/usr/bin/env python3
"""Add the tables of a benchmark's comparisons to one CSV file, with what each row comes from.

    python scripts/collect_benchmark.py WORK

reads WORK/ITERATIONS_PATIENTS__PLANS__CONFIG/, adds its rows to WORK/results.csv. A row is replaced
by a newer one of the same trainer, settings and number of seeds; others stay, although a comparison
with other trainers overwrites the table that they come from. Commit, device and day are those of
the trainings (of a continued one, of its last part); where they differ, all are named.
"""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path

import pandas as pd

KEY = ["iterations", "labelled patients", "plans", "configuration", "trainer", "seeds"]


def origin(work: Path, table: Path, trainer: str) -> dict[str, str | int]:
    """Where one row of a comparison's folder comes from."""
    length, plans, configuration = table.name.split("__")
    iterations, patients = map(int, length.split("_"))
    scores = pd.read_csv(table / "scores.csv", usecols=["trainer", "fold", "seed"])
    scores = scores[scores["trainer"] == trainer].drop_duplicates()
    seen: dict[str, set[str]] = {"commit": set(), "device": set(), "day": set()}
    for fold, seed in scores[["fold", "seed"]].itertuples(index=False):
        model = f"{trainer}__{plans}{f'_seed{seed}' if seed else ''}__{configuration}"
        (file,) = (work / f"results_{iterations}").glob(f"*/{model}/fold_{fold}/debug.json")
        debug = json.loads(file.read_text())
        seen["commit"].add(debug.get("commit", "unknown"))
        seen["device"].add(debug.get("gpu_name", debug["device"]))
        seen["day"].add(date.fromtimestamp(file.stat().st_mtime).isoformat())
    return {
        **{name: " ".join(sorted(values)) for name, values in seen.items()},
        "iterations": iterations,
        "labelled patients": patients,
        "plans": plans,
        "configuration": configuration,
        "seeds": scores["seed"].nunique(),
    }


def main() -> None:
    work = Path(sys.argv[1])
    collected = work / "results.csv"
    rows = [pd.read_csv(collected)] if collected.is_file() else []
    for file in sorted(work.glob("*__*__*/table.csv"), key=lambda file: file.stat().st_mtime):
        table = pd.read_csv(file)
        origins = pd.DataFrame([origin(work, file.parent, name) for name in table["trainer"]])
        table["trainer"] = table["trainer"].str.removesuffix("_benchmark")
        rows.append(pd.concat([origins, table], axis=1))
    if not rows:
        sys.exit(f"There is no table in {work}.")
    pd.concat(rows).drop_duplicates(KEY, keep="last").to_csv(collected, index=False)
    print(f"Written: {collected}")


if __name__ == "__main__":
    main()
