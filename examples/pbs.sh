#!/usr/bin/env bash
#PBS -N nlsq
#PBS -l walltime=02:00:00
#PBS -l select=1:ncpus=8:mem=16384mb
#PBS -r y
#PBS -j oe
#PBS -o nlsq.out
#PBS -q workq

# What runs: one command, which leaves with status 75 when it was interrupted and can go on.
cd "$PBS_O_WORKDIR"
setup() {
    source .venv/bin/activate
}
run() {
    exec dask-nlsq fit 'data/*.parquet' -m quickstart:decay -y signal --checkpoint run -o run.json
}

# How the job comes back after that.
again() {
    qsub "$0"
}

# Nothing below here needs to be changed. A warning (USR1) makes a fit commit and leave. It is passed on every second,
# for a command that still loads, or has its fit behind it, ignores it. The end of the job (TERM) is passed on once; a
# job that was ended by hand does not come back.
ended=0
signals=0
ring() { while kill -USR1 "$child"; do sleep 1; done 2>/dev/null; }
trap 'signals=$((signals + 1)); ring &' USR1
(trap '' USR1; setup; run) &
child=$!
trap 'signals=$((signals + 1)); ended=1; kill -TERM "$child"' TERM INT
[ "$signals" -eq 0 ] || ring & # it came before there was a child
{ while kill -0 "$child" && [ "$SECONDS" -lt 7080 ]; do sleep 1; done; ring; } 2>/dev/null &
status=127
while
    seen=$signals
    wait "$child"
    found=$?
    [ "$found" -eq 127 ] || status=$found
    [ "$signals" -ne "$seen" ] # a signal ends wait, and not the command
do :; done
if [ "$ended" -ne 0 ]; then
    status=143
elif [ "$status" -eq 75 ]; then
    setup
    again
fi
exit "$status"
