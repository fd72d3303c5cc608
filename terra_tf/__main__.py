"""`python -m terra_tf`: see `inspection`."""

import sys

from terra_tf.inspection import main

if __name__ == "__main__":
    sys.exit(main())
