"""A real Prometheus scrapes a real server under load: every panel and every rule gives data.

    prometheus.py --octet target/release/octet --embedding-model target/assets/minilm
"""

import argparse
import contextlib
import ctypes
import http.client
import json
import math
import os
import pathlib
import re
import subprocess
import tempfile
import threading
import time
import urllib.parse

from common import DEADLINE, chat, get, post, process, server, wait_for

DEPLOY = pathlib.Path(__file__).resolve().parents[1]
# One request runs and one waits, so that refusals are easily had; a request that stands still fails soon.
REQUEST_TIMEOUT = 5
FLAGS = ["--max-num-seqs", "1", "--max-num-queued-reqs", "1", "--request-timeout", REQUEST_TIMEOUT]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--octet", required=True)
    parser.add_argument("--embedding-model", required=True)
    args = parser.parse_args()
    with server(args.octet, *FLAGS, "--embedding-model", args.embedding_model) as (child, target), tempfile.TemporaryDirectory() as folder:
        series_start_at_zero(target)
        folder = pathlib.Path(folder)
        with prometheus(folder, target) as base:
            wait_for("the first scrape", lambda: value(base, 'up{job="octet"}') == 1)
            selectors = selectors_find_series(base)
            leaving(target)
            rate = rate_is_the_clients(base, target)
            before = counted(target, "generation_tokens_total")
            generated = load(target, pathlib.Path(args.embedding_model).name)
            counts = lambda: value(base, "octet_generation_tokens_total") == before + generated
            wait_for("the scrape of the load", counts)
            panels = panels_have_data(base)
            rules = rules_are_healthy(base)
            wait_for("OctetRejecting", lambda: "OctetRejecting" in firing(base))
            wait_for("its end", lambda: "OctetRejecting" not in firing(base))
            stall(base, child, target)
            assert "OctetDown" not in firing(base)
            hang(child, target)
            wait_for("OctetDown", lambda: "OctetDown" in firing(base))
    print(f"Prometheus: {selectors} selectors find series before the first request, {panels} expressions of panels")
    print(f"and {rules} rules give data, {generated} tokens are counted alike, {rate:.3f} of the client's tokens per second")
    print("are Prometheus's, 4 alerts fire and 3 end")


def prometheus(folder, target):
    """Prometheus with our configuration; only the intervals are those of a test."""
    config = (DEPLOY / "prometheus/prometheus.yml").read_text()
    config = config.replace("127.0.0.1:8000", target)
    config = re.sub(r"(scrape_interval): \w+", r"\1: 200ms", config)
    config = re.sub(r"(evaluation_interval): \w+", r"\1: 250ms", config)
    rules = (DEPLOY / "prometheus/rules/octet.yml").read_text()
    # Alerts look back and wait for seconds instead of minutes.
    head, alerts = rules.split("- name: octet-alerts")
    alerts = re.sub(r"\[\d+m\]", "[3s]", alerts)
    alerts = re.sub(r"for: \w+", "for: 0s", alerts)
    (folder / "rules").mkdir()
    (folder / "rules/octet.yml").write_text(head + "- name: octet-alerts" + alerts)
    (folder / "prometheus.yml").write_text(config)
    return running(folder)


class running:
    """Starts Prometheus on a port of its own choice and reads it from the log."""

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        command = [
            "prometheus",
            f"--config.file={self.folder}/prometheus.yml",
            f"--storage.tsdb.path={self.folder}/data",
            "--web.listen-address=127.0.0.1:0",
            "--log.level=info",
        ]
        self.context = process(command, stderr=subprocess.PIPE, text=True)
        child = self.context.__enter__()
        log = []
        for line in child.stderr:
            log.append(line)
            found = re.search(r'msg="Listening on" address=(\S+)', line)
            if found:
                break
        else:
            raise SystemExit("Prometheus ended:\n" + "".join(log))
        threading.Thread(target=lambda: child.stderr.read(), daemon=True).start()
        base = f"http://{found.group(1)}"
        wait_for("Prometheus", lambda: get(base + "/-/ready")[0] == 200)
        return base

    def __exit__(self, *error):
        return self.context.__exit__(*error)


def series_start_at_zero(target):
    """Every counter and histogram exists, at zero, before the first request."""
    text = get(f"http://{target}/metrics")[1]
    lines = [line for line in text.splitlines() if re.match(r"(octet_|vllm:)\S*(_total|_count)[{ ]", line)]
    busy = [
        line
        for line in lines
        if not line.endswith(" 0") and "http_" not in line and "requests_total" not in line
        # Loading measures how long steps are.
        and "engine_steps" not in line and "step_" not in line and "iteration_tokens" not in line
    ]
    assert not busy, busy
    names = {re.split(r"[{ ]", line)[0] for line in lines}
    for name in expressions_names():
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        assert base in text, f"{name} does not exist before the first request"
    assert len(names) > 30, names
    # The lint does not know vLLM's names; ours must pass.
    ours = "".join(line + "\n" for line in text.splitlines() if "vllm:" not in line)
    subprocess.run(["promtool", "check", "metrics"], input=ours, text=True, check=True)


