"""What does ``python -m invreg`` run?"""

import sys

from invreg.cli import main

if __name__ == "__main__":
    sys.exit(main())
