"""``python -m grokutils`` is the ``grokutils`` command."""

import sys

from .cli import main

sys.exit(main())
