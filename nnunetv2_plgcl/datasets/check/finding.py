"""What a check says, and how it names cases and numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Part = Literal["labelled", "unlabelled", "validation"]
PARTS: tuple[Part, ...] = ("labelled", "unlabelled", "validation")


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        level: "error" where the training would be wrong, "warning" where it may be, "note" else.
        text: one line that names the cases and says what to do.
        certain: false where it rests on a guess, so that a training may start all the same.
    """

    level: Literal["error", "warning", "note"]
    text: str
    certain: bool = True


def numbers(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
