#!/usr/bin/env bash
# The benchmark of benchmark_acdc.sh with a configuration small enough for two CPU cores.
# Usage: bash scripts/benchmark_acdc_cpu.sh FOLDER     Settings: see benchmark_acdc.sh
set -euo pipefail
export CONFIG=${CONFIG:-2d_small} DEVICE=${DEVICE:-cpu} ITERATIONS=${ITERATIONS:-4000}
exec bash "$(dirname "${BASH_SOURCE[0]}")/benchmark_acdc.sh" "$@"
