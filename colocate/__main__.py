"""`python -m colocate` is the command `colocate`."""

import sys

from colocate.cli.main import main

sys.exit(main())
