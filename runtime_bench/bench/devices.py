"""Measuring on another machine: `--device ssh://user@host[:port]`, by the system's ssh client as its user set it up.

The board is looked at first; then a pack (`packing`) goes into a fresh folder of its temporary directory, and
`board.py`, in there, runs it detached. What it finds comes back event by event; a connection that is lost is made anew,
and goes on behind the last event that came. At the end, however it comes, the run is stopped and the folder removed; a
board that this machine cannot reach any more does both by itself (PATIENCE).
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import IO, Any
from urllib.parse import urlsplit

from bgnn.runtime_bench.bench.emulated import EMULATOR, MODEL
from bgnn.runtime_bench.bench.packing import ARCHITECTURES, OLDEST, TOP, Job, Pack, make_pack
from bgnn.runtime_bench.bench.records import checked
from bgnn.runtime_bench.runtime.errors import BgnnError, UsageError

PATIENCE = 600.0
"""Seconds that a board goes on without this machine, and then leaves nothing."""
RETRY_SECONDS = 300.0
"""How long a lost connection is tried again."""
SPARE_BYTES = 64 << 20
"""Disk and memory that a run may take beside what is sent."""
_SSH = ("ssh", "-T", "-oBatchMode=yes", "-oConnectTimeout=10", "-oServerAliveInterval=5", "-oServerAliveCountMax=3",
        "-oClearAllForwardings=yes")  # fmt: skip
_MARK = "bgnn-bench:"
# By what any Python 3 understands, since an old one is to be named too.
_PROBE = """
import json, os, platform, shutil, sys, tempfile
def of(path, key):
    try:
        lines = [line.split(":", 1) for line in open(path, errors="replace") if ":" in line]
    except OSError:
        return ""
    return ([value.strip() for name, value in lines if name.strip() == key] or [""])[0]
print(json.dumps({
    "python": list(sys.version_info[:2]), "bits": 64 if sys.maxsize > 2**32 else 32, "libc": platform.libc_ver(),
    "part": of("/proc/cpuinfo", "CPU part") or of("/proc/cpuinfo", "model name"),
    "memory": int((of("/proc/meminfo", "MemAvailable") or "0").split()[0]) * 1024,
    "folder": os.environ.get("TMPDIR") or "/tmp", "free": shutil.disk_usage(os.environ.get("TMPDIR") or "/tmp").free}))
