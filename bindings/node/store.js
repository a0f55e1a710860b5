#!/usr/bin/env node
// SPDX-License-Identifier: MIT OR Apache-2.0
/**
 * Stores COUNT payloads one after the other, then reads them back and compares.
 *
 *     store.js IFACE FILE COUNT
 */
'use strict';

const { Context, UnifiedError } = require('./unified.js');

const EAGAIN = 11;

/** Where each payload went, and a copy to compare with. */
async function store(ctx, count) {
  const kept = [];
  let finished = 0;
  let room = () => {};

  async function receive() {
    let lba = 0;
    for await (const packet of ctx.packets()) {
      kept.push({ lba, payload: Buffer.from(packet.payload) });
      while (packet.held) {
        try {
          ctx.submitWrite(packet, lba);
        } catch (error) {
          if (error.errno !== EAGAIN) throw error;
          // The SQ ring is full until completions were taken.
          await new Promise((resolve) => { room = resolve; });
        }
      }
      lba += Math.ceil(packet.payloadLength / ctx.info.block_size);
      if (kept.length === count) return;
    }
  }

  async function finish() {
    for await (const completion of ctx.completions()) {
      completion.check();
      room();
      if (++finished === count) return;
    }
  }

  await Promise.all([receive(), finish()]);
  return kept;
}

/** Whether the device gives the payload back. */
function intact(ctx, { lba, payload }) {
  const blocks = Math.ceil(payload.length / ctx.info.block_size);
  ctx.submitRead(ctx.frameAlloc(), lba, blocks * ctx.info.block_size);
  let done;
  while ((done = ctx.takeCompletions(1)).length === 0) ctx.waitSync({ completions: true });
  const { frame } = done[0].check();
  const same = frame.view(0, payload.length).equals(payload);
  frame.release();
  return same;
}

async function main() {
  const [ifname, path, count] = process.argv.slice(2);
  if (process.argv.length !== 5 || !(Number(count) > 0)) {
    console.error('usage: store.js IFACE FILE COUNT');
    return 2;
  }
  const ctx = new Context({ interface: ifname, device: path, file_size: 64 << 20 });
  try {
    console.log(`Receiving on ${ifname}, storing on ${ctx.device} (${ctx.info.backend})`);
    const kept = await store(ctx, Number(count));
    const good = kept.filter((one) => intact(ctx, one)).length;
    console.log(`Stored ${kept.length} of ${count}, ${good} read back as they came`);
    return good === Number(count) ? 0 : 1;
  } finally {
    ctx.close();
  }
}

main().then((code) => { process.exitCode = code; }, (error) => {
  console.error(error instanceof UnifiedError ? error.message : error);
  process.exitCode = 1;
});
