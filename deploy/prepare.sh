#!/usr/bin/env bash
# Makes this checkout runnable: system packages (Debian, Ubuntu), a virtual environment, the stubs.
# Says what it does; does nothing twice. Needs root only where a package is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}

say() { printf '==> %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

[ "$(uname -s)" = Linux ] || die "Overswarm runs on Linux only"
command -v "$PYTHON" >/dev/null || die "no $PYTHON found: install Python 3.11 or newer"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || die "Python 3.11 or newer is needed, $PYTHON is $("$PYTHON" -V 2>&1 | cut -d' ' -f2); set PYTHON=/path/to/python3.11"

missing=()
{ ldconfig -p || true; } | grep -q 'libnftables\.so\.1' || missing+=(libnftables1)
command -v ip >/dev/null || missing+=(iproute2)
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null || die "missing: ${missing[*]}; install them with this system's package manager"
  [ "$(id -u)" = 0 ] || die "missing: ${missing[*]}; run as root, or: apt-get install ${missing[*]}"
  say "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

[ -x "$VENV/bin/python" ] || { say "making the virtual environment $VENV"; "$PYTHON" -m venv "$VENV"; }
say "installing Overswarm and its libraries into $VENV"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
