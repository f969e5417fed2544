"""``python -m theano_mgpu`` is the command ``theano-mgpu``."""

import sys

from theano_mgpu.cli import command

if __name__ == "__main__":
    sys.exit(command())
