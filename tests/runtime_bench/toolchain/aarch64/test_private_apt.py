"""private_apt.sh: leaves the machine's state alone, and tells a mirror out of reach from other failures."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import bgnn.runtime_bench

SCRIPT = Path(bgnn.runtime_bench.__file__).resolve().parent / "toolchain" / "aarch64" / "private_apt.sh"


def run(tmp_path: Path, apt_get: str | None) -> subprocess.CompletedProcess[str]:
    """The script with `apt_get` (lines of shell, or none at all) as apt-get."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "realpath", "mkdir", "id", "head"):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    if apt_get is not None:
        (programs / "apt-get").write_text(f'#!{programs / "bash"}\necho "$@" >> {tmp_path / "calls"}\n{apt_get}\n')
        (programs / "apt-get").chmod(0o755)
    command = [shutil.which("bash") or "bash", str(SCRIPT), str(tmp_path / "state"), "arm64", "/status"]
    return subprocess.run([*command, "download", "hello"], capture_output=True, text=True, env={"PATH": str(programs)})


@pytest.mark.parametrize(
    ("apt_get", "said"),
    [
        (None, "no apt-get"),
        (
            '[[ "$*" == *update* ]] && echo "W: Failed to fetch" >&2; exit 100',
            "no mirror that has Debian for arm64: W: Failed",
        ),
    ],
)
def test_no_mirror_is_69(tmp_path: Path, apt_get: str | None, said: str) -> None:
    done = run(tmp_path, apt_get)
    assert done.returncode == 69
    assert said in done.stderr


def test_other_failures_are_not(tmp_path: Path) -> None:
    assert run(tmp_path, '[[ "$*" == *"download hello" ]] && exit 100 || exit 0').returncode == 100


def test_a_source_out_of_order_is_passed_over_and_the_state_is_private(tmp_path: Path) -> None:
    assert run(tmp_path, '[[ "$*" == *update ]] && exit 100 || exit 0').returncode == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[-1].endswith("download hello")
    state = tmp_path / "state"
    for call in calls:
        assert "-o APT::Architecture=arm64" in call
        for setting in ("Dir::State", "Dir::State::lists", "Dir::Cache", "Dir::Cache::archives"):
            assert f"-o {setting}={state}" in call
        assert "-o Dir::State::status=/status" in call
