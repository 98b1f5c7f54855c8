"""``python -m kdstream.objectives``: the verb ``kdstream objectives``."""

import sys

from kdstream.cli.objectives import main

if __name__ == "__main__":
    sys.exit(main())
