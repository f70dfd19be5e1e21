#!/usr/bin/env bash
# What the scripts share. They read this file; by itself it does nothing.
# Exit status of them all: 0 done; 1 a step failed, one sentence says which; 2 a mistake in what was given. What
# quickstart.sh and test.sh start at last has its own.

dry_run="" # --dry-run: steps print their command and run nothing
script="launch/$(basename "$0")"

mistake() {
  echo "$script: $*" >&2
  exit 2
}

fail() {
  echo "$script: $*" >&2
  exit 1
}

# The words of a command as one line that a shell reads back as the same words.
quoted() {
  local word line="" quote="'\\''"
  for word in "$@"; do
    case "$word" in "" | *[!A-Za-z0-9_./:=,@%+-]*) word="'${word//\'/$quote}'" ;; esac
    line="$line$word "
  done
  printf '%s\n' "${line% }"
}

# step WHAT REMEDY COMMAND...: runs the command; where it fails, says what failed and what to do, and ends the script.
step() {
  local what="$1" remedy="$2" status=0
  shift 2
  if [ -n "$dry_run" ]; then
    quoted "$@"
    return
  fi
  "$@" || status=$?
  [ "$status" = 0 ] || fail "$what failed with status $status; $remedy."
}

# A comment in what --dry-run prints.
note() {
  [ -z "$dry_run" ] || echo "# $*"
}

# need TOOL WHERE-FROM: the tool must be on the PATH, unless nothing is run.
need() {
  [ -n "$dry_run" ] || command -v "$1" >/dev/null || mistake "tool='$1' is not on the PATH; $2."
}

# environment FOLDER PYTHON: makes the Python environment FOLDER where there is none, and adds pip to one without it: its
# making was interrupted, or failed.
environment() {
  local newer="name Python 3.11 or newer, as PYTHON=python3.11 bash $script"
  if [ ! -x "$1/bin/python" ]; then
    command -v "$2" >/dev/null || mistake "PYTHON='$2' is not a program; $newer."
    "$2" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || mistake "PYTHON='$2' is older than 3.11; $newer."
    step "making the Python environment $1" "read the message above, then start again" "$2" -m venv "$1"
  fi
  "$1/bin/python" -m pip --version >/dev/null 2>&1 ||
    step "adding pip to the Python environment $1" "delete that folder, then start again" \
      "$1/bin/python" -m ensurepip --default-pip
}

# given OPTION VALUE REMEDY: a value that must be there.
given() {
  [ -n "$2" ] || mistake "$1='' is not given; $3."
}

# read_arguments "FLAGS" "OPTIONS" ARGUMENTS...: each flag and option (--option VALUE, --option=VALUE) sets the variable
# of its name; what is left are `words`: SUBCOMMAND NAME CONFIG ARGUMENTS. After CONFIG an option that is not known is an
# argument too.
read_arguments() {
  local flags=" help dry-run $1 " options=" $2 " seen=" " field help=""
  shift 2
  words=()
  while [ $# -gt 0 ]; do
    field="${1#--}"
    field="${field%%=*}"
    if [[ "$1" != -* ]]; then
      words+=("$1")
    elif [[ "$flags" == *" $field "* ]]; then
      [[ "$1" != *=* ]] || mistake "option='$1' takes no value; write --$field."
      printf -v "${field//-/_}" 1
    elif [[ "$options" == *" $field "* ]]; then
      [[ "$seen" != *" $field "* ]] || mistake "--$field is given twice; leave one."
      seen="$seen$field "
      if [[ "$1" = *=* ]]; then
        [ -n "${1#*=}" ] || mistake "--$field has no value; give one after it."
        printf -v "${field//-/_}" %s "${1#*=}"
      else
        [ $# -gt 1 ] || mistake "$1 has no value; give one after it."
        printf -v "${field//-/_}" %s "$2"
        shift
      fi
    elif [ "${#words[@]}" -gt 2 ]; then
      words+=("$1")
    else
      mistake "option='$1' is not known here; see --help (t2i train's come after CONFIG)."
    fi
    shift
  done
  if [ -n "$help" ]; then
    usage
    exit 0
  fi
}

# check_subcommand "WITH NAME ALONE" "WITH NAME AND CONFIG"
check_subcommand() {
  local given="${words[0]:-}"
  if [[ " $1 " == *" $given "* ]]; then
    [ -z "${words[2]:-}" ] || mistake "argument='${words[2]}' is one too many for $given; leave it out."
  elif [[ " $2 " != *" $given "* ]] || [ -z "$given" ]; then
    mistake "subcommand='$given' is not known; use one of: $1 $2."
  fi
}

# number OPTION VALUE: digits alone.
number() {
  case "$2" in "" | *[!0-9]*) mistake "$1='$2' is not a whole number from 0; give one." ;; esac
}
