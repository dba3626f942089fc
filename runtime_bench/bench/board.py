"""What a board does with a pack (`packing`): it measures, and tells so, line by line, in `events.jsonl`.

    python3 board.py run         here and now; the records go to records.jsonl, and nothing else stays
    python3 board.py start       on its own: the caller may leave. `follow`, `stop`: what `devices.Board` then asks for
    python3 board.py follow N    prints the events from number N on, until the end; reads a byte now and then, which
                                 says that the other side is still there
    python3 board.py stop        ends what `start` began

Needs Python's standard library; the process that measures finds all else in PACKAGES, made from the pack's wheels: no
pip, no environment and no network is needed, and nothing outside this folder is written. What `start` began ends by
itself, and takes the folder with it, when the other side was not heard of for the job's `patience` in seconds.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
import zipfile
from pathlib import Path
from typing import Any

EVENTS, RECORDS, PID, SEEN, PACKAGES = "events.jsonl", "records.jsonl", "pid", "seen", "packages"
_LITTLE = 1 << 20  # bytes: a disk with less is full
_SILENCE = 60.0  # seconds until `follow` takes the other side for gone; it may come back with another one


def problem(arch: str, python: str) -> str:
    """Why this machine cannot use a pack for that architecture and that Python ("3.11"); "" where it can."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if (platform.machine(), here) == (arch, python):
        return ""
    return (
        f"the pack is for {arch} and Python {python}, and this is Python {here} on {platform.machine()}: pack again "
        f"with --arch {platform.machine()} --python {here}"
    )


