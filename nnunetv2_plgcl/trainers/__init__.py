"""The trainer classes, one a module of the same name; ablations and other methods in folders.

A wheel installs them into this folder. In a checkout they lie in ``trainers/`` at top level,
where ``pip install -e .`` finds them too.
"""

import importlib
import pkgutil
from pathlib import Path
from typing import Any

if not any(Path(__file__).parent.glob("nnUNetTrainer*.py")):
    __path__.append(str(Path(__file__).parents[2] / "trainers"))


def trainer_classes() -> dict[str, Any]:
    """Every trainer of this package by its name, wherever its file lies in this folder."""
    modules = pkgutil.walk_packages(__path__, f"{__name__}.")
    paths = {module.name.rpartition(".")[2]: module.name for module in modules if not module.ispkg}
    return {name: getattr(importlib.import_module(path), name) for name, path in paths.items()}


def known_settings() -> set[str]:
    """Names of the settings that any trainer of this package has."""
    from nnunetv2_plgcl.settings import names_of

    return {
        name for trainer in trainer_classes().values() for name in names_of(trainer.settings_class)
    }
