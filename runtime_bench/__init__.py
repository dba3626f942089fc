"""Running and measuring emitted files."""
