"""The trainer classes, one a module of the same name.

A wheel installs them into this folder. In a checkout they lie in ``trainers/`` at top level,
where ``pip install -e .`` finds them too.
"""

from pathlib import Path

if not any(Path(__file__).parent.glob("nnUNetTrainer*.py")):
    __path__.append(str(Path(__file__).parents[2] / "trainers"))
