#!/usr/bin/env bash
# Runs on a machine with an NVIDIA GPU and its driver, nothing else: what the GPU is found to be, whether it
# answers as the CPU does, and how fast. Every step has a time limit; the whole takes under ten minutes.
# Results go to the folder `results` beside this file. Ends with 0 when every step did, 3 without a driver.
set -u
cd "$(dirname "$0")" || exit 2
gpu=./gpu
octet=./octet
loadtest=./loadtest
port=${OCTET_PORT:-18123}

if ! found=$(timeout 60 "$octet" devices --device cuda 2>&1); then
    echo "no GPU to run on: $found" >&2
    exit 3
fi
mkdir -p results
{
    date -u +%Y-%m-%dT%H:%MZ
    cat commit sources.sha256
    echo "$found"
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.draw,ecc.mode.current --format=csv 2>/dev/null
} | tee results/device.txt

failed=0
# step NAME SECONDS COMMAND…
step() {
    local name=$1 limit=$2
    shift 2
    echo "== $name"
    if timeout "$limit" "$@" >"results/$name.txt" 2>&1; then
        tail -n 3 "results/$name.txt"
    else
        echo "FAILED ($?), see results/$name.txt"
        failed=1
    fi
}

# Products and attention to the bits of their definition and of the CPU, then the time of each kernel.
step check 60 "$gpu" check
step time 120 "$gpu" time
if command -v python3 >/dev/null && python3 -c 'import torch' 2>/dev/null; then
    step bars 60 python3 bars.py
fi
# The bundled model's held-out answers in both forms, against the form of the CPU in 32 bits.
step eval-int8 90 "$octet" eval --device cuda -q int8
step eval-f16 90 "$octet" eval --device cuda -q f16
step bench-int8 60 "$octet" bench --device cuda -q int8 --json results/bench-int8.json
step bench-f16 60 "$octet" bench --device cuda -q f16 --json results/bench-f16.json
if command -v compute-sanitizer >/dev/null; then
    step sanitizer-products 60 compute-sanitizer --error-exitcode 9 "$gpu" check
    step sanitizer 60 compute-sanitizer --error-exitcode 9 "$octet" bench --device cuda -q int8 \
        --prompt-tokens 40 --generate-tokens 4 --repetitions 1
fi

"$octet" serve --device cuda --port "$port" >results/server.txt 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null' EXIT
for _ in $(seq 60); do
    timeout 5 "$octet" health --port "$port" >/dev/null 2>&1 && break
    sleep 1
done
for users in 1 8 32 64 128; do
    step "served-$users" 40 "$loadtest" --url "http://127.0.0.1:$port" --users "$users" \
        --requests $((users * 4))
done
exit "$failed"
