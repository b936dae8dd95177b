#!/usr/bin/env bash
# Checks style and types and runs the tests: scripts/test.sh
# Runs some of the tests only:               scripts/test.sh PYTEST_ARGUMENTS...
#
# Paths start at the repository. The first step that fails gives the exit code.
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env dev litert onnx report search tensorboard
cd -- "$REPO"

# The tests of pages open them in a browser; without one they are skipped, and say so.
get_browser() {
  local name log=$VENV/chromium.log
  for name in chromium chromium-browser google-chrome; do
    if command -v "$name" > /dev/null; then return; fi
  done
  command -v apt-get > /dev/null && [[ $(id -u) == 0 ]] || return 0
  say "installing chromium for the tests of pages (log: $log)"
  {
    apt-get --option Acquire::Retries=0 update &&
      apt-get install --yes --no-install-recommends chromium
  } > "$log" 2>&1 < /dev/null || say "chromium could not be installed: those tests are skipped"
}

step() {
  printf '\n== %s\n' "$*"
  "$VENV/bin/python" -m "$@"
}

if (($# == 0)); then
  get_browser
  step ruff check
  step ruff format --check
  step mypy
fi
step pytest "$@"
