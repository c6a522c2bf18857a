from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL_poster import nnUNetTrainerPLGCL_poster


class nnUNetTrainerPLGCL_noConsistency(nnUNetTrainerPLGCL_poster):
    """Ablation: beta = 0: the teacher only gives pseudo-labels and remembered embeddings."""

    fixed_config = {"consistency_weight": 0.0}
