import os
import subprocess
import sys
from pathlib import Path

CODE = """
import numpy as np
from app.calibration.predictions import Prediction
from app.inference.postprocess import class_statistics
prediction = Prediction(np.zeros((2, 3), np.uint8), np.ones((2, 3), np.float32))
print(class_statistics(prediction).pixels[0])
"""


def test_kernels_run_where_machine_code_can_be_kept_nowhere():
    # Of all places numba knows only archives are left to it, and the source lies in none.
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "NUMBA_CACHE_LOCATOR_CLASSES": "ZipCacheLocator"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "6"
