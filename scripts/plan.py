"""`cramjax plan`; --help says how to call it."""

import sys

from cramjax.commands import plan
from cramjax.main import guarded

if __name__ == "__main__":
    sys.exit(guarded(plan.command, sys.argv[1:], plan.__doc__))
