#!/usr/bin/env bash
# Trains on a slice of Cloud TPU VMs: makes it, installs this checkout on all workers, trains in a session that outlives
# the ssh connection, follows the log, starts again after a preemption, deletes.
#   bash launch/tpu_vm.sh --help
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=/dev/null
. "$root/launch/common.sh"

usage() {
  cat <<'EOF'
bash launch/tpu_vm.sh SUBCOMMAND NAME [options]
bash launch/tpu_vm.sh run|watch NAME [options] CONFIG [arguments of t2i train]

  create   make the slice NAME now
  queue    ask for the slice NAME; it is made when there is room (watch waits for that, status shows it)
  install  copy this checkout to every worker, make a Python environment there, mount the bucket
  run      start the training on every worker; refused where one runs already
  logs     follow the log of one worker
  status   state of the slice, and of the training on each worker
  stop     tell the training to save and stop
  watch    everything until the training is done: make the slice where there is none, install, run; after a preemption
           make it again, after a stop start again
  delete   delete the slice, and its request in the queue; one that does not exist is fine

  --zone ZONE              zone of the slice (or T2I_ZONE)
  --project PROJECT        project (or T2I_PROJECT); default: the one gcloud is set to
  --accelerator TYPE       create, queue, watch: kind and size, as v5litepod-16 (default), v6e-16, v5p-16, v4-16
  --runtime VERSION        create, queue, watch: software of the workers; default: the one made for TYPE
  --spot                   create, queue, watch: cheaper, may be preempted
  --service-account EMAIL  create, queue, watch: who the workers are; default: the project's default account
  --bucket BUCKET          install, watch: Cloud Storage bucket (or T2I_BUCKET); every worker sees it as folder `bucket`
  --workdir DIR            run, watch: folder of the run; default bucket/NAME
  --worker N               logs: which worker, default 0
  --no-follow              logs: print the last lines and end
  --queued                 watch: make the slice by queue rather than create
  --interval SECONDS       watch: time between two looks, default 60
  --max-failures N         watch: how often in a row the training may end with 1, or a step may fail, default 3
  --dry-run                print the commands, run nothing
  --help

CONFIG is a recipe under configs/. What follows it goes to t2i train as it is, but for the options above.

  export T2I_ZONE=us-east5-a T2I_BUCKET=my-bucket
  bash launch/tpu_vm.sh watch shapes --accelerator v6e-16 --spot --queued configs/imagen/shapes.py train.rules=fsdp
EOF
}

zone="${T2I_ZONE:-}" project="${T2I_PROJECT:-}" bucket="${T2I_BUCKET:-}"
accelerator=v5litepod-16 runtime="" spot="" service_account="" workdir=""
worker=0 no_follow="" queued="" interval=60 max_failures=3
words=() # SUBCOMMAND NAME CONFIG ARGUMENTS...

check_arguments() {
  check_subcommand "create queue install logs status stop delete" "run watch"
  [[ "$name" =~ ^[a-z][-a-z0-9]*$ ]] ||
    mistake "name='$name' is not a slice's name; give lower-case letters, digits and dashes after $subcommand."
  given zone "$zone" "use --zone, as --zone us-east5-a, or set T2I_ZONE"
  number worker "$worker"
  number interval "$interval"
  number max-failures "$max_failures"
  case "$subcommand" in install | watch)
    [[ "$bucket" =~ ^[a-z0-9][-._a-z0-9]+$ ]] ||
      mistake "bucket='$bucket' is not a bucket's name; use --bucket or set T2I_BUCKET, without gs://."
  esac
  case "$subcommand" in run | watch) check_config ;; esac
  case "$subcommand" in create | queue | watch) choose_runtime ;; esac
  need gcloud "install the Google Cloud CLI"
}

