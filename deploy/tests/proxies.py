"""Two replicas behind nginx and behind HAProxy: one leaves by SIGTERM, one by SIGKILL.

    proxies.py --octet target/release/octet
"""

import argparse
import http.client
import json
import pathlib
import re
import signal
import tempfile
import threading

from common import chat, free_port, get, process, server, wait_for

DEPLOY = pathlib.Path(__file__).resolve().parents[1]
STREAMS = 24


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--octet", required=True)
    octet = parser.parse_args().octet
    for name in PROXIES:
        print(f"{name}: {leaving(octet, name)}; {dying(octet, name)}")


def nginx(folder, text):
    head = f"daemon off; master_process off; pid {folder}/pid; error_log stderr crit;\n"
    paths = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{path}_temp_path {folder}/{path};\n" for path in paths)
    path = folder / "nginx.conf"
    path.write_text(head + text.replace("http {\n", "http {\n" + paths, 1))
    return ["nginx", "-p", folder, "-e", "stderr", "-c", path]


def haproxy(folder, text):
    path = folder / "haproxy.cfg"
    path.write_text(text)
    return ["haproxy", "-db", "-f", path]


PROXIES = {"nginx": ("nginx.conf", nginx), "haproxy": ("haproxy.cfg", haproxy)}


class Behind:
    """A proxy before two replicas."""

    def __init__(self, name, replicas):
        self.name, self.replicas = name, replicas

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        file, command = PROXIES[self.name]
        text = (DEPLOY / "proxy" / file).read_text()
        self.address = f"127.0.0.1:{free_port()}"
        for ours, theirs in (("8000", self.address), ("8001", self.replicas[0]), ("8002", self.replicas[1])):
            text = text.replace(f"127.0.0.1:{ours}", theirs)
        self.context = process(command(pathlib.Path(self.folder.name), text))
        child = self.context.__enter__()

        def is_there():
            assert child.poll() is None, f"{self.name} ended"
            return get(f"http://{self.address}/v1/models")[0] == 200

        wait_for(self.name, is_there)
        return self

    def __exit__(self, *error):
        self.context.__exit__(*error)
        self.folder.cleanup()

    def __call__(self):
        return self.address


class Stream(threading.Thread):
    """One streamed answer: whether its head came, whether it ended well, what went wrong."""

    def __init__(self, address, tokens):
        super().__init__(daemon=True)
        self.address, self.tokens = address, tokens
        self.head, self.complete, self.fault = None, False, None
        self.start()

    def run(self):
        body = chat("Repeat: apple", stream=True, ignore_eos=True, max_completion_tokens=self.tokens)
        try:
            connection = http.client.HTTPConnection(self.address, timeout=120)
            headers = {"content-type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            self.head = answer.status
            text = answer.read().decode()
            finished = '"finish_reason":"length"' in text and text.endswith("data: [DONE]\n\n")
            self.complete = answer.status == 200 and finished and '"error"' not in text
            self.fault = None if self.complete else text[-200:]
        except (OSError, http.client.HTTPException) as error:
            self.fault = repr(error)


def running(address):
    text = get(f"http://{address}/metrics")[1]
    found = re.search(r"^octet_requests_running\S* (\d+)", text, re.M)
    return int(found.group(1)) if found else 0


def leaving(octet, name):
    """The documented way: SIGTERM lets streams end, and the proxy sends new ones elsewhere."""
    with server(octet) as (first, one), server(octet) as (_, two), Behind(name, (one, two)) as proxy:
        streams = [Stream(proxy(), 120) for _ in range(STREAMS)]
        wait_for("streams on both", lambda: running(one) and running(two))
        first.send_signal(signal.SIGTERM)
        # The probe answers 503 for as long as streams run, so requests meet a replica that refuses.
        wait_for("the drain", lambda: get(f"http://{one}/health/ready")[0] != 200)
        streams += [Stream(proxy(), 20) for _ in range(STREAMS)]
        for stream in streams:
            stream.join()
        assert first.wait() == 0
    failed = [(stream.head, stream.fault) for stream in streams if not stream.complete]
    assert not failed, failed
    return f"{len(streams)} streams, one replica left, 0 failed"


def dying(octet, name):
    """A replica that is killed: only streams whose head had come are cut."""
    with server(octet) as (first, one), server(octet) as (_, two), Behind(name, (one, two)) as proxy:
        # Long enough that none has ended when the last one begins.
        streams = [Stream(proxy(), 900) for _ in range(STREAMS)]
        wait_for("the heads", lambda: all(stream.head for stream in streams))
        assert running(one) and running(two), "the proxy does not balance"
        first.kill()
        streams += [Stream(proxy(), 20) for _ in range(STREAMS)]
        for stream in streams:
            stream.join()
    cut = [stream for stream in streams if not stream.complete]
    assert cut, "the killed replica had no stream"
    before = [(stream.head, stream.fault) for stream in cut if stream.head != 200]
    assert not before, before
    return f"{len(streams)} streams, one replica killed, {len(cut)} cut after the head, 0 before"


if __name__ == "__main__":
    main()