def expressions_names():
    rules = (DEPLOY / "prometheus/rules/octet.yml").read_text()
    texts = [rules] + [query for _, query in panel_queries()]
    return {name for text in texts for name in re.findall(r"(?<!:)\boctet_[a-z0-9_]+(?=[{\[) ])", text)}


def selectors_find_series(base):
    """What rules and panels select is there before the first request, label by label: the sum of nothing
    would be nothing, and an alert on it could never fire."""
    rules = wait_for("the rules", lambda: json.loads(get(base + "/api/v1/rules")[1])["data"]["groups"])
    texts = [rule["query"] for group in rules for rule in group["rules"]]
    texts += [filled(query) for _, query in panel_queries()]
    pattern = re.compile(r"(?<![:\w])(?:octet|process)_\w+(?:{[^}]*})?(?=[\[\s)]|$)")
    found = {selector for text in texts for selector in pattern.findall(text)}
    for selector in sorted(found):
        assert query(base, selector), f"{selector} selects nothing before the first request"
    return len(found)


def stall(base, child, target):
    """The engine's thread stands still under a running request: its alert fires. When it turns again, the request is
    older than it may be and ends in an error, which is an alert, too."""
    with held_engine(child, target):
        wait_for("OctetEngineStalled", lambda: "OctetEngineStalled" in firing(base))
        age = lambda: value(base, "octet_engine_heartbeat_age_seconds")
        wait_for("a request that is too old", lambda: age() > REQUEST_TIMEOUT)
    wait_for("OctetStreamErrors", lambda: "OctetStreamErrors" in firing(base))
    wait_for("the end of both", lambda: not {"OctetEngineStalled", "OctetStreamErrors"} & firing(base))
    wait_for("a ready server", lambda: get(f"http://{target}/health/ready")[0] == 200)


def hang(child, target):
    """An engine that stays still: both probes say so, its request ends in an error, and the server ends as failed, so
    that a supervisor starts another."""
    with held_engine(child, target) as answers:
        for probe in ("ready", "live"):
            wait_for(f"a server that is not {probe}", lambda: get(f"http://{target}/health/{probe}")[0] == 503)
        wait_for("its answer", lambda: answers)
    assert answers[0][0] == 500, answers
    assert child.wait(DEADLINE) == 1, child.returncode


@contextlib.contextmanager
def held_engine(child, target):
    """Holds the engine's thread still while a request runs; gives what requests were answered."""
    url = f"http://{target}/v1/chat/completions"
    body = chat("Repeat: apple", ignore_eos=True, max_completion_tokens=900)
    while True:
        answers = []
        client = threading.Thread(target=lambda answers=answers: answers.append(post(url, body)))
        client.start()
        wait_for("a running request", lambda: running_requests(target) or not client.is_alive())
        with stopped(engine_thread(child.pid)):
            # It may have ended before the engine stood still.
            if running_requests(target):
                yield answers
                break
    client.join()


def running_requests(target):
    return counted(target, "requests_running")


def counted(target, name):
    return int(re.search(rf"^octet_{name}{{.*}} (\d+)", get(f"http://{target}/metrics")[1], re.M).group(1))


def engine_thread(pid):
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return next(int(task.name) for task in tasks if (task / "comm").read_text().strip() == "engine")


