#!/usr/bin/env python3
"""Write the benchmark's tables in docs/results.md from the rows in docs/scores/benchmark.csv."""

from __future__ import annotations

import argparse
import csv
import math
import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "docs" / "scores" / "benchmark.csv"
PAGE = ROOT / "docs" / "results.md"
TABLE = re.compile(r"(<!-- (\w+) of docs/scores/benchmark.csv -->\n).*?(?=<!-- end -->)", re.DOTALL)

TRAINING = ("dataset", "split", "labelled", "trainer", "seed", "settings", "configuration",
            "iterations")  # fmt: skip

# What every method is trained on: dataset, and how many of its patients or cases are labelled.
BENCH = (("acdc", "3"), ("acdc", "7"), ("hippocampus", "4"), ("liver", "8"))
EVERY = "every_dataset"  # marks the table of all of these

Row = dict[str, str]


def written(page: str, rows: list[Row]) -> str:
    """The page with the tables of these rows, between marks that name a dataset."""

    rows = list(filter(shown, rows))

    def table_of(mark: re.Match[str]) -> str:
        if mark[2] == EVERY:
            return f"{mark[1]}\n{overview(rows)}\n"
        return f"{mark[1]}\n{table([row for row in rows if row['dataset'] == mark[2]])}\n"

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
        ("ms", "CPU ms per iteration", least_whole, 0),
        ("GiB", "peak memory (GiB)", least, 0),
    ]
    lines = [
        "| labelled | trainer | seeds | " + " | ".join(title for title, *_ in columns) + " |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    for labelled in sorted(groups, key=int):
        of_trainer = groups[labelled]
        in_order = sorted(of_trainer, key=lambda name: mean(values(of_trainer[name], "DSC")))
        columns_of_text = []
        for _, key, form, sign in columns:
            each = {name: values(of_trainer[name], key) for name in in_order}
            texts = {name: form(of_name) if of_name else "" for name, of_name in each.items()}
            if sign and len(in_order) > 1:
                scores = {name: sign * mean(of_name) for name, of_name in each.items()}
                texts = best_in_bold(texts, scores)
            columns_of_text.append(texts)
        for name in in_order:
            cells = [texts[name] for texts in columns_of_text]
            seeds = len(of_trainer[name])
            lines.append(f"| {labelled} | `{name}` | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def overview(rows: list[Row]) -> str:
    """One line for each trainer, with means over its seeds: by name those that were not trained on
    all of ``BENCH``, then the others by the mean over it. The best of each column in bold."""
    groups: dict[str, dict[tuple[str, str], list[Row]]] = {}
    for row in rows:
        of_trainer = groups.setdefault(row["trainer"], {})
        of_trainer.setdefault((row["dataset"], row["labelled"]), []).append(row)

    def over_seeds(data: tuple[str, str], key: str) -> dict[str, float]:
        """NaN for trainers that were not trained on it."""
        each = {name: values(groups[name].get(data, []), key) for name in groups}
        return {name: mean(of_name) if of_name else math.nan for name, of_name in each.items()}

    def over_datasets(key: str) -> dict[str, float]:
        each = [over_seeds(data, key) for data in BENCH]
        return {name: mean(of_data[name] for of_data in each) for name in groups}

    def text(scores: dict[str, float], form: str, sign: int = 1) -> dict[str, str]:
        """Per cent without their sign; a dash for NaN."""
        texts = {
            name: "–" if math.isnan(score) else format(score, form).rstrip("%")
            for name, score in scores.items()
        }
        return best_in_bold(texts, {name: sign * score for name, score in scores.items()})

    columns: dict[str, dict[str, str]] = {}
    for data in BENCH:
        dsc = text(over_seeds(data, "DSC"), ".2%")
        hd95 = text(over_seeds(data, "HD95"), ".1f", sign=-1)
        columns[" ".join(data)] = {name: f"{dsc[name]} / {hd95[name]}" for name in groups}
    means = over_datasets("DSC")
    columns["mean"] = text(means, ".2%")
    columns["post."] = text(over_datasets("post. DSC"), ".2%")
    lines = ["| trainer | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name in sorted(groups, key=lambda of: (0 if math.isnan(means[of]) else means[of], of)):
        cells = [column[name] for column in columns.values()]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def best_in_bold(texts: dict[str, str], scores: dict[str, float]) -> dict[str, str]:
    """The text with the highest score in bold; NaN never is."""
    best = max((score for score in scores.values() if not math.isnan(score)), default=math.nan)
    return {name: f"**{text}**" if scores[name] == best else text for name, text in texts.items()}


def values(rows: list[Row], key: str) -> list[float]:
    """Of the rows that have one."""
    return [float(row[key]) for row in rows if row[key]]


def least(each: list[float]) -> str:
    """Of time and memory: what else ran, and a slower machine, only add to them."""
    return f"{min(each):.2f}"


def least_whole(each: list[float]) -> str:
    return f"{min(each):.0f}"


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "results", nargs="*", type=Path, metavar="WORK/results.csv",
        help="rows that go into docs/scores/benchmark.csv first, in the place of those of the same "
        "training",
    )  # fmt: skip
    files = parser.parse_args().results
    write_rows(merged(*map(read_rows, [ROWS, *files])))
    PAGE.write_text(written(PAGE.read_text(), read_rows()))


if __name__ == "__main__":
    main()
