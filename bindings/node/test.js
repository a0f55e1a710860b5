// SPDX-License-Identifier: MIT OR Apache-2.0
// What the module promises that needs no network: test.js FILE
'use strict';

const assert = require('node:assert');
const fs = require('node:fs');
const koffi = require('koffi');
const { Context, Log, UnifiedError, constants: C, statusString } = require('./unified.js');

const file = process.argv[2];
assert.throws(() => new Context({ interface: 'nosuchif0', device: 'null:' }),
  (error) => error instanceof UnifiedError && error.errno === 19 && error.message.includes('nosuchif0'));
assert.throws(() => new Context({ device: 'null:', colour: 1 }), TypeError);

/** What assert.throws takes: an error with this errno, which says why. */
const refused = (errno, words) => (error) => error instanceof UnifiedError && error.errno === errno
  && error.message.length > 0 && error.message.includes(words);

/** Submits all of them, and gives their completions in the order of userData. */
function submit(ctx, submissions) {
  assert.strictEqual(ctx.submit(submissions), submissions.length);
  const done = [];
  for (; done.length < submissions.length; done.push(...ctx.takeCompletions())) {
    assert.strictEqual(ctx.waitSync({ completions: true, timeout: 5000 }), C.WAIT_COMPLETIONS);
  }
  return done.sort((a, b) => (a.userData < b.userData ? -1 : 1)).map((one) => one.check());
}

