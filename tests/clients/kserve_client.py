"""Segment images with KServe's client; a process of its own, as the messages of its gRPC and those
of tritonclient cannot be registered in one.
"""

import asyncio
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


async def segment(url: str, model: str, path: str) -> None:
    """Replace the encoded images of an npz file by `version` and the masks."""
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, model)
    masks: dict[str, np.ndarray] = {}
    with np.load(path) as images:
        for name in images.files:
            given = InferInput("image", [1], "BYTES")
            given.set_data_from_numpy(np.array([images[name].tobytes()], np.object_))
            request = InferRequest(model, [given], parameters={"binary_data_output": True})
            response = await client.infer(url, request, model_name=model)
            masks[name] = next(o.as_numpy() for o in response.outputs if o.name == "mask")[0]
            masks["version"] = np.array(response.parameters["calibrator"])
    np.savez(path, allow_pickle=False, **masks)


if __name__ == "__main__":
    asyncio.run(segment(*sys.argv[1:]))
