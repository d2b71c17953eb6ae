#!/usr/bin/env bash
# On a machine with an NVIDIA GPU, in a folder that prepare.sh packed: builds, checks every kernel and hybrid runs of
# small models, looks for bad memory accesses, and times kernels and whole steps of synthetic models of 7B. Under 10
# minutes on 16 cores; weights are made here and say nothing, and the build is without oneDNN.
#   [GPU=0] ./run.sh [WORK]      WORK (/tmp/thermocline-gpu) gets the build and a model of 4 GB
set -uo pipefail

folder=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
work=${1:-/tmp/thermocline-gpu}
packages=$work/packages
log=$work/log
mkdir -p "$packages" "$work/source" && : >"$log" || exit 1
cd "$work" || exit 1
gpu=${GPU:-0}
failed=()

# stage NAME COMMAND...: what it says goes to the log; of what failed the end is shown.
stage() {
  local name=$1 begin=$SECONDS verdict=passed from
  shift
  from=$(($(wc -l <"$log") + 1))
  "$@" >>"$log" 2>&1 || { verdict=FAILED failed+=("$name"); tail -n "+$from" "$log" | tail -n 25; }
  printf -- '--- %s: %s after %d s\n' "$name" "$verdict" "$((SECONDS - begin))"
  [[ $verdict == passed ]]
}

unpack() {
  local package link
  for package in "$folder"/packages/*.deb; do dpkg -x "$package" "$packages" || return 1; done
  # Absolute links mean a system that the packages are installed in.
  find "$packages" -type l -lname '/*' -print0 | while IFS= read -r -d '' link; do
    ln -sfn "$packages$(readlink "$link")" "$link"
  done
  tar -xf "$folder/source.tar" -C source && gunzip -c "$folder/vocabulary.gguf.gz" >vocabulary.gguf
}

# Only for the GPU that is here. Tests read committed data that did not travel; those of kernels need none.
build() {
  export PKG_CONFIG_SYSROOT_DIR=$packages PKG_CONFIG_ALLOW_SYSTEM_CFLAGS=1 PKG_CONFIG_ALLOW_SYSTEM_LIBS=1
  export PKG_CONFIG_LIBDIR=$packages/usr/lib/x86_64-linux-gnu/pkgconfig:$packages/usr/share/pkgconfig
  local libraries=$packages/usr/lib/x86_64-linux-gnu
  export LD_LIBRARY_PATH=$libraries:$libraries/blas:$libraries/lapack:$packages/lib/x86_64-linux-gnu:${LD_LIBRARY_PATH-}
  PATH=$packages/usr/bin:$PATH cmake -S source --preset release -B build -DTHERMOCLINE_ONEDNN=OFF -DTHERMOCLINE_CUDA=ON \
    -DCMAKE_CUDA_ARCHITECTURES=native -DCMAKE_PREFIX_PATH="$packages/usr" -DPKG_CONFIG_EXECUTABLE="$packages/usr/bin/pkgconf" \
    -DXBYAK_INCLUDE_DIR="$packages/usr/include" -DCMAKE_EXE_LINKER_FLAGS="-L$libraries -L$libraries/blas -L$libraries/lapack -Wl,-rpath-link,${LD_LIBRARY_PATH%:}" &&
    ninja -C build thermocline cuda_test gpu_kernels
}

sanitize() {
  compute-sanitizer --error-exitcode 1 build/tests/gpu/cuda/cuda_test -tc='*any company*,*merge into*,norm*,hybrid*'
}

measure() {
  build/thermocline bench --cache-packed "$@" model.gguf 2>&1 | grep -E '^\||memory of|layers|gets less|prompt rows|error' | grep -v -- '---'
}

# Which neurons fire, for `plan` and for what fills the device: of a few hundred tokens, since all texts are alike to
# random weights.
heat() {
  head -c 1500 source/README.md >text && build/thermocline profile --text text model.gguf
}

# planned NAME MEGABYTES FLAG...: what `plan` predicts for a generated token, and what bench measures of that placement.
planned() {
  local name=$1 megabytes=$2 seconds
  shift 2
  build/thermocline plan --sparsity exact -c 512 --vram "${megabytes}M" --gpu "$gpu" --json "$@" \
    model.gguf >plan.json || return
  seconds=$(grep -o '"seconds_per_token":[^,]*' plan.json | head -n 1 | cut -d : -f 2)
  awk -v name="$name" -v s="$seconds" 'BEGIN { printf "%s: predicted %.2f ms per token, %.1f t/s\n", name, 1e3 * s, 1 / s }'
  measure --gpu "$gpu" --vram "${megabytes}M" --placement plan.json -p 0 -n 32 -d 480 -r 2
}

table() {
  export HOME=$work XDG_CACHE_HOME=$work/cache
  local share megabytes
  measure --gpu off -p 512,2048 -n 32 -r 1
  measure --gpu off -p 0 -n 32 -d 480 -r 2
  measure --gpu "$gpu" -p 512,2048 -n 64 -r 2
  megabytes=$(($(stat -c %s model.gguf) >> 20))
  for share in 25 50 75; do
    echo "--vram $share % of the model"
    measure --gpu "$gpu" --vram "$((megabytes * share / 100))M" -p 512 -n 32 -r 1
    planned 'plan' "$((megabytes * share / 100))"
    planned 'plan --layers-only' "$((megabytes * share / 100))" --layers-only
  done
  echo "--vram 50 % of the model, a longer prompt"
  measure --gpu "$gpu" --vram "$((megabytes / 2))M" -p 2048 -n 0 -r 1
}

stage 'unpack' unpack && stage 'build' build || exit 1
stage 'tests' build/tests/gpu/cuda/cuda_test
stage 'compute-sanitizer' sanitize
build/bench/gpu/gpu_kernels
stage 'synthetic 7B, ReLU, 90 % silent' build/thermocline synth --shape 7b --vocabulary vocabulary.gguf \
  --activation relu --sparsity 0.9 --heat sorted model.gguf &&
  stage 'which neurons fire' heat && table
printf 'stages failed: %d\n' "${#failed[@]}"
((${#failed[@]} == 0))
