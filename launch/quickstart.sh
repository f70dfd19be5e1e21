#!/usr/bin/env bash
# From a fresh clone to images: makes .venv, installs t2i_jax, trains on the built-in dataset, samples and evaluates.
#   bash launch/quickstart.sh [--workdir runs/quickstart]
# Without --workdir the run is in runs/quickstart of this checkout.
# T2I_PLATFORM=cpu|cuda|tpu picks the JAX build (default cpu), PYTHON the interpreter (3.11 or newer), VENV the folder.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=/dev/null
. "$root/launch/common.sh"

platform="${T2I_PLATFORM:-cpu}"
case "$platform" in
  cpu | cuda | tpu) ;;
  *) mistake "T2I_PLATFORM='$platform' is not known; use cpu, cuda or tpu." ;;
esac
venv="${VENV:-$root/.venv}"
environment "$venv" "${PYTHON:-python3}"
"$venv/bin/python" -m pip install --quiet --editable "${root}[$platform]"
# A path is told as the caller can open it, and the run stays in the checkout wherever this is called from.
[ "$PWD" = "$root" ] || case " $* " in *" --workdir"*) ;; *) set -- --workdir "$root/runs/quickstart" "$@" ;; esac
exec "$venv/bin/t2i" quickstart "$@"
