"""A board for tests: OpenSSH's server on this machine's loopback, as this user, on a port and with keys of its own.

The server is the machine's, or Debian's package unpacked into .cache/sshd. What runs behind it is a shell script,
which a test may change: it finds `python3` and `uname` in `bin` first, and has `tmp` for its temporary files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import bgnn.runtime_bench

ROOM = Path(bgnn.runtime_bench.__file__).resolve().parent / "runtime"
CACHE = ROOM.parents[1] / ".cache" / "sshd"
FETCH = ROOM.parent / "toolchain" / "aarch64" / "private_apt.sh"


@dataclass
class TestBoard:
    folder: Path
    port: int
    server: int
    """Process id of the server that listens."""

    __test__ = False

    @property
    def url(self) -> str:
        return f"ssh://{_user()}@127.0.0.1:{self.port}"

    @property
    def tmp(self) -> Path:
        return self.folder / "tmp"

    def script(self, name: str, text: str) -> None:
        """A program that commands on the board find first."""
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def reset(self) -> None:
        shutil.rmtree(self.folder / "bin", ignore_errors=True)
        (self.folder / "bin").mkdir()
        (self.folder / "environment").write_text("")
        # Not a venv's own link: outside, that one finds no packages.
        self.script("python3", f'exec {sys.executable} "$@"')
        shutil.rmtree(self.tmp, ignore_errors=True)
        self.tmp.mkdir()
        self.know_host()

    def know_host(self) -> None:
        kind, key, *_ = (self.folder / "host.pub").read_text().split()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")

    def left(self) -> list[str]:
        """What is on the board, and which of its processes."""
        processes = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(self.tmp) in line and "ssh" not in line:
                    processes.append(line)
        return [str(path) for path in self.tmp.iterdir()] + processes

    def sessions(self) -> list[int]:
        """The server's processes for connections that stand."""
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.server)], capture_output=True, text=True)
        return [int(word) for word in found.stdout.split()]


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _sshd() -> tuple[list[str], dict[str, str]]:
    """The server's command and environment. Skips where there is none."""
    place = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if place:
        return [place], {}
    binary = CACHE / "usr" / "sbin" / "sshd"
    if not binary.exists():
        state = CACHE.with_suffix(".apt")
        arch = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True)
        if arch.returncode:
            pytest.skip("no sshd, and no Debian to have one from")
        state.mkdir(parents=True, exist_ok=True)
        wanted = ["install", "--yes", "--download-only", "--no-install-recommends", "openssh-server"]
        done = subprocess.run(
            [str(FETCH), str(state), arch.stdout.strip(), "/var/lib/dpkg/status", *wanted],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"no sshd: {done.stderr.strip()[-300:]}")
        for package in (state / "archives").glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(CACHE)], check=True)
        shutil.rmtree(state)
    libraries = ":".join(map(str, CACHE.glob("**/*-linux-gnu")))
    return [str(binary)], {"LD_LIBRARY_PATH": libraries}


def _ssh() -> str:
    place = shutil.which("ssh") or str(CACHE / "usr" / "bin" / "ssh")
    if not os.access(place, os.X_OK):
        pytest.skip("no ssh client")
    return place


@contextlib.contextmanager
def board(folder: Path) -> Iterator[TestBoard]:
    """The server, running; and an `ssh` in folder/client that knows it and has a key for it."""
    command, environment = _sshd()
    for name in ("client", "tmp", "bin"):
        (folder / name).mkdir(parents=True)
    for name in ("host", "key", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    forced = folder / "forced.sh"
    forced.write_text(
        f'#!/bin/sh\nexport PATH="{folder}/bin:$PATH" TMPDIR="{folder}/tmp"\n'
        f'. "{folder}/environment"\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    forced.chmod(0o755)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/key.pub\n"
        f"PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"PermitRootLogin prohibit-password\nForceCommand {forced}\n"
    )
    (folder / "ssh_config").write_text(
        f"Host *\n IdentityFile {folder}/key\n IdentitiesOnly yes\n UserKnownHostsFile {folder}/known_hosts\n"
        f" GlobalKnownHostsFile /dev/null\n"
    )
    client = folder / "client" / "ssh"
    client.write_text(f'#!/bin/sh\nexec {_ssh()} -F "{folder}/ssh_config" "$@"\n')
    client.chmod(0o755)
    command = [*command, "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "log")]
    if os.getuid() == 0:  # then it wants a user and a folder of its own: they are there for it alone
        users = f"root:*:0:0:root:{folder}:/bin/sh\nsshd:*:65533:65534::/run/sshd:/usr/sbin/nologin\n"
        (folder / "passwd").write_text(users)
        inside = f"mount --bind {folder}/passwd /etc/passwd && mount -t tmpfs none /run && mkdir -m 755 /run/sshd"
        command = ["unshare", "--mount", "sh", "-c", f'{inside} && exec "$@"', "sh", *command]
    server = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        for _ in range(200):
            if server.poll() is not None:
                assert server.stderr is not None
                log = (folder / "log").read_text() if (folder / "log").exists() else ""
                pytest.skip(f"sshd does not start: {(server.stderr.read() + log).strip()[-300:]}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        found = TestBoard(folder, port, server.pid)
        found.reset()
        yield found
    finally:
        server.terminate()
        server.wait()


def runtime_wheel(folder: Path) -> Path:
    """What `make wheels` makes for this machine, of the sources and libraries of now."""
    path = folder / "bgnn_runtime-0-py3-none-any.whl"
    package = ROOM.parents[1] / "src" / "bgnn"
    with zipfile.ZipFile(path, "w") as archive:
        for around in (package / "__init__.py", package / "runtime_bench" / "__init__.py"):
            archive.write(around, f"bgnn/{around.relative_to(package)}")
        for one in [*ROOM.glob("*.py"), *ROOM.glob("lib/*/*.so")]:
            archive.write(one, f"bgnn/runtime_bench/runtime/{one.relative_to(ROOM)}")
    return path
