from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerCELoss import nnUNetTrainerCELoss

from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL_poster import nnUNetTrainerPLGCL_poster


class nnUNetTrainerPLGCL_plainCE(nnUNetTrainerPLGCL_poster, nnUNetTrainerCELoss):
    """Ablation: cross-entropy alone as the supervised loss (poster step 5), nnU-Net's own."""
