#!/usr/bin/env bash
# The one place that knows how the Python environment is made: scripts/setup_env.sh [EXTRA...]
# Other scripts source it, call `setup_env [EXTRA...]` and find the programs in "$VENV/bin".
#
# TRAINER_VENV  where the environment lives (default: .venv in the repository)
# TRAINER_GPU   1 with the CUDA libraries, 0 without (default: with them where nvidia-smi answers)
# PYTHON        the Python that a new environment is made with (default: the newest that fits)
#
# Each lock file is a set. A set's stamp in the environment is empty while pip works and then
# holds a checksum of all that the set was made from, so that an old set is brought up to date
# and a half-made one is made again. Every failure here has exit code 2.
set -euo pipefail

REPO=$(CDPATH='' cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${TRAINER_VENV:-$REPO/.venv}
[[ $VENV == /* ]] || VENV=$PWD/$VENV

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$@"; exit 2; }

# setup_env [EXTRA...]: the application and the extras are installed when this returns.
setup_env() {
  local name names=requirements
  if wants_gpu; then names+=" requirements-gpu"; fi
  for name in "$@"; do
    # A search writes a page, too.
    if [[ $name == search ]]; then names+=" requirements-report"; fi
    names+=" requirements-$name"
  done
  for name in $names; do
    is_current "$name" && continue
    mkdir -p -- "$VENV" || fail "cannot create $VENV. Set TRAINER_VENV to a folder you may write to."
    (
      wait_for_turn
      is_current "$name" || install "$name"
    ) 9< "$VENV" # the folder is the lock: no file to leave behind, and it ends with the subshell
  done
}

wants_gpu() {
  case ${TRAINER_GPU:-auto} in
    0) return 1 ;;
    1) return 0 ;;
    auto) [[ -f $VENV/requirements-gpu.stamp ]] || nvidia-smi > /dev/null 2>&1 ;;
    *) fail "TRAINER_GPU must be 0 or 1. Received: TRAINER_GPU=$TRAINER_GPU" ;;
  esac
}

is_current() {
  [[ -x $VENV/bin/python && -s $VENV/$1.stamp && $(< "$VENV/$1.stamp") == "$(fingerprint "$1")" ]]
}

fingerprint() {
  {
    cat "$REPO/$1.lock" "$REPO/setup.cfg" "$REPO/pyproject.toml"
    echo "$REPO $(readlink -f "$VENV/bin/python")"
  } | cksum
}

wait_for_turn() {
  command -v flock > /dev/null || return 0 # macOS has none
  flock --nonblock 9 && return
  say "waiting for another set-up of $VENV"
  flock 9
}

install() {
  local stamp=$VENV/$1.stamp log=$VENV/install.log repair=""
  has_pip || "$VENV/bin/python" -m ensurepip > /dev/null 2>&1 || make_venv
  # Killed half-way, pip leaves packages that it takes for whole the next time.
  if [[ -f $stamp && ! -s $stamp ]]; then repair=--force-reinstall; fi
  : > "$stamp"
  say "installing $1.lock into $VENV (a minute or several; log: $log)"
  if pip_install ${repair:+"$repair"} --requirement "$REPO/$1.lock" &&
    { [[ $1 != requirements ]] || pip_install --no-build-isolation --editable "$REPO"; } &&
    fingerprint "$1" > "$stamp"; then
    return
  fi
  tail -n 20 "$log" >&2
  fail "installing $1.lock failed; the last lines of $log stand above." \
    "Check the network (proxy: HTTPS_PROXY, mirror: pip config) and the free disk space" \
    "($(df -Ph "$VENV" | awk 'END { print $4 }') left; 3 GB are needed, 8 GB with a GPU), then run this again."
}

has_pip() { "$VENV/bin/python" -m pip --version > /dev/null 2>&1; }

pip_install() {
  PIP_USER=0 "$VENV/bin/python" -m pip install --no-deps --no-input --disable-pip-version-check \
    "$@" < /dev/null >> "$log" 2>&1
}

make_venv() {
  [[ -f $VENV/pyvenv.cfg || -z $(ls -A "$VENV") ]] ||
    fail "TRAINER_VENV must name a virtual environment or a new folder. Received: TRAINER_VENV=$VENV"
  local python
  python=$(find_python)
  "$python" -m venv --clear "$VENV" >&2 || fail "$python could not make the environment $VENV."
}

find_python() {
  local candidate
  set -- python3.13 python3.12 python3.11 python3
  if [[ -n ${PYTHON:-} ]]; then set -- "$PYTHON"; fi
  for candidate; do
    "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
      2> /dev/null || continue
    "$candidate" -c 'import ensurepip, venv' 2> /dev/null ||
      fail "$candidate has no venv module. On Debian and Ubuntu: apt install python3-venv"
    echo "$candidate"
    return
  done
  fail "Python 3.11, 3.12 or 3.13 is needed and none was found. Looked for: $*." \
    "Install one, or set PYTHON to its path."
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then setup_env "$@"; fi
