"""``python -m specbranch`` is the ``specbranch`` command."""

import sys

from specbranch.cli import main

sys.exit(main())
