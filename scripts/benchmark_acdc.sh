#!/usr/bin/env bash
# nnU-Net, mean teacher, PLGCL without consistency and PLGCL on ACDC with few labelled patients, and
# nnU-Net with all 70 training patients, the upper line. Same plans, iterations, batch size and
# validation patients for all. Called by benchmark_acdc_cpu.sh and benchmark_acdc_gpu.sh. Run it
# again to go on after an interruption, or in pieces: what is trained is kept.
#
# Usage: bash scripts/benchmark_acdc_cpu.sh FOLDER
#   FOLDER: ACDC in nnU-Net's raw layout, cases named patientNNN_frameNN
# Needs: the package installed (its environment activated); no variable of nnU-Net's.
# Settings: ITERATIONS SEEDS=3 PATIENTS="7 3 14" (may be empty) UPPER=1 (0: no upper line)
#           TRAINERS="nnUNetTrainer ..." (the baseline first) WORK=benchmark_acdc
#           JOBS=1 (trainings at once; as many as cores is quickest on a CPU)
#           PLANS=NAME SETTINGS='{"ema_decay": 0.99}' (other settings, as under "plgcl" in the
#           plans; NAME is yours to choose) POSTPROCESSING=0 (1: tables of the predictions after
#           nnU-Net's own postprocessing) DEVICE CONFIG (on a CPU 2d_small, or 2d_half for patches
#           of whole slices; each needs a WORK of its own)
# Takes 10 to 30 minutes for each of the 39 trainings of the default on two cores.
# Results: WORK/ITERATIONS_PATIENTS__PLANS__CONFIG/, tables and report of the last call, and another
#          such folder with __postprocessed at its end;
#          WORK/results.csv, all calls, with commit, device and day.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source=${1:?"Name a folder: ACDC in nnU-Net's raw layout"}
iterations=${ITERATIONS:?} config=${CONFIG:?} device=${DEVICE:?}
seeds=${SEEDS:-3} jobs=${JOBS:-1} plans=${PLANS:-nnUNetPlans}
if ! [[ $iterations =~ ^[1-9][0-9]*$ ]] || ((iterations % 100)); then
    echo "ITERATIONS must be a multiple of 100, not $iterations." >&2
    exit 2
fi
read -ra patients <<<"${PATIENTS-7 3 14}"
read -ra trainers <<<"${TRAINERS:-nnUNetTrainer nnUNetTrainerMeanTeacher nnUNetTrainerPLGCL_noConsistency nnUNetTrainerPLGCL}"

for number in "${patients[@]}"; do
    if ! [[ $number =~ ^(3|7|14)$ ]]; then
        echo "PATIENTS are 3, 7 and 14, but not $number." >&2
        exit 2
    fi
done
if ! [[ $seeds =~ ^[1-9][0-9]*$ && $jobs =~ ^[1-9][0-9]*$ ]]; then
    echo "SEEDS and JOBS must be numbers from 1 on, not $seeds and $jobs." >&2
    exit 2
fi
if ! [[ ${POSTPROCESSING:-0} =~ ^[01]$ ]]; then
    echo "POSTPROCESSING is 0 or 1, not $POSTPROCESSING." >&2
    exit 2
fi
if [ ! -d "$source/imagesTr" ]; then
    echo "$source is not in nnU-Net's raw layout: it has no folder imagesTr." >&2
    exit 2
fi
python3 "$scripts/require.py" device "$device"
PLGCL_BENCHMARK_COMMIT=$(python3 "$scripts/commit.py")
export PLGCL_BENCHMARK_COMMIT PLGCL_BENCHMARK_ITERATIONS=$iterations
export nnUNet_extTrainer=$scripts/benchmark_trainers${nnUNet_extTrainer:+:$nnUNet_extTrainer}
python3 "$scripts/require.py" trainers "${trainers[@]/%/_benchmark}" >/dev/null

work=$(mkdir -p "${WORK:-benchmark_acdc}" && cd "${WORK:-benchmark_acdc}" && pwd)
export nnUNet_raw=$work/raw nnUNet_preprocessed=$work/preprocessed
export nnUNet_results=$work/results_$iterations # nnU-Net's names know no iterations
mkdir -p "$nnUNet_raw" "$nnUNet_preprocessed" "$nnUNet_results"
env -u nnUNet_n_proc_DA python3 "$scripts/prepare_acdc_benchmark.py" "$source" -d 27 \
    -c "$config" -p "$plans" --settings "${SETTINGS:-}"
if [ "$device" = cpu ]; then
    export nnUNet_n_proc_DA=${nnUNet_n_proc_DA:-0} # loading is a tenth of a step: no workers
    threads=$(($(nproc) / jobs))
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
fi

declare -A fold_of=([7]=0 [14]=1 [3]=2)

compare() { # patients, fold, trainers
    local output=$work/${iterations}_$1__${plans}__$config fold=$2 postprocessing=()
    shift 2
    if [ "${POSTPROCESSING:-0}" = 1 ]; then
        output=${output}__postprocessed postprocessing=(--postprocessing)
    fi
    nnUNetv2_plgcl_compare -d 27 -c "$config" -f "$fold" -tr "${@/%/_benchmark}" -p "$plans" \
        --run --jobs "$jobs" --seeds "$seeds" --voxel -device "$device" -o "$output" --np 2 \
        "${postprocessing[@]}"
    python3 "$scripts/collect_benchmark.py" "$output"
}
for number in "${patients[@]}"; do
    compare "$number" "${fold_of[$number]}" "${trainers[@]}"
done
if [ "${UPPER:-1}" = 1 ]; then
    compare 70 3 nnUNetTrainer
fi
