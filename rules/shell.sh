# Sourced by every rule's shell command, with the folder of the running python as its argument.
set -euo pipefail
PATH="$1:$PATH" # the `nanochat` that belongs to the running snakemake, activated or not

# Copy standard input to the log of this attempt, to the history of all attempts (undeclared: snakemake deletes `log:` files
# before each attempt) and to the screen, where the log's name is its heading. Deaf to signals: a stage that is told to stop
# goes on writing while it saves its state.
keep_log() {
    trap '' HUP INT TERM USR1
    printf -- '--- %s\n' "${1%.log}" >&2
    tee -a "$1" "${1%.log}.history" >&2
}

# ranks GPUS: how many processes train together; one on a machine without GPUs.
ranks() { echo $(($1 > 1 ? $1 : 1)); }

# device GPUS: a job that was given GPUs must find them; falling back to the CPU would waste a node for hours.
device() { if [ "$1" -gt 0 ]; then echo cuda; else echo auto; fi; }

# threads_per_rank THREADS GPUS: a rank's share of the job's threads, at least one.
threads_per_rank() { echo $(($1 / $(ranks "$2") > 1 ? $1 / $(ranks "$2") : 1)); }

# seconds_to_train MINUTES: the time that a job has, less five percent to save its state and end in order.
seconds_to_train() { echo $(($1 * 57)); }
