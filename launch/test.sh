#!/usr/bin/env bash
# Runs the tests: makes .venv where there is none, installs t2i_jax and the PyTorch references into it, starts pytest.
#   bash launch/test.sh                 all tests but those that are marked as long
#   bash launch/test.sh -m ""           these too
#   bash launch/test.sh tests/train -k resume      arguments go to pytest
# VENV names another environment, PYTHON the interpreter that makes it (3.11 or newer), JAX_PLATFORMS a device.
set -euo pipefail
here="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=/dev/null
. launch/common.sh

venv="${VENV:-.venv}"
case "$venv" in /*) ;; *) [ -z "${VENV:-}" ] || venv="$here/$venv" ;; esac
environment "$venv" "${PYTHON:-python3}"

# Installed once per state of the two files that say what is needed.
stamp="$venv/.t2i_jax_test"
needs="$(cat setup.cfg pyproject.toml | cksum)"
if [ "$(cat "$stamp" 2>/dev/null)" != "$needs" ]; then
  pins="$(mktemp)"
  trap 'rm -f "$pins"' EXIT
  printf 'torch==2.13.0\ntorchvision==0.28.0\n' >"$pins"
  # torch comes first and alone: a local CPU wheel is taken where one is offered, and nothing after it replaces it.
  "$venv/bin/python" -m pip install --quiet torch==2.13.0
  "$venv/bin/python" -m pip install --quiet --constraint "$pins" --editable '.[cpu,test]'
  echo "$needs" >"$stamp"
fi

export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"  # no test asks a hub
# Compiling is most of the work and uses one core. Of three processes, a file of tests each, two keep two cores
# busy while a third waits for what its tests have started.
exec "$venv/bin/python" -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"
