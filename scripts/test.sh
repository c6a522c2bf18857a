#!/usr/bin/env bash
# Make a virtual environment, install the package, run the tests.
# Usage: bash scripts/test.sh [arguments for pytest]     VENV=folder to use another environment
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$scripts/venv.sh"
cd "$scripts/.."
venv=${VENV:-$PWD/.venv-test}
make_venv "$venv" "[test]"
# several processes share the cores: their waiting threads must not spin
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
# nnU-Net starts 8 workers wherever it can, and each takes seconds
export nnUNet_def_n_proc=${nnUNet_def_n_proc:-1}
echo "== running the tests"
"$venv/bin/python" -m pytest -n 2 --dist worksteal "$@"
