"""``kdstream export`` as a script of the clone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a clone, without installation

from kdstream.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
