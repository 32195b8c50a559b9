#!/usr/bin/env bash
# Tries a new card, with what is installed and without a network: see --help.
# PYTHON names another Python than that of .venv, or than python3.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
# site/ is what a bundle's packages are installed into.
export PYTHONPATH="$PWD:$PWD/site${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" scripts/check_gpu.py "$@"
