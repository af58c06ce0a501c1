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
source .venv/bin/activate
run() {
    exec dask-nlsq fit 'data/*.parquet' -m quickstart:decay -y signal --checkpoint run -o run.json
}

# How the job comes back after that.
again() {
    scontrol requeue "$SLURM_JOB_ID"
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
