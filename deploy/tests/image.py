"""What the image would run, without a registry: the program alone with its C library in an empty, read-only
root, as the Dockerfile's last stage says, without root, capabilities, a shell or a network.

    image.py --octet target/release/octet
"""

import argparse
import json
import os
import pathlib
import re
import signal
import subprocess

from common import DEADLINE, process

DOCKERFILE = pathlib.Path(__file__).resolve().parents[1] / "docker/Dockerfile"
# Those of the base image that a program in Rust can need.
LIBRARIES = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2", "linux-vdso.so.1"}
KEY = "0123456789abcdef0123456789abcdef"


class Image:
    """The last stage of the Dockerfile."""

    def __init__(self, octet):
        self.octet = octet
        self.stage = DOCKERFILE.read_text().rpartition("\nFROM ")[2]
        self.user, self.group = re.search(r"^USER (\d+):(\d+)$", self.stage, re.M).groups()
        self.environment = dict(re.findall(r"(\w+)=(\S+)", re.search("^ENV (.*)$", self.stage, re.M).group(1)))
        self.command = self.words("ENTRYPOINT") + self.words("CMD")
        self.health = json.loads(re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", self.stage, re.M).group(1))
        self.stop_signal = signal.Signals[re.search(r"^STOPSIGNAL (\w+)$", self.stage, re.M).group(1)]

    def words(self, instruction):
        return json.loads(re.search(rf"^{instruction} (\[.*\])$", self.stage, re.M).group(1))

    def libraries(self):
        """Paths of the libraries that the program wants."""
        listed = subprocess.run(["ldd", self.octet], check=True, stdout=subprocess.PIPE, text=True).stdout
        names = {pathlib.Path(word).name for word in re.findall(r"^\s+(\S+)", listed, re.M)}
        assert names <= LIBRARIES, f"the base image has no {names - LIBRARIES}"
        return re.findall(r"(/\S+) \(", listed)

    def sandbox(self, *options, **environment):
        """The command line of the container's stand-in; the program is process 1 in it."""
        words = "bwrap --unshare-all --unshare-user --as-pid-1 --die-with-parent --cap-drop ALL".split()
        words += "--clearenv --dev /dev --proc /proc".split()
        words += ["--uid", self.user, "--gid", self.group, "--ro-bind", self.octet, self.command[0]]
        for library in self.libraries():
            words += ["--ro-bind", library, library]
        for name, value in {**self.environment, **environment}.items():
            words += ["--setenv", name, value]
        return [*words, "--remount-ro", "/", *options, *self.command]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--octet", required=True)
    image = Image(parser.parse_args().octet)
    assert image.stage.count("COPY ") == 1 and f"/release/octet {image.command[0]}\n" in image.stage
    # Every interface is open to it, so it wants a key.
    refused = subprocess.run(image.sandbox(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE)
    assert refused.returncode != 0 and "--allow-unauthenticated" in refused.stdout, refused.stdout
    runs(image)
    what = f"{' '.join(image.command)} as {image.user} in a read-only root without a network"
    print(f"the image: {what} wants a key, is healthy and ends by {image.stop_signal.name}")


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
        subprocess.run([*enter, *image.health], env=image.environment, check=True, timeout=DEADLINE)
        os.kill(inside, image.stop_signal)
        assert child.wait(DEADLINE) == 0


if __name__ == "__main__":
    main()
