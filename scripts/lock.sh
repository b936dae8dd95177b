#!/usr/bin/env bash
# Pins the newest versions that setup.cfg allows: scripts/lock.sh (needs uv: pip install uv)
#
# The files add up: requirements.lock is the application, the others hold only what their
# extra adds. One version serves every Python, so that results compare.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

pin() {  # pin [uv options]: the closing list of packages left out is dropped
  uv pip compile setup.cfg "$@" --universal --python-version 3.11 \
    --fork-strategy fewest --generate-hashes --annotation-style line \
    --custom-compile-command scripts/lock.sh | sed '/^$/,$d'
}

without() {  # without FILE...: the options that leave out what these files pin
  sed -n 's/^\([^ #=]*\)==.*/--no-emit-package=\1/p' "$@"
}

pin > requirements.lock
for extra in dev gpu litert onnx report tensorboard; do
  # shellcheck disable=SC2046  # one option a word
  pin --extra "$extra" --constraints requirements.lock $(without requirements.lock) \
    > "requirements-$extra.lock"
done
# A search writes a page: its set comes on top of that of the pages.
# shellcheck disable=SC2046
pin --extra search --constraints requirements.lock --constraints requirements-report.lock \
  $(without requirements.lock requirements-report.lock) > requirements-search.lock
