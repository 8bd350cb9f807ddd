"""``python -m grokutils`` is the ``grokutils`` command."""

import sys

from grokutils.cli import main

sys.exit(main())