check_config() {
  [[ "$config" == configs/*.py && -f "$root/$config" ]] ||
    mistake "config='$config' is not a recipe under configs/ of this checkout; try configs/imagen/shapes.py."
}

choose_runtime() {
  [ -z "$runtime" ] || return 0
  case "$accelerator" in
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
    *) mistake "accelerator='$accelerator' has no known software version; name it with --runtime." ;;
  esac
}

# Sets `call` to a command of gcloud in this zone and project.
gcloud_tpus() {
  call=(gcloud compute tpus "$@" --zone "$zone" --quiet)
  [ -z "$project" ] || call+=(--project "$project")
}

# on_workers WHAT REMEDY WORKERS COMMAND-LINE
on_workers() {
  gcloud_tpus tpu-vm ssh "$name" --worker "$3" --command "$4"
  step "$1" "$2" "${call[@]}"
}

on_worker_script() {
  quoted bash t2i/src/launch/tpu_worker.sh "$@"
}

# The line that asks a worker for its state; with the arguments of a training, whether that one runs.
asks_state() {
  echo "if [ -e t2i/src ]; then $(on_worker_script state "$@"); else echo t2i-state=absent; fi"
}

create() {
  gcloud_tpus tpu-vm create "$name" --accelerator-type "$accelerator" --version "$runtime"
  ask_for_slice "use another zone, or queue, which waits for room"
}

queue() {
  gcloud_tpus queued-resources create "$name" --node-id "$name" --accelerator-type "$accelerator" \
    --runtime-version "$runtime"
  ask_for_slice "check the quota of $accelerator in $zone"
}

ask_for_slice() {
  [ -z "$spot" ] || call+=(--spot)
  [ -z "$service_account" ] || call+=(--service-account "$service_account")
  step "$subcommand: asking for slice $name ($accelerator in $zone)" "$1" "${call[@]}"
}

install() {
  local archive="${TMPDIR:-/tmp}/t2i_jax-$name.tar.gz"
  step "install: packing $root into $archive" "check that there is room" \
    tar -czf "$archive" --exclude __pycache__ -C "$root" t2i_jax configs launch setup.cfg pyproject.toml README.md
  gcloud_tpus tpu-vm scp "$archive" "$name:t2i_jax.tar.gz" --worker all
  step "install: copying to the workers of $name" "wait until status says READY, and add your key with ssh-add" \
    "${call[@]}"
  on_workers "install: setting up the workers of $name" "read the worker's sentence above, then install again" all \
    "rm -rf t2i/new && mkdir -p t2i/new && tar -xzf t2i_jax.tar.gz -C t2i/new && $(
      quoted bash t2i/new/launch/tpu_worker.sh install "$bucket")"
}

run() {
  on_workers "run: starting the training on $name" "read the worker's sentence above (status shows every worker)" all \
    "$(on_worker_script start "${training[@]}")"
}

logs() {
  local follow=follow
  [ -z "$no_follow" ] || follow=last
  on_workers "logs: reading the log of worker $worker of $name" "check with status that it is READY and runs" \
    "$worker" "$(on_worker_script log "$follow")"
}

stop() {
  on_workers "stop: stopping the training on $name" "check with status that the slice is READY" all \
    "$(on_worker_script stop)"
}

# listed GROUP COLLECTION FORMAT: the state of NAME, nothing where there is none.
listed() {
  gcloud_tpus "$1" list --filter "name~$2/$name\$" --format "$3"
  step "looking for $name in $zone" "check --zone, --project and 'gcloud auth login'" "${call[@]}"
}

# Sets queue_state and node_state.
look() {
  queue_state="" node_state=""
  if [ -n "$dry_run" ]; then
    listed queued-resources queuedResources 'value(state.state)'
    listed tpu-vm nodes 'value(state)'
    return
  fi
  queue_state="$(listed queued-resources queuedResources 'value(state.state)')" || return 1
  node_state="$(listed tpu-vm nodes 'value(state)')" || return 1
}

status() {
  look || exit 1
  [ -n "$dry_run" ] || echo "slice $name: node ${node_state:-absent}, request in the queue ${queue_state:-absent}"
  note "where the node is READY:"
  if [ -n "$dry_run" ] || [ "$node_state" = READY ]; then
    on_workers "status: asking the workers of $name" "try again" all "$(asks_state)"
  fi
}

delete() {
  look || exit 1
  if [ -n "$dry_run" ] || [ -n "$queue_state" ]; then
    note "where there is a request in the queue; its node goes with it:"
    gcloud_tpus queued-resources delete "$name" --force
    step "delete: deleting the request $name and its node" "delete again, until status says absent" "${call[@]}"
  fi
  if [ -n "$dry_run" ] || { [ -z "$queue_state" ] && [ -n "$node_state" ]; }; then
    note "where there is a node alone:"
    gcloud_tpus tpu-vm delete "$name"
    step "delete: deleting the node $name" "delete again, until status says absent" "${call[@]}"
  fi
  [ -n "$dry_run$queue_state$node_state" ] || echo "slice $name does not exist; nothing to delete"
}

make() {
  if [ -n "$queued" ]; then queue; else create; fi
}

# watch looks, does one thing, waits, and looks again.
watch() {
  local blind=0 troubles=0 failures=0 said="" # how many in a row failed: looks, steps, trainings
  local known=""                              # an end counts once this watch has started the training or seen it run
  if [ -n "$dry_run" ]; then
    note "where the slice is PREEMPTED, TERMINATED, SUSPENDED or FAILED, delete:"
    delete
    note "where there is none:"
    make
    note "where nothing is installed:"
    install
    on_workers state again all "$(asks_state "${training[@]}")"
    note "where no training runs:"
    run
    return
  fi
  until round; do sleep "$interval"; done
  echo "$name: the training is done; the slice still runs and costs: bash launch/tpu_vm.sh delete $name --zone $zone"
}

# One look and what follows from it; true when the training is done.
round() {
  if look; then blind=0; else blind=$((blind + 1)); fi
  [ "$blind" -le "$max_failures" ] || fail "watch: $blind looks for $name in a row failed; see above why."
  [ "$blind" = 0 ] || return 1
  [ -z "$queue_state" ] || queued=1
  say "node ${node_state:-absent}, request in the queue ${queue_state:-absent}"
  case "$queue_state/$node_state" in
    /) attempt make ;;
    FAILED/*) trouble; attempt delete ;;
    SUSPENDED/* | */PREEMPTED | */TERMINATED) attempt delete ;;
    /READY | ACTIVE/READY) training_is_done && return 0 ;;
  esac
  return 1
}

