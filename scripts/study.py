"""`cramjax study`; --help says how to call it."""

import sys

from cramjax.commands import study
from cramjax.main import guarded

if __name__ == "__main__":
    sys.exit(guarded(study.command, sys.argv[1:], study.__doc__))
