#!/usr/bin/env python3
"""Add the table of a benchmark's comparison to a CSV file, with what each row comes from.

    python scripts/collect_benchmark.py WORK/ITERATIONS_PATIENTS__PLANS__CONFIG[__postprocessed]

adds its rows to WORK/results.csv; nnU-Net's variables must name the folders of the trainings. A row
replaces an older one of the same trainer, settings and number of seeds; others stay, although a
comparison with other trainers overwrites the table that they come from. Commit, device and day are
those of the trainings (of a continued one, of its last part); where they differ, all are named.
"""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path

import pandas as pd

from nnunetv2_plgcl.evaluation.runs import Run

DATASET = "Dataset027_ACDC"
KEY = ["iterations", "labelled patients", "plans", "configuration", "postprocessed", "trainer",
       "seeds"]  # fmt: skip


def origin(comparison: Path, scores: pd.DataFrame, trainer: str) -> dict[str, str | int]:
    """Where one row of a comparison's folder comes from."""
    name = comparison.name.removesuffix("__postprocessed")
    length, plans, configuration = name.split("__")
    iterations, patients = map(int, length.split("_"))
    scores = scores[scores["trainer"] == trainer].drop_duplicates()
    seen: dict[str, set[str]] = {"commit": set(), "device": set(), "day": set()}
    for fold, seed in scores[["fold", "seed"]].itertuples(index=False):
        run = Run(DATASET, trainer, plans, configuration, fold, seed)
        file = run.folder / "debug.json"
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
        "postprocessed": name != comparison.name,
        "seeds": scores["seed"].nunique(),
    }


def main() -> None:
    comparison = Path(sys.argv[1])
    table = pd.read_csv(comparison / "table.csv")
    scores = pd.read_csv(comparison / "scores.csv", usecols=["trainer", "fold", "seed"])
    origins = pd.DataFrame([origin(comparison, scores, name) for name in table["trainer"]])
    table["trainer"] = table["trainer"].str.removesuffix("_benchmark")
    rows = pd.concat([origins, table], axis=1)
    collected = comparison.parent / "results.csv"
    if collected.is_file():
        older = pd.read_csv(collected, dtype={"commit": str})
        if "postprocessed" not in older:
            older["postprocessed"] = False
        rows = pd.concat([older, rows])
        rows = rows.drop_duplicates(KEY, keep="last")
    rows.to_csv(collected, index=False)
    print(f"Written: {collected}")


if __name__ == "__main__":
    main()
