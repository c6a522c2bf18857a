"""Windows, embeddings, memory and loss of PLGCL: tensors in, tensors out, 2D and 3D alike.

Nothing here knows nnU-Net, but for ``trainer``, which puts them into a training. Data-dependent
choices are masks over fixed shapes, so that nothing waits for the GPU. One training step, from
class probabilities to the contrastive loss:

>>> import torch
>>> from nnunetv2_plgcl.contrast.embedding import FeatureEmbedder, ProjectionHead
>>> from nnunetv2_plgcl.contrast.guidance import EntropyGuide
>>> from nnunetv2_plgcl.contrast.loss import sampled_info_nce
>>> from nnunetv2_plgcl.contrast.memory import ClassMemory
>>> from nnunetv2_plgcl.contrast.patches import window_statistics
>>> image, features = torch.randn(2, 1, 64, 64), torch.randn(2, 32, 8, 8)
>>> confidence = torch.randn(2, 3, 64, 64).softmax(1)
>>> windows = EntropyGuide()(window_statistics(confidence, size=16), num=8)
>>> embedder = FeatureEmbedder(ProjectionHead(in_channels=32))
>>> anchors = embedder(image, [features], confidence, windows)
>>> positives, negatives = ClassMemory(num_classes=3), ClassMemory(num_classes=3)
>>> positives.enqueue(anchors, windows.valid & windows.positive)
>>> negatives.enqueue(anchors, windows.valid & ~windows.positive)
>>> drawn, against = positives.recall(256), negatives.recall(256)
>>> loss = sampled_info_nce(
...     anchors, windows.valid & windows.positive,
...     drawn.entries, drawn.filled, against.entries, against.filled,
...     temperature=0.2, negative_weight=against.weight,
... )
>>> loss.backward()
"""
