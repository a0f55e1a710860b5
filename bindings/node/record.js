#!/usr/bin/env node
// SPDX-License-Identifier: MIT OR Apache-2.0
/**
 * Records packets as a log until COUNT are stored, then reads the log back.
 *
 *     record.js IFACE FILE COUNT
 */
'use strict';

const assert = require('node:assert');
const { setTimeout: sleep } = require('node:timers/promises');
const { Context, Log, constants } = require('./unified.js');

async function main() {
  const [ifname, path, count] = process.argv.slice(2);
  const ctx = new Context({ interface: ifname, device: path, file_size: 64 << 20 });
  let stored;
  try {
    ctx.pipelineStart({ layout: constants.LAYOUT_SLOT, flush_writes: 100 });
    console.log(`Receiving on ${ifname}`);
    while (ctx.pipelineStatus().stored < Number(count)) await sleep(10);
    stored = ctx.pipelineStop().durable;
  } finally {
    ctx.close();
  }
  const log = new Log(path);
  log.seek(0);
  let records = 0;
  let bytes = 0;
  for (const record of log) {
    assert.deepStrictEqual([record.kind, record.dst_port], [constants.LOG_RECORD, 9999]);
    records += 1;
    bytes += record.payload.length;
  }
  const { end, dropped, interface: recorded } = log.info();
  assert.deepStrictEqual([end, dropped, recorded], [records, 0, ifname]);
  log.close();
  console.log(`Stored ${stored}, read back ${records} with ${bytes} bytes`);
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
