"""Found by nnU-Net through nnUNet_extTrainer: trainers with four short epochs."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_plgcl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from nnunetv2_plgcl.trainers.nnUNetTrainerPLGCL import nnUNetTrainerPLGCL


class FourShortEpochs:
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 4
        self.num_iterations_per_epoch = 3
        self.num_val_iterations_per_epoch = 1
        self.save_every = 1
        draw = self.logger.plot_progress_png  # takes longer than an epoch: once, at the end
        self.logger.plot_progress_png = lambda folder: self.current_epoch == 3 and draw(folder)


class nnUNetTrainerPLGCL_tiny(FourShortEpochs, nnUNetTrainerPLGCL):
    pass


class nnUNetTrainerMeanTeacher_tiny(FourShortEpochs, nnUNetTrainerMeanTeacher):
    pass


class nnUNetTrainer_tiny(FourShortEpochs, nnUNetTrainer):
    pass
