#!/bin/bash
# fetch_tools.sh FOLDER PROGRAM...: qemu-aarch64 (with plugins), llvm-mc-14 and llvm-mca-14 as FOLDER/bin/PROGRAM, from
# Debian's packages with all that they need; nothing is installed.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
folder=$(realpath -m "$1")
shift
packages=()
for program in "$@"; do
  case $program in
    qemu-aarch64) packages+=(qemu-user) ;;
    llvm-*-14) packages+=(llvm-14) ;;
    *) echo "fetch_tools.sh: no package is known for $program" >&2; exit 1 ;;
  esac
done

state=$folder.apt
mkdir -p "$state"
touch "$state/status"
"$here/private_apt.sh" "$state" "$(dpkg --print-architecture)" "$state/status" \
  install --yes --download-only --no-install-recommends "${packages[@]}"
mkdir -p "$folder/bin"
for package in "$state"/archives/*.deb; do dpkg -x "$package" "$folder"; done
rm -rf "$state"

# Each program with its own libraries, libc among them. Not by LD_LIBRARY_PATH, which the programs under qemu would see.
loader=$(compgen -G "$folder/lib/*-linux-gnu/ld-linux*.so.*" | head -n 1)
libraries=$(printf '%s:' "$folder"/usr/lib/*-linux-gnu "$folder"/lib/*-linux-gnu)
for program in "$@"; do
  printf '#!/bin/sh\nexec "%s" --library-path "%s" "%s" "$@"\n' \
    "$loader" "${libraries%:}" "$folder/usr/bin/$program" > "$folder/bin/$program"
  chmod +x "$folder/bin/$program"
done
