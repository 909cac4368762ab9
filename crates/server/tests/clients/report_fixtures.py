"""Results of load tests as they may come out, made from a real one: each a file that `loadtest report` must make a page of."""

import copy
import json

HOSTILE = "</title><script>alert(1)</script>\"><img src=x onerror=alert(2)>" + "long" * 60
MILLION = 1_000_000


def empty(summary):
    """A summary of nothing."""
    return {"n": 0} | {key: None for key in summary if key != "n"}


def without_answers(run):
    """No request succeeded."""
    run["samples"] = []
    measured = run["requests"]["measured"]
    run["requests"] |= {"succeeded": 0, "failed": measured}
    run["outcomes"] = {"http_5xx": {"count": measured, "first_detail": "503"}}
    run["failures"] = [{"t": i / 10, "outcome": "http_5xx"} for i in range(measured)]
    run["latency"] |= {name: empty(run["latency"][name]) for name in ("ttft", "tpot", "chunk_gap", "longest_stall", "e2e")}
    run["latency"]["chunk_gap_counts"] = []
    run["rates"] |= {"completed_requests": 0.0, "output_tokens": 0.0}
    run |= {"verdict": "invalid", "reasons": ["no measured request succeeded"]}


def with_one(run):
    """One request, whose values have no percentiles."""
    run["samples"] = run["samples"][:1]
    run["requests"] |= {"measured": 1, "succeeded": 1, "failed": 0}
    run["outcomes"] = {"ok": {"count": 1}}
    for name in ("ttft", "tpot", "chunk_gap", "longest_stall", "e2e"):
        summary = run["latency"][name]
        run["latency"][name] = empty(summary) | {"n": 1, "mean": summary["max"], "max": summary["max"]}


def without_metrics(run):
    """A server that has none."""
    run["server"] |= {"not_available": "GET /metrics answers 404", "kind": None, "checks": [], "timeline": None, "build": {}}
    run["server"].pop("times", None)


def with_a_million(run):
    """As many requests as a day of a busy server."""
    first = run["samples"]
    run["samples"] = [first[i % len(first)] | {"t": i / 1000} for i in range(MILLION)]
    run["requests"] |= {"measured": MILLION, "succeeded": MILLION, "failed": 0}
    run["window"]["seconds"] = MILLION / 1000


def hostile(run):
    """Names that are no names."""
    run["name"] = run["target"]["model"] = HOSTILE
    run["reasons"] = [HOSTILE]


def valid(run):
    """Nothing speaks against it."""
    run |= {"verdict": "valid", "reasons": []}


def invalid(run):
    """A check failed."""
    run["server"]["checks"][0] |= {"verdict": "fail"}
    run |= {"verdict": "invalid", "reasons": ["R1 requests answered: the counts differ"]}


def dry(run):
    """Of a suite that only tries the rig."""
    run["tool"]["dry_run"] = True


CASES = {"dry-run": dry, "valid": valid, "invalid": invalid, "no-metrics": without_metrics, "one-request": with_one,
         "zero-successes": without_answers, "a-million-requests": with_a_million, "hostile-name": hostile}


def write(source, folder):
    """Writes a file for each case, made from the run of `source`."""
    folder.mkdir(parents=True, exist_ok=True)
    run = json.loads(source.read_text())
    for name, change in CASES.items():
        case = copy.deepcopy(run)
        # A page needs no more of it.
        case["name"] = name
        case.pop("series", None)
        change(case)
        file = folder / f"{name}.json"
        file.write_text(json.dumps(case))
        yield name, file
