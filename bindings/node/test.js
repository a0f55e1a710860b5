// SPDX-License-Identifier: MIT OR Apache-2.0
// What the module promises that needs no network: test.js FILE
'use strict';

const assert = require('node:assert');
const fs = require('node:fs');
const { Context, Log, UnifiedError, statusString } = require('./unified.js');

const file = process.argv[2];
assert.throws(() => new Context({ interface: 'nosuchif0', device: 'null:' }),
  (error) => error instanceof UnifiedError && error.errno === 19 && error.message.includes('nosuchif0'));
assert.throws(() => new Context({ device: 'null:', colour: 1 }), TypeError);

async function main() {
  const ctx = new Context({ device: file, file_size: 1 << 20 });
  const done = async () => {
    for await (const one of ctx.completions()) return one;
  };
  let frame = ctx.frameAlloc();
  frame.view().write('hello');
  ctx.submitWrite(frame, 3, { length: 5, userData: 2n ** 63n, keep: true, fua: true });
  assert.throws(() => frame.view(), /submitted/);
  assert.throws(() => ctx.submitWrite(frame, 3), /submitted/);
  let one = (await done()).check();
  assert.strictEqual(one.userData, 2n ** 63n);
  frame = one.frame;
  frame.view().fill(0x78);
  ctx.submitRead(frame, 3, 512);
  frame = (await done()).check().frame;
  assert.strictEqual(frame.view(0, 6).toString(), 'hello\0');
  frame.view()[0] = 0;
  ctx.submitCompare(frame, 3, 512);
  one = await done();
  assert.strictEqual(one.status, 0x285);
  assert.throws(() => one.check(), new RegExp(statusString(0x285)));
  assert.throws(() => ctx.submitRead(one.frame, 0, 100), (error) => error.errno === 22);
  assert.throws(() => ctx.submitRead(one.frame, 0, 4096), RangeError);
  one.frame.release();
  assert.throws(() => one.frame.release(), /released/);
  // Batches.
  const [first, second] = [ctx.frameAlloc(), ctx.frameAlloc()];
  second.view(100).write('second');
  assert.strictEqual(ctx.submitWrites([
    { frame: first, lba: 8, length: 512, keep: true },
    { frame: second, lba: 9n, offset: 100, length: 6, userData: 2n ** 63n, keep: true },
    { frame: first, lba: 10 },
  ]), 2);
  assert.throws(() => ctx.submitWrites([{ frame: first, lba: 8 }]), /submitted/);
  const both = [];
  for (; both.length < 2; both.push(...ctx.takeCompletions())) ctx.waitSync({ completions: true });
  const [left, right] = both.sort((a, b) => (a.userData < b.userData ? -1 : 1)).map((each) => each.check());
  assert.deepStrictEqual([left.userData, right.userData], [0n, 2n ** 63n]);
  ctx.submitRead(right.frame, 9, 512);
  right.frame = (await done()).check().frame;
  assert.strictEqual(right.frame.view(0, 7).toString(), 'second\0');
  assert.strictEqual(ctx.framesRelease([left.frame, right.frame, left.frame]), 2);
  assert.throws(() => ctx.framesRelease([left.frame]), /released/);
  left.frame.held = true;
  assert.throws(() => ctx.framesRelease([left.frame]), (error) => error.errno === 22);
  assert.throws(() => ctx.submitWrites([{ frame: left.frame, lba: 0 }]), (error) => error.errno === 22);
  assert.deepStrictEqual([ctx.framesRelease([]), ctx.submitWrites([])], [0, 0]);
  ctx.submitRaw({ opcode: 0xff });
  assert.strictEqual((await done()).status, 1);
  ctx.submitWriteZeroes(0, 8);
  (await done()).check();
  ctx.submitFlush(9);
  assert.strictEqual((await done()).check().userData, 9n);
  const { submitted, frames_held: held } = ctx.statistics();
  assert.match(ctx.openmetrics(), /unified_submitted_total\{[^}]*\} 9\n/);
  assert.deepStrictEqual([submitted, held], [9, 0]);
  const latency = ctx.latency({ commands: true });
  assert.deepStrictEqual([latency.count, latency.buckets.length], [9, 101]);
  assert.ok(latency.max > 0 && latency.quantile(1) === latency.max);
  assert.strictEqual(ctx.latency().count, 0);
  // One who waits is told of the end.
  const last = done();
  setTimeout(() => ctx.close(), 20);
  assert.strictEqual(await last, undefined);
  assert.throws(() => ctx.statistics(), /closed/);
  ctx.close();
  assert.throws(() => new Log(file), (error) => error.errno === 42);
  // Lanes.
  const whole = new Context({ device: file, queues: 2, cpus: [0] });
  const lane = whole.lane(1);
  assert.strictEqual(whole.lane(1), lane);
  assert.deepStrictEqual([whole.info.lanes, lane.info.lane], [2, 1]);
  const other = whole.lane(0);
  const mine = lane.frameAlloc();
  mine.view().write('lane');
  other.submitWrite(mine, 0, { length: 512 });
  while (other.takeCompletions().length === 0) other.waitSync({ completions: true });
  assert.deepStrictEqual([lane, other, whole].map((each) => each.statistics().submitted), [0, 1, 1]);
  assert.throws(() => whole.frameAlloc(), (error) => error.errno === 16);
  assert.throws(() => whole.lane(2), (error) => error.errno === 22);
  assert.throws(() => lane.close(), /ends with its context/);
  whole.close();
  assert.throws(() => lane.statistics(), /closed/);
  // A descriptor instead of a path; and retries that cannot be.
  const fd = fs.openSync(file, 'r+');
  const handed = new Context({ device_fd: fd, retries: 3 });
  fs.closeSync(fd);
  assert.strictEqual(handed.statistics().submitted, 0);
  handed.close();
  assert.throws(() => new Context({ device: file, retries: 256 }), (error) => error.errno === 22);
  console.log('ok');
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
