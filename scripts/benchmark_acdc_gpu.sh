#!/usr/bin/env bash
# The benchmark of benchmark_acdc.sh with nnU-Net's own 2d plan (patch 256 x 224, batch 56, mixed
# precision, torch.compile), for a machine with a GPU that cannot reach this one's data.
#
# Here:   bash scripts/benchmark_acdc_gpu.sh pack FOLDER PACKED
#         writes the committed checkout and the images of FOLDER (ACDC in nnU-Net's raw layout) into
#         PACKED, less than 64 MB.
# There:  bash PACKED/checkout/scripts/benchmark_acdc_gpu.sh run PACKED
#         in an environment with the package installed (pip install PACKED/checkout).
#         Again to go on after an interruption.
# Settings of run: see benchmark_acdc.sh
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
usage="Usage: bash scripts/benchmark_acdc_gpu.sh pack FOLDER PACKED | run PACKED"
limit=$((64 * 1000 * 1000))

pack() {
    local source=$1 packed=$2 image
    if [ ! -d "$source/imagesTr" ] || [ ! -f "$source/dataset.json" ]; then
        echo "$source is not in nnU-Net's raw layout: it has no folder imagesTr or no dataset.json." >&2
        exit 2
    fi
    if [ -n "$(git -C "$scripts" status --porcelain)" ]; then
        echo "Changes that are not committed are left out." >&2
    fi
    echo "Packing takes some minutes." >&2
    mkdir -p "$packed"
    plain=$(mktemp -d) # not local: removed at the exit
    trap 'rm -rf "$plain"' EXIT
    mkdir "$plain/imagesTr" "$plain/labelsTr"
    sed 's/"\.nii\.gz"/".nii"/' "$source/dataset.json" >"$plain/dataset.json"
    for image in "$source"/{images,labels}Tr/*.nii.gz; do
        gunzip -c "$image" >"$plain/$(basename "$(dirname "$image")")/$(basename "$image" .gz)"
    done
    tar -C "$plain" -c . | xz -T0 >"$packed/acdc.tar.xz" # a quarter less than their gzip files
    rm -rf "$packed/checkout"
    git -C "$scripts/.." archive --prefix=checkout/ HEAD | tar -x -C "$packed"
    if (($(du -sbc "$packed/acdc.tar.xz" "$packed/checkout" | tail -n 1 | cut -f 1) > limit)); then
        echo "$packed is larger than 64 MB." >&2
        exit 1
    fi
    du -shc "$packed/acdc.tar.xz" "$packed/checkout"
}

run() {
    local packed=$1
    if [ ! -f "$packed/acdc.tar.xz" ]; then
        echo "$packed holds no acdc.tar.xz. Pack it first: bash scripts/benchmark_acdc_gpu.sh pack" >&2
        exit 2
    fi
    export CONFIG=${CONFIG:-2d} DEVICE=${DEVICE:-cuda} ITERATIONS=${ITERATIONS:-15000}
    python3 "$scripts/require.py" device "$DEVICE" # before minutes of unpacking
    if [ ! -d "$packed/acdc" ]; then
        rm -rf "$packed/acdc.part"
        mkdir "$packed/acdc.part"
        tar -xJf "$packed/acdc.tar.xz" -C "$packed/acdc.part"
        mv "$packed/acdc.part" "$packed/acdc"
    fi
    WORK=${WORK:-$packed/results} exec bash "$scripts/benchmark_acdc.sh" "$packed/acdc"
}

case "${1:-}:$#" in
pack:3 | run:2) "$@" ;;
*) echo "$usage" >&2 && exit 2 ;;
esac