def unpack(folder: Path) -> None:
    """The wheels into PACKAGES. Raises OSError, of a full disk for one."""
    for wheel in sorted((folder / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / PACKAGES)


class _Events:
    """Where the events go: each is one line, whole or not there."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def add(self, **event: Any) -> None:
        line, before = json.dumps(event).encode() + b"\n", os.fstat(self._file.fileno()).st_size
        if self._file.write(line) != len(line):  # the disk is full
            os.ftruncate(self._file.fileno(), before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def say(self, line: str) -> None:
        self.add(say=line)


# ---- the job, in its child ----


def measure(folder: Path) -> None:
    """The job, with what is in PACKAGES: an event for the records of each run, and one for why it fails."""
    from bgnn.runtime_bench.runtime.errors import BgnnError

    events = _Events(folder / EVENTS)
    job = json.loads((folder / "job.json").read_text())
    try:
        (_profile if job["do"] == "profile" else _run)(folder, job, events)
    except MemoryError:
        events.add(error="out of memory: measure on a smaller batch or graph", code=1)
    except (BgnnError, OSError) as error:
        events.add(error=" ".join(str(error).split()), code=getattr(error, "exit_code", 1))
    except Exception as error:
        traceback.print_exc()
        events.add(error=f"internal error: {type(error).__name__}: {' '.join(str(error).split())}", code=1)


def _opened(folder: Path, job: dict[str, Any], one: dict[str, str]) -> tuple[Path, bytes, Any, list[Any]]:
    from bgnn.runtime_bench.bench.candidates import candidates_for
    from bgnn.runtime_bench.bench.inputs import inputs_for
    from bgnn.runtime_bench.runtime import limits

    path = folder / one["path"]
    content = path.read_bytes()
    given = folder / "input.npz"
    arrays = limits.read_npz(given, "--input") if given.exists() else None
    return (
        path,
        content,
        inputs_for(path, content, arrays, job["seed"]),
        candidates_for(path, content, one["candidates"]),
    )


def _schedule(job: dict[str, Any]) -> Any:
    from bgnn.runtime_bench.bench.measure import Schedule

    return Schedule() if job["rounds"] is None else Schedule(job["rounds"], seconds=0, longest=float("inf"))


def _run(folder: Path, job: dict[str, Any], events: _Events) -> None:
    from bgnn.runtime_bench.bench.running import run_file

    for one in job["files"]:
        path, content, inputs, candidates = _opened(folder, job, one)
        for threads in job["threads"]:
            found = run_file(path, content, inputs, candidates, threads, _schedule(job), events.say)
            events.add(records=list(map(vars, found)))


def _profile(folder: Path, job: dict[str, Any], events: _Events) -> None:
    from bgnn.runtime_bench.bench.profile import profiled

    path, content, inputs, candidates = _opened(folder, job, job["files"][0])
    events.say(f"{path.name}, {candidates[0].name}")
    profile, settings, records = profiled(path, content, inputs, candidates[0], job["threads"][0], _schedule(job))
    told = {"operators": list(map(vars, profile.operators)), "total_ms": profile.total_ms}
    events.add(records=list(map(vars, records)), profile=told, settings=settings)


# ---- what starts and watches it ----


def supervise(folder: Path) -> None:
    """Runs the job in this process's group and waits for `stop`; ends all, the folder too, where nobody comes back."""
    job = json.loads((folder / "job.json").read_text())
    events = _Events(folder / EVENTS)
    try:
        unpack(folder)
        child = _child(folder)
    except OSError as error:
        events.add(error=f"cannot unpack what was sent: {error.strerror or error}", code=1)
        events.add(end=True)
        child = None
    seen, since = 0.0, time.monotonic()  # by how often, not when: the clock of a board without one jumps
    while time.monotonic() - since < job["patience"]:
        if (at := (folder / SEEN).stat().st_mtime) != seen:
            seen, since = at, time.monotonic()
        if child is not None and child.poll() is not None:
            _tell_end(folder, events, child.returncode)
            child = None
        time.sleep(0.5)
    if not job["keep"]:
        shutil.rmtree(folder.parent, ignore_errors=True)  # made for this run: `devices.Board`


def _child(folder: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"PYTHONPATH": str(folder / PACKAGES), "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    # A run's own files are in here as well: nothing is left elsewhere, however it ends.
    environment |= {"TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("ab") as log:
        command = [sys.executable, str(folder / "board.py"), "measure"]
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _tell_end(folder: Path, events: _Events, code: int) -> None:
    if code:
        events.add(error=_why_ended(folder, code), code=1)
    events.add(end=True)


def _why_ended(folder: Path, code: int) -> str:
    if shutil.disk_usage(folder).free < _LITTLE:
        return f"the disk is full: {folder.parent}"
    if code < 0:
        return f"the measuring process was killed by {signal.Signals(-code).name}"
    said = (folder / "log").read_text(errors="replace").strip().rpartition("\n")[2]
    return f"the measuring process ended with {code}: {said}"


def start(folder: Path) -> None:
    """Begins `supervise` in a session of its own, which outlives the connection."""
    (folder / SEEN).touch()
    (folder / EVENTS).touch()
    child = os.fork()
    if child:
        try:
            (folder / PID).write_text(str(child))
        except OSError:
            os.kill(child, signal.SIGKILL)
            raise
        return
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    try:
        supervise(folder)
    finally:
        os.killpg(0, signal.SIGKILL)


def _alive(folder: Path) -> bool:
    try:
        state = Path(f"/proc/{int((folder / PID).read_text())}/stat").read_text()
    except (OSError, ValueError):
        return False
    return state.rpartition(")")[2].split()[0] != "Z"  # in a container, maybe nobody asks for those that ended


def follow(folder: Path, number: int) -> None:
    """Prints the events from `number` on, and an empty line where there is none."""
    heard, sent, ended = time.monotonic(), 0, False
    with (folder / EVENTS).open("rb") as file:
        rest = b""
        while not ended:
            alive = _alive(folder)  # before the events are read: what ended has written all of its own
            *lines, rest = (rest + file.read()).split(b"\n")
            for line in lines:
                if sent >= number:
                    print(line.decode(), flush=True)
                ended, sent = ended or line == b'{"end": true}', sent + 1
            if not ended and not alive:
                full = shutil.disk_usage(folder).free < _LITTLE
                why = f"the disk is full: {folder.parent}" if full else "the run was killed"
                print(json.dumps({"error": why, "code": 1}), '{"end": true}', sep="\n", flush=True)
                return
            if not lines:
                print(flush=True)
            if not ended and select.select([0], [], [], 0.3)[0]:
                if not os.read(0, 100):
                    return
                heard = time.monotonic()
                with contextlib.suppress(OSError):
                    (folder / SEEN).touch()
            if time.monotonic() - heard > _SILENCE:
                return


def stop(folder: Path) -> None:
    """Ends the run, with all of its processes."""
    with contextlib.suppress(OSError, ValueError):
        os.killpg(int((folder / PID).read_text()), signal.SIGKILL)


def run(folder: Path) -> int:
    """The whole job, here: says what happens on standard error, writes the records; the exit code."""
    job = json.loads((folder / "job.json").read_text())
    why = problem(job["arch"], job["python"])
    if why:
        print(f"bgnn-bench: error: {why}", file=sys.stderr)
        return 1
    code, seen, child = 0, 0, None
    (folder / EVENTS).write_bytes(b"")
    try:
        unpack(folder)
        child = _child(folder)
        with (folder / RECORDS).open("w") as records:
            while True:
                ended = child.poll() is not None
                lines = (folder / EVENTS).read_bytes().split(b"\n")[:-1]
                for line in lines[seen:]:
                    event = json.loads(line)
                    for record in event.get("records", []):
                        print(json.dumps(record), file=records, flush=True)
                    text = event.get("say") or (f"error: {event['error']}" if "error" in event else "")
                    if text:
                        print(f"bgnn-bench: {text}", file=sys.stderr)
                    code = event.get("code", code)
                seen = len(lines)
                if ended:
                    break
                time.sleep(0.2)
        if child.returncode:
            print(f"bgnn-bench: error: {_why_ended(folder, child.returncode)}", file=sys.stderr)
            code = 1
    except OSError as error:
        print(f"bgnn-bench: error: {error.strerror or error}: {error.filename}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("bgnn-bench: error: interrupted", file=sys.stderr)
        code = 130
    finally:
        if child is not None and child.poll() is None:
            child.kill()
            child.wait()
        for name in (EVENTS, "log"):
            with contextlib.suppress(OSError):
                (folder / name).unlink()
        shutil.rmtree(folder / PACKAGES, ignore_errors=True)
    if seen and (folder / RECORDS).stat().st_size:
        print(f"bgnn-bench: written: {folder / RECORDS}", file=sys.stderr)
    return code


def main() -> int:
    folder = Path(__file__).resolve().parent
    what = sys.argv[1]
    if what == "run":
        return run(folder)
    if what == "follow":
        with contextlib.suppress(BrokenPipeError):
            follow(folder, int(sys.argv[2]))
        return 0
    {"measure": measure, "start": start, "stop": stop}[what](folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
