from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL


class nnUNetTrainerPLGCL_noWarmup(nnUNetTrainerPLGCL):
    """Ablation: labelled and unlabelled cases from the first epoch on."""

    fixed_config = {"warmup_fraction": 0.0}
