from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL_poster import nnUNetTrainerPLGCL_poster


class nnUNetTrainerPLGCL_closedForm(nnUNetTrainerPLGCL_poster):
    """Ablation: the closed-form bound of the expected InfoNCE, as in the authors' code."""

    fixed_config = {"expectation": "closed_form"}
