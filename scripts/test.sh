#!/usr/bin/env bash
# Installs the test extra if needed and runs the tests. Arguments go to pytest.
source "$(dirname "$0")/env.sh"
install_cramjax test
.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" "$@"
