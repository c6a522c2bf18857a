from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL


class nnUNetTrainerPLGCL_cropEmbedding(nnUNetTrainerPLGCL):
    """Ablation: windows are cut out, masked and encoded again, as in the authors' code."""

    fixed_config = {"embedding": "crop"}
