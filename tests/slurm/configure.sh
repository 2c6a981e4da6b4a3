# Sourced by start.sh: the configuration files of the cluster, its commands, its database and its accounts. Needs $folder and $port.

# put FILE: standard input becomes the file at once, so that a program that reads it meanwhile sees the old or the new one.
put() { cat >"$1.new" && mv "$1.new" "$1"; }

put_program() { cat >"$1.new" && chmod +x "$1.new" && mv "$1.new" "$1"; }

write_configuration() {
    local index
    for index in 0 1 2 3 4 5 6 7; do # SLURM counts devices and sets CUDA_VISIBLE_DEVICES; nobody opens these, which are further /dev/null
        [ -c "$folder/gpus/nvidia$index" ] || mknod "$folder/gpus/nvidia$index" c 1 3
    done
    [ -s "$folder/etc/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom >"$folder/etc/munge.key")
    write_slurm_conf | put "$folder/etc/slurm.conf"
    put "$folder/etc/gres.conf" <<END
AutoDetect=off
NodeName=a100-[01-02] Name=gpu Type=a100 File=$folder/gpus/nvidia[0-7]
END
    put "$folder/etc/cgroup.conf" <<END
CgroupPlugin=cgroup/v1
CgroupAutomount=no
CgroupMountpoint=/sys/fs/cgroup
ConstrainCores=no
ConstrainDevices=no
ConstrainRAMSpace=no
END
    (umask 077 && put "$folder/etc/slurmdbd.conf") <<END
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge.sock
DbdHost=$(hostname -s)
DbdAddr=127.0.0.1
DbdPort=$((port + 50))
SlurmUser=root
LogFile=$folder/log/slurmdbd.log
PidFile=$(pid_file slurmdbd)
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((port + 60))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
END
    write_commands
}

# The way of tracking a job's processes that real clusters use, where it is allowed: with linuxproc a trainer whose parent died is lost.
process_tracking() {
    local probe=/sys/fs/cgroup/freezer/nanochat-probe-$$
    if [ -e /sys/fs/cgroup/freezer/cgroup.procs ] && mkdir $probe 2>/dev/null; then
        rmdir $probe
        echo cgroup
    else
        echo linuxproc
    fi
}

# Job numbers start at a place that follows from the folder: cgroups are named by them and are shared by all clusters of this machine.
first_job() { echo $((1000 * ($(echo "$folder" | cksum | cut -d' ' -f1) % 60000) + 1)); }

write_slurm_conf() {
    cat <<END
ClusterName=tests
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge.sock
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$(pid_file slurmctld)
SlurmdPidFile=$folder/run/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
ProctrackType=proctrack/$(process_tracking)
TaskPlugin=task/none
MpiDefault=none
# nodes that claim more than this machine has
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=60
SlurmctldTimeout=30
FirstJobId=$(first_job)
# jobs can be looked at long after their end
MinJobAge=3600
KillWait=5
# a job goes back to the queue only if it asked for that: the profile has to
JobRequeue=0
# a request that can never run is rejected instead of waiting for ever
EnforcePartLimits=ALL
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=5,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MailProg=$folder/bin/record-mail
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 50))
# of slurmdbd's clients; without it they look for munge at its usual place
AccountingStoragePass=$folder/run/munge.sock
AccountingStorageEnforce=associations,limits,qos
AccountingStorageTRES=gres/gpu,gres/gpu:a100
AccountingStoreFlags=job_comment
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
NodeName=DEFAULT CPUs=128 Sockets=2 CoresPerSocket=64 ThreadsPerCore=1 RealMemory=1000000 Gres=gpu:a100:8 Feature=a100
# jobs go to the first node while it has room
NodeName=a100-01 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((port + 1)) Weight=1
NodeName=a100-02 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((port + 2)) Weight=2
PartitionName=DEFAULT Nodes=a100-[01-02] DefaultTime=00:10:00 DefMemPerCPU=1000 State=UP
PartitionName=cpu Default=YES MaxTime=1-00:00:00 PriorityTier=2 PreemptMode=OFF
PartitionName=gpu-a100 MaxTime=12:00:00 PriorityTier=1 PreemptMode=REQUEUE
PartitionName=gpu-urgent MaxTime=12:00:00 PriorityTier=2 PreemptMode=OFF
END
}

