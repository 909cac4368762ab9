"""What the tests of deploy/ share: processes that are ended, polling, requests, loads."""

import contextlib
import json
import pathlib
import re
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

# Longer than anything here takes on a busy machine; reached only when something is broken.
DEADLINE = 120


def wait_for(what, condition):
    """Asks again until the condition gives something true."""
    end = time.monotonic() + DEADLINE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise SystemExit(f"{what} did not happen within {DEADLINE} s")
        time.sleep(0.05)


@contextlib.contextmanager
def process(command, **options):
    """A child process, killed at the end."""
    child = subprocess.Popen([str(word) for word in command], **options)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


@contextlib.contextmanager
def server(octet, *flags, port=0):
    """An octet server, on a free port unless told, that is ready; gives the process and its address."""
    command = [octet, "serve", "--port", port, "--log-level", "warn", *flags]
    with process(command, stdout=subprocess.PIPE, text=True) as child:
        address = None
        for line in child.stdout:
            found = re.search(r"http://(127\.0\.0\.1:\d+)", line)
            address = address or (found and found.group(1))
            if line.startswith("ready"):
                break
        assert address, "octet named no address"
        yield child, address


def get(url, timeout=10):
    """Status and text of a GET; status 0 when nothing answers."""
    return fetch(urllib.request.Request(url), timeout)


def post(url, body, timeout=DEADLINE):
    """Status and text of a POST with a JSON body."""
    data = json.dumps(body).encode()
    return fetch(urllib.request.Request(url, data, {"content-type": "application/json"}), timeout)


def fetch(request, timeout):
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except (OSError, urllib.error.URLError):
        return 0, ""


def chat(question, **fields):
    """The body of a chat request."""
    return {"messages": [{"role": "user", "content": question}], "temperature": 0, **fields}


class Load:
    """A run of the load test."""

    def __init__(self, folder, loadtest, address, **flags):
        # Questions that the bundled model answers: to random words it may say nothing.
        prompts = folder / "prompts.jsonl"
        question = lambda n: {"role": "user", "content": f"What is {n} + {n}?"}
        lines = (json.dumps({"messages": [question(n), {"role": "assistant", "content": str(2 * n)}]}) for n in range(5))
        prompts.write_text("\n".join(lines))
        flags = {"warmup": 0, "dataset": prompts, "cache": "warm", **flags}
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        self.folder = tempfile.TemporaryDirectory(dir=folder)
        self.asked = flags["requests"]
        command = [loadtest, "--url", f"http://{address}", "--quiet", "--ignore-eos"]
        self.child = subprocess.Popen(
            [*command, "--results", self.folder.name, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def requests(self):
        """Every request, when all have ended."""
        text = self.child.communicate(timeout=DEADLINE)[0]
        found = list(pathlib.Path(self.folder.name).glob("*/requests.jsonl"))
        assert found, text
        lines = [json.loads(line) for line in found[0].read_text().splitlines()]
        assert len(lines) >= self.asked, text
        return lines

    def failed(self):
        return [line for line in self.requests() if line["outcome"] != "ok"]

    def succeeds(self):
        failed = self.failed()
        assert not failed, failed
        return self.asked


def free_port():
    """A port that was free a moment ago, for programs that cannot pick one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
