#!/usr/bin/env bash
#SBATCH --job-name=nlsq
#SBATCH --time=02:00:00
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=16384M
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=nlsq-%j.out

# What runs: one command, which leaves with status 75 when it was interrupted and can go on.
setup() {
    source .venv/bin/activate
}
run() {
    exec dask-nlsq fit 'data/*.parquet' -m quickstart:decay -y signal --checkpoint run -o run.json
}

# How the job comes back after that.
again() {
    scontrol requeue "$SLURM_JOB_ID"
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
