"""What nnU-Net finds in this folder: the classes of ``nnunetv2_plgcl.trainers``.

nnU-Net forgets the modules that it imports from such a folder, so a class defined here would be
another one at each look-up. Those of the package stay the same. The folder may be passed on to a
Python of another environment through the environment variable; there it offers nothing.
"""

import importlib
import importlib.util
import pkgutil

if importlib.util.find_spec("nnunetv2_plgcl") is not None:
    _trainers = importlib.import_module("nnunetv2_plgcl.trainers")
    for _module in pkgutil.iter_modules(_trainers.__path__):
        _name = _module.name
        globals()[_name] = getattr(importlib.import_module(f"{_trainers.__name__}.{_name}"), _name)
