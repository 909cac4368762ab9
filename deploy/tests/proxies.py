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
import tempfile

from common import DEADLINE, Load, chat, free_port, get, post, process, server, wait_for

DEPLOY = pathlib.Path(__file__).resolve().parents[1]
USERS = 24
# Nearly all that the bundled model has room for.
LONG = 900


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--octet", required=True)
    parser.add_argument("--loadtest", required=True)
    args = parser.parse_args()
    scenes = (passing, reading_slowly, not_reading, giving_up, leaving, dying, deserted)
    for name in PROXIES:
        with Behind(name, args.octet, args.loadtest) as proxy:
            seen = [scene(proxy) for scene in scenes]
        seen.append(wrongly_set(name, args))
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
# Mistakes in their files that the tests here must notice: the lines replaced, and by what.
BUFFERING = {
    # The server's X-Accel-Buffering keeps the first of the two lines from doing harm alone.
    "nginx": ("proxy_buffering off;", "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;"),
    "haproxy": ("balance leastconn\n", "balance leastconn\n    http-response wait-for-body time 600s\n"),
}


class Replica:
    """A server that can be started again where it was."""

    def __init__(self, octet, *flags):
        self.octet, self.flags, self.context = octet, flags, None
        self.start()

    def start(self, port=0):
        self.stop()
        self.context = server(self.octet, *self.flags, port=port)
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
    """A proxy before two replicas, with its file as it is or with one place replaced."""

    def __init__(self, name, octet, loadtest, *mistake):
        self.name, self.octet, self.loadtest, self.mistake = name, octet, loadtest, mistake

    def __enter__(self):
        self.stack = contextlib.ExitStack()
        self.folder = pathlib.Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        # A client that does not read is given up soon.
        flags = ("--stream-write-timeout", 3)
        self.replicas = [Replica(self.octet, *flags), Replica(self.octet, *flags)]
        for replica in self.replicas:
            self.stack.callback(replica.stop)
        file, command = PROXIES[self.name]
        text = (DEPLOY / "proxy" / file).read_text()
        self.address = f"127.0.0.1:{free_port()}"
        if self.mistake:
            assert self.mistake[0] in text
            text = text.replace(*self.mistake)
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
        """A closed loop, so that it does not hang on how fast this machine is."""
        return Load(self.folder, self.loadtest, self.address, **{"users": USERS, "output-tokens": 40, **flags})

    def running(self):
        return sum(replica.running() for replica in self.replicas)

    def cancelled(self):
        finished = "octet_requests_finished_total", 'finish_reason="cancelled"'
        return sum(replica.metric(*finished) for replica in self.replicas)


class Stream:
    """One streamed answer, read as far as wanted."""

    def __init__(self, address, tokens=LONG, fields=None, **headers):
        host, port = address.split(":")
        self.socket = socket.socket()
        # A reader that stops is noticed after a few events.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(DEADLINE)
        self.socket.connect((host, int(port)))
        body = json.dumps(chat("Repeat: apple", stream=True, ignore_eos=True, max_completion_tokens=tokens, **(fields or {})))
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


def came_early(proxy):
    """Whether an event reaches a client while the answer is being made."""
    # Shorter than any buffer of the proxies.
    stream = Stream(proxy.address, 300, **{"Accept-Encoding": "gzip"})
    stream.read_until('"content":"')
    for replica in proxy.replicas:
        replica.child.send_signal(signal.SIGSTOP)
    stream.read_what_is_there()
    early = not stream.is_complete()
    for replica in proxy.replicas:
        replica.child.send_signal(signal.SIGCONT)
    stream.read_until("data: [DONE]")
    assert "content-encoding" not in stream.text.lower()
    return early


def passing(proxy):
    """Events pass one by one, uncompressed; only the API is there."""
    # An answer that was through before the replicas stood still shows nothing.
    wait_for("an event before the answer's end", lambda: came_early(proxy))
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


def holds_up(proxy):
    """Whether work stops for a client that reads nothing, or is done for nobody: a proxy that takes the
    whole answer hides such a client from the server."""
    made = lambda: sum(replica.metric("octet_generation_tokens_total") for replica in proxy.replicas)
    before = made()
    # Some twenty megabytes, more than sockets hold.
    many = {"n": 16, "logprobs": True, "top_logprobs": 20}
    stream = Stream(proxy.address, LONG, many)
    wait_for("its tokens", lambda: made() > before)
    wait_for("its end", lambda: proxy.running() == 0)
    stream.socket.close()
    return made() - before < 16 * LONG


def not_reading(proxy):
    assert holds_up(proxy), "the work for a client that did not read was done"
    return "a client that reads nothing is given up"


def wrongly_set(name, args):
    """What the tests above say of a proxy that keeps answers until it has them whole."""
    notices = {"nginx": holds_up, "haproxy": came_early}[name]
    with Behind(name, args.octet, args.loadtest, *BUFFERING[name]) as proxy:
        assert not notices(proxy), f"buffering in {name} was not noticed"
    return "buffering would be noticed"


def giving_up(proxy):
    """A client that leaves ends the work for it."""

    before = proxy.cancelled()

    def attempt():
        stream = Stream(proxy.address)
        stream.read_until('"content":"')
        stream.socket.close()
        wait_for("the end of its work", lambda: proxy.running() == 0)
        # It may have ended before its client was gone.
        return proxy.cancelled() > before

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
