"""`python -m apps.runtime.agent`."""

import sys

from apps.runtime.agent.cli import main

sys.exit(main())
