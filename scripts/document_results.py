#!/usr/bin/env python3
"""Write the benchmark's tables in the docs from the rows in docs/scores/benchmark.csv.

python scripts/document_results.py [WORK/results.csv ...]

Rows of the files that are named go into docs/scores/benchmark.csv first, in the place of those of
the same training.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "docs" / "scores" / "benchmark.csv"
PAGE = ROOT / "docs" / "results.md"
TABLE = re.compile(r"(<!-- (\w+) of docs/scores/benchmark.csv -->\n).*?(?=<!-- end -->)", re.DOTALL)

TRAINING = ("dataset", "split", "labelled", "trainer", "seed", "settings", "configuration",
            "iterations")  # fmt: skip

Row = dict[str, str]


def written(page: str, rows: list[Row]) -> str:
    """The page with the tables of these rows, between marks that name a dataset."""

    def table_of(mark: re.Match[str]) -> str:
        of_dataset = [row for row in rows if row["dataset"] == mark[2] and shown(row)]
        return f"{mark[1]}\n{table(of_dataset)}\n"

    return TABLE.sub(table_of, page)


def shown(row: Row) -> bool:
    """Validation cases, default settings."""
    return row["split"] == "val" and row["settings"] == "{}"


def table(rows: list[Row]) -> str:
    """One line for each number of labelled patients and trainer, the highest DSC last; the best of
    each column in bold."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        groups.setdefault(row["labelled"], {}).setdefault(row["trainer"], []).append(row)
    filled = [name for name, value in rows[0].items() if value]
    classes = [name.removeprefix("DSC ") for name in filled if name.startswith("DSC ")]
    classes = classes if len(classes) > 1 else []
    columns: list[tuple[str, str, Callable[[list[float]], str], int]] = [
        ("DSC (%)", "DSC", percent_with_range, 1),
        ("HD95", "HD95", number_with_range, -1),
        ("ASD", "ASD", number, -1),
        *((name, f"DSC {name}", percent, 1) for name in classes),
        ("post.: DSC", "post. DSC", percent_with_range, 1),
        ("HD95", "post. HD95", number_with_range, -1),
        ("ms", "CPU ms per iteration", whole, 0),
        ("GiB", "peak memory (GiB)", number, 0),
    ]
    lines = [
        "| labelled | trainer | seeds | " + " | ".join(title for title, *_ in columns) + " |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    for labelled in sorted(groups, key=int):
        of_trainer = groups[labelled]
        in_order = sorted(of_trainer, key=lambda name: mean(values(of_trainer[name], "DSC")))
        best = {
            key: max(in_order, key=lambda name: sign * mean(values(of_trainer[name], key)))
            for _, key, _, sign in columns
            if sign and len(in_order) > 1
        }
        for name in in_order:
            cells = [
                f"**{cell}**" if best.get(key) == name else cell
                for _, key, form, _ in columns
                for cell in [form(values(of_trainer[name], key))]
            ]
            seeds = len(of_trainer[name])
            lines.append(f"| {labelled} | `{name}` | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def values(rows: list[Row], key: str) -> list[float]:
    return [float(row[key]) for row in rows]


def whole(each: list[float]) -> str:
    return f"{mean(each):.0f}"


def number(each: list[float]) -> str:
    return f"{mean(each):.2f}"


def percent(each: list[float]) -> str:
    return number([100 * value for value in each])


def number_with_range(each: list[float]) -> str:
    """Mean, and smallest and largest of several."""
    span = f" ({min(each):.2f}–{max(each):.2f})" if len(each) > 1 else ""
    return number(each) + span


def percent_with_range(each: list[float]) -> str:
    return number_with_range([100 * value for value in each])


def read_rows(path: Path = ROWS) -> list[Row]:
    """A row for each training."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def merged(*tables: list[Row]) -> list[Row]:
    """The rows of all tables in order, of each training the last."""
    of_training = {tuple(row[key] for key in TRAINING): row for rows in tables for row in rows}
    return [of_training[training] for training in sorted(of_training)]


def write_rows(rows: list[Row]) -> None:
    columns = dict.fromkeys(name for row in rows for name in row)
    with ROWS.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    write_rows(merged(*map(read_rows, [ROWS, *map(Path, sys.argv[1:])])))
    PAGE.write_text(written(PAGE.read_text(), read_rows()))
