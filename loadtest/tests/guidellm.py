"""loadtest and guidellm on one server by turns, with the same closed loop: do they agree?

python guidellm.py --tokenizer FOLDER [--model FILE] [--users N] [--turns N] [--seconds N] [--out result.json]

Needs guidellm on PATH (tried: 0.8.1), octet and loadtest, and the model's tokenizer as a Hugging Face folder.
"""

import argparse
import json
import math
import pathlib
import subprocess
import tempfile
import time
import urllib.request

# Two-sided 95 % quantiles of Student's t for 1, 2, … degrees of freedom.
STUDENT = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]
PORT = 8471
URL = f"http://127.0.0.1:{PORT}"
METRICS = ["prompt tokens", "TTFT, ms", "ITL, ms", "output tokens/s"]


def interval(values):
    """Mean and half of its 95 % interval over runs."""
    n, mean = len(values), sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return mean, STUDENT[n - 2] * spread / math.sqrt(n)


def loadtest(args, folder, seed):
    """One run; means over requests, and tokens in the window per second."""
    out = folder / f"loadtest-{seed}.json"
    subprocess.run([args.loadtest, "--url", URL, "--users", str(args.users), "--duration", f"{args.seconds}s",
                    "--prompt-tokens", str(args.prompt), "--output-tokens", str(args.output), "--ignore-eos",
                    "--quiet", "--seed", str(seed), "--json", out], check=True, stdout=subprocess.DEVNULL)
    run = json.loads(out.read_text())
    mean = {name: run["latency"][name]["mean"] * 1e3 for name in ("ttft", "tpot")}
    return [run["lengths"]["prompt_mean"], mean["ttft"], mean["tpot"], run["rates"]["output_tokens"]]


def guidellm(args, folder, seed):
    """The same by guidellm, from its own file."""
    out, scenario = folder / f"guidellm-{seed}.json", folder / f"scenario-{seed}.json"
    spec = {
        "backend": {"kind": "openai_http", "target": URL, "request_format": "/v1/chat/completions", "model": "model"},
        "profile": {"kind": "concurrent"},
        "tokenizer": {"kind": "hf_auto", "model": args.tokenizer},
        "data": [{"kind": "synthetic_text", "prompt_tokens": args.prompt - args.template,
                  "output_tokens": args.output}],
        "constraints": [{"kind": "max_duration", "seconds": args.seconds}],
        "outputs": [{"kind": "json", "path": str(out)}],
    }
    scenario.write_text(json.dumps(
        {"metadata": {"name": "agree"}, "spec": spec, "benchmarks": [{"profile.streams": args.users}]}))
    subprocess.run([args.guidellm, "run", "-c", scenario, "--disable-console-interactive"], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    benchmark = json.loads(out.read_text())["benchmarks"][0]
    done = benchmark["requests"]["successful"]

    def mean(name):
        return sum(r[name] for r in done) / len(done)

    rate = benchmark["metrics"]["output_tokens_per_second"]["total"]["mean"]
    return [mean("prompt_tokens"), mean("time_to_first_token_ms"), mean("inter_token_latency_ms"), rate]


def serve(args):
    """octet, ready. It remembers no prompt, so that it does not matter which tool repeats its own."""
    server = subprocess.Popen([args.octet, "serve", args.model, "-a", "model", "--port", str(PORT), "--log-level",
                               "warn", "--no-enable-prefix-caching"], stdout=subprocess.DEVNULL)
    for _ in range(300):
        try:
            urllib.request.urlopen(URL + "/health/ready", timeout=1)
            return server
        except OSError:
            time.sleep(0.1)
    server.kill()
    raise SystemExit("octet was not ready within 30 s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--octet", default="octet")
    parser.add_argument("--loadtest", default="loadtest")
    parser.add_argument("--guidellm", default="guidellm")
    parser.add_argument("--model", default="SmolLM2-135M-Instruct.Q8_0.gguf")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3, choices=range(2, 11))
    parser.add_argument("--seconds", type=int, default=9)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--template", type=int, default=30, help="tokens that the chat template adds")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    rows = {"loadtest": [], "guidellm": []}
    server = serve(args)
    try:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            for turn in range(1, args.turns + 1):
                order = [loadtest, guidellm] if turn % 2 else [guidellm, loadtest]
                for tool in order:
                    row = tool(args, folder, turn)
                    rows[tool.__name__].append(row)
                    print(tool.__name__, " ".join(f"{v:.2f}" for v in row), flush=True)
    finally:
        server.terminate()
        server.wait()
    result = {"users": args.users, "turns": args.turns, "seconds": args.seconds, "runs": rows, "metrics": []}
    for i, name in enumerate(METRICS):
        (a, da), (b, db) = (interval([row[i] for row in rows[tool]]) for tool in ("loadtest", "guidellm"))
        agree = abs(a - b) <= da + db
        result["metrics"].append({"name": name, "loadtest": [a, da], "guidellm": [b, db], "overlap": agree})
        print(f"{name:<16} loadtest {a:9.2f} ± {da:<8.2f} guidellm {b:9.2f} ± {db:<8.2f} "
              f"{'agree' if agree else 'DIFFER'}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
