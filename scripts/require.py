#!/usr/bin/env python3
"""What a script needs, asked for before hours of work.

python scripts/require.py device cuda       a device that PyTorch finds
python scripts/require.py trainers A B      trainers that nnU-Net finds
python scripts/require.py protocol acdc 27  a dataset whose split is the paper's
"""

from __future__ import annotations

import sys

from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_plgcl.datasets.convert.run import read_protocol
from nnunetv2_plgcl.datasets.files import dataset_name, read_split, split_file
from nnunetv2_plgcl.evaluation.launch import require_device


def require_protocol(dataset: str, number: str) -> None:
    """
    Raises:
        ValueError: the folds of a dataset are not those of ``--protocol paper``.
    """
    protocol, name = read_protocol(dataset), dataset_name(number)
    folds = read_split(split_file(name))
    wanted = [(set(labelled), set(protocol.validation)) for labelled in protocol.labelled.values()]
    there = [tuple({case.partition("_frame")[0] for case in fold[part]} for part in
                   ("train", "val")) for fold in folds]  # fmt: skip
    if there != wanted:
        raise ValueError(
            f"{name} is there, but its split is not the one of nnUNetv2_plgcl_convert {dataset} "
            f"--protocol paper. Name another number: NUMBER=..."
        )


def main() -> None:
    try:
        match sys.argv[1:]:
            case ["device", device]:
                require_device(device)
            case ["trainers", *names]:
                for name in names:
                    recursive_find_trainer_class_by_name(name)
            case ["protocol", dataset, number]:
                require_protocol(dataset, number)
            case _:
                sys.exit(__doc__)
    except (ValueError, KeyError, RuntimeError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
