"""How messages name cases: the first few, unless all are asked for. Source: ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_shown: ContextVar[int | None] = ContextVar("shown", default=3)


@contextmanager
def all_names(wanted: bool = True) -> Iterator[None]:
    """Inside, messages name every case, if that is wanted."""
    token = _shown.set(None if wanted else _shown.get())
    try:
        yield
    finally:
        _shown.reset(token)


def first(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    shown = _shown.get() or len(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def some(cases: Sequence[str]) -> str:
    """``first``, to begin a sentence with."""
    return f"{'Case' if len(cases) == 1 else 'Cases'} {first(cases)}"
