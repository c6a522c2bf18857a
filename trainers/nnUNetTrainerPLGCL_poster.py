from dataclasses import dataclass

from nnunetv2_plgcl.settings import setting
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import PLGCLSettings, nnUNetTrainerPLGCL


@dataclass(frozen=True)
class PosterSettings(PLGCLSettings):
    """PLGCL's, with the numbers of the authors' code where ours are cheaper."""

    memory_length: int = setting(
        4096, "embeddings remembered per class and side [authors' code]", 1
    )
    memory_draws: int = setting(
        0,
        "remembered embeddings per class and side that a step draws to contrast with, 0 for all "
        "of them [poster]",
        0,
    )


class nnUNetTrainerPLGCL_poster(nnUNetTrainerPLGCL):
    """The paper's reading of PLGCL, for a reproduction: soft cross-entropy as consistency, windows
    by entropy, and every remembered embedding in the contrast. What ``nnUNetTrainerPLGCL`` was in
    version 0.1; the ablations are made from it."""

    settings_class = PosterSettings
    config: PosterSettings
