from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL_poster import nnUNetTrainerPLGCL_poster


class nnUNetTrainerPLGCL_cosineGuide(nnUNetTrainerPLGCL_poster):
    """Ablation: windows ranked by their likeness to the class's mean embedding."""

    fixed_config = {"guide": "cosine"}