"""


class Lost(BgnnError):
    """ssh could not connect, or lost the connection; the text says why."""


@dataclass(frozen=True)
class Ssh:
    """Where commands run, by the system's ssh client. Host keys are checked as the user's configuration says."""

    host: str
    user: str = ""
    port: int | None = None

    @classmethod
    def parse(cls, url: str) -> Ssh:
        """Of `ssh://user@host[:port]`. Raises UsageError for anything else."""
        try:
            parts = urlsplit(url)
            host, user, port = parts.hostname or "", parts.username or "", parts.port
        except ValueError as error:
            raise UsageError(f"--device {url}: {error}") from error
        # Whatever begins with - would be an option of ssh.
        bad = not host or host.startswith("-") or user.startswith("-") or any(c.isspace() for c in host + user)
        if parts.scheme != "ssh" or bad or parts.password or parts.path.strip("/") or parts.query or parts.fragment:
            raise UsageError(f"--device {url}: it is to be ssh://user@host[:port], {EMULATOR} or {MODEL}")
        return cls(host, user, port)

    @property
    def _way(self) -> list[str]:
        return [*(["-p", str(self.port)] if self.port else []), *(["-l", self.user] if self.user else []), self.host]

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if self.port else self.host

    def command(self, line: str) -> list[str]:
        """The local command that runs a line of the board's shell."""
        way = self._way
        return [*_SSH, *way[:-1], "--", way[-1], f"exec sh -c {shlex.quote(line)}"]

    def run(self, line: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Runs a line of the board's shell; raises Lost where ssh itself fails."""
        # A file: a connection that the user's configuration keeps open would keep a pipe open too.
        with tempfile.TemporaryFile() as errors:
            pipe = subprocess.PIPE
            try:
                done = subprocess.run(self.command(line), input=given, stdout=pipe, stderr=errors, check=False)
            except FileNotFoundError as error:
                raise BgnnError("there is no ssh client here: install OpenSSH's (openssh-client)") from error
            errors.seek(0)
            done.stderr = errors.read()
        if done.returncode == 255:
            raise Lost(self.why(done.stderr))
        return done

    def why(self, said: bytes) -> str:
        """One line for what ssh wrote when it failed."""
        text = said.decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Warning:")]
        by_hand = shlex.join(["ssh", *self._way])
        if "IDENTIFICATION HAS CHANGED" in text:
            return (
                f"the key of {self} is not the one that is known for it: another machine answers, or the board was set "
                "up anew (then ssh-keygen -R removes the old key)"
            )
        if "Host key verification failed" in text:
            return f"the key of {self} is not known here: connect once by hand and compare it: {by_hand}"
        if "Permission denied" in text:
            reason = (
                next(line for line in lines if "Permission denied" in line)
                .rpartition("Permission denied")[2]
                .strip(" .")
            )
            return f"{self} refuses the login {reason}: no password is asked for; set up a key, then try {by_hand}"
        found = next((line for line in lines if "connect to host" in line or "resolve hostname" in line), "")
        if found:
            return f"cannot reach {self}: {found.rpartition(': ')[2].rstrip('.')}"
        return f"the connection to {self} failed: {lines[-1] if lines else 'ssh said nothing'}"


def look_at(ssh: Ssh) -> dict[str, Any]:
    """What a board is: see _PROBE, with "arch". Raises BgnnError, in one line, for one that cannot measure."""
    # A login script on the board may print before anything else.
    done = ssh.run(
        f"echo {_MARK}; uname -sm && {{ command -v python3 >/dev/null || exit 9; }} && python3 -c {shlex.quote(_PROBE)}"
    )
    lines = done.stdout.decode(errors="replace").rpartition(f"{_MARK}\n")[2].split("\n")
    system, _, arch = lines[0].strip().partition(" ")
    if system != "Linux" or arch not in ARCHITECTURES:
        raise BgnnError(f"{ssh} is {lines[0] or 'no Unix'}: it takes Linux on {' or '.join(ARCHITECTURES)}")
    oldest = ".".join(map(str, OLDEST))
    if done.returncode == 9:
        raise BgnnError(f"{ssh} has no python3: install Python {oldest} or newer on it")
    try:
        found: dict[str, Any] = {"arch": arch, **json.loads(lines[1])}
    except (ValueError, IndexError) as error:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or "nothing"
        raise BgnnError(f"{ssh}: its python3 does not run: {said}") from error
    version = tuple(found["python"])
    if version < OLDEST:
        raise BgnnError(f"{ssh} has Python {'.'.join(map(str, version))}: {oldest} or newer is needed")
    if found["bits"] != 64:
        raise BgnnError(f"the Python of {ssh} is a 32-bit one: the runtimes need a 64-bit system")
    if found["libc"][0] != "glibc":
        raise BgnnError(f"{ssh} has no glibc, which the runtimes' wheels are built for")
    return found


def check_room(ssh: Ssh, found: Mapping[str, Any], pack: Pack, largest: int) -> None:
    """Raises BgnnError where the board's disk or memory is too small. `largest`: bytes of the largest file."""
    disk, memory = len(pack.data) + pack.unpacked_bytes + SPARE_BYTES, 4 * largest + 2 * SPARE_BYTES
    if found["free"] < disk:
        raise BgnnError(
            f"the disk of {ssh} is too full: {found['folder']} has {found['free'] / 1e6:.0f} MB left, and "
            f"{disk / 1e6:.0f} MB are needed (TMPDIR, set there, names another place)"
        )
    if found["memory"] and found["memory"] < memory:
        raise BgnnError(
            f"{ssh} has {found['memory'] / 1e6:.0f} MB of memory left, and {memory / 1e6:.0f} MB are needed"
        )


class Board:
    """One run on a board, from what is sent to what is removed; a context, whose end leaves nothing there."""

    def __init__(self, ssh: Ssh, keep: bool, say: Callable[[str], None]) -> None:
        self._ssh, self._keep, self._say = ssh, keep, say
        self._name = f"bgnn-bench.{secrets.token_hex(6)}"
        self._enter = f'cd "${{TMPDIR:-/tmp}}/{self._name}/{TOP}" 2>/dev/null'

    def __enter__(self) -> Board:
        return self

    def start(self, pack: Pack) -> None:
        """Sends the pack and begins the run. Raises BgnnError where the board cannot take it."""
        place = f'"${{TMPDIR:-/tmp}}/{self._name}"'
        unpack = "import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode='r|gz').extractall()"
        # A broken connection ends the archive early: then nothing stays.
        line = (
            f"umask 077; mkdir {place} && cd {place} && python3 -c {shlex.quote(unpack)} && cd {TOP} && "
            f"python3 board.py start || {{ cd /; rm -rf {place}; exit 1; }}"
        )
        self._say(f"{self._ssh}: sending {len(pack.data) / 1e6:.0f} MB")
        done = self._ssh.run(line, pack.data)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            full = "No space left" in said or "Disk quota" in said or "File too large" in said
            why = "its disk is full" if full else said or f"exit code {done.returncode}"
            raise BgnnError(f"cannot put the files on {self._ssh}: {why}")

    def events(self) -> Iterator[dict[str, Any]]:
        """What the run tells, until it ends. Raises Lost where the board does not come back."""
        number, lost_since = 0, None
        while True:
            with tempfile.TemporaryFile() as errors, self._follow(number, errors) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    lost_since = None
                    if not line.endswith(b"\n"):
                        break  # cut off: it comes again, whole
                    if not line.startswith(b"{"):  # a sign of life, or what a login script printed
                        continue
                    try:
                        event = json.loads(line)
                    except ValueError as error:
                        raise BgnnError(f"{self._ssh} answers with what is no event: {line[:80]!r}") from error
                    if "end" in event:
                        return
                    number += 1
                    yield event
                code = process.wait()
                errors.seek(0)
                why = self._ssh.why(errors.read()) if code == 255 else f"the connection to {self._ssh} ended"
            if code not in (0, 255):
                raise BgnnError(f"the run on {self._ssh} is gone: was the board restarted?")
            now = time.monotonic()
            if lost_since is None:
                lost_since = now
                self._say(f"{why}; connecting again")
            if now - lost_since > RETRY_SECONDS:
                raise Lost(f"{why}, for {RETRY_SECONDS:.0f} seconds")
            time.sleep(1)

    @contextlib.contextmanager
    def _follow(self, number: int, errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
        command = self._ssh.command(f"{self._enter} && exec python3 board.py follow {number}")
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors)
        done = threading.Event()

        def here() -> None:  # a byte now and then: this machine is still there
            assert process.stdin is not None
            with contextlib.suppress(OSError, ValueError):
                while not done.wait(2):
                    process.stdin.write(b".")
                    process.stdin.flush()

        thread = threading.Thread(target=here, daemon=True)
        thread.start()
        try:
            yield process
        finally:
            done.set()
            thread.join()
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                with contextlib.suppress(OSError):
                    stream.close()

    def __exit__(self, *_: object) -> None:
        place = f'"${{TMPDIR:-/tmp}}/{self._name}"'
        line = f"{self._enter} || exit 0; python3 board.py stop"
        try:
            self._ssh.run(line if self._keep else f"{line}; cd /; rm -rf {place}")
        except BgnnError as error:
            what = "stops by itself" if self._keep else "stops and removes what it has of the run by itself"
            self._say(f"{error}; the board {what} within {PATIENCE / 60:.0f} minutes")
        else:
            if self._keep:
                self._say(f"kept on {self._ssh}: {self._name} in its temporary folder")


def measured_on(device: str, job: Job, keep: bool, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The events of a job on a device that ssh reaches: each has "records", those of the same rounds, as Records; a
    profile's has "profile" and "settings" as well.

    Raises BgnnError, in one line, for whatever goes wrong, the job itself on the board too; what came before it is
    right.
    """
    ssh = Ssh.parse(device)
    say(f"{ssh}: looking at it")
    found = look_at(ssh)
    python = ".".join(map(str, found["python"]))
    say(f"{ssh}: {found['arch']}, {found['part'] or 'CPU part unknown'}, Python {python}; fetching wheels for it")
    glibc = int(found["libc"][1].split(".")[1])
    pack = make_pack(job, found["arch"], python, glibc, patience=PATIENCE, keep=keep)
    check_room(ssh, found, pack, max(len(content) for _, content, _ in job.files))
    failed: BgnnError | None = None
    with Board(ssh, keep, say) as board:
        board.start(pack)
        for event in board.events():
            if "say" in event:
                say(f"{ssh}: {event['say']}")
            elif "error" in event:
                failed = UsageError(event["error"]) if event["code"] == 2 else BgnnError(f"{ssh}: {event['error']}")
            elif "records" in event:
                try:
                    found_there = [checked(one) for one in event["records"]]
                except ValueError as error:
                    raise BgnnError(f"{ssh} sends what is no record: {error}") from error
                records = [replace(one, settings=one.settings | {"on": str(ssh)}) for one in found_there]
                yield {**event, "records": records}
    if failed is not None:
        raise failed
