#!/usr/bin/env bash
# Checks style and types and runs the tests: scripts/test.sh
# Runs some of the tests only:               scripts/test.sh PYTEST_ARGUMENTS...
#
# Paths start at the repository. The first step that fails gives the exit code.
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env dev litert onnx report search
cd -- "$REPO"

step() {
  printf '\n== %s\n' "$*"
  "$VENV/bin/python" -m "$@"
}

if (($# == 0)); then
  step ruff check
  step ruff format --check
  step mypy
fi
step pytest "$@"
