#!/usr/bin/env bash
# The tests marked gpu, and every benchmark against its peers in float32 and bfloat16, on the GPUs of this machine.
#
#   benchmarks/gpu.sh                             # writes benchmarks/results/gpu-DATE.md
#   PYTHON=.venv/bin/python TORCH_PYTHON=/path/to/python-with-torch benchmarks/gpu.sh
#   DEVICES=cpu:2 SMOKE=1 benchmarks/gpu.sh       # the same rows, small, on simulated devices: does it run?
#
# PYTHON        has this package and jax with CUDA          (python3)
# TORCH_PYTHON  has torch with CUDA; else no torch rows     (PYTHON, where it has torch)
# OUTPUT        the table; every run's line goes beside it  (benchmarks/results/gpu-DATE.md, .jsonl)
# BATCHES       images a step                               ("64 128 256")
# ROW_SECONDS   the longest that one row may take           (420)
# TOTAL_SECONDS no row is begun after these                 (7200)
# Uses no network. A row that fails is recorded, with its last line, and the others go on; the exit status is 1 then,
# and 2 where there is no GPU.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
DEVICES=${DEVICES:-cuda}
SMOKE=${SMOKE:-}
BATCHES=${BATCHES:-64 128 256}
ROW_SECONDS=${ROW_SECONDS:-420}
TOTAL_SECONDS=${TOTAL_SECONDS:-7200}
OUTPUT=${OUTPUT:-benchmarks/results/gpu-$(date +%Y-%m-%d).md}
LINES=${OUTPUT%.md}.jsonl
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
# JAX would else take 75 % of a GPU's memory at once, and its peak would say nothing.
export XLA_PYTHON_CLIENT_PREALLOCATE=${XLA_PYTHON_CLIENT_PREALLOCATE:-false}

if [[ $DEVICES == cuda ]]; then
    count=$("$PYTHON" -c 'import jax; print(len(jax.devices("gpu")))' 2>/dev/null) || count=0
    if [[ ! $count =~ ^[1-9][0-9]*$ ]]; then
        echo "benchmarks/gpu.sh: no GPU: JAX in $PYTHON sees none. It needs a driver (nvidia-smi) and the package's" \
            "[cuda] part. To try the script without one: DEVICES=cpu:2 SMOKE=1 benchmarks/gpu.sh" >&2
        exit 2
    fi
    where=(--cuda)
    title="$count GPU(s): $(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | sort | uniq -c | xargs)"
