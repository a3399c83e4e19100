"""`python -m linearard`, the form that distributed launchers take."""

import sys

from linearard.cli.main import main

sys.exit(main())
