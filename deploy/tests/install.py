"""The script of rented machines: from the archive of a release to a server that answers, below a folder, with
stand-ins for the driver's tool and for systemd.

    install.py --archive octet.tar.gz --model crates/bundled/model
"""

import argparse
import contextlib
import hashlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import urllib.request

from common import fetch, free_port

SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "cloud/install.sh"
NVIDIA_SMI = "#!/bin/sh\necho 'GPU 0: stand-in'\n"
# Starts what the unit starts, with its environment file, and once.
SYSTEMCTL = """#!/bin/bash
set -e
echo "$*" >>"$DESTDIR/systemctl.log"
[[ $1 == enable && ! -e $DESTDIR/server.pid ]] || exit 0
set -a
. "$DESTDIR/etc/octet/environment"
"$DESTDIR/usr/local/bin/octet" serve --api-key-file "$DESTDIR/etc/octet/api-keys" >"$DESTDIR/server.log" 2>&1 &
echo $! >"$DESTDIR/server.pid"
until grep -q '^ready' "$DESTDIR/server.log"; do kill -0 $!; sleep 0.05; done
"""


class Machine:
    """A folder that stands for a machine's root."""

    def __init__(self, root, archive, model):
        self.root, self.port = root, free_port()
        self.archive = root / "offered.tar.gz"
        shutil.copy(archive, self.archive)
        self.settings = {
            "OCTET_ARCHIVE_URL": self.archive.as_uri(),
            "OCTET_ARCHIVE_SHA256": hashlib.sha256(self.archive.read_bytes()).hexdigest(),
            "OCTET_MODEL": model,
            "OCTET_DEVICE": "cpu",
            "MODELS": root / "srv/models",
            "OCTET_SHUTDOWN_TIMEOUT": 20,
        }
        tools = root / "tools"
        tools.mkdir()
        for name, text in (("nvidia-smi", NVIDIA_SMI), ("systemctl", SYSTEMCTL)):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "DESTDIR": str(root),
            "OCTET_PORT": str(self.port),
        }

    def install(self, **changed):
        """Exit status and output of the script."""
        settings = self.root / "etc/octet/install"
        settings.parent.mkdir(parents=True, exist_ok=True)
        lines = (f"{name}={value}\n" for name, value in {**self.settings, **changed}.items())
        settings.write_text("".join(lines))
        done = subprocess.run(
            ["bash", SCRIPT], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return done.returncode, done.stdout

    def models(self, key):
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return fetch(urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/models", headers=headers), 10)[0]

    def files(self):
        """Bytes of everything installed."""
        places = [self.root / name for name in ("usr", "etc", "srv")]
        paths = (path for place in places for path in place.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in paths}

    def stop(self):
        with contextlib.suppress(FileNotFoundError):
            os.kill(int((self.root / "server.pid").read_text()), signal.SIGKILL)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--archive", required=True)
    parser.add_argument("--model", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(pathlib.Path(folder), args.archive, pathlib.Path(args.model).resolve())
        try:
            refuses(machine)
            serves(machine)
        finally:
            machine.stop()
    print("install.sh: refuses wrong sums, places and archives; from an archive to answers; a second run changes nothing")


def refuses(machine):
    """Nothing is installed from what is not as said."""
    for changed, said in (
        ({"OCTET_ARCHIVE_URL": "https://example.com/octet.tar.gz"}, "set OCTET_ARCHIVE_URL"),
        ({"OCTET_ARCHIVE_SHA256": "0" * 64}, "is not the archive of that checksum"),
        ({"MODELS": "/home/somebody/models"}, "set MODELS elsewhere"),
    ):
        status, output = machine.install(**changed)
        assert status == 1 and said in output, output
    assert not (machine.root / "usr").exists()


def serves(machine):
    status, output = machine.install()
    assert status == 0 and "octet is ready" in output, output
    keys = machine.root / "etc/octet/api-keys"
    assert keys.stat().st_mode & 0o777 == 0o600
    key = keys.read_text().strip()
    assert re.fullmatch("[0-9a-f]{48}", key)
    assert (machine.models(None), machine.models(key)) == (401, 200)
    before = machine.files()
    # What is offered is gone: a second run needs nothing of it.
    machine.archive.unlink()
    status, output = machine.install()
    assert status == 0, output
    assert machine.files() == before
    log = (machine.root / "systemctl.log").read_text().splitlines()
    assert log == ["daemon-reload", "enable --now octet.socket octet.service"] * 2, log


if __name__ == "__main__":
    main()
