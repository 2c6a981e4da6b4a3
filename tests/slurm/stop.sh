#!/usr/bin/env bash
# Stop what start.sh started: jobs, daemons, network. --purge deletes the folder too.
#
#     tests/slurm/stop.sh [--folder DIR] [--purge]
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
folder=/tmp/nanochat-slurm
purge=no
while [ $# -gt 0 ]; do
    case $1 in
    --folder) folder=$2; shift ;;
    --purge) purge=yes ;;
    *) echo "stop.sh: unknown option $1" >&2; exit 2 ;;
    esac
    shift
done
source "$here/daemons.sh"
[ -d "$folder" ] || exit 0

if is_alive slurmctld; then
    timeout 20 "$folder/bin/scancel" --user="$(id -un)" || true
    no_job_is_left() { [ -z "$(timeout 5 "$folder/bin/squeue" --noheader --states=running,completing)" ]; }
    wait_for 10 "all jobs have ended" no_job_is_left || true
fi
stop slurmd a100-01
stop slurmd a100-02
for daemon in slurmctld slurmdbd mariadbd munged; do
    stop "$daemon"
done
kill_leftovers
remove_network
if [ "$purge" = yes ]; then
    rm -rf "$folder"
fi
