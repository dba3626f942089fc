"""`python -m bgnn.runtime_bench.run`, which is `bgnn-run`."""

import sys

from bgnn.runtime_bench.runtime.run import main

if __name__ == "__main__":
    sys.exit(main())
