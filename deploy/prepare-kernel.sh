#!/usr/bin/env bash
# Gets what the kernel tests need (Debian, amd64): an emulator from apt, and Debian's stock kernel, unpacked
# into a cache outside the checkout and never installed. Prints the directory. Does nothing twice.
# Needs root only where a package is missing.
set -euo pipefail
CACHE=${OVERSWARM_KERNEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/overswarm/kernel}

say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

[ "$(uname -m)" = x86_64 ] || die "the kernel tests emulate an x86_64 machine; this one is $(uname -m)"
if [ -e "$CACHE/ready" ] && command -v qemu-system-x86_64 busybox >/dev/null; then
  echo "$CACHE"
  exit
fi
command -v apt-get >/dev/null || die "the kernel tests need Debian's packages, and there is no apt-get"

missing=()
command -v qemu-system-x86_64 >/dev/null || missing+=(qemu-system-x86)
command -v busybox >/dev/null || missing+=(busybox-static)
command -v depmod >/dev/null || [ -x /sbin/depmod ] || missing+=(kmod)
[ "$(id -u)" != 0 ] || apt-get update -qq >&2
if [ ${#missing[@]} -gt 0 ]; then
  [ "$(id -u)" = 0 ] || die "missing: ${missing[*]}; run as root, or: apt-get install ${missing[*]}"
  say "installing ${missing[*]}"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

package=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image-/ {print $2; exit}')
[ -n "$package" ] || die "apt knows no linux-image-amd64"
say "unpacking $package into $CACHE"
rm -rf "$CACHE"
mkdir -p "$CACHE/package" "$CACHE/root"
(cd "$CACHE/package" && apt-get download -qq -o APT::Sandbox::User=root "$package" >&2)
dpkg -x "$CACHE"/package/*.deb "$CACHE/root"
rm -rf "$CACHE/package"
version=${package#linux-image-}
PATH=$PATH:/sbin:/usr/sbin depmod -b "$CACHE/root" "$version"
echo "$version" >"$CACHE/ready"
echo "$CACHE"
