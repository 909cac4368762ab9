"""The units under a real systemd: it boots in a container made of this machine's files, where octet was installed
as the README says, and starts, guards, restarts and stops the service. Needs root.

    unshare --mount machine.py --octet target/release/octet
"""

import argparse
import contextlib
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import tempfile

from common import DEADLINE, process, wait_for

UNITS = pathlib.Path(__file__).resolve().parents[1] / "systemd"
KEY = "0123456789abcdef0123456789abcdef"
PORT = 8000


class Machine:
    """A container whose first process is systemd. All that it writes stays in memory."""

    def __init__(self, octet, folder):
        mount = lambda *words: subprocess.run(["mount", *words], check=True)
        mount("-t", "tmpfs", "tmpfs", folder)
        upper, work, self.root = (folder / name for name in ("upper", "work", "root"))
        for path in (upper, work, self.root):
            path.mkdir()
        mount("-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", self.root)
        units = self.root / "etc/systemd/system"
        # Only what systemd itself brings starts beside octet.
        shutil.rmtree(units)
        shutil.copytree(UNITS, units)
        # An addition for GPUs, which are not here.
        shutil.rmtree(units / "octet.service.d")
        (self.root / "etc/machine-id").write_text("")
        shutil.copy(octet, self.root / "usr/local/bin/octet")
        keys = self.root / "etc/octet/api-keys"
        shutil.rmtree(keys.parent, ignore_errors=True)
        keys.parent.mkdir()
        keys.write_text(KEY)
        keys.chmod(0o600)
        subprocess.run(["systemctl", f"--root={self.root}", "-q", "enable", "octet.service"], check=True)

    @contextlib.contextmanager
    def booted(self):
        command = ["systemd-nspawn", "--quiet", "--directory", self.root, "--machine", f"octet-{os.getpid()}"]
        command += ["--boot", "--private-network", "--register=no", "--keep-unit", "--console=pipe"]
        with process(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as child:
            children = pathlib.Path(f"/proc/{child.pid}/task/{child.pid}/children")

            def first_child():
                assert child.poll() is None, "systemd-nspawn ended at once"
                return children.read_text().split()[:1]

            self.leader = wait_for("a container", first_child)[0]
            # Other services of the machine may take their time.
            state = lambda: self.inside("systemctl", "is-active", "octet.service", fails=True)
            wait_for("the service", lambda: state().rpartition("\n")[2] == "active")
            yield
            # What tells systemd to turn the machine off.
            subprocess.run(["kill", "-s", "RTMIN+4", self.leader], check=True)
            child.wait(DEADLINE)

    def inside(self, *words, fails=False):
        """What a command prints that root runs in the container."""
        command = ["nsenter", "--target", self.leader, "--all", "--", *map(str, words)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert fails or done.returncode == 0, (words, done.stdout)
        return done.stdout.strip()

    def shows(self, name, unit="octet.service"):
        return self.inside("systemctl", "show", "--property", name, "--value", unit)

    def is_running(self):
        return self.shows("SubState") == "running"

    def status(self, *options):
        """The status of an answer, which may have to wait for the service."""
        url = f"http://127.0.0.1:{PORT}/v1/models"
        return self.inside("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", DEADLINE, *options, url)

    def answers(self):
        """Waits for an answer; while the model loads clients are told to come back, but none is turned away."""

        def attempt():
            status = self.status("-H", f"Authorization: Bearer {KEY}")
            assert status in ("200", "503"), status
            return status == "200"

        wait_for("an answer", attempt)

    def fact(self, file, name):
        """A line of the main process's file in /proc."""
        text = self.inside("cat", f"/proc/{self.shows('MainPID')}/{file}")
        return re.search(rf"^{name}:?\s+(.*)$", text, re.M).group(1).strip()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--octet", required=True)
    octet = parser.parse_args().octet
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(octet, pathlib.Path(folder))
        try:
            with machine.booted():
                seen = [scene(machine) for scene in (starts, is_confined, is_woken, crashes, hangs, stops)]
        finally:
            subprocess.run(["umount", "--lazy", "--recursive", folder])
    print("a real systemd: " + "; ".join(seen))


def starts(machine):
    """Enabled, it comes with the machine; ready means that it answers, and only who has the key."""
    assert machine.is_running()
    machine.answers()
    assert machine.status() == "401"
    return "starts the service with the machine"


def is_confined(machine):
    """What the unit asks for is what the kernel holds the process to."""
    user = machine.fact("status", "Uid").split()
    assert "0" not in user and len(set(user)) == 1, user
    for name, value in (("NoNewPrivs", "1"), ("Seccomp", "2"), ("CapEff", "0" * 16), ("CapBnd", "0" * 16)):
        assert machine.fact("status", name) == value, name
    assert machine.fact("limits", "Max core file size").split()[0] == "0"
    # Files of a process whose memory nobody may look into or dump belong to root, whoever it runs as.
    owner = machine.inside("stat", "--format=%u", f"/proc/{machine.shows('MainPID')}/environ")
    assert owner == "0", f"the memory of the server can be dumped as {owner}"
    # A machine whose root may not raise limits gives what it has.
    files = machine.fact("limits", "Max open files").split()[0]
    assert int(files) in (65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]), files
    pid = machine.shows("MainPID")
    # Its view of the files: nothing to write but its own folders, no keys but its own, no homes, no devices.
    sees = lambda *words: machine.inside("nsenter", "--target", pid, "--mount", "--", *words, fails=True)
    for place in ("/", "/etc", "/usr/local/bin", "/srv"):
        assert "Read-only" in sees("touch", f"{place}/file"), place
    for place in ("/var/lib/private/octet", "/var/cache/private/octet", "/tmp"):
        assert sees("touch", f"{place}/file") == "", place
    assert sees("ls", "/root") == "" or "denied" in sees("ls", "/root")
    machine.inside("touch", "/dev/of-the-machine")
    devices = sees("ls", "/dev").split()
    assert "null" in devices and "of-the-machine" not in devices, devices
    journal = machine.inside("journalctl", "--unit=octet", "--unit=octet.socket", "--priority=warning", "--output=cat")
    assert journal == "", journal
    return "confines it as the unit says"


def is_woken(machine):
    """Stopped, it is started by the first connection, which is answered."""
    machine.inside("systemctl", "stop", "octet.service")
    assert machine.shows("SubState", "octet.socket") == "listening"
    machine.answers()
    assert machine.is_running()
    return "wakes it by a connection"


def restarts(machine, signal_name):
    before = int(machine.shows("NRestarts"))
    machine.inside("kill", "-s", signal_name, machine.shows("MainPID"))
    # A client that comes meanwhile waits at the socket.
    machine.answers()
    wait_for("the service again", machine.is_running)
    assert int(machine.shows("NRestarts")) == before + 1


def crashes(machine):
    restarts(machine, signal.SIGKILL.name)
    return "restarts it after a crash"


def hangs(machine):
    """A process that says nothing is replaced."""
    machine.inside("mkdir", "-p", "/run/systemd/system/octet.service.d")
    machine.inside("sh", "-c", "printf '[Service]\\nWatchdogSec=2\\n' > /run/systemd/system/octet.service.d/short.conf")
    machine.inside("systemctl", "daemon-reload")
    machine.inside("systemctl", "restart", "octet.service")
    restarts(machine, signal.SIGSTOP.name)
    return "and after a silence"


def stops(machine):
    machine.inside("systemctl", "stop", "octet.socket", "octet.service")
    assert (machine.shows("Result"), machine.shows("ExecMainStatus")) == ("success", "0")
    return "stops it"


if __name__ == "__main__":
    main()
