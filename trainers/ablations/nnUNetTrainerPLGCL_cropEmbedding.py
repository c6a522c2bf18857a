from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL_poster import nnUNetTrainerPLGCL_poster


class nnUNetTrainerPLGCL_cropEmbedding(nnUNetTrainerPLGCL_poster):
    """Ablation: windows are cut out, masked and encoded again, as in the authors' code."""

    fixed_config = {"embedding": "crop"}
