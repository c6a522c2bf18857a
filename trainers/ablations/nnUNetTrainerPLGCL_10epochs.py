import torch

from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL


class nnUNetTrainerPLGCL_10epochs(nnUNetTrainerPLGCL):
    """As short as nnU-Net's ``nnUNetTrainer_10epochs``: for demonstrations, not for results."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 10
