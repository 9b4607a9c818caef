"""What ``fabric run`` launches: it takes the path of a file, not a module or a console script."""

from __future__ import annotations

import sys

import torch.distributed

from stormlit.cli import main

if __name__ == "__main__":
    try:
        status = main()
    finally:
        # Fabric leaves it open, and PyTorch wants it closed before the interpreter ends.
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    sys.exit(status)
