"""A comparison's table as text: for a report, a paper, or another program. Source: ours."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from nnunetv2_plgcl.evaluation.comparison import METRICS, Comparison

NOTHING = "–"


def readable(comparison: Comparison, results: pd.DataFrame) -> pd.DataFrame:
    """The table as people read it: rounded, intervals in brackets, columns without content left
    out. DSC in per cent."""
    rows = []
    for row in results.to_dict("records"):
        line = {
            "labelled": f"{row['labelled']} ({100 * row['share']:.3g} %)",
            "trainer": row["trainer"],
        }
        for metric in METRICS:
            scale = 100 if metric == "DSC" else 1
            low, high = (_number(row[f"{metric} {end}"], scale) for end in ("low", "high"))
            line[_title(metric, comparison.unit)] = f"{_number(row[metric], scale)} [{low}, {high}]"
        line["± seeds"] = _number(row["DSC sd over seeds"], 100)
        line["p"] = _p(row["p"])
        for of_class in comparison.classes:
            line[f"DSC {of_class}"] = _number(row[f"DSC {of_class}"], 100)
        line["empty"] = str(row["empty predictions"])
        line["hours"] = _number(row["training (h)"])
        line["ms/it."] = _number(row["ms per iteration"], digits=0)
        line["GiB"] = _number(row["peak memory (GiB)"])
        rows.append(line)
    table = pd.DataFrame(rows)
    return table.loc[:, (table != NOTHING).any()]


def readable_tests(tests: pd.DataFrame) -> pd.DataFrame:
    """The tests as people read them."""
    rows = []
    for row in tests.to_dict("records"):
        scale = 100 if row["metric"] == "DSC" else 1
        low, high = (_number(row[end], scale) for end in ("low", "high"))
        rows.append({
            "labelled": row["labelled"], "trainer": row["trainer"], "against": row["against"],
            "metric": row["metric"], "cases": row["cases"], "left out": row["left out"],
            "difference": f"{_number(row['difference'], scale)} [{low}, {high}]",
            "p": _p(row["p"]), "p (Holm)": _p(row["p (Holm)"]),
        })  # fmt: skip
    return pd.DataFrame(rows)


def to_markdown(table: pd.DataFrame) -> str:
    """A table of text in GitHub's Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.values.tolist()]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def to_latex(table: pd.DataFrame) -> str:
    """A tabular of the booktabs package; trainers' underscores and % are escaped."""
    latex: str = table.map(str).style.hide(axis="index").format(escape="latex").format_index(
        escape="latex", axis=1
    ).to_latex(hrules=True)  # fmt: skip
    return latex.replace(NOTHING, "--").replace("±", r"$\pm$").replace("< 0", "$<$ 0")


def write_tables(
    comparison: Comparison, results: pd.DataFrame, tests: pd.DataFrame, folder: Path
) -> list[Path]:
    """Write table.md, table.tex, table.csv, tests.csv and scores.csv; numbers in CSV are not
    rounded."""
    table = readable(comparison, results)
    text = to_markdown(table)
    if len(tests):
        text += "\n" + to_markdown(readable_tests(tests))
    (folder / "table.md").write_text(text, encoding="utf-8")
    (folder / "table.tex").write_text(to_latex(table), encoding="utf-8")
    for name, frame in (("table", results), ("tests", tests), ("scores", comparison.scores)):
        frame.to_csv(folder / f"{name}.csv", index=False)
    return [folder / f for f in ("table.md", "table.tex", "table.csv", "tests.csv", "scores.csv")]


def _title(metric: str, unit: str) -> str:
    return f"{metric} (%)" if metric == "DSC" else f"{metric} ({unit})"


def _number(value: float, scale: float = 1, digits: int = 2) -> str:
    return NOTHING if math.isnan(value) else f"{scale * value:.{digits}f}"


def _p(value: float) -> str:
    if math.isnan(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
