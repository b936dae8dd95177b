#!/usr/bin/env bash
# Trains the model of a config: scripts/train.sh CONFIG [options of `trainer train`]
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env
exec "$VENV/bin/trainer" train "$@"
