"""What ``fabric run`` launches: it takes the path of a file, not a module or a console script."""

from __future__ import annotations

import sys

from stormlit.cli import main

if __name__ == "__main__":
    sys.exit(main())
