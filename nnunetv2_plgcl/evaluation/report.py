"""A comparison as one HTML file that needs no other file and no network. Source: ours."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jinja2
import pandas as pd
from matplotlib.figure import Figure

PACKAGES = ("nnunetv2-plgcl", "nnunetv2", "torch", "scipy")
RESOLUTION = 130  # dots an inch


@dataclass(frozen=True)
class Picture:
    """A figure with what to say about it.

    Attributes:
        title: also for those who cannot see it.
        png: the file's content.
        wide: scrolls sideways on a narrow screen instead of shrinking until nothing is legible.
    """

    title: str
    png: bytes
    wide: bool = False

    @property
    def source(self) -> str:
        """For the src attribute."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def picture_of(title: str, figure: Figure, wide: bool = False) -> Picture:
    """Draw a figure of matplotlib."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=RESOLUTION)
    return Picture(title, stream.getvalue(), wide)


def write_report(
    file: Path,
    title: str,
    facts: Mapping[str, str],
    tables: Mapping[str, pd.DataFrame],
    tests: pd.DataFrame,
    sections: Mapping[str, Sequence[Picture]],
) -> None:
    """Write the report.

    Args:
        file: of the report.
        title: of the page.
        facts: what was compared, by name.
        tables: heading -> table, as people read it; the first holds the results.
        tests: likewise.
        sections: heading -> pictures.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nnunetv2_plgcl.evaluation", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    html = environment.get_template("report.html.jinja").render(
        title=title, facts={**facts, "versions": packages}, tables=tables, tests=tests,
        sections=sections,
    )  # fmt: skip
    file.write_text(html, encoding="utf-8")
