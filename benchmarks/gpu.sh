#!/usr/bin/env bash
# One prepared run on a machine with a GPU and without a network: under 8 minutes, results after every part.
#   benchmarks/gpu.sh collect [3.12] where there is a package registry: wheels of that Python into build/gpu-wheels
#   benchmarks/gpu.sh [--smoke]      there: results into $OUT (benchmarks/results/gpu where it is not set)
# The machine has Python 3.12, torch, transformers, accelerate, einops and jaxtyping; PYTHON names another interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3} wheels=build/gpu-wheels
if [ "${1:-}" = collect ]; then exec "$python" -m benchmarks.carried collect "$wheels" "${@:2}"; fi
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" -m benchmarks.carried unpack "$wheels" "$site"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$python" -m benchmarks.gpu --site "$site" --out "${OUT:-benchmarks/results/gpu}" "$@"
