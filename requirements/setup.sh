#!/usr/bin/env bash
# Makes .venv from requirements/cpu.lock with nothing but Python, and says what is missing before it downloads anything.
#
#   requirements/setup.sh            (or `make setup`)
#
# PYTHON  the interpreter to use; else python3.11, python3.12 or python3, the first that is 3.11 or 3.12.
# VENV    where the environment goes, .venv by default.
# pip's own configuration (pip.conf, PIP_INDEX_URL, PIP_FIND_LINKS, PIP_CERT, ...) holds throughout.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
LOCK=requirements/cpu.lock
TORCH_INDEX=https://download.pytorch.org/whl/cpu
STAMP=$VENV/.supertiny-setup    # what was installed; written last
UNFINISHED=$VENV/.supertiny-unfinished

say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: error: %s\n' "$1" >&2; shift; (($# == 0)) || printf '  %s\n' "$@" >&2; exit 1; }
python_version() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || true; }

# Sets python_path and version. Shims of version managers answer to a name without having it, so each candidate is run.
find_python() {
  local candidate seen=()
  for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
    version=$(python_version "$candidate")
    case $version in
      3.11.* | 3.12.*) python_path=$candidate; return ;;
      '') seen+=("$candidate: not found") ;;
      *) seen+=("$candidate: Python $version") ;;
    esac
  done
  die 'Python 3.11 is needed (3.12 also works where PyTorch has a wheel for it). Looked for:' "${seen[@]}" \
    'Install Python 3.11 with its venv module, or name one: make setup PYTHON=/path/to/python3.11'
}

check_machine() {
  [[ "$(uname -s) $(uname -m)" == 'Linux x86_64' ]] || die "this is $(uname -s) on $(uname -m); the locked environment is for Linux on x86-64"
  "$python_path" -c 'import venv, ensurepip' 2>/dev/null || die "$python_path has no venv module; on Debian and Ubuntu: apt-get install python${version%.*}-venv"
}

setup_key() { { cat "$LOCK" pyproject.toml "$0"; echo "$version $PWD"; } | sha256sum | cut -d' ' -f1; }

pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }

make_venv() {
  if [[ -e $UNFINISHED || (-e $STAMP && $("$VENV/bin/python" -c 'import sys; print(sys.version.split()[0])' 2>/dev/null) != "$version") ]]; then
    say "$VENV was left unfinished, or is of another Python; making it again"
    rm -rf "$VENV"
  elif [[ -e $VENV && ! -e $STAMP ]]; then
    die "$VENV exists and was not made by this command; remove it, or name another: make setup VENV=.venv-cpu"
  fi
  mkdir -p "$VENV"
  touch "$UNFINISHED"
  rm -f "$STAMP"
  [[ -x $VENV/bin/python ]] || "$python_path" -m venv "$VENV"
}

# True if pip, given these options, can see that version of torch. One look at an index page: nothing is downloaded.
torch_is_at() { pip index versions torch "$@" 2>&1 | grep -qE "(^Available versions: |, )${torch_version//+/\\+}(,|$)"; }

install_torch() {
  local pin torch_version python_tag
  pin=$(grep '^torch==' "$LOCK")
  torch_version=${pin#torch==}
  if torch_is_at --timeout 15 --retries 1; then
    pip install --quiet --no-deps "$pin"
  elif torch_is_at --index-url "$TORCH_INDEX" --timeout 15 --retries 0; then
    pip install --quiet --no-deps --index-url "$TORCH_INDEX" "$pin"
  else
    python_tag=cp${version%.*}
    die "no wheel of $pin for Python $version. Either" \
      "- let this machine reach $TORCH_INDEX, or" \
      "- put torch-$torch_version-${python_tag/./}-...-linux_x86_64.whl into a folder or page and set PIP_FIND_LINKS to it."
  fi
}

find_python
key=$(setup_key)
if [[ -e $STAMP && $(<"$STAMP") == "$key" ]]; then
  exit 0
fi
check_machine
say "making $VENV with Python $version from $LOCK; a few minutes the first time"
make_venv
install_torch
say "torch is there; installing the other $(grep -c '==' "$LOCK") packages"
pip install --quiet --no-deps --requirement <(grep -v '^torch==' "$LOCK")
pip install --quiet --no-deps --no-build-isolation --editable .
"$VENV/bin/python" requirements/check.py "$LOCK"
rm "$UNFINISHED"
echo "$key" >"$STAMP"
say "done in ${SECONDS} s"
