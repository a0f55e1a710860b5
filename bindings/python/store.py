#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Stores COUNT payloads one behind the other, in an asyncio loop; then reads them back and compares.

    store.py IFACE FILE COUNT
"""

import asyncio
import sys
from typing import List, Tuple

import unified


async def store(ctx: unified.Context, count: int) -> List[Tuple[int, bytes]]:
    """Where each payload went, and a copy to compare with."""
    kept: List[Tuple[int, bytes]] = []

    async def receive(stream: unified.Stream) -> None:
        lba = 0
        async for packet in stream.packets():
            kept.append((lba, bytes(packet.payload)))
            blocks = -(-packet.payload_len // ctx.info.block_size)
            await stream.submit_write(packet, lba)
            lba += blocks
            if len(kept) == count:
                return

    async def finish(stream: unified.Stream) -> None:
        finished = 0
        async for completion in stream.completions():
            completion.check()
            finished += 1
            if finished == count:
                return

    async with ctx.stream() as stream:
        await asyncio.gather(receive(stream), finish(stream))
    return kept


def intact(ctx: unified.Context, lba: int, payload: bytes) -> bool:
    """Whether the device gives the payload back."""
    blocks = -(-len(payload) // ctx.info.block_size)
    ctx.submit_read(ctx.frame_alloc(), lba, blocks * ctx.info.block_size)
    while not (done := ctx.completions(1)):
        ctx.wait(completions=True)
    frame = done[0].check().frame
    assert frame is not None
    same = frame.view(0, len(payload)) == payload
    frame.release()
    return same


def main() -> int:
    if len(sys.argv) != 4 or int(sys.argv[3]) < 1:
        print(__doc__, file=sys.stderr)
        return 2
    interface, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with unified.Context(interface=interface, device=path, file_size=64 << 20) as ctx:
        print(f"Receiving on {interface}, storing on {ctx.device} ({ctx.info.backend})", flush=True)
        kept = asyncio.run(store(ctx, count))
        good = sum(intact(ctx, lba, payload) for lba, payload in kept)
    print(f"Stored {len(kept)} of {count}, {good} read back as they came")
    return 0 if good == count else 1


if __name__ == "__main__":
    sys.exit(main())
