#!/usr/bin/env bash
# Searches for the values that train best: scripts/tune.sh CONFIG [options of `trainer tune`]
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env search
exec "$VENV/bin/trainer" tune "$@"
