#!/usr/bin/env node
// SPDX-License-Identifier: MIT OR Apache-2.0
/**
 * Records the packets of all queues as a log, on one file or over several, until COUNT are stored. Then it reads the log back.
 *
 *     record.js IFACE FILE[,FILE...] COUNT
 */
'use strict';

const assert = require('node:assert');
const { setTimeout: sleep } = require('node:timers/promises');
const { Context, Log, constants } = require('./unified.js');

async function main() {
  const [ifname, list, count] = process.argv.slice(2);
  const paths = list.split(',');
  const devices = paths.map((path) => ({ path, file_size: 64 << 20 }));
  const ctx = new Context({ interface: ifname, queues: constants.ALL_QUEUES, devices });
  let stored;
  try {
    ctx.pipelineStart({ layout: constants.LAYOUT_LOG, flush_writes: 100 });
    console.log(`Receiving on ${ifname}`);
    while (ctx.pipelineStatus().stored < Number(count)) await sleep(10);
    stored = ctx.pipelineStop().durable;
  } finally {
    ctx.close();
  }
  const log = new Log(paths);
  const { lanes, oldest, devices: has } = log.info();
  // From the oldest record on. Several lanes have no sequence numbers in common.
  if (lanes === 1) log.seek(oldest);
  else log.seekTime(0);
  const each = Array(has).fill(0);
  let records = 0;
  let bytes = 0;
  for (const record of log) {
    assert.deepStrictEqual([record.kind, record.dst_port], [constants.LOG_RECORD, 9999]);
    records += 1;
    bytes += record.payload.length;
    each[record.device] += 1;
  }
  const { end, dropped, interface: recorded } = log.info();
  assert.deepStrictEqual([end, dropped, recorded], [records, 0, ifname]);
  log.close();
  console.log(`Stored ${stored}, read back ${records} with ${bytes} bytes`);
  each.forEach((found, device) => console.log(`Device ${device}: ${found} records`));
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
