"""`cramjax evaluate`; --help says how to call it."""

import sys

from cramjax.commands import evaluate
from cramjax.main import guarded

if __name__ == "__main__":
    sys.exit(guarded(evaluate.command, sys.argv[1:], evaluate.__doc__))
