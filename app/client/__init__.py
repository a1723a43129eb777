"""Client of a running service, without and with asyncio; it imports nothing large.

from app.client import Client

with Client("http://127.0.0.1:8000") as client:
found = client.segment("street.jpg", max_error=0.05)
found.mask, found.confidence
"""

from app.client.async_client import AsyncClient
from app.client.calls import SegmentArguments
from app.client.retries import RetryPolicy
from app.client.segmentation import ImageSource, Segmentation
from app.client.sync_client import Client
from app.client.uploads import OnProgress
from app.schemas.fit import FitOptions

__all__ = [
    "AsyncClient",
    "Client",
    "FitOptions",
    "ImageSource",
    "OnProgress",
    "RetryPolicy",
    "SegmentArguments",
    "Segmentation",
]