else
    count=${DEVICES#cpu:}
    where=()
    title="$count simulated devices"
fi
if [[ -z ${TORCH_PYTHON:-} ]] && "$PYTHON" -c 'import torch' 2>/dev/null; then TORCH_PYTHON=$PYTHON; fi
small=()
if [[ -n $SMOKE ]]; then
    small=(--smoke)
    BATCHES=$((2 * count))
fi

mkdir -p "$(dirname "$OUTPUT")"
: >"$LINES"
failures=0
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT

say() { printf '%s\n' "$*" | tee -a "$OUTPUT"; }

# figure NAME LINE: that figure of a benchmark's JSON line, "-" where it has none
figure() {
    "$PYTHON" -c 'import json, sys; print(json.loads(sys.argv[2]).get(sys.argv[1], "-"))' "$1" "$2"
}

# measure COMMAND...: sets $line to the JSON line that the command prints last; 1, and $failed, where there is none
measure() {
    local printed status
    if ((SECONDS >= TOTAL_SECONDS)); then
        failures=$((failures + 1))
        failed="not begun after $TOTAL_SECONDS s"
        return 1
    fi
    printed=$(timeout --kill-after=20 "$ROW_SECONDS" "$@" 2>"$errors")
    status=$?
    line=$(tail -n 1 <<<"$printed")
    if ((status == 0)) && [[ $line == \{* ]]; then
        printf '%s\n' "$line" >>"$LINES"
        return 0
    fi
    failures=$((failures + 1))
    failed="failed ($status): $(grep -v '^ *$' "$errors" | tail -n 1 | tr '|' '/' | cut -c 1-200)"
    ((status == 124 || status == 137)) && failed="stopped after $ROW_SECONDS s"
    return 1
}

# step_row NAME BATCH PRECISION COMMAND...: one row of the table of steps
step_row() {
    local name=$1 batch=$2 precision=$3
    shift 3
    if measure "$@" --batch "$batch" --precision "$precision" "${small[@]}"; then
        say "| $batch | $precision | $name | $(figure images_per_s "$line") | $(figure to_first_step_s "$line")" \
            "| $(figure device_peak_gb "$line") | $(figure max_rss_gb "$line") |"
    else
        say "| $batch | $precision | $name | $failed | | | |"
    fi
}

# plain_row NAME SCRIPT OPTION...: one row of the table of the other benchmarks, its figures as they are
plain_row() {
    local name=$1
    shift
    if measure "$PYTHON" "$@" "${small[@]}"; then
        say "| $name | $("$PYTHON" -c 'import json, sys
line = json.loads(sys.argv[1])
options = {"benchmark", "machine", "batch", "shards", "depth", "steps", "calls", "pairs", "cuda", "smoke", "devices"}
print(", ".join(f"{name} {value}" for name, value in line.items() if name not in options))' "$line") |"
    else
        say "| $name | $failed |"
    fi
}

: >"$OUTPUT"
say "# $title"
say ""
say "$(date -u '+%Y-%m-%d %H:%M UTC'), $("$PYTHON" -c 'import json, sys; sys.path.insert(0, "benchmarks")
from machine import machine
print(", ".join(f"{name} {value}" for name, value in machine().items() if name != "gpus"))')."
say ""
if [[ $DEVICES == cuda ]]; then
    tests=$(timeout --kill-after=20 "$ROW_SECONDS" "$PYTHON" -m pytest -q -m gpu tests/gpu 2>&1)
    status=$?
    ((status == 0)) || failures=$((failures + 1))
    say "Tests marked gpu: $(tail -n 1 <<<"$tests")"
    if ((status != 0)); then printf '%s\n' "$tests" >"${OUTPUT%.md}-tests.log"; fi
else
    say "Tests marked gpu: not run, there is no GPU."
fi
say ""
say "## ResNet-50, 224 x 224, one training step with momentum and weight decay, over $count device(s)"
say ""
say "| batch | precision | what | images/s | s to the first step | GPU peak, GB | resident, GB |"
say "|---|---|---|---|---|---|---|"
ours=("$PYTHON" benchmarks/resnet50_step.py --devices "$count" "${where[@]}")
for precision in float32 bfloat16; do
    for batch in $BATCHES; do
        step_row "ours, update on the host" "$batch" "$precision" "${ours[@]}" --update-on host
        step_row "ours, update on the device" "$batch" "$precision" "${ours[@]}" --update-on device
        step_row "hand-written JAX" "$batch" "$precision" \
            "$PYTHON" benchmarks/peers/jax_resnet50.py --devices "$count" "${where[@]}"
        if [[ -z ${TORCH_PYTHON:-} ]]; then
            continue
        elif ((count > 1)); then
            step_row "PyTorch DDP" "$batch" "$precision" \
                "$TORCH_PYTHON" benchmarks/peers/torch_ddp_resnet50.py --devices "$count" "${where[@]}"
            step_row "PyTorch DDP, torch.compile" "$batch" "$precision" \
                "$TORCH_PYTHON" benchmarks/peers/torch_ddp_resnet50.py --compile --devices "$count" "${where[@]}"
        else
            step_row "PyTorch" "$batch" "$precision" "$TORCH_PYTHON" benchmarks/peers/torch_resnet50.py "${where[@]}"
            step_row "PyTorch, torch.compile" "$batch" "$precision" \
                "$TORCH_PYTHON" benchmarks/peers/torch_resnet50.py --compile "${where[@]}"
        fi
    done
done
say ""
[[ -n ${TORCH_PYTHON:-} ]] || say "PyTorch's rows were not run: set TORCH_PYTHON to a Python that has torch."
say "float32 is each library's default: XLA and cuDNN may use TF32 inside; bfloat16 is precision=\"bfloat16\" (ours)," \
    "bfloat16 activations (JAX) and autocast (PyTorch). PyTorch's images and filters are channels_last."
say ""
say "## The rest"
say ""
say "| benchmark | figures |"
say "|---|---|"
plain_row "a call's own cost" benchmarks/call_overhead.py "${where[@]}"
plain_row "8 shards on more and more devices" benchmarks/devices.py "${where[@]}"
plain_row "batches of more and more shards" benchmarks/rounds.py "${where[@]}"
plain_row "the ordered sum against psum" benchmarks/ordered_sum.py "${where[@]}"
plain_row "batches sent ahead" benchmarks/put.py --batch 128 --image-size 224 --devices "$count" "${where[@]}"
plain_row "data that stays on the devices" benchmarks/resident.py --devices "$count" "${where[@]}"
plain_row "ResNet-50 with recomputed blocks" benchmarks/recompute.py --batch 64 "${where[@]}"
plain_row "host gather and update, simulated devices" benchmarks/gather.py
say ""
say "$failures row(s) failed."
echo "The table is in $OUTPUT, every run's line in $LINES." >&2
((failures == 0))
