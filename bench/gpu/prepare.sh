#!/usr/bin/env bash
# Packs a folder with which run.sh builds, checks and measures on a machine that has a GPU, nvcc, CMake and ninja but no
# network and none of the packages: the committed sources, the Debian packages, and a vocabulary for synthetic models.
#   bench/gpu/prepare.sh FOLDER THERMOCLINE      under 64 MiB; THERMOCLINE: the program, built here
set -euo pipefail

packages=(libfmt-dev libfmt9 libhwloc-dev libhwloc15 libudev1 libxbyak-dev doctest-dev libcli11-dev nlohmann-json3-dev
          libutf8proc-dev libutf8proc2 libedit-dev libedit2 libbsd0 libmd0 libtinfo6 pkgconf pkgconf-bin libpkgconf3
          coinor-libcbc-dev coinor-libcbc3 coinor-libcgl-dev coinor-libcgl1 coinor-libclp-dev coinor-libclp1
          coinor-libcoinutils-dev coinor-libcoinutils3v5 coinor-libosi-dev coinor-libosi1v5 libblas3 liblapack3
          libgfortran5 libquadmath0 libbz2-1.0 libbz2-dev zlib1g zlib1g-dev libblas-dev liblapack-dev)

(($# == 2)) || { sed -n '4s/^# *//p' "$0" >&2; exit 2; }
root=$(git -C "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" rev-parse --show-toplevel)
mkdir -p "$1"
folder=$(readlink -f -- "$1") program=$(readlink -f -- "$2")
rm -rf -- "${folder:?}"/{packages,source.tar,vocabulary.gguf.gz}
mkdir "$folder/packages"
git -C "$root" archive HEAD -- . ':!tests/data' >"$folder/source.tar"
cp -- "$root/bench/gpu/run.sh" "$folder/"
(cd "$folder/packages" && apt-get -q download "${packages[@]}")

# A synthetic model takes its vocabulary from another file, whose weights it does not read: they are zeros, and pack well.
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
"$program" synth --shape tiny "$work/tiny.gguf" >/dev/null
metadata_bytes=8388608
head -c "$metadata_bytes" "$work/tiny.gguf" >"$work/vocabulary.gguf"
truncate -s "$(stat -c %s "$work/tiny.gguf")" "$work/vocabulary.gguf"
gzip -9c "$work/vocabulary.gguf" >"$folder/vocabulary.gguf.gz"
du -sh "$folder"
