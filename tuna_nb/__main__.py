"""`python -m tuna_nb` is `tuna`."""

import sys

from tuna_nb.frontends.terminal import main

sys.exit(main())
