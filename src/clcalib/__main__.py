"""``python -m clcalib`` is the command ``clcalib``."""

import sys

from clcalib.cli import main

sys.exit(main())