/** Commands name their devices, and use frames and buffers. */
function devices(paths) {
  const ctx = new Context({
    frame_size: 4096,
    buffers_max: 16 << 20,
    devices: [
      { path: paths[0], file_size: 1 << 20, block_size: 512 },
      { path: paths[1], file_size: 2 << 20, block_size: 4096, spill: `${paths[1]}-spill` },
    ],
  });
  assert.deepStrictEqual([ctx.info.devices, ctx.device], [2, paths[0]]);
  let frame = ctx.frameAlloc();
  const buffer = ctx.bufferAlloc(12288);
  frame.view(1024, 512).fill(1);
  buffer.memory.fill(2, 0, 8192);
  let done = submit(ctx, [
    { op: C.OP_WRITE, lba: 3, frame, offset: 1024, length: 512, userData: 1, keep: true },
    { op: C.OP_WRITE, device: 1, lba: 2n, buffer, length: 8192, userData: 2n ** 63n },
  ]);
  assert.throws(() => frame.view(), /submitted/);
  assert.deepStrictEqual(done.map((one) => [one.device, one.length, one.userData]), [[0, 512, 1n], [1, 8192, 2n ** 63n]]);
  assert.strictEqual(done[1].frame, undefined);
  submit(ctx, [{ op: C.OP_FLUSH, device: C.ALL_DEVICES }]);
  const content = (n, from, to) => fs.readFileSync(paths[n]).subarray(from, to);
  const around = (value, length) => Buffer.concat([Buffer.alloc(1), Buffer.alloc(length, value), Buffer.alloc(1)]);
  assert.ok(content(0, 3 * 512 - 1, 4 * 512 + 1).equals(around(1, 512)));
  assert.ok(content(1, 2 * 4096 - 1, 4 * 4096 + 1).equals(around(2, 8192)));
  // Back, each to the other kind of memory.
  done = submit(ctx, [
    { op: C.OP_READ, lba: 3, buffer, offset: 8192, length: 512 },
    { op: C.OP_READ, device: 1, lba: 3, frame: done[0].frame, length: 4096, userData: 1 },
  ]);
  frame = done[1].frame;
  assert.ok(buffer.memory.subarray(8192, 8704).equals(Buffer.alloc(512, 1)) && frame.view().equals(Buffer.alloc(4096, 2)));
  submit(ctx, [{ op: C.OP_WRITE_ZEROES, device: 1, lba: 2, blocks: 1 }]);
  submit(ctx, [{ op: C.OP_READ, device: 1, lba: 2, buffer, length: 4096 }]);
  assert.ok(buffer.memory.subarray(0, 4097).equals(Buffer.concat([Buffer.alloc(4096), Buffer.of(2)])));
  assert.strictEqual(ctx.submit([{ op: C.OP_RAW, device: 1, command: { opcode: 0xff }, userData: 9 }]), 1);
  ctx.waitSync({ completions: true });
  const [raw] = ctx.takeCompletions();
  assert.deepStrictEqual([raw.status, raw.userData, raw.device], [1, 9n, 1]);
  const { backend, path, blocks, block_size: size, bytes_written: written, bytes_read: read, errors, out } = ctx.deviceInfo(1);
  assert.deepStrictEqual([backend, path, blocks, size, written, read, errors, out],
    ['file', paths[1], 512, 4096, 8192, 8192, 1, 0]);
  assert.strictEqual(ctx.deviceInfo(0).bytes_read, 512);
  // A device that is not there.
  assert.throws(() => ctx.submit([{ op: C.OP_WRITE, device: 2, frame, length: 512 }]), refused(22, 'device 2 does not exist'));
  assert.throws(() => ctx.deviceInfo(2), refused(22, 'device 2'));
  for (const wrong of [2 ** 32, -1, 0.5]) assert.throws(() => ctx.deviceInfo(wrong), /device cannot be/);
  assert.strictEqual(ctx.submit([{ op: C.OP_FLUSH, device: 1 }, { op: C.OP_FLUSH, device: 2 }]), 1);
  ctx.waitSync({ completions: true });
  assert.deepStrictEqual(ctx.takeCompletions().map((one) => one.device), [1]);
  assert.strictEqual(ctx.submit([]), 0);
  for (const wrong of [{ device: 2 ** 32 }, { device: -1 }, { op: 2 ** 32 }, { blocks: -1 }, { lba: -1 }]) {
    assert.throws(() => ctx.submit([{ op: C.OP_FLUSH, ...wrong }]), RangeError);
  }
  frame.release();
  // The largest block size counts, and 1 MiB is on device 0.
  assert.deepStrictEqual(ctx.stripeLocate(255), { device: 0, lba: 255 * 8 });
  assert.deepStrictEqual(ctx.stripeLocate(7n, 8192), { device: 1, lba: 3 });
  assert.throws(() => ctx.stripeLocate(2 ** 40), refused(34, '1099511627776'));
  assert.throws(() => ctx.stripeLocate(0, 1000), refused(22, '1000'));
  assert.throws(() => new Context({ devices: [{ path: paths[0] }, { path: paths[0] }] }), refused(22, paths[0]));
  assert.throws(() => new Context({ device: paths[0], devices: [{ path: paths[1] }] }), refused(22, 'device'));
  assert.throws(() => new Context({ devices: [{ path: paths[0], colour: 1 }] }), TypeError);
  assert.throws(() => new Context({ devices: [{ path: `${paths[0]}\0` }] }), /zero byte/);
  buffers(ctx, buffer, paths);
  // Sets of logs.
  assert.throws(() => new Log(paths), refused(42, paths[0]));
  assert.throws(() => new Log([paths[0]], [4096]), refused(42, `byte 4096 of '${paths[0]}`));
  assert.throws(() => new Log([paths[0]], 512n), refused(42, `byte 512 of '${paths[0]}`));
  assert.throws(() => new Log(paths, [0]), RangeError);
  assert.throws(() => new Log([`${paths[0]}-absent`, paths[0]], [0n, 0]), refused(2, 'absent'));
  assert.throws(() => new Log([]), refused(22, ''));
  for (const each of [...paths, `${paths[1]}-spill`]) fs.unlinkSync(each);
}