@contextlib.contextmanager
def stopped(thread):
    """Stops one thread of a child process, as a debugger would."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

    def ptrace(request):
        assert libc.ptrace(request, thread, None, None) == 0, os.strerror(ctypes.get_errno())

    seize, interrupt, detach, any_thread = 0x4206, 0x4207, 17, 0x40000000
    ptrace(seize)
    ptrace(interrupt)
    os.waitpid(thread, any_thread)
    try:
        yield
    finally:
        # Where the process has ended meanwhile, its thread is left to whoever held it.
        if libc.ptrace(detach, thread, None, None):
            os.waitpid(thread, any_thread)


def load(target, embedding_model):
    """Answers of every kind; gives the tokens that clients were told of."""
    body = {"model": embedding_model, "input": ["a text", "another"]}
    status, text = post(f"http://{target}/v1/embeddings", body)
    assert status == 200, text
    url = f"http://{target}/v1/chat/completions"
    generated = 0
    for number in range(4):
        status, text = post(url, chat(f"What is {number} + {number}?"))
        assert status == 200, text
        generated += json.loads(text)["usage"]["completion_tokens"]
    # One runs, one waits, the next are refused.
    body = chat("Repeat: apple", ignore_eos=True, max_completion_tokens=300)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(post(url, body))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for status, _ in answers} <= {200, 429}, answers
    assert any(status == 429 for status, _ in answers), "nothing was refused"
    generated += sum(json.loads(text)["usage"]["completion_tokens"] for status, text in answers if status == 200)
    assert post(url, chat("Hello", max_completion_tokens=10**7))[0] == 400
    assert post(url, {})[0] == 400
    return generated


def leaving(target):
    """A client that leaves in the middle of its stream."""
    body = json.dumps(chat("Repeat: apple", stream=True, ignore_eos=True, max_completion_tokens=900))
    cancelled = re.compile(r'^octet_requests_finished_total{finish_reason="cancelled",.*} [1-9]', re.M)

    def attempt():
        connection = http.client.HTTPConnection(target, timeout=DEADLINE)
        connection.request("POST", "/v1/chat/completions", body)
        assert connection.getresponse().read(1)
        connection.close()
        wait_for("its end", lambda: not running_requests(target))
        # It may have ended before its client was gone.
        return cancelled.search(get(f"http://{target}/metrics")[1])

    wait_for("a cancelled request", attempt)


def rate_is_the_clients(base, target):
    """Tokens per second as Prometheus sees them, in those of a client that streams one answer after the other."""
    url = f"http://{target}/v1/chat/completions"
    fields = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True, "max_completion_tokens": 100}

    def answer():
        status, text = post(url, chat("Repeat: apple", **fields))
        assert status == 200 and text.endswith("data: [DONE]\n\n"), text
        return int(re.findall(r'"completion_tokens":(\d+)', text)[-1])

    # So many scrapes that the parts of one at both ends do not count.
    scrapes = lambda: value(base, "count_over_time(octet_generation_tokens_total[5m])")
    answer()
    begin, enough, tokens = time.time(), scrapes() + 40, 0
    while scrapes() < enough:
        tokens += answer()
    end = time.time()
    window = f"{round(1000 * (end - begin))}ms"
    rate = value(base, f"sum(rate(octet_generation_tokens_total[{window}]))", end)
    share = rate * (end - begin) / tokens
    assert abs(share - 1) < 0.05, (rate, tokens, window)
    return share


def panel_queries():
    """Title and expression of every target of every board."""
    for path in sorted((DEPLOY / "grafana/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                yield f"{path.stem}: {panel['title']}: {target['legendFormat']}", target["expr"]


def filled(expression):
    """Grafana's variables as it would fill them."""
    for name, text in (("$__rate_interval", "5m"), ("$model_name", ".+"), ("$instance", ".+")):
        expression = expression.replace(name, text)
    return expression


def numbers(series):
    """Those whose value is one."""
    return [one for one in series if math.isfinite(float(one["value"][1]))]


def panels_have_data(base):
    count = 0
    for title, expression in panel_queries():
        if "DCGM_" in expression:
            assert query(base, filled(expression)) == []
            continue
        # Shares of nothing are no numbers: a rule that was last evaluated before the load gives them.
        series = wait_for(f"data of {title}", lambda: numbers(query(base, filled(expression))))
        labels = set(re.findall(r"{{(\w+)}}", title))
        for one in series:
            missing = labels - set(one["metric"])
            assert not missing, f"{title}: no label {missing} in {one['metric']}"
        count += 1
    return count


def rules_are_healthy(base):
    """Every rule is evaluated, and every record gives series by model."""

    def groups():
        found = json.loads(get(base + "/api/v1/rules")[1])["data"]["groups"]
        rules = [rule for group in found for rule in group["rules"]]
        return rules if all(rule["health"] != "unknown" for rule in rules) else None

    rules = wait_for("the evaluation of the rules", groups)
    for rule in rules:
        assert rule["health"] == "ok", rule
        if rule["type"] == "recording":
            series = wait_for(rule["name"], lambda: query(base, rule["name"]))
            assert all(one["metric"]["model_name"] for one in series), series
    return len(rules)


def query(base, expression, time=None):
    asked = {"query": expression} | ({"time": time} if time else {})
    status, text = get(base + "/api/v1/query?" + urllib.parse.urlencode(asked))
    answer = json.loads(text)
    assert status == 200 and answer["status"] == "success", f"{expression}: {text}"
    return answer["data"]["result"]


def value(base, expression, time=None):
    series = query(base, expression, time)
    return float(series[0]["value"][1]) if series else None


def firing(base):
    alerts = json.loads(get(base + "/api/v1/alerts")[1])["data"]["alerts"]
    return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


if __name__ == "__main__":
    main()
