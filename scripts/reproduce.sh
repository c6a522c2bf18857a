#!/usr/bin/env bash
# From a download to the paper's table: convert, plan, preprocess, train, predict the test cases,
# evaluate, and print the paper's numbers beside ours. Called by reproduce_acdc.sh, ..._kits19.sh
# and ..._crag.sh. Run it again after an interruption: what is done is kept.
#
# Usage: bash scripts/reproduce_DATASET.sh DOWNLOAD [more arguments for nnUNetv2_plgcl_compare]
# Needs: the package installed, nnUNet_raw, nnUNet_preprocessed and nnUNet_results set.
# Settings: DEVICE=cuda SEEDS=3 FOLDS="0 1" CONFIG=2d NUMBER=dataset number OUTPUT=folder
#           TRAINERS="those to compare, the baseline first"
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "Run reproduce_acdc.sh, reproduce_kits19.sh or reproduce_crag.sh." >&2
    exit 2
fi
dataset=$1 number=${NUMBER:-$2}
shift 2
if [ $# -eq 0 ] || [ ! -d "$1" ]; then
    echo "Usage: bash scripts/reproduce_$dataset.sh DOWNLOAD" >&2
    exit 2
fi
download=$1
shift
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
for variable in nnUNet_raw nnUNet_preprocessed nnUNet_results; do
    if [ -z "${!variable:-}" ]; then
        echo "Set $variable, as nnU-Net's documentation says." >&2
        exit 2
    fi
done
config=${CONFIG:-2d} device=${DEVICE:-cuda}
output=${OUTPUT:-reproduce_${dataset}_$config}
python3 "$scripts/require.py" device "$device"
read -ra trainers <<<"${TRAINERS:-nnUNetTrainer nnUNetTrainerMeanTeacher nnUNetTrainerPLGCL_noConsistency nnUNetTrainerPLGCL_poster}"
read -ra folds <<<"${FOLDS:-0 1}" # one for each number of labelled cases in the paper
mkdir -p "$output"

find_dataset() {
    find "$nnUNet_raw" -maxdepth 1 -name "$(printf 'Dataset%03d_*' "$number")" | head -n 1
}
if [ -z "$(find_dataset)" ]; then
    nnUNetv2_plgcl_convert "$dataset" "$download" -d "$number" --protocol paper
fi
python3 "$scripts/require.py" protocol "$dataset" "$number"
raw=$(find_dataset)
preprocessed=$nnUNet_preprocessed/$(basename "$raw")
if [ ! -f "$preprocessed/.${config}_complete" ]; then
    # the planner does not run under nnUNet_n_proc_DA=0, which some set for training
    processes=${nnUNet_def_n_proc:-8} # of which this command knows nothing
    env -u nnUNet_n_proc_DA nnUNetv2_plan_and_preprocess -d "$number" -c "$config" \
        -npfp "$processes" -np "$processes"
    touch "$preprocessed/.${config}_complete"
fi
if [ -d "$raw/imagesUn" ]; then
    nnUNetv2_plgcl_preprocess -d "$number" -c "$config"
fi
nnUNetv2_plgcl_compare -d "$number" -c "$config" -f "${folds[@]}" -tr "${trainers[@]}" \
    --test "$raw/imagesTs" "$raw/labelsTs" --run --seeds "${SEEDS:-3}" --voxel \
    -device "$device" -o "$output" "$@"
echo
python3 "$scripts/beside_paper.py" "$dataset" "$output/table.csv" | tee "$output/beside_paper.md"
