# Sourced by start.sh and stop.sh: daemons by their pid files, and the network that they live in. Needs $folder.

# pid_file DAEMON [NODE]
pid_file() { echo "$folder/run/$1${2:+.$2}.pid"; }

# pid_of DAEMON [NODE]: its process, if that runs and is that program; a zombie does not run.
pid_of() {
    local pid
    pid=$(cat "$(pid_file "$@")" 2>/dev/null) && [ -n "$pid" ] || return 1
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ] || return 1
    grep -q '^State:.[RSDTt]' "/proc/$pid/status" 2>/dev/null || return 1
    echo "$pid"
}

is_alive() { pid_of "$@" >/dev/null; }

# start PROGRAM ARGUMENTS: a program that makes itself a daemon, inside the cluster's network.
start() {
    echo "starting $*" >>"$folder/log/start.log"
    inside "$@" >>"$folder/log/start.log" 2>&1 {turn}>&- </dev/null || { tail -n 20 "$folder/log/start.log" >&2; return 1; }
}

# stop DAEMON [NODE]: ask, wait, kill.
stop() {
    local pid
    if pid=$(pid_of "$@"); then
        kill "$pid"
        is_gone() { ! is_alive "$@"; }
        wait_for 15 "$1 has ended" is_gone "$@" || kill -9 "$pid"
    fi
    rm -f "$(pid_file "$@")"
}

# wait_for SECONDS WHAT COMMAND: until the command succeeds.
wait_for() {
    local seconds=$1 what=$2 end=$((SECONDS + $1))
    shift 2
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $end ]; then
            echo "tests/slurm: waited $seconds s in vain until $what; see $folder/log" >&2
            return 1
        fi
        sleep 0.1
    done
}

# kill_leftovers: shepherds of jobs and their processes outlive a slurmd that was killed; all know the folder by SLURM_CONF.
kill_leftovers() {
    local environment pid
    for environment in /proc/[0-9]*/environ; do
        pid=${environment//[!0-9]/}
        if [ "$pid" != $$ ] && [ "$pid" != "${BASHPID:-0}" ] && grep -qzFx "SLURM_CONF=$folder/etc/slurm.conf" "$environment" 2>/dev/null; then
            [ "$(tr -d '\0' <"/proc/$pid/comm" 2>/dev/null)" = slurmstepd ] || grep -qz '^SLURM_JOB_ID=' "$environment" 2>/dev/null || continue
            kill -9 "$pid" 2>/dev/null || true
        fi
    done
}

# --- network -----------------------------------------------------------------------------------------------------------

# make_network: a namespace with a loopback device only, kept by a mount on $folder/run/network. The second address (of those
# that documentation may use) is for the C library, which resolves no name at all, not even 127.0.0.1, without one outside 127.
make_network() {
    mountpoint -q "$folder/run/network" && return
    : >"$folder/run/network"
    if unshare --net="$folder/run/network" sh -c 'ip link set lo up && ip address add 192.0.2.1/32 dev lo' 2>>"$folder/log/start.log"; then
        echo own >"$folder/network"
    else
        rm -f "$folder/run/network"
        echo shared >"$folder/network"
    fi
}

remove_network() {
    if mountpoint -q "$folder/run/network"; then
        umount "$folder/run/network"
    fi
    rm -f "$folder/run/network" "$folder/network"
}

# inside COMMAND: run it in the cluster's network.
inside() {
    if mountpoint -q "$folder/run/network"; then
        nsenter --net="$folder/run/network" "$@"
    else
        "$@"
    fi
}
