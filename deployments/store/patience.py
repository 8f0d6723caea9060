"""What must not be lost because the store cannot be written just now."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from deployments.messages import StorageError
from deployments.store.protocol import StoreDeposedError, StoreFormatError

STORE_RETRY_S = 1.0

logger = logging.getLogger("ray.serve")
T = TypeVar("T")


async def until_stored(write: Callable[[], Awaitable[T]]) -> T:
    """Write again and again while the store cannot: an end that was reached must not be lost.

    Raises StoreDeposedError and StoreFormatError at once, because no later try can succeed.
    """
    while True:
        try:
            return await write()
        except (StoreDeposedError, StoreFormatError):
            raise
        except StorageError as error:
            logger.error("%s", error)
            await asyncio.sleep(STORE_RETRY_S)
