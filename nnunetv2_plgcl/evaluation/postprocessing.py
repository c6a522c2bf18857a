"""nnU-Net's own postprocessing, for one training of a comparison."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path

from nnunetv2.evaluation.accumulate_cv_results import accumulate_cv_results
from nnunetv2.postprocessing.remove_connected_components import (
    apply_postprocessing_to_folder,
    determine_postprocessing,
)

from nnunetv2_plgcl.evaluation.runs import Run


def postprocess(run: Run, predictions: Path, reference: Path, output: Path, processes: int) -> Path:
    """Apply to predictions what ``nnUNetv2_find_best_configuration`` determines for a training.

    That is, keep only the largest component of the foreground, where that raises the Dice of the
    training's own validation cases and lowers that of no class; then of each class, where that
    raises its Dice. No other case has a say.

    Args:
        run: finished.
        predictions: folder, of the run's validation cases or of others.
        reference: folder with the segmentations of the validation cases.
        output: folder, replaced. ``postprocessing.json`` in its ``validation`` says what was
            determined.
        processes: worker processes.

    Returns:
        The folder with the postprocessed predictions.
    """
    validation, postprocessed = output / "validation", output / "predictions"
    shutil.rmtree(output, ignore_errors=True)  # of other predictions, maybe
    models = [str(run.model_folder / name) for name in ("plans.json", "dataset.json")]
    with contextlib.redirect_stdout(io.StringIO()):  # warns of references outside the fold
        accumulate_cv_results(str(run.model_folder), str(validation), [run.fold], processes)
        rule = determine_postprocessing(
            str(validation), str(reference), *models, processes, keep_postprocessed_files=False
        )
        apply_postprocessing_to_folder(
            str(predictions), str(postprocessed), *rule, *models, num_processes=processes
        )
    return postprocessed
