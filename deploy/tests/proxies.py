"""Two replicas behind nginx and behind HAProxy: streams pass as they come, and a replica leaves by
SIGTERM, by SIGKILL, and comes back, while the load test is the client.

    proxies.py --octet target/release/octet --loadtest target/release/loadtest
"""

import argparse
import contextlib
import http.client
import json
import pathlib
import re
import signal
import socket
import subprocess
import tempfile

from common import DEADLINE, chat, free_port, get, post, process, server, wait_for

DEPLOY = pathlib.Path(__file__).resolve().parents[1]
USERS = 24
# Nearly all that the bundled model has room for.
LONG = 900


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--octet", required=True)
    parser.add_argument("--loadtest", required=True)
    args = parser.parse_args()
    for name in PROXIES:
        with Behind(name, args.octet, args.loadtest) as proxy:
            seen = [scene(proxy) for scene in (passing, reading_slowly, giving_up, leaving, dying, deserted)]
        print(f"{name}: " + "; ".join(seen))


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
    return ["haproxy", "-db", "-q", "-f", path]


PROXIES = {"nginx": ("nginx.conf", nginx), "haproxy": ("haproxy.cfg", haproxy)}


class Replica:
    """A server that can be started again where it was."""

    def __init__(self, octet):
        self.octet, self.context = octet, None
        self.start()

    def start(self, port=0):
        self.stop()
        self.context = server(self.octet, port=port)
        self.child, self.address = self.context.__enter__()

    def again(self):
        self.start(port=self.address.rpartition(":")[2])

    def stop(self):
        if self.context:
            self.context.__exit__(None, None, None)

    def metric(self, name, labels=""):
        """The sum of a metric's series whose labels hold the text; nothing while it does not answer."""
        lines = re.findall(rf"^{name}(?:{{([^}}]*)}})? (\S+)$", get(f"http://{self.address}/metrics")[1], re.M)
        return sum(float(value) for found, value in lines if labels in found)

    def running(self):
        return self.metric("octet_requests_running")

    def served(self):
        return self.metric("octet_requests_total", "/v1/chat/completions")


class Behind:
    """A proxy before two replicas."""

    def __init__(self, name, octet, loadtest):
        self.name, self.octet, self.loadtest = name, octet, loadtest

    def __enter__(self):
        self.stack = contextlib.ExitStack()
        self.folder = pathlib.Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.replicas = [Replica(self.octet), Replica(self.octet)]
        for replica in self.replicas:
            self.stack.callback(replica.stop)
        file, command = PROXIES[self.name]
        text = (DEPLOY / "proxy" / file).read_text()
        self.address = f"127.0.0.1:{free_port()}"
        places = [self.address, *(replica.address for replica in self.replicas)]
        for ours, theirs in zip(("8000", "8001", "8002"), places):
            text = text.replace(f"127.0.0.1:{ours}", theirs)
        child = self.stack.enter_context(process(command(self.folder, text)))

        def is_there():
            assert child.poll() is None, f"{self.name} ended"
            return get(f"http://{self.address}/v1/models")[0] == 200

        wait_for(self.name, is_there)
        return self

    def __exit__(self, *error):
        self.stack.close()

    def load(self, **flags):
        return Load(self, flags)

    def running(self):
        return sum(replica.running() for replica in self.replicas)


class Load:
    """A run of the load test through the proxy: a closed loop, so that it does not hang on how fast
    this machine is."""

    def __init__(self, proxy, flags):
        # Questions that the bundled model answers: to random words it may say nothing.
        prompts = proxy.folder / "prompts.jsonl"
        question = lambda n: {"role": "user", "content": f"What is {n} + {n}?"}
        lines = (json.dumps({"messages": [question(n), {"role": "assistant", "content": str(2 * n)}]}) for n in range(5))
        prompts.write_text("\n".join(lines))
        flags = {"users": USERS, "output-tokens": 40, "warmup": 0, "dataset": prompts, "cache": "warm", **flags}
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        self.folder = tempfile.TemporaryDirectory(dir=proxy.folder)
        self.asked = flags["requests"]
        command = [proxy.loadtest, "--url", f"http://{proxy.address}", "--quiet", "--ignore-eos"]
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


class Stream:
    """One streamed answer, read as far as wanted."""

    def __init__(self, address, tokens=LONG, **headers):
        host, port = address.split(":")
        self.socket = socket.socket()
        # A reader that stops is noticed after a few events.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(DEADLINE)
        self.socket.connect((host, int(port)))
        body = json.dumps(chat("Repeat: apple", stream=True, ignore_eos=True, max_completion_tokens=tokens))
        headers = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": len(body), **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.socket.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n{body}".encode())
        self.text = ""

    def read_until(self, wanted):
        while wanted not in self.text:
            data = self.socket.recv(65536)
            assert data, f"the stream ended before {wanted}: {self.text[-300:]}"
            self.text += data.decode()

    def read_what_is_there(self):
        """Reads until nothing more comes."""
        self.socket.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while data := self.socket.recv(65536):
                self.text += data.decode()
        self.socket.settimeout(DEADLINE)

    def is_complete(self):
        return "data: [DONE]" in self.text


