"""``python -m tcm_sync.cli``, which is ``tcm-sync``."""

import sys

from tcm_sync.cli import main

if __name__ == "__main__":
    sys.exit(main())
