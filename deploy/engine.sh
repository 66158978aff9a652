#!/usr/bin/env bash
# Installs what a stock Docker engine needs (Debian, Ubuntu), for the demo and the tests with real engines.
# Does nothing when it is there; fails with one clear line when it cannot be had. No engine is started.
set -euo pipefail

die() { printf 'error: %s\n' "$*" >&2; exit 1; }

missing=()
for program in dockerd containerd runc docker; do
  command -v "$program" >/dev/null || { missing+=(docker.io); break; }
done
command -v iptables >/dev/null || missing+=(iptables)
# The image for the engine's containers is made of this one program, without the libraries of a dynamic one.
if [ ! -x /bin/busybox ] || ldd /bin/busybox >/dev/null 2>&1; then missing+=(busybox-static); fi
[ ${#missing[@]} -gt 0 ] || exit 0

[ "$(id -u)" = 0 ] || die "a real Docker engine needs ${missing[*]}; run as root, or: apt-get install ${missing[*]}"
command -v apt-get >/dev/null || die "a real Docker engine needs ${missing[*]}; install them with this system's package manager"
printf '==> installing %s\n' "${missing[*]}"
export DEBIAN_FRONTEND=noninteractive

# The package starts an engine for the whole machine, which nobody asked for.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
{ apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; } \
  || die "cannot install ${missing[*]}: no Docker engine on this machine"
