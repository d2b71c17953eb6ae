#!/usr/bin/env bash
# The proof of the set-up: in a minimal Debian 12 root, as root, a clean clone's `./run chat -p` installs what it needs,
# builds, fetches the default model and answers right; a second start then needs no network and is silent.
# Where no such root can be made (no privileges, no mmdebstrap) it says so and proves less: the same in a clean clone on
# this system. The last line of standard output says which of the two was proved.
set -euo pipefail

question='What is the capital of France?'
answer='The capital of France is Paris.'
repository=$(git -C "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" rev-parse --show-toplevel)

say() { printf 'bare_debian: %s\n' "$*" >&2; }

# Inside the namespaces: the mounts go with them, whatever happens. Arguments: ROOT, then what to run in it.
if [[ ${1-} == --inside ]]; then
  top=$2
  shift 2
  mount -t proc proc "$top/proc"
  mount --rbind /sys "$top/sys"
  mount --rbind /dev "$top/dev"
  exec chroot "$top" "$@"
fi

work=$(mktemp -d "${TMPDIR:-/var/tmp}/thermocline-bare-XXXXXX")
cleanup() {
  # shellcheck disable=SC2046
  kill $(jobs -p) 2>/dev/null && wait
  # Nothing is mounted here any more; --one-file-system is for the day that this is wrong.
  rm -rf --one-file-system -- "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# A signal ends this script while the command runs, not after it.
interruptible() {
  "$@" </dev/null &
  wait $!
}

# What this machine needs to reach its package sources, and no more of its environment.
environment=(HOME=/root TERM=dumb LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY PIP_INDEX_URL PIP_EXTRA_INDEX_URL \
            PIP_TRUSTED_HOST PIP_DEFAULT_TIMEOUT; do
  if [[ ${!name-} ]]; then environment+=("$name=${!name}"); fi
done

make_root() {
  local sources=() options=$work/apt.conf certificate
  # A Debian 12 host's own sources: they may be a mirror.
  if grep -qs 'VERSION_CODENAME=bookworm' /etc/os-release; then
    mapfile -t sources < <(compgen -G '/etc/apt/sources.list.d/debian*.sources')
    if [[ -s /etc/apt/sources.list ]]; then sources+=(/etc/apt/sources.list); fi
  fi
  apt-config dump | grep -E '^Acquire::(http|https|Check|Retries)' | grep -v '""' >"$options" || true
  interruptible mmdebstrap --quiet --variant=minbase --aptopt="$options" --dpkgopt='force-unsafe-io' bookworm "$work/root" \
    "${sources[@]}" || return 1
  cp -L /etc/resolv.conf /etc/hosts "$work/root/etc/"
  if [[ -e /etc/pip.conf ]]; then cp /etc/pip.conf "$work/root/etc/"; fi
  certificate=${PIP_CERT:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}
  if [[ -e $certificate ]]; then
    # Under a name of its own: installing ca-certificates rewrites the usual one.
    cp "$certificate" "$work/root/etc/host-certificates.crt"
    environment+=(PIP_CERT=/etc/host-certificates.crt)
  fi
}

# in_root [UNSHARE-FLAGS] COMMAND...
in_root() {
  local flags=()
  while [[ $1 == -* ]]; do
    flags+=("$1")
    shift
  done
  interruptible env -i "${environment[@]}" unshare --mount --pid --fork --kill-child "${flags[@]}" \
    bash "${BASH_SOURCE[0]}" --inside "$work/root" "$@"
}

# check_answer COMMAND...: what it prints on standard output must be the answer.
check_answer() {
  if ! "$@" >"$work/answer"; then
    say "failed: $*"
    exit 1
  fi
  if [[ $(<"$work/answer") != "$answer" ]]; then
    say "the answer to '$question' was '$(<"$work/answer")' instead of '$answer'"
    exit 1
  fi
}

if ((EUID == 0)) && command -v mmdebstrap >/dev/null && unshare --mount --pid --fork true 2>/dev/null; then
  begin=$SECONDS
  make_root || { say 'mmdebstrap failed'; exit 1; }
  say "a minimal Debian 12 root after $((SECONDS - begin)) s"
  git clone -q --no-local -- "$repository" "$work/root/root/thermocline"
  chat=(/root/thermocline/run chat -p "$question" --temp 0)
  check_answer in_root "${chat[@]}"
  say "answered after $((SECONDS - begin)) s"
  begin=${EPOCHREALTIME/./}
  check_answer in_root --net "${chat[@]}" 2>"$work/second"
  say "answered again without a network after $(((${EPOCHREALTIME/./} - begin) / 1000)) ms"
  if grep '^run:' "$work/second"; then
    say 'the second start was not silent'
    exit 1
  fi
  echo 'bare_debian: proved in a minimal Debian 12 root'
else
  say '****************************************************************************************'
  say '* NOT PROVED on a bare Debian: that needs root, mount namespaces and mmdebstrap.       *'
  say '* A clean clone on this system follows instead; missing packages would go unnoticed.   *'
  say '****************************************************************************************'
  git clone -q --no-local -- "$repository" "$work/thermocline"
  check_answer interruptible env XDG_CACHE_HOME="$work/cache" "$work/thermocline/run" chat -p "$question" --temp 0
  echo 'bare_debian: SKIPPED the bare root (no privileges); proved in a clean clone only'
fi