# Commands that know this cluster and enter its network; snakemake's job step drops SLURM_CONF before it calls srun.
write_commands() {
    local command
    for command in srun salloc sbatch squeue scancel scontrol sinfo sacct sacctmgr sshare sprio sstat; do
        put_program "$folder/bin/$command" <<END
#!/bin/sh
export SLURM_CONF=$folder/etc/slurm.conf
network=$folder/run/network
if [ "\$(stat -f -c %T \$network 2>/dev/null)" = nsfs ] && [ "\$(stat -L -c %i \$network)" != "\$(stat -L -c %i /proc/self/ns/net)" ]; then
    exec nsenter --net=\$network /usr/bin/$command "\$@"
fi
exec /usr/bin/$command "\$@"
END
    done
    put_program "$folder/bin/record-mail" <<END
#!/bin/sh
# The cluster's mail program: every message goes to a file, one line of arguments each.
flock $folder/log/mail.lock sh -c 'echo "\$*" >>$folder/log/mail.log' mail "\$@"
END
    put "$folder/env.sh" <<END
export SLURM_CONF=$folder/etc/slurm.conf
case ":\$PATH:" in *":$folder/bin:"*) ;; *) export PATH=$folder/bin:\$PATH ;; esac
END
}

# --- database and accounts ---------------------------------------------------------------------------------------------

start_database() {
    is_alive mariadbd && return
    if [ ! -d "$folder/database/mysql" ]; then
        mariadb-install-db --no-defaults --user=root --datadir="$folder/database" --skip-test-db \
            --auth-root-authentication-method=normal >"$folder/log/mariadb-install.log" 2>&1
    fi
    inside setsid mariadbd --no-defaults --user=root --datadir="$folder/database" --socket="$folder/run/mariadb.sock" \
        --pid-file="$(pid_file mariadbd)" --bind-address=127.0.0.1 --port=$((port + 60)) --skip-name-resolve \
        --innodb-buffer-pool-size=64M --innodb-log-file-size=16M --innodb-flush-log-at-trx-commit=0 \
        --innodb-lock-wait-timeout=900 >"$folder/log/mariadb.log" 2>&1 {turn}>&- </dev/null &
    disown
    wait_for 60 "mariadbd answers" mariadb-admin --no-defaults --user=root --socket="$folder/run/mariadb.sock" ping
    mariadb --no-defaults --user=root --socket="$folder/run/mariadb.sock" --execute="
        CREATE DATABASE IF NOT EXISTS slurm_acct_db;
        CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';
        GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';"
}

register() {
    "$folder/bin/sacctmgr" --immediate "$@" >>"$folder/log/start.log" && return
    tail -n 5 "$folder/log/start.log" >&2
    return 1
}
is_registered() { [ -n "$("$folder/bin/sacctmgr" --noheader list "$@")" ]; }

register_account() {
    is_registered cluster tests || register add cluster tests
    is_registered account nanochat || register add account nanochat Description=tests Organization=tests
    is_registered association account=nanochat user="$(id -un)" || register add user "$(id -un)" Account=nanochat DefaultAccount=nanochat
}

# A second quality of service, which rejects what asks for more than two GPUs or two hours. Needs slurmctld, which makes GPUs known.
register_limits() {
    is_registered qos small && return
    register add qos small Flags=DenyOnLimit MaxTRESPerJob=gres/gpu=2 MaxWall=02:00:00
    register modify account nanochat set QOS=normal,small DefaultQOS=normal
}
