#!/usr/bin/env python3
"""The paper's numbers beside those of a comparison.

    python scripts/beside_paper.py acdc OUTPUT/table.csv

prints a Markdown table: for each number of labelled cases our trainers, then what the paper's
poster reports (CVPR 2023, paper 3018; scripts/paper_results.csv). Distances in voxels; its ASD is
the one direction that MedPy calls asd.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pandas as pd

from nnunetv2_plgcl.evaluation.tables import to_markdown

PAPER = Path(__file__).with_name("paper_results.csv")
METRICS = ("DSC", "HD95", "ASD")
ALIKE = 0.2  # logarithm of the ratio of two shares that stand for the same
NOTES = {"crag": "The paper does not state the unit of its distances on CRAG: compare DSC only."}


def nearest_share(share: float, shares: list[float]) -> float:
    """The paper's share of labelled cases that a split stands for, e.g. 4 of 147 for 2.5 %; the
    share itself where the paper has none like it."""
    nearest = min(shares, key=lambda of_paper: abs(math.log(of_paper / share)))
    return nearest if abs(math.log(nearest / share)) < ALIKE else share


def beside(ours: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Both tables, by the paper's share of labelled cases, rounded as the paper's."""
    ours = ours.assign(
        share=[nearest_share(share, sorted(set(paper["share"]))) for share in ours["share"]],
        method=ours["trainer"],
    )
    rows = []
    for share in sorted({*paper["share"], *ours["share"]}):
        for source, table in (("ours", ours), ("paper", paper)):
            for row in table[table["share"] == share].to_dict("records"):
                numbers = {m: f"{row[m]:.3f}" if m == "DSC" else f"{row[m]:.2f}" for m in METRICS}
                rows.append(
                    {"labelled": f"{100 * share:.3g} %", "method": row["method"], "from": source,
                     **numbers}
                )  # fmt: skip
    return pd.DataFrame(rows)


def main() -> None:
    paper = pd.read_csv(PAPER)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=sorted(set(paper["dataset"])))
    parser.add_argument("tables", type=Path, nargs="+", help="table.csv of nnUNetv2_plgcl_compare")
    arguments = parser.parse_args()
    for table in arguments.tables:
        if not table.is_file():
            parser.error(f"there is no {table}")
    ours = pd.concat(map(pd.read_csv, arguments.tables))
    print(to_markdown(beside(ours, paper[paper["dataset"] == arguments.dataset])))
    if arguments.dataset in NOTES:
        print(NOTES[arguments.dataset])


if __name__ == "__main__":
    main()
