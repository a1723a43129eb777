"""The command line `segcal`."""

import os
import sys

if os.name != "posix":  # before the modules that import what only POSIX has
    sys.stderr.write(
        "error: expected Linux or macOS, whose file locks the calibrators need, got "
        f"{sys.platform}: run segcal in the Windows Subsystem for Linux or in its container\n"
    )
    sys.exit(2)
