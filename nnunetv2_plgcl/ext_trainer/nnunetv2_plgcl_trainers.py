"""What nnU-Net finds in this folder: the classes of ``nnunetv2_plgcl.trainers``.

nnU-Net forgets the modules that it imports from such a folder, so a class defined here would be
another one at each look-up. Those of the package stay the same. The folder may be passed on to a
Python of another environment through the environment variable; there it offers nothing.
"""

import importlib
import importlib.util

if importlib.util.find_spec("nnunetv2_plgcl") is not None:
    globals().update(importlib.import_module("nnunetv2_plgcl.trainers").trainer_classes())
