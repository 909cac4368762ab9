"""What PyTorch reaches on the shapes that `gpu time` prints: its int8 product (cuBLASLt underneath) and its
bfloat16 one. Runs where PyTorch with CUDA is installed; ends with 4 where not."""

import sys

try:
    import torch
except ImportError:
    sys.exit(print("PyTorch is not installed") or 4)

if not torch.cuda.is_available():
    sys.exit(print("PyTorch sees no GPU") or 4)

SHAPES = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (15360, 5120), (20480, 5120)]
TOKENS = [1, 8, 16, 32, 128, 512]
ROTATED = 400 << 20


def microseconds(call, copies):
    for turn in range(20):
        call(turn % copies)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    repetitions = 50
    begin.record()
    for turn in range(repetitions):
        call(turn % copies)
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1000 / repetitions


print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())
for n, k in SHAPES:
    copies = min(32, -(-ROTATED // (n * k)))
    weights = [torch.ones((n, k), dtype=torch.int8, device="cuda") for _ in range(copies)]
    halves = [w.to(torch.bfloat16) for w in weights[: max(1, copies // 2)]]
    for m in TOKENS:
        # PyTorch's int8 product takes more than 16 rows.
        rows = max(m, 17)
        x = torch.ones((rows, k), dtype=torch.int8, device="cuda")
        half = torch.ones((m, k), dtype=torch.bfloat16, device="cuda")
        try:
            int8 = microseconds(lambda i: torch._int_mm(x, weights[i].t()), copies)
            int8 = f"{int8:8.1f} us"
        except RuntimeError as error:
            int8 = f"refused: {str(error).splitlines()[0]}"
        bf16 = microseconds(lambda i: half @ halves[i].t(), len(halves))
        print(f"product [{m}, {n}, {k}]: int8 {int8} (of {rows} rows), bf16 {bf16:8.1f} us")
