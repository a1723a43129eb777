"""Run an ONNX file on the CPU: `run_network.py MODEL INPUTS OUTPUTS`, arrays as `.npy`.

Imports nothing of the service, since it runs on an emulated processor.
"""

import sys

import numpy as np
import onnxruntime as ort


def main() -> None:
    """Write the first output for one batch of inputs, computed by one thread."""
    model, inputs, outputs = sys.argv[1:]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.load(inputs)}
    np.save(outputs, session.run(None, feed)[0])


if __name__ == "__main__":
    main()
