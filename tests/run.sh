#!/usr/bin/env bash
# Run pytest with the files of its tests in memory, where there is room: trainings save their state every second, and would wait for the disk.
#
#     tests/run.sh [flags of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."

memory=/dev/shm room=0
[ ! -d $memory ] || room=$(df -Pk $memory | awk 'NR == 2 {print $4}')
if [ "$room" -gt 4000000 ] && scratch=$(mktemp -d $memory/nanochat-tests.XXXXXX); then
    trap 'rm -rf "$scratch"' EXIT
    printf '#!/bin/sh\n' >"$scratch/program"
    chmod +x "$scratch/program"
    if "$scratch/program" 2>/dev/null; then # containers may forbid programs there, and some tests make some
        export PYTEST_DEBUG_TEMPROOT=$scratch
    fi
fi
.venv/bin/python -m pytest "$@"
