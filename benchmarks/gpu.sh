#!/usr/bin/env bash
# What waits for a GPU, in two sittings of at most ten minutes: checks and inference, then training, latency and streams.
#
#     bash benchmarks/gpu.sh first
#     bash benchmarks/gpu.sh second
#
# Clipwise need not be installed. Results, and what each step printed, come as one archive into $OUT (default .work/gpu);
# its *.json and *.txt belong into benchmarks/results.
set -uo pipefail
case ${1:-} in
  first | second) sitting=$1 ;;
  *)
    echo "usage: bash benchmarks/gpu.sh first|second" >&2
    exit 2
    ;;
esac
cd "$(dirname "$0")/.."
export PYTHONPATH=src PYTHONUNBUFFERED=1
out=${OUT:-.work/gpu}
results=$(mktemp -d)/results
mkdir -p "$out" "$results"
trap 'tar czf "$out/$sitting.tgz" -C "$results" .' EXIT

# step SECONDS NAME COMMAND…: one that takes too long or fails does not keep the next from running
step() {
  local seconds=$1 name=$2
  shift 2
  echo "== $name, after $SECONDS s"
  timeout "$seconds" "$@" 2>&1 | tee "$results/$name.log" | tail -n 25
}

case $sitting in
  first)
    nvidia-smi --query-gpu=name,driver_version --format=csv
    # Processes side by side: what takes the time is compiling the kernels' variants.
    step 110 kernels python -m pytest -q -n 8 --dist worksteal --noconftest -p no:cacheprovider tests/kernels_numerics.py
    step 90 checks python -m pytest -q -n 8 --dist worksteal -p no:cacheprovider \
      tests/test_deploy.py::test_every_form_on_a_gpu tests/test_shared_buffers.py::test_pinned_batches \
      tests/test_loading.py::test_batches_arrive_whole_on_a_real_device \
      tests/test_streaming.py::test_a_recording_takes_states_from_anywhere
    step $((545 - SECONDS)) speed python benchmarks/speed.py --rounds 7 --limit 270 --output "$results/speed_h200.json" \
      --groups "stm inference" "tsm inference" "stc inference" "stw inference" "tam inference"
    ;;
  second)
    step 115 training python benchmarks/speed.py --rounds 5 --output "$results/speed_h200_training.json" --groups "stm training"
    step 80 latency python benchmarks/speed.py --rounds 7 --output "$results/speed_h200_latency.json" --groups "stm latency"
    step 120 stream python benchmarks/stream.py --parts time --output "$results/stream_h200.json"
    step 150 operations python benchmarks/kernels.py --rounds 5 --output "$results/kernels_h200_bf16.json"
    ;;
esac
