"""Makes nnU-Net find the trainers, without touching nnU-Net's installation.

nnU-Net looks for ``-tr NAME`` in its own package, then in the folders of ``nnUNet_extTrainer``.
``nnunetv2_plgcl.pth`` in site-packages (from Python 3.15 on ``nnunetv2_plgcl.start``, PEP 829)
calls ``register`` when the interpreter starts. It runs in every Python process of the
environment, so this module imports nothing but ``os``. Source: ours.
"""

import os

VARIABLE = "nnUNet_extTrainer"
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ext_trainer")


def register() -> None:
    """Append our folder to ``nnUNet_extTrainer``, once, after whatever the user has there."""
    folders = [folder for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]
    if FOLDER not in folders:
        os.environ[VARIABLE] = os.pathsep.join([*folders, FOLDER])
