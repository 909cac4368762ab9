"""What the tests of deploy/ share: processes that are ended, polling, requests."""

import contextlib
import json
import re
import socket
import subprocess
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


def free_port():
    """A port that was free a moment ago, for programs that cannot pick one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
