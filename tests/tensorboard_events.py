"""TensorBoard's event files, read without its viewer."""

from __future__ import annotations

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def events_of(path: Path) -> list[Event]:
    """The events of one of TensorBoard's files: each has a length (8 bytes) and its checksum (4) before, a checksum (4) behind."""
    events, data = [], path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events