training_is_done() {
  local states state bad=""
  states="$(on_workers "asking the workers of $name" "watch asks again" all "$(asks_state "${training[@]}")" |
    sed -n 's/^t2i-state=\([^ ]*\).*/\1/p' | sort -u | paste -sd ' ' -)" || states=""
  say "training ${states:-unknown}"
  case " $states " in
    "  ") trouble; return 1 ;;
    *" other "*) mistake "another training runs on $name; follow it with logs, end it with stop, or use another slice." ;;
    *" running "*) troubles=0; known=1 ;;
    *" absent "*) attempt install; return 1 ;;
  esac
  [ -n "$known" ] || states=none
  case " $states " in
    " 0 ") return 0 ;;
    *" 2 "*) mistake "the training on $name ended with 2, a mistake in what was given; its log says which: use logs." ;;
    *" running "*) return 1 ;;
  esac
  for state in $states; do
    case "$state" in 0 | 75 | none) ;; *) bad="$state" ;; esac
  done
  if [ -z "$bad" ]; then failures=0; else failures=$((failures + 1)); fi
  [ "$failures" -le "$max_failures" ] ||
    fail "the training on $name ended with $bad, $failures times in a row; its log says why: use logs."
  attempt run && known=1
  return 1
}

# A step of watch, in a shell of its own: `fail` in it ends that shell alone. True when it was done.
attempt() {
  say "$1"
  ("$@") || { trouble; return 1; }
}

trouble() {
  troubles=$((troubles + 1))
  [ "$troubles" -le "$max_failures" ] || fail "watch: $troubles steps in a row failed on $name; see above what failed."
}

say() {
  [ "$said" = "$*" ] || echo "$(date +%H:%M:%S) $name: $*"
  said="$*"
}

read_arguments "spot no-follow queued" "zone project accelerator runtime service-account bucket workdir worker \
interval max-failures" "$@"
subcommand="${words[0]:-}" name="${words[1]:-}" config="${words[2]:-}"
check_arguments
training=("${words[@]:2}" --workdir "${workdir:-bucket/$name}") # the arguments of t2i train
"$subcommand"
