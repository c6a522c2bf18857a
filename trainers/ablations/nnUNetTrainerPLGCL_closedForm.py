from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL


class nnUNetTrainerPLGCL_closedForm(nnUNetTrainerPLGCL):
    """Ablation: the closed-form bound of the expected InfoNCE, as in the authors' code."""

    fixed_config = {"expectation": "closed_form"}
