"""What would make a training wrong or wasteful, found before it starts: a room for each thing that
is looked at, and ``training``, which puts them together. Source: ours."""

from nnunetv2_plgcl.datasets.check.finding import Finding
from nnunetv2_plgcl.datasets.check.memory import estimate_memory
from nnunetv2_plgcl.datasets.check.start import try_start
from nnunetv2_plgcl.datasets.check.training import check_training

__all__ = ["Finding", "check_training", "estimate_memory", "try_start"]
