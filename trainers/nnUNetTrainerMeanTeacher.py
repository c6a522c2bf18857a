import torch

from nnunetv2_plgcl.semisupervised.trainer import nnUNetTrainerSemiSupervised


class nnUNetTrainerMeanTeacher(nnUNetTrainerSemiSupervised):
    """PLGCL without the contrastive part: poster steps 1, 4, 5 and 6, the yardstick for it.

    Like Mean Teacher (Tarvainen & Valpola, 2017), with a weak and a strong view as in the poster.
    """

    def train_step(self, batch: dict) -> dict:
        images, target = self.labelled_batch(batch)
        weak, strong = self.unlabelled_views(like=images)
        mix = self.cutmix(strong)
        with self.autocast():
            # 1. the teacher's pseudo-labels of the weak view
            pseudo_label = mix(self.pseudo_label(weak))
            logits = self.student_logits(torch.cat((images, mix(strong))))
            # 4. the strong view agrees with them
            consistency = self.consistency_loss(logits[0][len(images) :], pseudo_label)
            # 5. supervision
            supervised = self.supervised_loss([x[: len(images)] for x in logits], target)
            # 6. total, and the teacher follows
            beta = self.config.consistency_weight * self.consistency_rampup
            loss = supervised + beta * consistency
        self.optimise(loss)
        self.update_teacher()
        return self.finish_step(loss=loss, loss_supervised=supervised, loss_consistency=consistency)
