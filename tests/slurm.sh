#!/usr/bin/env bash
# A Slurm of one node on this machine, for tests/test_slurm.py: installs it where it is missing, and starts it.
# Needs root and Debian's packages, and no systemd. Does nothing where `sinfo` shows a node already.
#     bash tests/slurm.sh          # start;  "stop" ends what this script has started
set -euo pipefail

state=/var/lib/nlsq-slurm
mark="# Written by tests/slurm.sh of dask_nlsq."
conf=/etc/slurm/slurm.conf

fail() { echo "tests/slurm.sh: $*" >&2; exit 1; }

alive() { [[ -s $state/$1.pid ]] && kill -0 "$(cat "$state/$1.pid")" 2>/dev/null; }

if [[ ${1:-} == stop ]]; then
    for daemon in slurmd slurmctld munged; do
        if alive "$daemon"; then kill "$(cat "$state/$daemon.pid")"; fi
    done
    exit 0
fi

ready() { timeout 5 sinfo --noheader --format=%T 2>/dev/null | grep -qE '^(idle|mixed|allocated|completing)$'; }

if command -v sinfo >/dev/null && ready; then
    sinfo
    exit 0
fi
[[ $(id -u) == 0 ]] || fail "no Slurm answers, and only root can install and start one"
if ! command -v slurmctld >/dev/null || ! command -v slurmd >/dev/null || ! command -v munged >/dev/null; then
    command -v apt-get >/dev/null || fail "Slurm is not installed, and there is no apt-get to install it with"
    export DEBIAN_FRONTEND=noninteractive
    packages=(slurmctld slurmd slurm-client munge)
    apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null 2>&1 ||
        { apt-get update -qq && apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null; } ||
        fail "apt-get could not install ${packages[*]}"
fi
if [[ -s $conf ]] && ! grep -qF "$mark" "$conf"; then
    fail "$conf is of another Slurm, which does not answer; it is left alone"
fi

mkdir -p "$state"/{ctld,slurmd} "$(dirname "$conf")"
chmod 755 "$state"
host=$(hostname -s)
memory=$(slurmd -C | grep -o 'RealMemory=[0-9]*' | cut -d= -f2)
cores=$(nproc)
cat >"$conf" <<CONF
$mark
ClusterName=nlsq
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credential has run out.
AuthInfo=socket=$state/munge.socket,cred_expire=5
MpiDefault=none
# No cgroups: a container may have none that it can write.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=60
SlurmctldTimeout=30
SlurmdTimeout=300
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=0
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/slurmd
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
CONF

if ! alive munged; then
    # A key and a socket of our own, whoever owns those of the package.
    [[ -s $state/munge.key ]] || (umask 077 && head -c 128 /dev/urandom >"$state/munge.key")
    chown root "$state" "$state/munge.key"
    munged --key-file="$state/munge.key" --socket="$state/munge.socket" --pid-file="$state/munged.pid" \
        --log-file="$state/munged.log" --seed-file="$state/munge.seed" || fail "munged did not start"
fi
alive slurmctld || slurmctld -c || fail "slurmctld did not start; see $state/slurmctld.log"
alive slurmd || slurmd -c || fail "slurmd did not start; see $state/slurmd.log"

for ((i = 0; i < 120; i++)); do
    if ready; then
        sinfo
        exit 0
    fi
    if ((i == 20)); then scontrol update nodename="$host" state=resume 2>/dev/null || true; fi
    sleep 0.25
done
tail -n 20 "$state"/slurmctld.log "$state"/slurmd.log >&2
fail "no node became idle within 30 seconds"
