#!/usr/bin/env bash
# Makes .venv from requirements/cpu.lock with nothing but Python, and says what is missing before it downloads anything.
#
#   requirements/setup.sh            (or `make setup`)
#
# PYTHON       the interpreter to use; else python3.11, python3.12 or python3, the first that is 3.11 or 3.12.
# VENV         where the environment goes, .venv by default.
# TORCH_INDEX  PyTorch's index of CPU wheels, or a mirror of it; asked only where pip's own configuration has no such wheel.
# pip's own configuration (pip.conf, PIP_INDEX_URL, PIP_FIND_LINKS, PIP_CERT, ...) holds throughout.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
LOCK=requirements/cpu.lock
TORCH_INDEX=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
UNFINISHED=$VENV/.supertiny-unfinished # there while packages are being installed
LOCKED=$VENV/.supertiny-locked         # which lock, Python and folder the packages are for; written when all are there
READY=$VENV/.supertiny-ready           # which pyproject.toml supertiny itself was installed with

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
  printf 'setup: error: %s\n' "$1" >&2
  printf '  %s\n' "${@:2}" >&2
  exit 1
}
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }
hash_of() { sha256sum | cut -d' ' -f1; }
holds() { [[ -e $1 && $(<"$1") == "$2" ]]; }

# Sets python and version. A version manager's shim has a name without having the Python, so each candidate is run.
find_python() {
  local seen=()
  for python in ${PYTHON:-python3.11 python3.12 python3}; do
    version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || true)
    case $version in
      3.11.* | 3.12.*) return ;;
      '') seen+=("$python: not there") ;;
      *) seen+=("$python: Python $version") ;;
    esac
  done
  die 'Python 3.11 is needed (3.12 also works where torch has a wheel for it). Looked for' "${seen[@]}" \
    'Install Python 3.11 with its venv module, or name one: make setup PYTHON=/path/to/python3.11'
}

check_machine() {
  [[ $(uname -sm) == 'Linux x86_64' ]] || die "this is $(uname -sm); the locked environment is for Linux on x86-64"
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    die "$python has no venv module; on Debian and Ubuntu: apt-get install python${version%.*}-venv"
  [[ ! -e $VENV || -e $UNFINISHED || -e $LOCKED ]] ||
    die "$VENV was not made by this command; remove it, or choose another name: make setup VENV=.venv-cpu"
}

# Packages from scratch: an old environment, or one that was interrupted, is not worth trusting.
install_locked() {
  say "making $VENV from $LOCK with Python $version; this takes a few minutes"
  mkdir -p "$VENV"
  touch "$UNFINISHED"
  find "$VENV" -mindepth 1 ! -path "$UNFINISHED" -delete
  "$python" -m venv "$VENV"
  install_torch
  say "torch is there; now the other $(($(grep -c == "$LOCK") - 1)) packages"
  install --requirement <(grep -v '^torch==' "$LOCK")
  "$VENV/bin/python" requirements/check.py "$LOCK"
  echo "$1" >"$LOCKED"
  rm "$UNFINISHED"
}

# Modules are compiled when they are first imported: compiling all of them here would take longer than installing them.
install() { pip install -qq --no-deps --no-compile "$@"; }

# From where pip is configured to look, else from PyTorch's own index. One page of each is looked at before anything is fetched.
install_torch() {
  local pin ours theirs
  pin=$(grep '^torch==' "$LOCK")
  if ours=$(offers "$pin" --retries 1); then
    install "$pin"
  elif theirs=$(offers "$pin" --retries 0 --index-url "$TORCH_INDEX"); then
    install --index-url "$TORCH_INDEX" "$pin"
  else
    die "no wheel of $pin for Python $version. Either" \
      "- let this machine reach $TORCH_INDEX; pip said of it: $theirs" \
      "- or put the wheel into a folder and name that in PIP_FIND_LINKS; pip said as it is configured now: $ours"
  fi
}

# Whether pip sees that exact version; prints the end of what pip said if not.
offers() {
  local said
  said=$(pip index versions "${1%%==*}" --timeout 15 "${@:2}" 2>&1 || true)
  if ! grep '^Available versions: ' <<<"$said" | tr -s ', :' '\n' | grep -qxF "${1##*==}"; then
    tail -n 1 <<<"$said" | cut -c1-200
    return 1
  fi
}

find_python
locked_key="$version $PWD $(hash_of <"$LOCK")"
if ! holds "$LOCKED" "$locked_key" || [[ -e $UNFINISHED ]]; then
  check_machine
  install_locked "$locked_key"
fi
ready_key=$(cat pyproject.toml "$LOCKED" | hash_of)
if ! holds "$READY" "$ready_key"; then
  install --no-build-isolation --editable .
  echo "$ready_key" >"$READY"
fi
say "$VENV is ready ($SECONDS s)"
