#!/usr/bin/env bash
# Exports the model of a run and proves it: scripts/export.sh RUN [options of `trainer export`]
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
extras=()
for argument; do
  case $argument in
    *litert*) extras+=(litert) ;;
    *onnx*) extras+=(onnx) ;;
  esac
done
setup_env "${extras[@]}"
exec "$VENV/bin/trainer" export "$@"
