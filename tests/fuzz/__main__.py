"""``python -m tests.fuzz FORMAT --mutations N --seed S``."""

import argparse
import sys
import tempfile
from pathlib import Path

from .damage import main
from .formats import FORMATS

parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
parser.add_argument("format", choices=FORMATS)
parser.add_argument("--mutations", type=int, default=100_000)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
with tempfile.TemporaryDirectory() as folder:
    sys.exit(main(options.format, options.mutations, options.seed, Path(folder)))
