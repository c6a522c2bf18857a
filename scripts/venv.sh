# Sourced by the other scripts: make_venv FOLDER EXTRAS makes a virtual environment, or takes a
# healthy one that is there, and installs this checkout into it as the README says.

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python; do
        if [ -n "$candidate" ] && "$candidate" -c \
            'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Needed: Python 3.10 or newer with venv. Name one: PYTHON=/path/to/python3 bash $0" >&2
    return 1
}

make_venv() {
    local folder=$1 extras=$2 checkout python
    checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    if ! "$folder/bin/python" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)' 2>/dev/null
    then
        if [ -n "$(ls -A "$folder" 2>/dev/null)" ] && [ ! -f "$folder/pyvenv.cfg" ]; then
            echo "$folder holds files and is no virtual environment: making one would delete them." \
                "Name a new or empty folder: VENV=/path/to/folder bash $0" >&2
            return 1
        fi
        python=$(find_python)
        echo "== making a virtual environment in $folder"
        "$python" -m venv --clear "$folder"
    fi
    if ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
        "$folder/bin/python" -m ensurepip
    fi
    echo "== installing nnunetv2-plgcl and what it needs (several GB at the first time)"
    "$folder/bin/python" -m pip install --quiet "$checkout$extras"
}
