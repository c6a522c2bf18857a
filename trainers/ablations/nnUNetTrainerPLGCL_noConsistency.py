from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL


class nnUNetTrainerPLGCL_noConsistency(nnUNetTrainerPLGCL):
    """Ablation: beta = 0: the teacher only gives pseudo-labels and remembered embeddings."""

    fixed_config = {"consistency_weight": 0.0}
