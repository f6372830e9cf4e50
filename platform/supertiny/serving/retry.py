"""Calls of a deployment that outlive their replica, and do not outlive their caller."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable
from typing import Any

from ray.exceptions import RayActorError

_TRIES = 4
"""A dead replica is out of the choice once one call has seen it; more than one may die."""
_PAUSE_SECONDS = 0.05
log = logging.getLogger(__name__)


async def answered(call: Callable[[], Any]) -> Any:
    """What a call gives, asked of another replica where one dies under it: generating again changes nothing.

    Args:
        call: makes a `DeploymentResponse`. Where the caller is cancelled, so is the work in the replica.

    Raises:
        RayActorError: the replica died at every try.
    """
    for attempt in range(1, _TRIES + 1):
        response = call()
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except RayActorError as error:
            await _pause_or_raise(error, attempt)


async def streamed(call: Callable[[], Any]) -> AsyncGenerator[Any]:
    """The items of a call, asked of another replica where one dies before the first item.

    Args:
        call: makes a `DeploymentResponseGenerator`. Where the reader stops or is cancelled, so is the work in the replica.

    Raises:
        RayActorError: the replica died after the first item, or at every try.
    """
    for attempt in range(1, _TRIES + 1):
        items, begun = call(), False
        try:
            async for item in items:
                begun = True
                yield item
            return
        except RayActorError as error:
            if begun:
                raise
            await _pause_or_raise(error, attempt)
        except (asyncio.CancelledError, GeneratorExit):
            items.cancel()
            raise


async def _pause_or_raise(error: RayActorError, attempt: int) -> None:
    if attempt == _TRIES:
        raise error
    log.warning("%s before the first token; asking another replica", type(error).__name__)
    await asyncio.sleep(random.uniform(0.5, 1) * _PAUSE_SECONDS * 2**attempt)
