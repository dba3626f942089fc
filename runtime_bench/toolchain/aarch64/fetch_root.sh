#!/bin/bash
# fetch_root.sh FOLDER: an arm64 Debian's Python, without root, docker or binfmt: 15 MB of packages, 75 MB unpacked.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
root=$(realpath -m "$1") state=$(realpath -m "$1").apt
packages="python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libstdc++6 libgcc-s1 gcc-12-base libc6 zlib1g \
  libexpat1 libssl3 libffi8 libsqlite3-0 libbz2-1.0 liblzma5 libuuid1 libdb5.3 libncursesw6 libtinfo6 libreadline8 \
  libcrypt1 libnsl2 libtirpc3 media-types"

mkdir -p "$state" "$root"
touch "$state/status"
"$here/private_apt.sh" "$state" arm64 "$state/status" download $packages
for package in "$state"/archives/*.deb; do dpkg -x "$package" "$root"; done
rm -rf "$state"

# ai-edge-litert probes the processor when it loads; under qemu it would read the host's and crash.
mkdir -p "$root/proc"
for core in 0 1 2 3; do
  printf 'processor\t: %d\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n' $core
done > "$root/proc/cpuinfo"
