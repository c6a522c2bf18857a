#!/usr/bin/env python3
"""Write the tables of docs/settings.md from the settings' own definitions."""

from __future__ import annotations

import argparse
import json
from dataclasses import Field, fields
from inspect import get_annotations
from pathlib import Path

from nnunetv2_plgcl.settings import Settings
from nnunetv2_plgcl.trainers import trainer_classes

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
MARK = "<!-- from here on written by scripts/document_settings.py -->\n"


def written(page: str) -> str:
    """The page with the tables of today."""
    return page.split(MARK)[0] + MARK + "".join(map(section, settings_classes()))


def settings_classes() -> list[type[Settings]]:
    """Every class of settings that a trainer has or inherits from, the shared ones first, then
    those of the package's own method."""
    of_trainers = {trainer.settings_class for trainer in trainer_classes().values()}
    every = {base for of in of_trainers for base in of.__mro__ if issubclass(base, Settings)}

    def place(of: type[Settings]) -> tuple[bool, bool, int, str]:
        own = "PLGCL" in "".join(users(of))
        return bool(users(of)), not own, len(of.__mro__), of.__name__

    return sorted(every, key=place)


def users(of: type[Settings]) -> list[str]:
    """Trainers with exactly these settings, ablations of others left out."""
    return [
        f"`{name}`"
        for name, trainer in sorted(trainer_classes().items())
        if trainer.settings_class is of and (trainer.__module__ == of.__module__ or "_" not in name)
    ]


def section(of: type[Settings]) -> str:
    """A heading, and a table of what the class declares itself."""
    shared = "Every trainer" if of is Settings else f"Shared: `{of.__name__}`"
    title = ", ".join(users(of)) or shared
    parents = [f"`{base.__name__}`" for base in of.__bases__ if issubclass(base, Settings)]
    parent = f" Beside these, it has those of {' and '.join(parents)}." if parents else ""
    lines = [f"\n## {title}\n", f"`{of.__name__}`: {of.__doc__.splitlines()[0]}{parent}\n"]
    own = [setting for setting in fields(of) if setting.name in get_annotations(of)]
    if own:
        lines += ["| name | default | values | meaning |", "|---|---|---|---|", *map(row, own), ""]
    if of.published and "published" in vars(of):
        values = ", ".join(f"`{name}` {_shown(value)}" for name, value in of.published.items())
        lines += [f'With `"preset": "published"`: {values}.\n']
    return "\n".join(lines)


def row(setting: Field) -> str:
    """Name, default, what it may be, meaning."""
    cells = f"`{setting.name}`", _shown(setting.default), values(setting), setting.metadata["doc"]
    return "| " + " | ".join(cells) + " |"


def values(setting: Field) -> str:
    """What a setting may be, in words."""
    rule = setting.metadata
    if rule["choices"]:
        return ", ".join(f"`{choice}`" for choice in rule["choices"])
    if isinstance(setting.default, bool):
        return "true, false"
    if isinstance(setting.default, tuple):
        return "list of whole numbers"
    kind = "whole number" if isinstance(setting.default, int) else "number"
    left, right = "()" if rule["open"] else "[]"
    if rule["high"] is None:
        return f"{kind} {'>' if rule['open'] else '≥'} {rule['low']}"
    return f"{kind} in {left}{rule['low']}, {rule['high']}{right}"


def _shown(default: object) -> str:
    """As written in the plans, fractions rounded."""
    return f"{default:.4g}" if isinstance(default, float) else json.dumps(default)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(written(PAGE.read_text()))
