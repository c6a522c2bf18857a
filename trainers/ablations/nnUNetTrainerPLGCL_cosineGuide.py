from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL


class nnUNetTrainerPLGCL_cosineGuide(nnUNetTrainerPLGCL):
    """Ablation: windows ranked by their likeness to the class's mean embedding."""

    fixed_config = {"guide": "cosine"}
