#!/usr/bin/env bash
# The job that slurm.sh gives to sbatch, whose options come before these:
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
# slurm_job.sh FILES MAX-FAILURES COMMAND...: runs the command as one process per GPU, which is what JAX expects of
# Slurm (each process sees all GPUs of its node and takes its own), and queues itself again where that helps.
# FILES.status: how it ended last; FILES.failures: how often in a row with neither 0 nor 75.
set -uo pipefail
files="$1" max_failures="$2"
shift 2

# Before the time limit Slurm sends SIGTERM to the processes of srun, not to this script; they save and end with 75. A
# preemption or scancel reaches this script too, which then still waits for them.
trap : TERM
echo "$(date) job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1))"
export PYTHONUNBUFFERED=1 # a line is in the log when it is printed
# Nothing is killed because one process has ended: when one dies, JAX ends the others; srun returns the highest status.
srun --label --kill-on-bad-exit=0 --wait=0 --cpus-per-task "${SLURM_CPUS_PER_TASK:-1}" "$@"
status=$?
echo "$status" >"$files.status"
echo "$(date) job $SLURM_JOB_ID ended with $status"

failures=0
case "$status" in
  0) rm -f "$files.failures"; exit 0 ;;
  2) echo "launch/slurm_job.sh: a mistake in what was given, see above; correct it and submit again." >&2; exit 2 ;;
  75) ;;
  *) failures=$(($(cat "$files.failures" 2>/dev/null || echo 0) + 1)) ;;
esac
echo "$failures" >"$files.failures"
if [ "$failures" -gt "$max_failures" ]; then
  echo "launch/slurm_job.sh: ended with $status, $failures times in a row; see above, and submit again." >&2
  exit 1
fi
# `incomplete`: a job that was cancelled stays cancelled.
scontrol requeue incomplete "$SLURM_JOB_ID" || {
  echo "launch/slurm_job.sh: queueing job $SLURM_JOB_ID again failed; submit it again, and it resumes." >&2
  exit 1
}
