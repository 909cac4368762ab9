"""The image, built by buildah from the Dockerfile and run as its settings say: without root, capabilities, a shell
or a network, in a read-only root. No registry is asked: the base images are stand-ins, the first with a cargo that
hands over the program that is built already, the second with the C library alone. Needs root.

    image.py --octet target/release/octet --busybox busybox
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile

from common import DEADLINE, process

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"
# Those of the base image that a program in Rust can need.
LIBRARIES = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2", "linux-vdso.so.1"}
KEY = "0123456789abcdef0123456789abcdef"
# Of the commands of the first stage it knows one; the sources must be there, and nothing that was built.
CARGO = """#!/bin/sh
set -e
[ "$*" = "build --release --locked --package octet" ]
[ "$OCTET_COMMIT" = a-commit ]
[ -f Cargo.lock ] && [ -f crates/server/src/main.rs ] && [ ! -e target ] && [ ! -e .git ]
mkdir -p target/release
cp /built/octet target/release/octet
"""

# Texts that name addresses, where a server might follow them.
ASKS = '''
import json, sys, urllib.error, urllib.request
address = "http://192.0.2.1/x"
picture = [{"type": "image_url", "image_url": {"url": address}}]
for path, fields in (
    ("chat/completions", {"messages": [{"role": "user", "content": address}]}),
    ("chat/completions", {"messages": [{"role": "user", "content": picture}]}),
    ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "response_format": {"$ref": address}}),
    ("completions", {"prompt": address, "model": "http://octet.example/model"}),
):
    headers = {"authorization": "Bearer " + sys.argv[1], "content-type": "application/json", "host": "localhost"}
    request = urllib.request.Request("http://127.0.0.1:8000/v1/" + path, json.dumps(fields).encode(), headers)
    try:
        print(urllib.request.urlopen(request).status)
    except urllib.error.HTTPError as error:
        print(error.code)
'''

COUNTERS = (("Tcp:", "ActiveOpens"), ("Tcp:", "AttemptFails"), ("Udp:", "OutDatagrams"), ("Ip:", "OutNoRoutes"))


class Image:
    """The built image."""

    def __init__(self, folder, octet, busybox):
        self.folder = folder
        first, second = re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.M)
        self.base(first, self.toolchain(octet, busybox))
        self.base(second, self.libraries(octet))
        words = "build --quiet --pull-never --isolation chroot --format docker --build-arg OCTET_COMMIT=a-commit".split()
        self.buildah(*words, "--file", DOCKERFILE, "--tag", "octet", ROOT)
        settings = json.loads(self.buildah("inspect", "--type", "image", "octet"))["Docker"]["config"]
        self.user, self.group = settings["User"].split(":")
        self.environment = dict(variable.split("=", 1) for variable in settings["Env"])
        self.command = settings["Entrypoint"] + settings["Cmd"]
        kind, *self.health = settings["Healthcheck"]["Test"]
        assert kind == "CMD", kind
        self.stop_signal = signal.Signals[settings["StopSignal"]]
        self.root = pathlib.Path(self.buildah("mount", self.buildah("from", "--pull-never", "octet")))

    def buildah(self, *words):
        storage = ["--storage-driver", "vfs", "--root", self.folder / "storage", "--runroot", self.folder / "run"]
        done = subprocess.run(["buildah", *storage, *words], stdout=subprocess.PIPE, text=True)
        assert done.returncode == 0, words
        return done.stdout.strip()

    def base(self, name, files):
        """An image of that name with these files."""
        container = self.buildah("from", "scratch")
        self.buildah("copy", "--quiet", container, files, "/")
        self.buildah("commit", "--quiet", "--rm", container, name)

    def toolchain(self, octet, busybox):
        """A shell with a few commands, and what stands for cargo."""
        files = self.folder / "toolchain"
        for place in ("bin", "built", "tmp"):
            (files / place).mkdir(parents=True)
        shutil.copy(busybox, files / "bin/busybox")
        for command in ("sh", "mkdir", "cp", "["):
            (files / "bin" / command).symlink_to("busybox")
        shutil.copy(octet, files / "built/octet")
        (files / "bin/cargo").write_text(CARGO)
        (files / "bin/cargo").chmod(0o755)
        return files

    def libraries(self, octet):
        """The libraries that the program wants."""
        listed = subprocess.run(["ldd", octet], check=True, stdout=subprocess.PIPE, text=True).stdout
        names = {pathlib.Path(word).name for word in re.findall(r"^\s+(\S+)", listed, re.M)}
        assert names <= LIBRARIES, f"the base image has no {names - LIBRARIES}"
        files = self.folder / "libraries"
        for place in ("dev", "proc", "tmp"):
            (files / place).mkdir(parents=True)
        for library in re.findall(r"(/\S+) \(", listed):
            copy = files / library.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, copy)
        return files

    def sandbox(self, *options, **environment):
        """The command line that runs it; the program is process 1."""
        words = "bwrap --unshare-all --unshare-user --as-pid-1 --die-with-parent --cap-drop ALL --clearenv".split()
        words += ["--uid", self.user, "--gid", self.group, "--ro-bind", self.root, "/", "--dev", "/dev", "--proc", "/proc"]
        for name, value in {**self.environment, **environment}.items():
            words += ["--setenv", name, value]
        return [*words, *options, *self.command]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--octet", required=True)
    parser.add_argument("--busybox", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        image = Image(pathlib.Path(folder), args.octet, args.busybox)
        holds_the_program_alone(image, args.octet)
        # Every interface is open to it, so it wants a key.
        refused = subprocess.run(image.sandbox(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE)
        assert refused.returncode != 0 and "--allow-unauthenticated" in refused.stdout, refused.stdout
        runs(image)
    what = f"{' '.join(image.command)} as {image.user} in a read-only root without a network"
    print(f"the image: built by buildah; {what} wants a key, calls nobody, is healthy and ends by {image.stop_signal.name}")


def holds_the_program_alone(image, octet):
    """Beside what the base image has."""
    of_base = {path.relative_to(image.folder / "libraries") for path in (image.folder / "libraries").rglob("*")}
    files = {path.relative_to(image.root) for path in image.root.rglob("*")} - of_base
    added = {path for path in files if (image.root / path).is_file()}
    program = image.root / image.command[0].lstrip("/")
    assert added == {program.relative_to(image.root)}, added
    assert program.read_bytes() == pathlib.Path(octet).read_bytes()


def runs(image):
    told, tell = os.pipe()
    command = image.sandbox("--info-fd", str(tell), OCTET_API_KEY=KEY)
    with process(command, stdout=subprocess.PIPE, text=True, pass_fds=[tell]) as child:
        os.close(tell)
        with os.fdopen(told) as information:
            inside = json.load(information)["child-pid"]
        for line in child.stdout:
            if line.startswith("ready"):
                break
        else:
            raise SystemExit("the server ended before it was ready")
        enter = ["nsenter", "--target", str(inside), "--user", "--mount", "--net", "--preserve-credentials"]
        keeps_to_itself(inside, [word for word in enter if word != "--mount"])
        subprocess.run([*enter, *image.health], env=image.environment, check=True, timeout=DEADLINE)
        os.kill(inside, image.stop_signal)
        assert child.wait(DEADLINE) == 0


def keeps_to_itself(inside, enter):
    """It listens on one port and, whatever it is asked, calls nobody: not one connection, packet or query of a name."""
    network = pathlib.Path(f"/proc/{inside}/net")
    rows = [line.split() for name in ("tcp", "tcp6") for line in (network / name).read_text().splitlines()[1:]]
    listening = [int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"]
    assert listening == [8000], listening
    before = sent(network)
    asked = subprocess.run([*enter, "python3", "-c", ASKS, KEY], stdout=subprocess.PIPE, text=True, timeout=DEADLINE)
    codes = asked.stdout.split()
    assert len(codes) == 4 and "200" in codes, asked.stdout
    # Every connection was one of ours, and no route was missing to anybody.
    assert sent(network) == {**before, "ActiveOpens": before["ActiveOpens"] + len(codes)}, (before, sent(network))


def sent(network):
    """What this network has sent off, and what it could not."""
    lines = [line.split() for line in (network / "snmp").read_text().splitlines()]
    counters = {names[0]: dict(zip(names[1:], map(int, values[1:]))) for names, values in zip(lines[::2], lines[1::2])}
    return {name: counters[group][name] for group, name in COUNTERS}


if __name__ == "__main__":
    main()
