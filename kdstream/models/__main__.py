"""``python -m kdstream.models``: the verb ``kdstream models``."""

import sys

from kdstream.cli.models import main

if __name__ == "__main__":
    sys.exit(main())
