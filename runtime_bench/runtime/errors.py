"""The errors a user sees: one line that names the thing and the way out."""

from __future__ import annotations


class BgnnError(Exception):
    """Base of every error that the command line prints as one line. `exit_code` is the process's."""

    exit_code = 1


class UsageError(BgnnError):
    """The command or call itself is wrong (a missing file, an unknown setting): exit code 2."""

    exit_code = 2
