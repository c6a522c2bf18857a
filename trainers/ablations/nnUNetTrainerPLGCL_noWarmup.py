from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL_poster import nnUNetTrainerPLGCL_poster


class nnUNetTrainerPLGCL_noWarmup(nnUNetTrainerPLGCL_poster):
    """Ablation: labelled and unlabelled cases from the first epoch on."""

    fixed_config = {"warmup_fraction": 0.0}
