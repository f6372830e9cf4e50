"""A response that gives back what its request held, however it ends."""

from __future__ import annotations

from contextlib import AsyncExitStack

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send


class Closing(Response):
    """Another response, and a stack that is closed once that was sent, or nobody takes it any more."""

    def __init__(self, response: Response, stack: AsyncExitStack) -> None:
        super().__init__()
        self._response = response
        self._stack = stack
        self.status_code = response.status_code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        async with self._stack:
            await self._response(scope, receive, send)
