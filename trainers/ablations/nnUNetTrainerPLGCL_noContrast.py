from nnunetv2_plgcl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher


class nnUNetTrainerPLGCL_noContrast(nnUNetTrainerMeanTeacher):
    """Ablation: gamma = 0, which leaves the mean teacher with its warm-up."""
