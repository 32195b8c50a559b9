"""`cramjax describe`; --help says how to call it."""

import sys

from cramjax.commands import describe
from cramjax.main import guarded

if __name__ == "__main__":
    sys.exit(guarded(describe.command, sys.argv[1:], describe.__doc__))
