"""Console commands, one a file: arguments in, one library call, one line when it cannot be done.

Libraries are imported after the arguments are read, so that ``--help`` comes at once.
"""

from nnunetv2_plgcl.commands.check import check
from nnunetv2_plgcl.commands.compare import compare
from nnunetv2_plgcl.commands.convert import convert
from nnunetv2_plgcl.commands.demo import demo
from nnunetv2_plgcl.commands.evaluate import evaluate
from nnunetv2_plgcl.commands.export import export
from nnunetv2_plgcl.commands.preprocess import preprocess
from nnunetv2_plgcl.commands.pseudolabel import pseudolabel
from nnunetv2_plgcl.commands.split import split

__all__ = [
    "check",
    "compare",
    "convert",
    "demo",
    "evaluate",
    "export",
    "preprocess",
    "pseudolabel",
    "split",
]
