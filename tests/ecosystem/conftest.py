"""Left out where the libraries need not be: `make test-ecosystem` installs them, and says so."""

import os

if not os.environ.get("TERRA_ECOSYSTEM"):
    collect_ignore_glob = ["*"]
