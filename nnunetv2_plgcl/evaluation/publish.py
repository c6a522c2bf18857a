"""Write a comparison down: tables, figures, one HTML report. Source: ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_plgcl.evaluation import comparison as library
from nnunetv2_plgcl.evaluation import tables
from nnunetv2_plgcl.evaluation.comparison import Comparison
from nnunetv2_plgcl.evaluation.report import Picture, write_report


@dataclass(frozen=True)
class Published:
    """What was written.

    Attributes:
        table: in Markdown.
        content: the same for programs, as in comparison.json.
        warnings: what may be wrong with the scores, a sentence each.
        notes: what is missing, and why, likewise.
        files: the report first.
    """

    table: str
    content: str
    warnings: Sequence[str]
    notes: Sequence[str]
    files: list[Path]


def publish(
    output: Path,
    title: str,
    facts: Mapping[str, str],
    comparison: Comparison,
    sections: Mapping[str, Sequence[Picture]],
    notes: Sequence[str],
) -> Published:
    """Write report.html, the tables, comparison.json and every picture as a file.

    Args:
        output: folder; made if missing.
        title: of the report.
        facts: what was compared, by name.
        comparison: the scores.
        sections: heading -> pictures; headings without one are left out.
        notes: what is missing, and why.
    """
    (output / "figures").mkdir(parents=True, exist_ok=True)
    results, tests = library.results(comparison), library.tests(comparison)
    content = tables.to_json(title, facts, comparison, results, tests)
    written = [
        *tables.write_tables(comparison, results, tests, output),
        output / "comparison.json",
    ]
    written[-1].write_text(content, encoding="utf-8")
    for heading, pictures in sections.items():
        for number, picture in enumerate(pictures):
            file = output / "figures" / f"{heading.lower()}_{number}.png"
            file.write_bytes(picture.png)
    all_notes = [*comparison.warnings, *notes]
    readable = tables.readable(comparison, results)
    write_report(
        output / "report.html",
        title,
        {**facts, **({"notes": " ".join(all_notes)} if all_notes else {})},
        readable,
        tables.readable_tests(comparison, tests),
        {heading: pictures for heading, pictures in sections.items() if pictures},
    )
    text = "\n".join(tables.to_markdown(table) for table in readable.values())
    files = [output / "report.html", *written]
    return Published(text, content, comparison.warnings, notes, files)
