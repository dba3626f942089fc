#!/bin/bash
# private_apt.sh FOLDER ARCHITECTURE STATUS COMMAND...: apt-get COMMAND with a state of its own in FOLDER, so that neither
# root nor the machine's package lists are needed; what it downloads lies in FOLDER/archives. STATUS is dpkg's list of
# what counts as installed. Exits with 69 where no Debian mirror can be reached.
set -euo pipefail
folder=$(realpath -m "$1") architecture=$2 status=$3
shift 3
if ! command -v apt-get >/dev/null; then
  echo "aarch64: no apt-get; this needs Debian, or the files from one in .cache/aarch64" >&2
  exit 69
fi
mkdir -p "$folder/lists/partial" "$folder/archives/partial"
cd "$folder/archives"
apt() {
  apt-get -qq -o APT::Architecture="$architecture" -o APT::Architectures="$architecture" -o APT::Sandbox::User="$(id -un)" \
    -o Dir::State="$folder" -o Dir::State::lists="$folder/lists" -o Dir::State::status="$status" -o Dir::Cache="$folder" \
    -o Dir::Cache::archives="$folder/archives" -o Debug::NoLocking=true -o Acquire::Retries=3 "$@"
}
apt update 2>"$folder/update.log" || true # one of several sources may be out of order
if ! apt download --print-uris libc6 >/dev/null 2>&1; then
  echo "aarch64: apt reaches no mirror that has Debian for $architecture: $(head -n 1 "$folder/update.log")" >&2
  exit 69
fi
apt "$@"