/** A buffer is its owner's until it is freed, and may be shared memory. */
function buffers(ctx, buffer, paths) {
  assert.deepStrictEqual(buffer.info(), { len: 12288, commands: 0 });
  assert.strictEqual(ctx.submit([{ op: C.OP_WRITE, buffer, length: 4096 }]), 1);
  assert.strictEqual(buffer.info().commands, 1);
  assert.throws(() => buffer.free(), refused(16, ''));
  ctx.waitSync({ completions: true });
  ctx.takeCompletions()[0].check();
  for (const [offset, length] of [[12288, 1], [-1, 1], [0, 12289], [0, NaN]]) {
    assert.throws(() => ctx.submit([{ op: C.OP_WRITE, buffer, offset, length }]), RangeError);
  }
  buffer.free();
  assert.throws(() => buffer.memory, /freed/);
  assert.throws(() => buffer.free(), refused(22, 'buffer'));
  assert.throws(() => ctx.submit([{ op: C.OP_WRITE, buffer }]), /freed/);
  assert.throws(() => ctx.bufferAlloc(0), refused(22, ''));
  assert.throws(() => ctx.bufferAlloc(17 << 20), refused(105, ''));
  // The same memory again and again.
  for (let i = 0; i < 1000; i++) {
    const again = ctx.bufferAlloc(4096);
    assert.ok(again.memory.equals(Buffer.alloc(4096)));
    again.memory.fill(3);
    again.free();
  }
  // Shared memory: mapped here, and as a descriptor.
  const libc = koffi.load('libc.so.6');
  const mmap = libc.func('void *mmap(void *at, size_t size, int protection, int flags, int fd, long offset)');
  const munmap = libc.func('int munmap(void *at, size_t size)');
  const address = mmap(null, 8192, 3, 0x21, -1, 0);
  const mapped = ctx.bufferImport(address, 8192);
  const name = `/dev/shm/unified-node-test-${process.pid}`;
  const fd = fs.openSync(name, 'w+');
  fs.unlinkSync(name);
  fs.ftruncateSync(fd, 8192);
  const given = ctx.bufferImportFd(fd, 4096, 4096);
  mapped.memory.write('mapped', 4096);
  fs.writeSync(fd, 'given', 4096);
  submit(ctx, [
    { op: C.OP_WRITE, buffer: mapped, offset: 4096, length: 512 },
    { op: C.OP_WRITE, device: 1, buffer: given },
  ]);
  const start = (n) => fs.readFileSync(paths[n]).toString('latin1', 0, 6);
  assert.deepStrictEqual([start(0), start(1)], ['mapped', 'given\0']);
  submit(ctx, [{ op: C.OP_READ, buffer: given, offset: 512, length: 512 }]);
  const seen = Buffer.alloc(7);
  fs.readSync(fd, seen, 0, 7, 4096 + 512);
  assert.strictEqual(seen.toString(), 'mapped\0');
  fs.closeSync(fd);
  assert.throws(() => ctx.bufferImportFd(-1, 0, 4096), refused(9, ''));
  assert.throws(() => ctx.bufferImport(Buffer.alloc(1 << 20), 1 << 20), refused(22, ''));
  mapped.free();
  given.free();
  assert.strictEqual(munmap(address, 8192), 0);
  // Nothing leads to memory that is gone.
  const left = ctx.bufferAlloc(100);
  ctx.close();
  assert.throws(() => left.memory, /closed/);
  assert.throws(() => left.free(), /closed/);
  assert.throws(() => ctx.deviceInfo(0), /closed/);
  // A device by descriptor; one that the context has no path for.
  const device = fs.openSync(paths[0], 'r+');
  const handed = new Context({ devices: [{ path: 'null:' }, { fd: device }] });
  fs.closeSync(device);
  const back = handed.bufferAlloc(4096);
  submit(handed, [{ op: C.OP_READ, device: 1, buffer: back }]);
  assert.strictEqual(back.memory.toString('latin1', 0, 7), 'mapped\0');
  handed.close();
}

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
  devices([`${file}-a`, `${file}-b`]);
  console.log('ok');
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
