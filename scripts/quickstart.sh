#!/usr/bin/env bash
# The whole job on embedded data, on any computer: raw text to fine-tuned scores.
# Further arguments are passed on, e.g. --config.budget.tokens=400000
source "$(dirname "$0")/env.sh"
install_cramjax ""
source .venv/bin/activate
python -m cramjax.main --config=configs/quickstart.py "$@"
