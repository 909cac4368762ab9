"""Five times the load that a server can take, and clients that ask again at once: what is refused costs nothing, what
is accepted is computed as fast and as fully as before, and afterwards all is as it was. Work is counted in the
engine's steps, so that nothing hangs on how fast the machine is.

    overload.py --octet target/release/octet --loadtest target/release/loadtest
"""

import argparse
import concurrent.futures
import http.client
import json
import pathlib
import re
import tempfile

from common import DEADLINE, Load, chat, get, server, wait_for

SEQUENCES = 8
TOKENS = 150
# Requests of a client that does not wait, and how often it sends each.
STORM_CLIENTS, STORM_REQUESTS, STORM_TRIES = 40, 4, 6


class Counters:
    """What the server has counted; a difference is what happened between."""

    NAMES = {
        "steps": "octet_engine_steps_total",
        "tokens": "octet_generation_tokens_total",
        "refused": "octet_requests_rejected_total",
        "preempted": "octet_preemptions_total",
    }

    def __init__(self, address):
        self.address = address
        self.values = self.read()

    def read(self):
        text = get(f"http://{self.address}/metrics")[1]
        total = lambda name: sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M))
        return {key: total(name) for key, name in self.NAMES.items()}

    def since(self):
        before, self.values = self.values, self.read()
        return {key: value - before[key] for key, value in self.values.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--octet", required=True)
    parser.add_argument("--loadtest", required=True)
    args = parser.parse_args()
    limits = ("--max-num-seqs", SEQUENCES, "--max-num-queued-reqs", SEQUENCES)
    with server(args.octet, *limits) as (_, address), tempfile.TemporaryDirectory() as folder:
        load = lambda **flags: Load(pathlib.Path(folder), args.loadtest, address, **{"output-tokens": TOKENS, **flags})
        counters = Counters(address)
        rate, full = at_capacity(load, counters)
        refused = at_five_times(load, counters, rate, full)
        tries = in_a_storm(address, counters, full)
        afterwards(load, address, counters)
    print(
        f"overload: {refused} of 200 refused at five times the load and {tries} tries of impatient clients, "
        "steps as full as at capacity, no token for nobody, all well afterwards"
    )


def at_capacity(load, counters):
    """Requests per second with every sequence in use, and tokens that a step makes then."""
    lines = load(users=SEQUENCES, requests=64).requests()
    seconds = (max(line["end"] for line in lines) - min(line["plan"] for line in lines)) / 1e6
    work = counters.since()
    check_work(work, len(lines), 1)
    assert not work["refused"], work
    return len(lines) / seconds, work["tokens"] / work["steps"]


def check_work(work, done, full):
    # Every token was made for an answer that arrived, but for one each of the questions with which the load test begins:
    # two about lengths, one whether `ignore_eos` is taken.
    assert 0 <= work["tokens"] - done * TOKENS <= 3, (work, done)
    assert not work["preempted"], work
    # But for the last answers, beside which there are no others.
    assert work["steps"] <= work["tokens"] / (0.9 * full) + 2 * TOKENS, (work, full)


def at_five_times(load, counters, rate, full):
    lines = load(rate=5 * rate, arrival="constant", requests=200).requests()
    outcomes = [line["outcome"] for line in lines]
    done, refused = outcomes.count("ok"), outcomes.count("refused_429")
    assert done and refused and done + refused == len(lines), outcomes
    work = counters.since()
    assert work["refused"] == refused, (work, refused)
    check_work(work, done, full)
    return refused


def in_a_storm(address, counters, full):
    """Clients that send a refused request again at once."""

    def client(number):
        connection = http.client.HTTPConnection(address, timeout=DEADLINE)
        body = json.dumps(chat(f"What is {number} + 1?", ignore_eos=True, max_completion_tokens=TOKENS))
        done = tries = 0
        for _ in range(STORM_REQUESTS):
            for _ in range(STORM_TRIES):
                tries += 1
                connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    done += 1
                    break
                assert answer.status == 429 and int(answer.getheader("Retry-After")) >= 1, answer.status
        return done, tries

    with concurrent.futures.ThreadPoolExecutor(STORM_CLIENTS) as clients:
        seen = list(clients.map(client, range(STORM_CLIENTS)))
    done, tries = (sum(column) for column in zip(*seen))
    work = counters.since()
    assert work["refused"] == tries - done > 0, (work, seen)
    check_work(work, done, full)
    return tries


def afterwards(load, address, counters):
    """Polite clients are all served, and nothing is left of the others."""
    lines = load(users=SEQUENCES, requests=32).requests()
    assert all(line["outcome"] == "ok" for line in lines), lines
    assert not counters.since()["refused"]
    text = lambda: get(f"http://{address}/metrics")[1]
    for gauge in ("octet_requests_running", "octet_requests_waiting", "octet_kv_cache_blocks_used"):
        wait_for(f"no {gauge}", lambda: re.search(rf"^{gauge}(?:{{[^}}]*}})? 0$", text(), re.M))


if __name__ == "__main__":
    main()
