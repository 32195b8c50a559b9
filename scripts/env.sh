# Sourced by the other scripts: creates .venv beside this folder and installs cramjax
# into it with the extras named in $1 ("" for none). Later calls install nothing unless
# setup.cfg has changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

install_cramjax() {
  local extras=$1
  local stamp=.venv/installed${extras:+-$extras}
  if [[ ! -e $stamp || setup.cfg -nt $stamp ]]; then
    local python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || {
      echo "error: $python does not run, or is older than 3.11, which cramjax needs:" \
        "set PYTHON=/path/to/python3.12 and run this again" >&2
      exit 2
    }
    [[ -x .venv/bin/python ]] || "$python" -m venv .venv
    echo "installing cramjax${extras:+ with $extras} into .venv (1.2 GB in all) ..."
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
      --editable ".${extras:+[$extras]}"
    touch "$stamp"
  fi
}
