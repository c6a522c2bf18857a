from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL_poster import nnUNetTrainerPLGCL_poster


class nnUNetTrainerPLGCL_confidenceGuide(nnUNetTrainerPLGCL_poster):
    """Ablation: windows drawn by class confidence alone."""

    fixed_config = {"guide": "confidence"}
