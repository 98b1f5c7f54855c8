"""``python -m kdstream VERB ...``: the command ``kdstream`` where its script is not on the path."""

import sys

from kdstream.cli import main

if __name__ == "__main__":
    sys.exit(main())
