#!/usr/bin/env bash
# Checks a new card with what is installed, without a network: see --help.
# PYTHON overrides the Python of .venv, or python3.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
# site/ holds the packages of a bundle.
export PYTHONPATH="$PWD:$PWD/site${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" scripts/check_gpu.py "$@"