def passing(proxy):
    """An event reaches the client while the answer is being made, uncompressed; only the API is there."""

    def attempt():
        # Shorter than any buffer of the proxies.
        stream = Stream(proxy.address, 300, **{"Accept-Encoding": "gzip"})
        stream.read_until('"content":"')
        for replica in proxy.replicas:
            replica.child.send_signal(signal.SIGSTOP)
        stream.read_what_is_there()
        # If it was through already, nothing is shown by this try.
        came_early = not stream.is_complete()
        for replica in proxy.replicas:
            replica.child.send_signal(signal.SIGCONT)
        stream.read_until("data: [DONE]")
        assert "content-encoding" not in stream.text.lower()
        return came_early

    wait_for("an event before the answer's end", attempt)
    for path in ("/metrics", "/health/ready", "/"):
        assert get(f"http://{proxy.address}{path}")[0] == 404, path
    # A megabyte is more than either takes unless told; the server refuses it for its length in tokens.
    status, text = post(f"http://{proxy.address}/v1/chat/completions", chat("word " * 2**18))
    assert status == 400 and "context" in text, (status, text)
    return "events pass as they come"


def reading_slowly(proxy):
    """A client that stops reading holds nobody up, and finds its answer whole when it reads on."""
    slow = Stream(proxy.address)
    slow.read_until('"content":"')
    count = proxy.load(requests=48).succeeds()
    slow.read_until("data: [DONE]")
    assert '"finish_reason":"length"' in slow.text and '"error"' not in slow.text
    return f"{count} streams beside a client that did not read"


def giving_up(proxy):
    """A client that leaves ends the work for it."""

    def cancelled():
        return sum(replica.metric("octet_requests_finished_total", 'finish_reason="cancelled"') for replica in proxy.replicas)

    def attempt():
        stream = Stream(proxy.address)
        stream.read_until('"content":"')
        stream.socket.close()
        wait_for("the end of its work", lambda: proxy.running() == 0)
        # It may have ended before its client was gone.
        return cancelled() > 0

    wait_for("a cancelled request", attempt)
    for replica in proxy.replicas:
        assert replica.metric("octet_kv_cache_blocks_used") == 0
    return "a client that leaves frees its blocks"


def on_both(proxy, count):
    """Waits until so many streams run, and looks whether they are spread."""
    wait_for("streams on both", lambda: proxy.running() == count)
    spread = [replica.running() for replica in proxy.replicas]
    # All are in flight, so the one with fewer got the next.
    assert max(spread) - min(spread) <= count / 10, spread


def comes_back(proxy, replica):
    """Started again, it gets requests, and none fails."""
    replica.again()

    def attempt():
        proxy.load(requests=48).succeeds()
        return replica.served()

    wait_for("requests for the replica that is back", attempt)


def leaving(proxy):
    """SIGTERM under load: not one request fails, whether it began before, in or after the drain."""
    first = proxy.replicas[0]
    held = [Stream(first.address) for _ in range(8)]
    load = proxy.load(requests=240)
    wait_for("load on both", lambda: all(replica.running() for replica in proxy.replicas))
    first.child.send_signal(signal.SIGTERM)
    # It says so for as long as streams run, so requests meet a replica that refuses.
    wait_for("the drain", lambda: get(f"http://{first.address}/health/ready")[0] != 200)
    count = proxy.load(requests=240).succeeds() + load.succeeds()
    for stream in held:
        stream.read_until("data: [DONE]")
        assert '"finish_reason":"length"' in stream.text, "the drain cut a stream"
    assert first.child.wait(DEADLINE) == 0
    count += proxy.load(requests=48).succeeds()
    comes_back(proxy, first)
    return f"SIGTERM: 0 of {count} failed"


def dying(proxy):
    """SIGKILL under load: only streams whose head had come are cut."""
    first = proxy.replicas[0]
    load = proxy.load(requests=USERS, **{"output-tokens": LONG})
    on_both(proxy, USERS)
    on_first = first.running()
    first.child.kill()
    count = proxy.load(requests=96).succeeds()
    cut = load.failed()
    wrong = [line for line in cut if line["outcome"] != "cut" or line["head"] is None]
    assert not wrong, wrong
    assert 0 < len(cut) <= on_first, f"{len(cut)} cut of {on_first}"
    comes_back(proxy, first)
    return f"SIGKILL: {len(cut)} of {USERS} cut after the head, 0 of {count} others failed"


def deserted(proxy):
    """No replica is left: clients are told when to come back, as octet would."""
    for replica in proxy.replicas:
        replica.child.kill()
        replica.child.wait()
    connection = http.client.HTTPConnection(proxy.address, timeout=DEADLINE)
    for _ in range(3):
        connection.request("GET", "/v1/models")
        answer = connection.getresponse()
        text = answer.read()
        # HAProxy names the replica lost (502) until its checks have noticed.
        assert answer.status in (502, 503), (answer.status, text)
        assert answer.getheader("Retry-After") == "1", text
        assert json.loads(text)["error"]["type"] == "service_unavailable_error"
    return "without replicas 503 and Retry-After"


if __name__ == "__main__":
    main()
