#!/usr/bin/env bash
# The half of tpu_vm.sh that runs on each worker: `tpu_vm.sh install` copies it there, the other subcommands call it.
#   install BUCKET        takes ~/t2i/new as ~/t2i/src, makes ~/t2i/venv, mounts the bucket as ~/t2i/bucket
#   start ARGUMENTS       t2i train ARGUMENTS in ~/t2i/src, in a session of its own; refused where one runs
#   state [ARGUMENTS]     prints t2i-state=absent (not installed), none (not started), running, or the exit status; with
#                         ARGUMENTS other, where a training with other ones runs
#   stop                  SIGTERM to the training, which saves and ends with 75
#   log follow|last       ~/t2i/log
set -euo pipefail
home="$HOME/t2i"
# shellcheck source=/dev/null
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
script="launch/tpu_worker.sh on $(hostname)"
export script # the sentences of common.sh begin with it

# The lock is held by the training and whoever started it, as an open file: it is free when the last of them has ended.
runs() {
  ! flock -n "$home/lock" true
}

install() {
  if runs; then fail "install: a training runs here; stop it first."; fi
  [ "$1" = "$(cat "$home/bucket_name" 2>/dev/null)" ] || unmount_bucket
  rm -rf "$home/installed" "$home/src"
  mv "$home/new" "$home/src"
  ln -sfn ../bucket "$home/src/bucket"
  echo "$1" >"$home/bucket_name"
  command -v gcsfuse >/dev/null || install_gcsfuse
  mount_bucket
  make_environment
  touch "$home/installed"
}

install_gcsfuse() {
  local keys=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
  local apt=(sudo apt-get -qq -o DPkg::Lock::Timeout=300)
  step "install: fetching the key of gcsfuse" "check the worker's network" \
    sudo curl -fsSL "$packages/doc/apt-key.gpg" -o "$keys"
  echo "deb [signed-by=$keys] $packages gcsfuse-$(lsb_release -cs) main" |
    step "install: naming gcsfuse's source" "check sudo" sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  step "install: reading the list of packages" "install again" "${apt[@]}" update
  step "install: installing gcsfuse" "install again" "${apt[@]}" install -y gcsfuse
}

# Nothing of the bucket is cached: what one worker writes, the others see at once. Orbax renames the folder of a
# finished checkpoint; without a hierarchical namespace that needs a limit on how many files may be renamed.
mount_bucket() {
  mkdir -p "$home/bucket"
  if mountpoint -q "$home/bucket"; then return; fi
  fusermount -uz "$home/bucket" 2>/dev/null || true # what a mount that died has left
  step "mounting the bucket $(cat "$home/bucket_name")" "check its name, and that the workers' account may write it" \
    gcsfuse --implicit-dirs --rename-dir-limit 100000 --metadata-cache-ttl-secs 0 \
    --metadata-cache-negative-ttl-secs 0 "$(cat "$home/bucket_name")" "$home/bucket"
}

unmount_bucket() {
  mountpoint -q "$home/bucket" || return 0
  step "install: unmounting the bucket $(cat "$home/bucket_name")" "end what uses $home/bucket on this worker" \
    fusermount -u "$home/bucket"
}

# The image's own Python may be older than 3.11; uv brings one. The checkout is installed in place.
make_environment() {
  local uv="$HOME/.local/bin/uv"
  [ -x "$uv" ] || step "install: installing uv" "check the worker's network" \
    bash -o pipefail -c 'curl -LsSf https://astral.sh/uv/install.sh | sh'
  [ -x "$home/venv/bin/python" ] || step "install: making a Python environment" "install again" \
    "$uv" venv --quiet --python 3.12 "$home/venv"
  step "install: installing t2i_jax" "read the message above" \
    "$uv" pip install --quiet --python "$home/venv/bin/python" --editable "$home/src[tpu]"
}

start() {
  [ -e "$home/installed" ] || fail "run: t2i_jax is not installed here; use install first."
  mount_bucket # before the lock is open: the mount lives on
  exec 9>"$home/lock"
  flock -n 9 || fail "run: a training runs here already; follow it with logs, or end it with stop."
  rm -f "$home/status" "$home/pid"
  quoted "$@" >"$home/arguments"
  cd "$home/src"
  setsid nohup bash "$home/src/launch/tpu_worker.sh" supervise "$@" >>"$home/log" 2>&1 </dev/null &
  echo "the training starts on $(hostname)"
}

supervise() {
  local status=0
  echo "$(date) t2i train $(quoted "$@")"
  export PYTHONUNBUFFERED=1 # a line is in the log when it is printed
  "$home/venv/bin/t2i" train "$@" &
  echo "$!" >"$home/pid"
  wait "$!" || status=$?
  echo "$(date) ended with $status"
  echo "$status" >"$home/status.new"
  mv "$home/status.new" "$home/status"
}

state() {
  local state=none
  if [ ! -e "$home/installed" ]; then
    state=absent
  elif runs; then
    state=running
    [ $# = 0 ] || [ "$(quoted "$@")" = "$(cat "$home/arguments")" ] || state=other
  elif [ -e "$home/status" ]; then
    state="$(cat "$home/status")"
  fi
  echo "t2i-state=$state on $(hostname)"
}

stop() {
  if ! runs; then echo "no training runs on $(hostname)"; return; fi
  [ -e "$home/pid" ] || fail "stop: the training is only just starting; stop again."
  kill -TERM "$(cat "$home/pid")"
}

log() {
  [ -e "$home/log" ] || fail "logs: nothing was started here yet; use run."
  if [ "$1" = follow ]; then tail -n 100 -F "$home/log"; else tail -n 100 "$home/log"; fi
}

"$@"
