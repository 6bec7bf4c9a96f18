#!/bin/sh
# Everything that wants a GPU, in one run of less than eight minutes: ceilings, the official encoders in bf16 at 1024 px
# with their share of the ceiling, also compiled and in TF32, what --batch auto finds, the stages of a tile, the path of a scene over the encoder alone, how busy the device
# is, and SamPredictor tile by tile in fp32 with the same prompts.
#
# Usage: sh tests/benchmarks/gpu.sh OUT [small]
#
# Needs python3 with torch, torchvision, NumPy and segment-anything, which may lie as a package in a folder carried/ of
# the checkout (pip install --no-deps --target carried segment-anything). Rows that need more are left out with a reason.
# "small" is a rehearsal for a machine without a GPU: the same rows at 64 px.
set -eu
out=${1:?give a folder for speed.json, speed.md and trace.json}
here=$(CDPATH= cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$here:$here/carried${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
run() { "$python" "$here/tests/benchmarks/speed.py" "$@"; }
if [ "${2:-}" = small ]; then
    run "$out" --device cpu --models vit_b --side 64 --prompts 2 --seconds 0.01 --compile --trace
else
    run "$out" --device cuda --precision bf16 --models vit_b,vit_l,vit_h --prompts 32 --seconds 3 --compile --trace
fi
