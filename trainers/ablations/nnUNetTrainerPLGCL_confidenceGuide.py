from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL


class nnUNetTrainerPLGCL_confidenceGuide(nnUNetTrainerPLGCL):
    """Ablation: windows drawn by class confidence alone."""

    fixed_config = {"guide": "confidence"}
