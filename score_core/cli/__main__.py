"""`python -m score_core.cli`: the `score` command."""

import sys

from score_core.cli.app import main

sys.exit(main())
