#!/usr/bin/env bash
# An SGE of one host on this machine, for tests/test_sge.py: installs it where it is missing, and starts it.
# Needs root and Debian's packages, and no systemd. Does nothing where the queue that it makes answers already.
set -euo pipefail

export SGE_ROOT=/var/lib/gridengine
fail() { echo "tests/sge.sh: $*" >&2; exit 1; }

ready() { timeout 5 qstat -f -q main.q 2>/dev/null | grep -qE '^main\.q@.* lx-amd64 *$'; }

if command -v qconf >/dev/null && ready; then
    qstat -f
    exit 0
fi
[[ $(id -u) == 0 ]] || fail "no SGE answers, and only root can install and start one"
if ! command -v sge_qmaster >/dev/null || ! command -v sge_execd >/dev/null || ! command -v qconf >/dev/null; then
    command -v apt-get >/dev/null || fail "SGE is not installed, and there is no apt-get to install it with"
    export DEBIAN_FRONTEND=noninteractive
    packages=(gridengine-master gridengine-exec gridengine-client)
    apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null 2>&1 ||
        { apt-get update -qq && apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null; } ||
        fail "apt-get could not install ${packages[*]}"
fi

host=$(hostname)
address=$(getent hosts "$host" | awk '{print $1; exit}')
[[ -n $address ]] || fail "the name $host has no address; add it to /etc/hosts"
# SGE knows a host by the name that its address has, which in a container is often localhost.
common=$SGE_ROOT/default/common
echo "$host" >"$common/act_qmaster"
echo "$host" $(getent hosts "$address" | cut -d' ' -f2-) $([[ $address == 127.* || $address == ::1 ]] && echo localhost) |
    tr -s ' ' '\n' | awk '!seen[$0]++' | paste -sd' ' >"$common/host_aliases"

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
pgrep -x sge_qmaster >/dev/null || /etc/init.d/gridengine-master start >/dev/null
for ((i = 0; i < 40; i++)); do
    if timeout 5 qconf -sconf >"$tmp/global.all" 2>/dev/null; then break; fi
    sleep 0.25
done
# Jobs of root, whose number is below what a site allows; a file is named as the host that it is for.
sed -E '/^#/d; s/^(min_[ug]id) .*/\1 0/' "$tmp/global.all" >"$tmp/global"
(cd "$tmp" && qconf -Mconf global) >/dev/null
qconf -ah "$host" >/dev/null 2>&1 || true
qconf -as "$host" >/dev/null 2>&1 || true
qconf -ssconf | sed -E 's/^(schedule_interval) .*/\1 0:0:2/; s/^(flush_(submit|finish)_sec) .*/\1 1/' >"$tmp/scheduler"
qconf -Msconf "$tmp/scheduler" >/dev/null
cat >"$tmp/pe" <<PE
pe_name            smp
slots              999
user_lists         NONE
xuser_lists        NONE
start_proc_args    /bin/true
stop_proc_args     /bin/true
allocation_rule    \$pe_slots
control_slaves     FALSE
job_is_first_task  TRUE
urgency_slots      min
accounting_summary FALSE
qsort_args         NONE
PE
qconf -sp smp >/dev/null 2>&1 || qconf -Ap "$tmp/pe" >/dev/null
pgrep -x sge_execd >/dev/null || /etc/init.d/gridengine-exec start >/dev/null
qconf -sq | sed -E "s/^(qname) .*/\1 main.q/; s/^(hostlist) .*/\1 $host/; s/^(slots) .*/\1 4/; s/^(pe_list) .*/\1 smp/
    s/^(rerun) .*/\1 TRUE/; s/^(shell) .*/\1 \/bin\/bash/; s/^(load_thresholds) .*/\1 NONE/" >"$tmp/queue"
qconf -sq main.q >/dev/null 2>&1 || qconf -Aq "$tmp/queue" >/dev/null
qmod -cq main.q >/dev/null 2>&1 || true

for ((i = 0; i < 160; i++)); do
    if ready; then
        qstat -f
        exit 0
    fi
    sleep 0.25
done
fail "the host did not report within 40 seconds"
