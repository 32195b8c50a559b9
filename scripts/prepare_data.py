"""`cramjax prepare`; --help says how to call it."""

import sys

from cramjax.commands import prepare
from cramjax.main import guarded

if __name__ == "__main__":
    sys.exit(guarded(prepare.command, sys.argv[1:], prepare.__doc__))
