"""``python -m stormlit``."""

import sys

from stormlit.cli import main

if __name__ == "__main__":
    sys.exit(main())
