"""The trainer classes, one a module of the same name.

A wheel installs them into this folder. In a checkout they lie in ``trainers/`` at top level,
where ``pip install -e .`` finds them too.
"""

from pathlib import Path

_checkout = Path(__file__).parents[2]
if (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout / "trainers"))
