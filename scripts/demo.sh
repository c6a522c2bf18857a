#!/usr/bin/env bash
# Make a virtual environment, install the package, run the demo.
# Usage: bash scripts/demo.sh [arguments for nnUNetv2_plgcl_demo]     VENV=folder as in test.sh
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$scripts/venv.sh"
venv=${VENV:-$scripts/../.venv-demo}
make_venv "$venv" ""
echo "== running the demo"
"$venv/bin/nnUNetv2_plgcl_demo" "$@"
