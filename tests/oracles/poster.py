"""The step of ``nnUNetTrainerPLGCL`` in version 0.1, written out: soft consistency, entropy guide,
every window embedded and every remembered embedding in the loss."""

import torch

from nnunetv2_plgcl.contrast.loss import sampled_info_nce
from nnunetv2_plgcl.contrast.patches import window_statistics
from nnunetv2_plgcl.semisupervised.losses import sigmoid_rampup


def train_step(trainer, batch):
    """In place of the trainer's own; it must be in its defaults."""
    config = trainer.config
    images, target = trainer.labelled_batch(batch)
    weak, strong = trainer.unlabelled_views(like=images)
    trainer.cutmix(strong)  # off, but it draws from the generator that the loaders share
    pseudo_label = trainer.pseudo_label(weak)
    confidence = torch.cat((trainer.label_maps(target), pseudo_label))
    both = torch.cat((images, strong))
    logits = trainer.student_logits(both)
    student = both, trainer.student_features.take()
    of_weak = [trainer.teacher_features.take()] if len(weak) else []
    with torch.no_grad():
        trainer.teacher.module.encoder(images)
    parts = trainer.teacher_features.take(), *of_weak
    teacher = torch.cat((images, weak)), [torch.cat(s) for s in zip(*parts, strict=True)]

    size = [min(edge, max(16, round(edge / 4))) for edge in confidence.shape[2:]]
    per_map = -(-config.anchors // (confidence.shape[0] * confidence.shape[1]))
    statistics = window_statistics(confidence, size)
    windows = trainer.guide(statistics, 2 * per_map, generator=trainer.window_generator)
    anchors = trainer.embed(*student, confidence, windows)
    with torch.no_grad():
        keys = trainer.teacher_embed(*teacher, confidence, windows)
    is_anchor = windows.valid & windows.positive
    trainer.positives.enqueue(keys, is_anchor)
    trainer.negatives.enqueue(keys, windows.valid & ~windows.positive)
    memories = (
        trainer.positives.entries(),
        trainer.positives.filled(),
        trainer.negatives.entries(),
        trainer.negatives.filled(),
    )
    contrastive = sampled_info_nce(anchors, is_anchor, *memories, config.temperature)

    consistency = trainer.consistency_loss(logits[0][len(images) :], pseudo_label)
    supervised = trainer.supervised_loss([x[: len(images)] for x in logits], target)
    epochs = trainer.current_epoch + trainer.iteration_in_epoch / trainer.num_iterations_per_epoch
    gamma = config.contrastive_weight * sigmoid_rampup(epochs / trainer.num_epochs, 1 / 3)
    beta = config.consistency_weight * trainer.consistency_rampup
    loss = supervised + beta * consistency + gamma * contrastive
    trainer.optimise(loss)
    trainer.update_teacher()
    return trainer.finish_step(
        loss=loss,
        loss_supervised=supervised,
        loss_consistency=consistency,
        loss_contrastive=contrastive,
        patches_per_class=windows.count(),
    )
