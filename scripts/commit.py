#!/usr/bin/env python3
"""Print the commit of the checkout, or of the archive made from it, that this script lies in."""

from __future__ import annotations

import subprocess
from pathlib import Path

ARCHIVED = "$Format:%h$"  # git archive writes the commit here (.gitattributes)


def commit() -> str:
    """Short commit, "+changes" where files differ from it, "unknown" outside git."""
    if not ARCHIVED.startswith("$"):
        return ARCHIVED

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "unknown") + (
        "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    )


if __name__ == "__main__":
    print(commit())
