#!/usr/bin/env bash
# Trains on GPU nodes of a Slurm cluster: one process per GPU; saves before the time limit or a preemption, and queues
# itself again.
#   bash launch/slurm.sh --help
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=/dev/null
. "$root/launch/common.sh"

usage() {
  cat <<'EOF'
bash launch/slurm.sh submit NAME [options] CONFIG [arguments of t2i train]
bash launch/slurm.sh logs|status|cancel NAME [options]

  submit   queue the training as the job NAME; refused where you have a job of this name
  logs     follow the log, which goes on when the job is queued again; each line begins with its process
  status   the job in the queue, and how its processes ended last
  cancel   stop the training and leave the queue; a job that does not exist is fine

  --nodes N                submit: default 1
  --gpus-per-node N        submit: default 8, one process each
  --cpus-per-gpu N         submit: default 4
  --time TIME              submit: as Slurm writes it, 24:00:00; default: the partition's
  --partition, --account   submit: default: the cluster's
  --grace SECONDS          submit: time to save before the time limit, default 300
  --max-failures N         submit: how often in a row the training may end with 1, default 3
  --workdir DIR            submit: folder of the run, one that all nodes see; default runs/NAME
  --t2i PROGRAM            submit: default .venv/bin/t2i of this checkout, or the one on the PATH
  --logs DIR               folder of the logs, default runs/slurm
  --no-follow              logs: print the last lines and end
  --dry-run                print the commands, run nothing
  --help

CONFIG is a recipe file. What follows it goes to t2i train as it is, but for the options above. Anything else that
sbatch takes is set by its own variables, as SBATCH_QOS or SBATCH_CONSTRAINT. The job ends with the training: 75, a lost
node and a preemption start it again, as often as it takes; 2 never; anything else up to --max-failures times in a row.

  bash launch/slurm.sh submit shapes --nodes 2 --time 24:00:00 configs/imagen/shapes.py train.rules=fsdp
EOF
}

nodes=1 gpus_per_node=8 cpus_per_gpu=4 time="" partition="" account="" grace=300 max_failures=3
workdir="" t2i="" logs=runs/slurm no_follow=""
words=() # SUBCOMMAND NAME CONFIG ARGUMENTS...

check_arguments() {
  check_subcommand "logs status cancel" "submit"
  [[ "$name" =~ ^[A-Za-z0-9][-_.A-Za-z0-9]*$ ]] ||
    mistake "name='$name' is not a job's name; give letters, digits, dashes, underscores and dots after $subcommand."
  [ "$subcommand" != submit ] || check_submit
  [ "$subcommand" = logs ] || need squeue "start this on a login node of the cluster"
}

check_submit() {
  [ -f "$config" ] || mistake "config='$config' is not a file; give a recipe such as configs/imagen/shapes.py."
  number nodes "$nodes"
  number gpus-per-node "$gpus_per_node"
  number cpus-per-gpu "$cpus_per_gpu"
  number grace "$grace"
  number max-failures "$max_failures"
  if [ -z "$t2i" ]; then
    t2i="$root/.venv/bin/t2i"
    [ -x "$t2i" ] || t2i="$(command -v t2i)" || true
  fi
  [ -x "$t2i" ] ||
    mistake "t2i='$t2i' is not a program; pip install '.[cuda]' where all nodes see it, or name one with --t2i."
}

submit() {
  local command
  find_jobs
  [ -z "$jobs" ] || fail "submit: job ${jobs//$'\n'/, } has the name $name already; cancel it, or use another one."
  command=(sbatch --job-name "$name" --nodes "$nodes" --gpus-per-node "$gpus_per_node"
    --ntasks-per-node "$gpus_per_node" --cpus-per-task "$cpus_per_gpu" --signal "TERM@$grace"
    --output "$logs/$name.log")
  [ -z "$time" ] || command+=(--time "$time")
  [ -z "$partition" ] || command+=(--partition "$partition")
  [ -z "$account" ] || command+=(--account "$account")
  command+=("$root/launch/slurm_job.sh" "$logs/$name" "$max_failures")
  step "submit: making the folder $logs" "use another one with --logs" mkdir -p "$logs"
  step "submit: forgetting how a job $name ended before" "check who owns $logs" \
    rm -f "$logs/$name.status" "$logs/$name.failures"
  step "submit: queueing $name" "read sbatch's message above" \
    "${command[@]}" "$t2i" train "${words[@]:2}" --workdir "${workdir:-runs/$name}"
}

# ask_queue FORMAT: your jobs of this name.
ask_queue() {
  step "asking the queue for $name" "try again" squeue --noheader --user "$(id -un)" --name "$name" --format "$1"
}

# Sets `jobs` to their numbers.
find_jobs() {
  jobs=""
  if [ -n "$dry_run" ]; then ask_queue %i; else jobs="$(ask_queue %i)" || exit 1; fi
}

logs() {
  [ -n "$dry_run" ] || [ -e "$logs/$name.log" ] ||
    mistake "logs='$logs' has no $name.log; the job writes it when it starts (see status), or give its folder."
  if [ -n "$no_follow" ]; then
    step "logs: reading $logs/$name.log" "try again" tail -n 100 "$logs/$name.log"
  else
    step "logs: reading $logs/$name.log" "try again" tail -n 100 -F "$logs/$name.log"
  fi
}

status() {
  ask_queue "%i %j %T, %D nodes, runs for %M, %r"
  [ -n "$dry_run" ] || [ ! -e "$logs/$name.status" ] || echo "last end of the training: $(cat "$logs/$name.status")"
}

cancel() {
  find_jobs
  if [ -z "$dry_run$jobs" ]; then
    echo "no job in the queue has the name $name; nothing to cancel"
    return
  fi
  step "cancel: cancelling $name" "check with status" scancel --user "$(id -un)" --name "$name"
}

read_arguments "no-follow" "nodes gpus-per-node cpus-per-gpu time partition account grace max-failures workdir t2i \
logs" "$@"
subcommand="${words[0]:-}" name="${words[1]:-}" config="${words[2]:-}"
check_arguments
"$subcommand"
