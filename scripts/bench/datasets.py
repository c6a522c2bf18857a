"""The datasets of the benchmark, and configurations of each small enough for a CPU core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nnunetv2_plgcl.datasets.files import dataset_number


@dataclass(frozen=True)
class CpuConfiguration:
    """A configuration small enough for a CPU, made from one that nnU-Net planned.

    Attributes:
        spacing: in the order of the plans.
        patch_size: likewise.
        batch_size: patches.
        stages: of the network; nnU-Net's own finest ones.
        divisor: of nnU-Net's number of features.
        iterations: default; docs/bench.md says what they reach.
    """

    spacing: tuple[float, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    stages: int
    divisor: int
    iterations: int

    def made_from(self, name: str, base: str, planned: dict[str, Any]) -> dict[str, Any]:
        """For the plans.

        Args:
            name: of this configuration.
            base: name of nnU-Net's.
            planned: nnU-Net's.
        """
        arguments = dict(planned["architecture"]["arch_kwargs"])
        for key in ("kernel_sizes", "strides", "n_conv_per_stage"):
            arguments[key] = arguments[key][: self.stages]
        decoder = arguments["n_conv_per_stage_decoder"][: self.stages - 1]
        features = [n // self.divisor for n in arguments["features_per_stage"][: self.stages]]
        arguments.update(
            n_stages=self.stages, features_per_stage=features, n_conv_per_stage_decoder=decoder
        )
        return {
            "inherits_from": base,
            "data_identifier": f"nnUNetPlans_{name}",
            "spacing": list(self.spacing),
            "patch_size": list(self.patch_size),
            "batch_size": self.batch_size,
            "architecture": {**planned["architecture"], "arch_kwargs": arguments},
        }


@dataclass(frozen=True)
class BenchDataset:
    """A dataset of the benchmark.

    Attributes:
        folder: of nnU-Net, DatasetNNN_NAME.
        patient: regular expression of what in a case's name is the patient.
        base: nnU-Net's own configuration, for a GPU.
        cpu: configurations for a CPU by name, the default first.
        copies: patients whose images are another patient's too.
    """

    folder: str
    patient: str
    base: str
    cpu: dict[str, CpuConfiguration]
    copies: frozenset[str] = frozenset()

    @property
    def number(self) -> int:
        return dataset_number(self.folder)


GPU_ITERATIONS = 15_000  # default with nnU-Net's own configurations
DATASETS = {
    "acdc": BenchDataset(
        "Dataset027_ACDC", r"patient\d+", "2d",
        {
            "2d_small": CpuConfiguration((2, 2), (96, 96), 8, 4, 2, 4_000),
            # whole slices of median size, as nnU-Net's own patch at half the resolution
            "2d_half": CpuConfiguration((2, 2), (128, 112), 8, 5, 2, 4_000),
        },
        frozenset({"patient076"}),  # patient074's
    ),
    "hippocampus": BenchDataset(
        "Dataset004_Hippocampus", r".+", "3d_fullres",
        {"3d_small": CpuConfiguration((1.5, 1.5, 1.5), (16, 24, 16), 4, 3, 4, 5_000)},
    ),
    "liver": BenchDataset(
        "Dataset003_Liver", r"liver\d+", "2d",
        {"2d_small": CpuConfiguration((2.5, 2.5), (80, 80), 8, 4, 2, 1500)},
    ),
    "glas": BenchDataset(
        "Dataset120_GlaS", r".+", "2d",
        {"2d_small": CpuConfiguration((3, 3), (96, 96), 8, 4, 2, 1_000)},
    ),
}  # fmt: skip
