"""`python -m skycensus` is the command `skycensus`."""

import sys

from .cli import main

sys.exit(main())
