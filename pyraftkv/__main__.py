"""``python -m pyraftkv`` is the command ``pyraftkv``."""

import sys

from pyraftkv.cli import main

if __name__ == "__main__":
    sys.exit(main())
