#!/usr/bin/env bash
# Start a real SLURM cluster on this machine: two nodes with 8 pretended A100s each, accounting, mail, a network without internet.
#
#     tests/slurm/start.sh [--folder DIR] [--port N]     then: . DIR/env.sh; sinfo
#     tests/slurm/stop.sh  [--folder DIR] [--purge]
#
# Everything that it writes lies in DIR (default /tmp/nanochat-slurm); nothing in /etc, no service of the system. Started
# again it mends what does not run and leaves the rest alone. All daemons live in a network namespace with nothing but a
# loopback device, so jobs cannot reach the internet; the commands in DIR/bin enter it. Where namespaces are not allowed the
# daemons use this machine's loopback (ports N .. N+60), and DIR/network says "shared" instead of "own".
# Exit code 77: this machine cannot have a cluster, with the reason.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
folder=/tmp/nanochat-slurm
port=17000
while [ $# -gt 0 ]; do
    case $1 in
    --folder) folder=$2 ;;
    --port) port=$2 ;;
    *) echo "start.sh: unknown option $1" >&2; exit 2 ;;
    esac
    shift 2
done
source "$here/daemons.sh"
source "$here/configure.sh"

if [ "$(id -u)" != 0 ]; then
    echo "tests/slurm: a cluster on one machine needs root" >&2
    exit 77
fi
for program in slurmctld slurmd sbatch slurmdbd munged mariadbd ip /usr/share/modules/init/sh; do
    command -v "$program" >/dev/null || [ -e "$program" ] || { echo "tests/slurm: $program is not installed; tests/slurm/install.sh does it" >&2; exit 77; }
done

umask 022
mkdir -p "$folder"/{etc,run,log,state,spool/a100-01,spool/a100-02,gpus,bin,database}
exec {turn}>"$folder/start.lock"
flock "$turn" # two that start the same cluster take turns

make_network
write_configuration
export SLURM_CONF=$folder/etc/slurm.conf

# The order matters: everybody authenticates by munge, slurmctld wants its cluster, accounts and limits registered.
is_alive munged || start munged --force --num-threads=10 --key-file="$folder/etc/munge.key" --socket="$folder/run/munge.sock" \
    --pid-file="$folder/run/munged.pid" --log-file="$folder/log/munged.log" --seed-file="$folder/run/munged.seed"
start_database
is_alive slurmdbd || start slurmdbd
wait_for 30 "slurmdbd answers" timeout 5 "$folder/bin/sacctmgr" --noheader list cluster
register_account
is_alive slurmctld || start slurmctld
wait_for 30 "slurmctld answers" "$folder/bin/scontrol" ping
register_limits
for node in a100-01 a100-02; do
    is_alive slurmd "$node" || start slurmd -N "$node"
done
nodes_are_up() { [ "$("$folder/bin/sinfo" --noheader --Node --partition=gpu-a100 --states=idle,mixed,allocated --format=%N | sort -u | wc -l)" = 2 ]; }
wait_for 60 "both nodes are up" nodes_are_up
echo "ready: . $folder/env.sh" >&2
