"""What a training needs beyond nnU-Net's: memory of the GPU, space on the disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunetv2_plgcl.contrast.memory import ClassMemory
from nnunetv2_plgcl.datasets.check.finding import Finding


def estimate_memory(plans: dict, dataset: dict, configuration: str, memory_length: int) -> Finding:
    """What our trainers add to the GPU memory that nnU-Net planned, and the size on disk; a
    warning where the disk has less left. ``memory_length`` is that setting, 0 without."""
    from nnunetv2 import paths
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    resolved = manager.get_configuration(configuration)
    classes = manager.get_label_manager(dataset).num_segmentation_heads
    network = get_network_from_plans(
        resolved.network_arch_class_name,
        resolved.network_arch_init_kwargs,
        resolved.network_arch_init_kwargs_req_import,
        determine_num_input_channels(manager, resolved, dataset),
        classes,
    )
    weights = sum(
        parameter.numel() * parameter.element_size() for parameter in network.parameters()
    )
    buffers = list(ClassMemory(classes, memory_length).buffers()) if memory_length else []
    memory = 2 * sum(b.numel() * b.element_size() for b in buffers)  # positives and negatives
    # student (twice: also as deployed weights), teacher, momentum; final, best and latest
    checkpoints = 3 * (4 * weights + memory)
    text = (
        f"GPU memory as nnU-Net planned it, plus about {(weights + memory) / 2**20:.0f} MiB for "
        f"the teacher's weights and the memory of embeddings. Checkpoints up to "
        f"{checkpoints / 2**20:.0f} MiB."
    )
    if paths.nnUNet_results.is_set() and Path(paths.nnUNet_results).is_dir():
        free = shutil.disk_usage(paths.nnUNet_results).free
        if free < checkpoints:
            return Finding("warning", f"{text} Only {free / 2**20:.0f} MiB are free there.")
    return Finding("note", text)
