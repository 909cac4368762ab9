#!/usr/bin/env bash
# Runs on a machine with an NVIDIA GPU and its driver, nothing else: whether the GPU answers as it must, and how
# fast. Every step has a time limit; all limits together are ten minutes. Results go to the folder `results` beside
# this file.
#
#   run.sh          everything; 0 when every step succeeded, 1 when one failed, 3 without a GPU
#   run.sh --plan   the steps with their limits in seconds; 2 when a program of the bundle is missing
#   run.sh --dry    every step up to the driver, on a machine that has none: each must say that it is missing
set -u
cd "$(dirname "$0")" || exit 2
mode=${1:-run}
case $mode in
run | --plan | --dry) ;;
*)
    echo "usage: run.sh [--plan|--dry]" >&2
    exit 2
    ;;
esac
gpu=./gpu
octet=./octet
loadtest=./loadtest
port=${OCTET_PORT:-18123}
results=results
if [ "$mode" = --dry ]; then results=$(mktemp -d); fi
failed=0

for program in "$gpu" "$octet" "$loadtest"; do
    if ! [ -x "$program" ]; then
        echo "the bundle lacks $program" >&2
        exit 2
    fi
done

# step NAME SECONDS COMMAND…
step() {
    local name=$1 limit=$2
    shift 2
    if [ "$mode" = --plan ]; then
        printf '%-20s %4s s  %s\n' "$name" "$limit" "$*"
        return
    fi
    echo "== $name"
    timeout "$limit" "$@" >"$results/$name.txt" 2>&1
    local code=$?
    if [ "$mode" = --dry ]; then
        if [ "$code" != 0 ] && grep -q 'no NVIDIA driver' "$results/$name.txt"; then
            echo "reached the driver"
        else
            echo "FAILED: ended with $code before the driver: $(tail -n 1 "$results/$name.txt")"
            failed=1
        fi
    elif [ "$code" = 0 ]; then
        tail -n 3 "$results/$name.txt"
    else
        echo "FAILED ($code), see $results/$name.txt"
        failed=1
    fi
}

# Steps that need something which not every machine has.
optional() {
    local needs=$1
    shift
    if [ "$mode" = --plan ] || { [ "$mode" = run ] && eval "$needs" >/dev/null 2>&1; }; then
        step "$@"
    else
        echo "== $1: left out, needs: $needs"
    fi
}

if [ "$mode" = run ]; then
    if ! found=$(timeout 60 "$octet" devices --device cuda 2>&1); then
        echo "no GPU to run on: $found" >&2
        exit 3
    fi
    mkdir -p "$results"
    {
        date -u +%Y-%m-%dT%H:%MZ
        cat commit sources.sha256
        echo "$found"
        nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.draw,ecc.mode.current --format=csv 2>/dev/null
    } | tee "$results/device.txt"
fi

# Answers: the conformance suite, the same between fences in poisoned memory, bits against definition and CPU, and
# the same bits 200 times beside a stream that takes the bandwidth.
step conform 20 "$gpu" conform
step guard 30 "$gpu" guard
step check 20 "$gpu" check
step repeat 15 "$gpu" repeat
sanitizer='command -v compute-sanitizer'
optional "$sanitizer" sanitizer-memcheck 40 compute-sanitizer --error-exitcode 9 "$gpu" check
optional "$sanitizer" sanitizer-racecheck 40 compute-sanitizer --tool racecheck --error-exitcode 9 \
    "$octet" bench --device cuda -q int8 --prompt-tokens 40 --generate-tokens 4 --repetitions 1
# Speed: each kernel, whole steps of three models, and what PyTorch and cuBLASLt reach.
step time 75 "$gpu" time
step step 110 "$gpu" step
optional "python3 -c 'import torch; assert torch.cuda.is_available()'" bars 40 python3 bars.py
# The bundled model's held-out answers in both forms, against the form of the CPU in 32 bits; its speed in both.
step eval-int8 20 "$octet" eval --device cuda -q int8
step eval-f16 20 "$octet" eval --device cuda -q f16
step bench-int8 15 "$octet" bench --device cuda -q int8
step bench-f16 15 "$octet" bench --device cuda -q f16

# Through HTTP, in both forms.
for form in int8 f16; do
    if [ "$mode" != run ]; then
        step "serve-$form" 20 "$octet" serve --device cuda -q "$form" --port "$port"
    else
        "$octet" serve --device cuda -q "$form" --port "$port" >"$results/server-$form.txt" 2>&1 &
        server=$!
        trap 'kill "$server" 2>/dev/null' EXIT
        for _ in $(seq 20); do
            timeout 5 "$octet" health --port "$port" >/dev/null 2>&1 && break
            sleep 1
        done
    fi
    for users in 1 8 32 64 128; do
        # There is no server to load without a GPU.
        [ "$mode" = --dry ] && continue
        step "served-$form-$users" 10 "$loadtest" --url "http://127.0.0.1:$port" --users "$users" \
            --requests $((users * 4))
    done
    if [ "$mode" = run ]; then
        kill "$server"
        wait "$server"
    fi
done
exit "$failed"
