"""What systemd does with the server: hands over the port, waits for READY, feeds on the watchdog, stops.

    systemd.py --octet target/release/octet
"""

import argparse
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import threading

from common import DEADLINE, free_port, get, process, wait_for

UNITS = pathlib.Path(__file__).resolve().parents[1] / "systemd"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--octet", required=True)
    octet = parser.parse_args().octet
    check_units()
    activated(octet)
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0), backlog=64) as port:
        address = f"http://127.0.0.1:{port.getsockname()[1]}"
        notes = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notes.settimeout(DEADLINE)
        notes.bind(f"{folder}/notify")
        # Somebody asks before the server is there, and waits instead of being refused.
        early = []
        client = threading.Thread(target=lambda: early.append(get(address + "/health/live", DEADLINE)))
        client.start()
        # The shell puts the socket where systemd puts it, and keeps its process id.
        script = 'exec 3<&0; export LISTEN_PID=$$ WATCHDOG_PID=$$; exec "$0" serve --port 1 --log-level warn'
        environment = {
            **os.environ,
            "LISTEN_FDS": "1",
            "WATCHDOG_USEC": "1000000",
            "NOTIFY_SOCKET": f"{folder}/notify",
        }
        command = ["sh", "-c", script, octet]
        with process(command, stdin=port, stdout=subprocess.DEVNULL, env=environment) as child:
            seen = read_until(notes, "READY=1")
            client.join()
            assert early[0][0] == 200, early
            assert get(address + "/health/ready")[0] == 200
            seen += read_until(notes, "WATCHDOG=1")
            child.send_signal(signal.SIGTERM)
            seen += read_until(notes, "STOPPING=1")
            assert child.wait(DEADLINE) == 0
        assert seen.count("READY=1") == 1, seen
    print("systemd: exposure below 2 with and without a GPU, units valid, the port taken over from systemd-socket-activate and from ours, ready, alive and stopping said")


def check_units():
    """systemd's own checks, which need no running systemd."""
    cuda = (UNITS / "octet.service.d/cuda.conf").read_text()
    for addition in ("", cuda):
        with tempfile.TemporaryDirectory() as folder:
            for unit in (UNITS / "octet.service", UNITS / "octet.socket"):
                text = unit.read_text().replace("/usr/local/bin/octet", "/bin/true")
                (pathlib.Path(folder) / unit.name).write_text(text)
            service = pathlib.Path(folder) / "octet.service"
            # As a drop-in would: later lines win.
            service.write_text(service.read_text() + addition)
            run = lambda *words: subprocess.run(["systemd-analyze", *words], cwd=folder, check=True, stdout=subprocess.PIPE)
            run("security", "--offline=true", "--threshold=20", "./octet.service")
            run("verify", "--man=no", "./octet.service", "./octet.socket")


def activated(octet):
    """systemd's own program holds the port and starts the server at the first connection, which is answered."""
    port = free_port()
    command = ["systemd-socket-activate", f"--listen=127.0.0.1:{port}", octet, "serve", "--port", "1"]
    with process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        wait_for("the first answer", lambda: get(f"http://127.0.0.1:{port}/health/ready", DEADLINE)[0] == 200)
        # It has become the server, which therefore did not bind the port it was told.
        assert os.path.samefile(f"/proc/{child.pid}/exe", octet)
        child.send_signal(signal.SIGTERM)
        assert child.wait(DEADLINE) == 0


def read_until(notes, wanted):
    """Messages up to the wanted one."""
    seen = []
    while wanted not in seen:
        seen += notes.recv(4096).decode().split("\n")
    return seen


if __name__ == "__main__":
    main()
