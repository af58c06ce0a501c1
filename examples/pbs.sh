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
source .venv/bin/activate
run() {
    exec timeout --foreground --preserve-status --signal=USR1 "$((7080 - SECONDS))" \
        dask-nlsq fit 'data/*.parquet' -m quickstart:decay -y signal --checkpoint run -o run.json
}

# How the job comes back after that.
again() {
    qsub "$0"
}

# Nothing below here needs to be changed. A warning (USR1) and the end of the job (TERM) are passed on as USR1, upon
# which a fit commits and leaves. A job that was ended by hand does not come back.
ended=0
signals=0
trap 'signals=$((signals + 1)); kill -USR1 "$child"' USR1
trap 'signals=$((signals + 1)); ended=1; kill -USR1 "$child"' TERM INT
run &
child=$!
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
    again
fi
exit "$status"
