"""Calls of a deployment that outlive their replica, and do not outlive their caller."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from ray.exceptions import RayActorError

from supertiny.errors import ArmBusy

_TRIES = 4
"""A dead replica is out of the choice once one call has seen it; more than one may die."""
_PAUSE_SECONDS = 0.05
log = logging.getLogger(__name__)


async def answered(call: Callable[[], Any], queue_seconds: float | None = None) -> Any:
    """What a call gives, asked of another replica where one dies under it: generating again changes nothing.

    Args:
        call: makes a `DeploymentResponse`. Where the caller is cancelled, so is the work in the replica.
        queue_seconds: longest wait until a replica takes it; None waits for ever.

    Raises:
        RayActorError: the replica died at every try.
        ArmBusy: no replica took it in time.
    """
    for attempt in range(1, _TRIES + 1):
        response = call()
        try:
            if queue_seconds is not None:
                await _taken(response._to_object_ref(), queue_seconds)
            return await response
        except (asyncio.CancelledError, ArmBusy):
            response.cancel()
            raise
        except RayActorError as error:
            await _pause_or_raise(error, attempt)


async def streamed(call: Callable[[], Any], queue_seconds: float | None = None) -> AsyncGenerator[Any]:
    """The items of a call, asked of another replica where one dies before the first item.

    Args:
        call: makes a `DeploymentResponseGenerator`. Where the reader stops or is cancelled, so is the work in the replica.
        queue_seconds: as of `answered`.

    Raises:
        RayActorError: the replica died after the first item, or at every try.
        ArmBusy: no replica took it in time.
    """
    for attempt in range(1, _TRIES + 1):
        items, begun = call(), False
        try:
            if queue_seconds is not None:
                await _taken(items._to_object_ref_gen(), queue_seconds)
            async for item in items:
                begun = True
                yield item
            return
        except RayActorError as error:
            if begun:
                raise
            await _pause_or_raise(error, attempt)
        except (asyncio.CancelledError, GeneratorExit, ArmBusy):
            items.cancel()
            raise


async def _taken(reference: Awaitable[Any], queue_seconds: float) -> None:
    """Wait until a replica has the call: Ray gives a reference to its result no earlier."""
    try:
        async with asyncio.timeout(queue_seconds):
            await reference
    except TimeoutError:
        raise ArmBusy(f"no replica of the arm had a place within {queue_seconds:g} s") from None


async def _pause_or_raise(error: RayActorError, attempt: int) -> None:
    if attempt == _TRIES:
        raise error
    log.warning("%s before the first token; asking another replica", type(error).__name__)
    await asyncio.sleep(random.uniform(0.5, 1) * _PAUSE_SECONDS * 2**attempt)
