"""A comparison's table as text: for a report, a paper, or another program. Source: ours."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from nnunetv2_plgcl.evaluation.comparison import METRICS, Comparison
from nnunetv2_plgcl.evaluation.evaluate import DISTANCES

NOTHING = "–"
LATER = ("ASSD", "ASD")  # metrics of the second table


def readable(comparison: Comparison, results: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The table as people read it: rounded, intervals in brackets, columns without content left
    out, DSC in per cent. What a reader asks first, what each class has, and what else is known,
    so that each fits a page's width."""
    first, further = [], []
    for row in results.to_dict("records"):
        labelled = f"{row['labelled']} ({100 * row['share']:.3g} %)"
        line = {
            "labelled": NOTHING if math.isnan(row["share"]) else labelled,
            "trainer": comparison.short_name(row["trainer"]),
        }
        metrics = {metric: _with_interval(row, metric) for metric in METRICS}
        first.append({
            **line,
            **{_title(m, comparison.unit): metrics[m] for m in METRICS if m not in LATER},
            "± seeds": _number(row["DSC sd over seeds"], 100),
            "p": _p(row["p"]),
        })  # fmt: skip
        further.append({
            **line,
            **{_title(metric, comparison.unit): metrics[metric] for metric in LATER},
            "empty": str(row["empty predictions"]),
            "hours": _number(row["training (h)"]),
            "ms/it.": _number(row["ms per iteration"], digits=0),
            "GiB": _number(row["peak memory (GiB)"]),
        })  # fmt: skip
    frames = {
        "Results": pd.DataFrame(first),
        "DSC of each class (%)": by_class(comparison, results),
        "Distances and cost": pd.DataFrame(further),
    }
    return {title: frame.loc[:, (frame != NOTHING).any()] for title, frame in frames.items()}


def by_class(comparison: Comparison, results: pd.DataFrame) -> pd.DataFrame:
    """Mean DSC in per cent, a row for each number of labelled cases and class, a column for each
    trainer."""
    rows = []
    for labelled in comparison.amounts:
        of_amount = results[results["labelled"] == labelled].set_index("trainer")
        unknown = math.isnan(of_amount["share"].iloc[0])
        for of_class in comparison.classes:
            values = {
                comparison.short_name(trainer): _number(
                    float(of_amount.loc[trainer, f"DSC {of_class}"]), 100
                )
                for trainer in comparison.trainers
            }
            rows.append(
                {"labelled": NOTHING if unknown else str(labelled), "class": of_class, **values}
            )
    return pd.DataFrame(rows)


def _with_interval(row: dict[str, Any], metric: str) -> str:
    scale = 100 if metric == "DSC" else 1
    low, high = (_number(row[f"{metric} {end}"], scale) for end in ("low", "high"))
    return f"{_number(row[metric], scale)} [{low}, {high}]"


def readable_tests(comparison: Comparison, tests: pd.DataFrame) -> pd.DataFrame:
    """The tests as people read them."""
    rows = []
    for row in tests.to_dict("records"):
        scale = 100 if row["metric"] == "DSC" else 1
        low, high = (_number(row[end], scale) for end in ("low", "high"))
        rows.append({
            "labelled": str(row["labelled"]) if comparison.courses else NOTHING,
            "trainer": comparison.short_name(row["trainer"]),
            "against": comparison.short_name(row["against"]),
            "metric": _title(row["metric"], comparison.unit),
            "cases": row["cases"], "left out": row["left out"],
            "difference": f"{_number(row['difference'], scale)} [{low}, {high}]",
            "p": _p(row["p"]), "p (Holm)": _p(row["p (Holm)"]),
        })  # fmt: skip
    table = pd.DataFrame(rows)
    return table.loc[:, (table != NOTHING).any()]


def to_json(
    title: str,
    facts: Mapping[str, str],
    comparison: Comparison,
    results: pd.DataFrame,
    tests: pd.DataFrame,
) -> str:
    """Everything for programs: numbers not rounded, null where there is none."""
    frames = {"results": results, "tests": tests, "scores": comparison.scores}
    return json.dumps(
        {
            "title": title,
            "facts": dict(facts),
            "unit": comparison.unit,
            "warnings": list(comparison.warnings),
            **{name: json.loads(_known(comparison, frame).to_json(
                    orient="records", double_precision=15))
               for name, frame in frames.items()},
        },
        indent=2,
    )  # fmt: skip


def to_markdown(table: pd.DataFrame) -> str:
    """A table of text in GitHub's Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.values.tolist()]
    escaped = [[str(cell).replace("|", r"\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped) + "\n"


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
    rounded, trainers have their full names there, and a last column the unit of distances."""
    texts = dict(readable(comparison, results))
    if len(tests):
        texts["Tests"] = readable_tests(comparison, tests)
    markdown = "\n".join(f"{title}\n\n{to_markdown(frame)}" for title, frame in texts.items())
    latex = "\n".join(f"% {title}\n{to_latex(frame)}" for title, frame in texts.items())
    (folder / "table.md").write_text(markdown, encoding="utf-8")
    (folder / "table.tex").write_text(latex, encoding="utf-8")
    for name, frame in (("table", results), ("tests", tests), ("scores", comparison.scores)):
        _with_unit(_known(comparison, frame), comparison.unit).to_csv(
            folder / f"{name}.csv", index=False
        )
    return [folder / f for f in ("table.md", "table.tex", "table.csv", "tests.csv", "scores.csv")]


def _known(comparison: Comparison, frame: pd.DataFrame) -> pd.DataFrame:
    """Without the columns that only a training tells, where none is known."""
    unknown = [] if comparison.courses else ["labelled", "share", "fold", "seed"]
    return frame.drop(columns=unknown, errors="ignore")


def _with_unit(frame: pd.DataFrame, unit: str) -> pd.DataFrame:
    """With the unit of each row's distances: of all rows, or of those of a metric that has one."""
    if "metric" not in frame:
        return frame.assign(unit=unit)
    has_unit = frame["metric"].isin(DISTANCES)
    return frame.assign(unit=has_unit.map({True: unit, False: ""}))


def _title(metric: str, unit: str) -> str:
    return f"{metric} (%)" if metric == "DSC" else f"{metric} ({unit})"


def _number(value: float, scale: float = 1, digits: int = 2) -> str:
    return NOTHING if math.isnan(value) else f"{scale * value:.{digits}f}"


def _p(value: float) -> str:
    if math.isnan(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
