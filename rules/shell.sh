# Sourced by every rule's shell command, with the folder of the running python as its argument.
set -euo pipefail
PATH="$1:$PATH" # the `nanochat` that belongs to the running snakemake, activated or not

# Only fetch uses the internet, which compute nodes do not have; what tries to all the same fails at once. The rule of fetch
# puts back what the user had set.
hub_offline=${HF_HUB_OFFLINE:-}
export HF_HUB_OFFLINE=1

# Copy standard input to the log of this attempt, to the history of all attempts (undeclared: snakemake deletes `log:` files
# before each attempt) and to the screen, where the log's name is its heading. Deaf to signals: a stage that is told to stop
# goes on writing while it saves its state.
keep_log() {
    trap '' HUP INT TERM USR1
    printf -- '--- %s\n' "${1%.log}" >&2
    tee -a "$1" "${1%.log}.history" >&2
}

# ranks GPUS: how many processes train together on a node with so many GPUs; one on a machine without.
ranks() { echo $(($1 > 1 ? $1 : 1)); }

# device GPUS DEVICE: `auto` means that a job that was given GPUs must find them; falling back to the CPU would waste a node for hours.
device() { if [ "$2" != auto ]; then echo "$2"; elif [ "$1" -gt 0 ]; then echo cuda; else echo auto; fi; }

# threads_per_rank THREADS GPUS: a rank's share of the job's threads, at least one.
threads_per_rank() { echo $(($1 / $(ranks "$2") > 1 ? $1 / $(ranks "$2") : 1)); }

# on_nodes NODES GPUS COMMAND...: run a stage here or, in a SLURM job of several nodes, once on each of them with so many GPUs, telling it which
# one it is and how to reach the first. Inside a rule SLURM's own variables are missing but for the job's number; some would mislead srun.
on_nodes() {
    local nodes=$1 names first address variable
    local -a clean=(env) gpus=()
    [ "$2" -eq 0 ] || gpus=("--gres=gpu:$2")
    shift 2
    [ "$nodes" -gt 1 ] || exec "$@" # in the place of this process of the pipeline, so that a signal to it reaches the stage
    names=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%N) # a100-[01-02]
    first=$(scontrol show hostnames "$names" | sed -n 1p)
    address=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p') # what SLURM itself connects to
    for variable in $(compgen -e SLURM_); do
        case $variable in SLURM_JOB_ID | SLURM_CONF) ;; *) clean+=("--unset=$variable") ;; esac
    done
    exec "${clean[@]}" srun --jobid="$SLURM_JOB_ID" --overlap --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 "${gpus[@]}" --mem=0 \
        --cpu-bind=none --kill-on-bad-exit=0 --wait=0 bash -c 'exec "$@" --node-rank "$SLURM_PROCID"' bash "$@" --nodes "$nodes" \
        --rendezvous "$address:$((20000 + SLURM_JOB_ID % 20000))" </dev/null
}

# seconds_to_train MINUTES: the time that a job has left, less five percent of the whole (at least 20 seconds) to load the program,
# save the state and end in order. In a SLURM job its clock decides where that leaves less: it has run since the job began.
seconds_to_train() {
    local left=$(($1 * 60)) reserve=$(($1 * 3 > 20 ? $1 * 3 : 20)) clock
    if [ -n "${SLURM_JOB_ID:-}" ]; then
        clock=$(timeout 60 squeue --noheader --jobs="$SLURM_JOB_ID" --format=%L) || clock="no answer"
        if clock=$(in_seconds "$clock"); then
            left=$((clock < left ? clock : left))
        else
            echo "squeue does not say how much time job $SLURM_JOB_ID has left ($clock); its runtime of $1 minutes is counted from now" >&2
        fi
    fi
    echo $((left - reserve > 1 ? left - reserve : 1))
}

# in_seconds TIME: days-hours:minutes:seconds as SLURM writes it, leading parts left out; what is not a time comes back with exit code 1.
in_seconds() {
    if [ "$1" = UNLIMITED ]; then
        echo 999999999
    elif [[ $1 =~ ^((([0-9]+)-)?([0-9]+):)?([0-9]+):([0-9]+)$ ]]; then
        echo $((10#0${BASH_REMATCH[3]} * 86400 + 10#0${BASH_REMATCH[4]} * 3600 + 10#${BASH_REMATCH[5]} * 60 + 10#${BASH_REMATCH[6]}))
    else
        echo "$1"
        return 1
    fi
}
