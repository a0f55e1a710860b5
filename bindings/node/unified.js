// SPDX-License-Identifier: MIT OR Apache-2.0
/**
 * Packets from AF_XDP to NVMe without a copy: the library of include/unified.h, for Node.
 *
 *     const { Context } = require('unified');
 *     const ctx = new Context({ interface: 'eth0', device: '/dev/ng0n1' });
 *     for await (const packet of ctx.packets()) ctx.submitWrite(packet, lba++);
 *
 * A frame is its holder's until it is submitted or released; nothing collects it. Buffers of its bytes are
 * not copies: do not touch one afterwards. Block addresses and user_data are numbers or BigInts.
 * UNIFIED_LIB names the library if the loader does not find libunified.so.0.
 */
'use strict';

const koffi = require('koffi');
const { constants, structs, functions } = require('./header.js');

const lib = koffi.load(process.env.UNIFIED_LIB || 'libunified.so.0');
const call = {};
for (const [name, [result, types]] of Object.entries(functions)) {
  call[name.replace('unified_', '')] = lib.func(name, result, types);
}

/** What the library could not do: a positive `errno`, and its sentence as the message. */
class UnifiedError extends Error {
  constructor(errno, message) {
    super(message);
    this.name = 'UnifiedError';
    this.errno = errno;
  }
}

function check(result) {
  if (result < 0) throw new UnifiedError(-result, call.last_error());
  return result;
}

/** Bytes of a struct that is filled in, its size set. */
function encoded(name, values = {}) {
  const type = structs[`unified_${name}`];
  for (const field of Object.keys(values)) {
    if (!(field in koffi.introspect(type).members)) throw new TypeError(`${name} has no field '${field}'`);
  }
  const nothing = (kind) => {
    const { name, length } = koffi.introspect(kind);
    if (length) return Array(length).fill(0);
    return ['uint64_t', 'uint32_t', 'uint16_t', 'uint8_t', 'int32_t'].includes(name) ? 0 : null;
  };
  const zero = Object.fromEntries(
    Object.entries(koffi.introspect(type).members).map(([field, { type: kind }]) => [field, nothing(kind)]));
  const bytes = Buffer.alloc(koffi.sizeof(type));
  koffi.encode(bytes, type, { ...zero, ...('size' in zero ? { size: bytes.length } : {}), ...values });
  return bytes;
}

/** A struct that the library fills in, as an object. */
function ask(name, fill) {
  const bytes = encoded(name);
  check(fill(bytes));
  const { size, ...values } = koffi.decode(bytes, structs[`unified_${name}`]);
  return values;
}

/** Offsets of a struct's fields, for reading many without making objects. */
function offsets(name) {
  const { members, size } = koffi.introspect(structs[`unified_${name}`]);
  return { ...Object.fromEntries(Object.entries(members).map(([field, { offset }]) => [field, offset])), size };
}

const PACKET = offsets('packet');
const COMPLETION = offsets('completion');
const EVENT = offsets('event');
const WRITE = offsets('write');
const SUBMISSION = offsets('submission');

/** A number for C, which would cut another one to something else. */
function u32(value, name) {
  if (!Number.isInteger(value) || value < 0 || value > 0xffffffff) throw new RangeError(`${name} cannot be ${value}`);
  return value;
}

/** A text as C has it, null if there is none. C would cut one with a zero byte off, and name another file. */
function text(value) {
  if (value === undefined || value === null) return null;
  if (value.includes('\0')) throw new TypeError(`'${value.replaceAll('\0', '\\0')}' has a zero byte: no path has one`);
  return Buffer.from(`${value}\0`);
}

const milliseconds = (ms) => (ms === undefined || ms === Infinity ? -1 : Math.max(0, Math.ceil(ms)));

/** 16 bytes of an address, as text. */
function address(bytes, version) {
  if (version === 4) return bytes.subarray(0, 4).join('.');
  const words = [];
  for (let i = 0; i < 16; i += 2) words.push(bytes.readUInt16BE(i).toString(16));
  return words.join(':');
}

/** A frame of the data buffers, its holder's until it is submitted or released. */
class Frame {
  constructor(context, number) {
    this.context = context;
    this.number = number;
    this.held = true;
  }

  /** `length` bytes from `offset` on, not copied, writable. Throws once the frame is gone. */
  view(offset = 0, length = this.context.info.frame_size - offset) {
    this.context._check(this);
    const size = this.context.info.frame_size;
    if (!(offset >= 0 && length >= 0 && offset + length <= size)) {
      throw new RangeError(`${length} bytes at ${offset} are not in a frame of ${size}`);
    }
    return Buffer.from(this.context._memory, this.number * size + offset, length);
  }

  /** Gives it back unwritten. */
  release() {
    const context = this.context;
    context._check(this);
    check(call.frame_release(context._handle, this.number));
    this.held = false;
  }

  _part() {
    return [0, this.context.info.frame_size];
  }
}

/** A received packet and its frame. */
class Packet extends Frame {
  constructor(context, raw, at) {
    super(context, raw.readUInt32LE(at + PACKET.frame));
    const data = raw.readBigUInt64LE(at + PACKET.data);
    this.offset = Number(data - context._buffers) - this.number * context.info.frame_size;
    this.length = raw.readUInt32LE(at + PACKET.len);
    this.payloadOffset = this.offset + raw.readUInt16LE(at + PACKET.payload_offset);
    this.payloadLength = raw.readUInt32LE(at + PACKET.payload_len);
    /** ns of CLOCK_MONOTONIC, a BigInt. */
    this.timestamp = raw.readBigUInt64LE(at + PACKET.timestamp);
    this.queue = raw.readUInt32LE(at + PACKET.queue);
    this.sourcePort = raw.readUInt16LE(at + PACKET.src_port);
    this.destinationPort = raw.readUInt16LE(at + PACKET.dst_port);
    this.ipVersion = raw.readUInt8(at + PACKET.ip_version);
    const tagged = raw.readUInt8(at + PACKET.flags) & constants.PACKET_VLAN;
    this.vlan = tagged ? raw.readUInt16LE(at + PACKET.vlan_tci) : undefined;
  }

  /** The packet from its Ethernet header on, not copied. */
  get data() {
    return this.view(this.offset, this.length);
  }

  /** The UDP payload, not copied. */
  get payload() {
    return this.view(this.payloadOffset, this.payloadLength);
  }

  _part() {
    return [this.payloadOffset, this.payloadLength];
  }
}

/** One finished command. */
class Completion {
  constructor(context, raw, at) {
    /** A BigInt. */
    this.userData = raw.readBigUInt64LE(at + COMPLETION.user_data);
    this.result = raw.readInt32LE(at + COMPLETION.result);
    this.status = raw.readUInt32LE(at + COMPLETION.status);
    this.length = raw.readUInt32LE(at + COMPLETION.len);
    const flags = raw.readUInt32LE(at + COMPLETION.flags);
    this.doNotRetry = (flags & constants.COMPLETION_DNR) !== 0;
    this.bounced = (flags & constants.COMPLETION_BOUNCED) !== 0;
    this.spilled = (flags & constants.COMPLETION_SPILLED) !== 0;
    /** The number of the device. */
    this.device = raw.readUInt32LE(at + COMPLETION.device);
    /** The frame, if its holder has it again. */
    this.frame = flags & constants.COMPLETION_FRAME
      ? new Frame(context, raw.readUInt32LE(at + COMPLETION.frame)) : undefined;
  }

  /** Itself; throws if the command failed. */
  check() {
    if (this.result < 0) throw new UnifiedError(-this.result, call.strerror(this.result));
    if (this.status) throw new UnifiedError(5, `NVMe status 0x${this.status.toString(16)}: ${call.status_string(this.status)}`);
    return this;
  }
}

/** Registered memory of any size, for Context.submit: its owner's until free(), or until the context is closed. */
class RegisteredBuffer {
  constructor(context, number, address, length) {
    this.context = context;
    /** A BigInt; none is used twice. */
    this.number = number;
    this.length = length;
    this._address = address;
    const start = Buffer.alloc(8);
    start.writeBigUInt64LE(address);
    this._memory = Buffer.from(koffi.view(koffi.decode(start, 'void *'), length));
  }

  /** Its bytes, a Buffer that is not a copy. Throws once it is gone; do not touch one that you have kept then. */
  get memory() {
    this.context._open();
    if (this._memory === null) throw new Error(`buffer ${this.number} was freed`);
    return this._memory;
  }

  /** `len`, and `commands`: how many use it now. */
  info() {
    const { len, commands } = ask('buffer_info', (bytes) => call.buffer_info(this.context._open(), this.number, bytes));
    return { len, commands };
  }

  /** Ends it. Throws with EBUSY while commands use it: take their completions first. */
  free() {
    check(call.buffer_free(this.context._open(), this.number));
    this._memory = null;
  }
}

const BATCH = 64;

/** Fields of the configuration that count only with their flags, which are set here. */
const FLAGS = { headroom: 'HEADROOM', xsk_map_fd: 'XSK_MAP_FD', xsk_fd: 'XSK_FD', device_fd: 'DEVICE_FD' };

/** An array of unified_device in C's layout, and the texts that it points to. */
function several(devices) {
  const texts = [];
  const structs = devices.map(({ path, spill, flags = 0, ...rest }) => {
    const strings = { path: text(path), spill: text(spill) };
    texts.push(strings);
    return encoded('device', { ...rest, ...strings, flags: 'fd' in rest ? flags | constants.DEVICE_FD : flags });
  });
  return { array: Buffer.concat(structs), texts };
}

/** A network interface (or none), its devices, and the memory between them. */
class Context {
  /**
   * Fields as in unified_config, except: `interface` for ifname; `ports`, `cpus`, `xsk_fds` and `devices` are arrays. Each of the
   * devices is an object with the fields of unified_device: `{ path: '/dev/ng0n1' }`; `fd` counts if it is given.
   */
  constructor(
    { interface: ifname = null, ports = [], cpus = [], xsk_fds = [], devices = [], flags = 0, ...rest },
    whole,
  ) {
    this._lanes = new Map();
    if (whole) {
      this._whole = whole;
      this._opened(rest.handle);
      return;
    }
    this._whole = this;
    const wanted = Uint16Array.from(ports);
    const places = Uint32Array.from(cpus);
    const sockets = Int32Array.from(xsk_fds);
    const list = several(devices);
    const config = encoded('config', {
      ...rest,
      devices: devices.length ? list.array : null,
      device_count: devices.length,
      ifname,
      ports: ports.length ? wanted : null,
      port_count: ports.length,
      cpus: cpus.length ? places : null,
      cpu_count: cpus.length,
      xsk_fds: xsk_fds.length ? sockets : null,
      xsk_fd_count: xsk_fds.length,
      flags: Object.entries(FLAGS).reduce((all, [name, flag]) => (name in rest ? all | constants[flag] : all), flags),
    });
    // Addresses of these are in the configuration: they must not be collected before the call.
    this._given = { wanted, places, sockets, list };
    const place = Buffer.alloc(8);
    check(call.ctx_create(config, place));
    this._opened(place.readBigUInt64LE(0));
  }

  /** What a context and its lanes have. */
  _opened(handle) {
    this._handle = handle;
    this.info = ask('info', (bytes) => call.ctx_info(this._handle, bytes));
    this._buffers = koffi.address(this.info.region) + BigInt(this.info.buffers);
    // One view of all frames, which the lanes share; packets are parts of it.
    this._memory = this._whole._memory;
    if (this._whole === this) {
      const start = Buffer.alloc(8);
      start.writeBigUInt64LE(this._buffers);
      this._memory = koffi.view(koffi.decode(start, 'void *'), this.info.buffers_size);
    }
    this._packets = Buffer.alloc(BATCH * PACKET.size);
    this._completions = Buffer.alloc(BATCH * COMPLETION.size);
    this._waiting = new Set();
  }

  get closed() {
    return this._handle === null;
  }

  _open() {
    if (this._handle === null) throw new Error('the context is closed');
    return this._handle;
  }

  _check(frame) {
    this._open();
    if (frame.context._whole !== this._whole) throw new Error('the frame is of another context');
    if (!frame.held) throw new Error(`frame ${frame.number} was submitted or released`);
  }

  /**
   * Takes the XDP program off, finishes what is in flight, frees everything. A Buffer of its memory that is
   * touched afterwards ends the process.
   */
  close() {
    if (this._handle === null) return;
    if (this._whole !== this) throw new Error(`lane ${this.info.lane} ends with its context: close that one`);
    const handle = this._handle;
    for (const one of [this, ...this._lanes.values()]) {
      if (one._poll) one._poll.close();
      one._poll = one._memory = one._handle = null;
      one._wake();
    }
    check(call.ctx_destroy(handle));
  }

  /**
   * One of the lanes, for a worker of its own: `info.lanes` says how many there are. From now on the data path of the
   * whole context is theirs. It ends with the context, and is not closed itself.
   */
  lane(number) {
    const place = Buffer.alloc(8);
    check(call.ctx_lane(this._open(), number, place));
    if (!this._lanes.has(number)) this._lanes.set(number, new Context({ handle: place.readBigUInt64LE(0) }, this));
    return this._lanes.get(number);
  }

  /** The path of device 0 as it was opened. */
  get device() {
    const path = Buffer.alloc(4096);
    return path.toString('utf8', 0, check(call.ctx_device(this._open(), path, path.length)));
  }

  /** What a device is, and what was counted of it by all lanes, or by this lane: the fields of unified_device_info. */
  deviceInfo(device) {
    const { reserved, ...info } = ask('device_info', (bytes) => call.device_info(this._open(), u32(device, 'device'), bytes));
    return info;
  }

  /**
   * Where a pipeline with LAYOUT_PAYLOAD and these `chunkBytes` (0: the default) stores a block of its range: the `device`, and
   * the block on it, `lba`.
   */
  stripeLocate(lba, chunkBytes = 0) {
    const [device, block] = [Buffer.alloc(4), Buffer.alloc(8)];
    check(call.stripe_locate(this._open(), BigInt(lba), u32(chunkBytes, 'chunkBytes'), device, block));
    return { device: device.readUInt32LE(0), lba: koffi.decode(block, 'uint64_t') };
  }

  /** A buffer of so many zeroed bytes. */
  bufferAlloc(length) {
    return this._buffer(length, (number, data) => call.buffer_alloc(this._open(), length, number, data));
  }

  /**
   * A buffer of shared memory that the program has mapped at `address` (a BigInt, or koffi's pointer), and keeps mapped until
   * it is freed. Memory of JavaScript is refused.
   */
  bufferImport(address, length) {
    const at = typeof address === 'bigint' ? address : koffi.address(address);
    return this._buffer(length, (number, data) => {
      data.writeBigUInt64LE(at);
      return call.buffer_import(this._open(), at, length, number);
    });
  }

  /** A buffer of a part of a memfd, or of a file of tmpfs or hugetlbfs. The descriptor may be closed at once. */
  bufferImportFd(fd, offset, length) {
    return this._buffer(length, (number, data) => call.buffer_import_fd(this._open(), fd, offset, length, number, data));
  }

  _buffer(length, make) {
    const [number, data] = [Buffer.alloc(8), Buffer.alloc(8)];
    check(make(number, data));
    return new RegisteredBuffer(this, number.readBigUInt64LE(0), data.readBigUInt64LE(0), Number(length));
  }

  /** All counters, as unified_stats names them: numbers, BigInts above 2^53. */
  statistics() {
    return ask('stats', (bytes) => call.ctx_stats(this._open(), bytes));
  }

  /**
   * How long packets took from arrival until they were written or, with `commands`, commands from their submission:
   * `count`, `sum`, `max` and `buckets` of unified_latency, times in ns, and a function `quantile` (0.99: the 99th
   * percentile).
   */
  latency({ commands = false } = {}) {
    const type = structs.unified_latency;
    const bytes = Buffer.alloc(koffi.sizeof(type));
    bytes.writeBigUInt64LE(BigInt(bytes.length));
    check(call.ctx_latency(this._open(), commands ? constants.LATENCY_COMMAND : constants.LATENCY_PACKET, bytes));
    const { size, ...values } = koffi.decode(bytes, type);
    return { ...values, quantile: (part) => call.latency_quantile(bytes, part) };
  }

  /** All counters as OpenMetrics text. */
  openmetrics() {
    for (let size = 32768; ;) {
      const text = Buffer.alloc(size);
      const length = check(call.stats_render(this._open(), text, size));
      if (length < size) return text.toString('utf8', 0, length);
      size = length + 1024;
    }
  }

  portAdd(port) {
    check(call.port_add(this._open(), port));
  }

  portRemove(port) {
    check(call.port_remove(this._open(), port));
  }

  eventsSample(sample) {
    check(call.events_sample(this._open(), sample));
  }

  /** The metadata events that are there. */
  *events() {
    const raw = Buffer.alloc(BATCH * EVENT.size);
    for (;;) {
      const count = check(call.events(this._open(), raw, BATCH));
      for (let i = 0; i < count; i++) {
        const one = raw.subarray(i * EVENT.size, (i + 1) * EVENT.size);
        const version = one.readUInt8(EVENT.ip_version);
        yield {
          timestamp: one.readBigUInt64LE(EVENT.timestamp),
          source: address(one.subarray(EVENT.src_addr), version),
          destination: address(one.subarray(EVENT.dst_addr), version),
          sourcePort: one.readUInt16LE(EVENT.src_port),
          destinationPort: one.readUInt16LE(EVENT.dst_port),
          payloadLength: one.readUInt16LE(EVENT.payload_len),
          queue: one.readUInt32LE(EVENT.queue),
        };
      }
      if (count < BATCH) return;
    }
  }

  // --- data path

  /** An empty frame. */
  frameAlloc() {
    const number = Buffer.alloc(4);
    check(call.frame_alloc(this._open(), number));
    return new Frame(this, number.readUInt32LE(0));
  }

  /** Gives many frames back unwritten: how many, fewer than all if one of them is not held. Throws if the first is not. */
  framesRelease(frames) {
    const numbers = Buffer.alloc(Math.max(4 * frames.length, 4));
    frames.forEach((frame, i) => {
      this._check(frame);
      numbers.writeUInt32LE(frame.number, 4 * i);
    });
    const count = check(call.frames_release(this._open(), numbers, frames.length));
    for (const frame of frames.slice(0, count)) frame.held = false;
    return count;
  }

  /** Up to 64 packets that have come. */
  rxBatch(most = BATCH) {
    const count = check(call.rx_batch(this._open(), this._packets, Math.min(most, BATCH)));
    return Array.from({ length: count }, (_, i) => new Packet(this, this._packets, i * PACKET.size));
  }

  /** Up to 64 completions that are there. */
  takeCompletions(most = BATCH) {
    const count = check(call.completions(this._open(), this._completions, Math.min(most, BATCH)));
    return Array.from({ length: count }, (_, i) => new Completion(this, this._completions, i * COMPLETION.size));
  }

  /** Where bytes of a frame are. */
  _place(frame, offset, length) {
    this._check(frame);
    if (!(offset >= 0 && length >= 0 && offset + length <= this.info.frame_size)) {
      throw new RangeError(`${length} bytes at ${offset} are not in a frame of ${this.info.frame_size}`);
    }
    return this._buffers + BigInt(frame.number * this.info.frame_size + offset);
  }

  _transfer(submit, frame, lba, offset, length, userData, flags) {
    const at = this._place(frame, offset, length);
    check(submit(this._handle, frame.number, at, length, lba, userData, flags));
    frame.held = false;
  }

  /** Writes a packet's payload, or `length` bytes at `offset` of a frame, from block `lba` on. */
  submitWrite(frame, lba, { offset, length, userData = 0, fua = false, keep = false, more = false } = {}) {
    const [start, size] = offset === undefined ? frame._part() : [offset, this.info.frame_size - offset];
    this._transfer(call.submit_write, frame, lba, start, length ?? size, userData,
      fua * constants.FUA | keep * constants.KEEP | more * constants.MORE);
  }

  /**
   * Submits many writes together: how many, fewer than all if the SQ ring became full or one was refused. Throws if the
   * first was not submitted. Each is an object with `frame`, `lba` and options of submitWrite, without `more`.
   */
  submitWrites(writes) {
    const raw = Buffer.alloc(Math.max(writes.length, 1) * WRITE.size);
    writes.forEach(({ frame, lba, offset, length, userData = 0, fua = false, keep = false }, i) => {
      const [start, size] = offset === undefined ? frame._part() : [offset, this.info.frame_size - offset];
      const bytes = length ?? size;
      const at = i * WRITE.size;
      raw.writeBigUInt64LE(this._place(frame, start, bytes), at + WRITE.data);
      raw.writeBigUInt64LE(BigInt(lba), at + WRITE.lba);
      raw.writeBigUInt64LE(BigInt(userData), at + WRITE.user_data);
      raw.writeUInt32LE(bytes, at + WRITE.len);
      raw.writeUInt32LE(frame.number, at + WRITE.frame);
      raw.writeUInt32LE(fua * constants.FUA | keep * constants.KEEP, at + WRITE.flags);
    });
    const count = check(call.submit_writes(this._open(), raw, writes.length));
    for (const { frame } of writes.slice(0, count)) frame.held = false;
    return count;
  }

  /**
   * Submits commands together, each to the device that it names: how many, fewer than all if the SQ ring became full or one was
   * refused. Throws if the first was not submitted. Each is an object: `op` (constants.OP_WRITE and so on), `device` (0), `lba`,
   * `userData`, `fua`, `keep`, `more`; the data as `frame` or `buffer`, with `offset` and `length`; `blocks` of operations without
   * data; `command` of OP_RAW, with the fields of unified_nvme_command.
   */
  submit(submissions) {
    const raw = Buffer.alloc(Math.max(submissions.length, 1) * SUBMISSION.size);
    const commands = [];
    submissions.forEach((one, i) => {
      const { op, device = 0, lba = 0, userData = 0, blocks = 0, frame, buffer, command } = one;
      const at = i * SUBMISSION.size;
      raw.writeBigUInt64LE(BigInt(SUBMISSION.size), at);
      raw.writeBigUInt64LE(BigInt(lba), at + SUBMISSION.lba);
      raw.writeBigUInt64LE(BigInt(userData), at + SUBMISSION.user_data);
      raw.writeUInt32LE(op, at + SUBMISSION.op);
      raw.writeUInt32LE(device, at + SUBMISSION.device);
      raw.writeUInt32LE(blocks, at + SUBMISSION.blocks);
      raw.writeUInt32LE((one.fua ?? false) * constants.FUA | (one.keep ?? false) * constants.KEEP
        | (one.more ?? false) * constants.MORE, at + SUBMISSION.flags);
      if (buffer) {
        const { offset = 0, length = buffer.length - offset } = one;
        if (!(offset >= 0 && length >= 0 && offset + length <= buffer.memory.length)) {
          throw new RangeError(`${length} bytes at ${offset} are not in a buffer of ${buffer.length}`);
        }
        raw.writeBigUInt64LE(buffer._address + BigInt(offset), at + SUBMISSION.data);
        raw.writeBigUInt64LE(buffer.number, at + SUBMISSION.buffer);
        raw.writeUInt32LE(length, at + SUBMISSION.len);
      } else if (frame) {
        const [start, rest] = one.offset === undefined ? frame._part() : [one.offset, this.info.frame_size - one.offset];
        const length = one.length ?? rest;
        raw.writeBigUInt64LE(this._place(frame, start, length), at + SUBMISSION.data);
        raw.writeUInt32LE(frame.number, at + SUBMISSION.frame);
        raw.writeUInt32LE(length, at + SUBMISSION.len);
      }
      if (command) {
        commands.push(encoded('nvme_command', command));
        raw.writeBigUInt64LE(koffi.address(commands[commands.length - 1]), at + SUBMISSION.command);
      }
    });
    // Kept until the next call: the array does not keep what it points to.
    this._commands = commands;
    const count = check(call.submit(this._open(), raw, submissions.length));
    for (const { frame, buffer } of submissions.slice(0, count)) if (frame && !buffer) frame.held = false;
    return count;
  }

  /** Reads whole blocks into a frame, which comes back with the completion. */
  submitRead(frame, lba, length, { offset = 0, userData = 0, more = false } = {}) {
    this._transfer(call.submit_read, frame, lba, offset, length, userData, more * constants.MORE);
  }

  /** Compares whole blocks with a frame, which comes back with the completion. */
  submitCompare(frame, lba, length, { offset = 0, userData = 0, more = false } = {}) {
    this._transfer(call.submit_compare, frame, lba, offset, length, userData, more * constants.MORE);
  }

  submitFlush(userData = 0) {
    check(call.submit_flush(this._open(), userData));
  }

  submitWriteZeroes(lba, blocks, { userData = 0, fua = false } = {}) {
    check(call.submit_write_zeroes(this._open(), lba, blocks, userData, fua * constants.FUA));
  }

  submitDeallocate(lba, blocks, userData = 0) {
    check(call.submit_deallocate(this._open(), lba, blocks, userData));
  }

  /** Any NVMe command: fields as in unified_nvme_command. */
  submitRaw(command, { frame, offset = 0, userData = 0 } = {}) {
    const raw = encoded('nvme_command', command);
    if (!frame) {
      check(call.submit_raw(this._open(), raw, 0, null, userData));
      return;
    }
    this._transfer((handle, number, at, length, lba, user) => call.submit_raw(handle, raw, number, at, user),
      frame, 0, offset, command.data_len ?? 0, userData, 0);
  }

  submitPending() {
    check(call.submit_pending(this._open()));
  }

  /** Waits without the event loop, which stands still meanwhile: bits of WAIT_RX, WAIT_COMPLETIONS, or 0. */
  waitSync({ rx = false, completions = false, timeout } = {}) {
    return check(call.wait(this._open(), rx * constants.WAIT_RX | completions * constants.WAIT_COMPLETIONS,
      milliseconds(timeout)));
  }

  _wake() {
    const waiting = this._waiting;
    this._waiting = new Set();
    for (const resolve of waiting) resolve();
  }

  /** Resolves when packets or completions may be there, or the context is closed. */
  _ready() {
    return new Promise((resolve) => {
      this._waiting.add(resolve);
      if (this._handle === null) return this._wake();
      const ready = () => {
        // Level-triggered: nobody who waits, no polling.
        this._poll.stop();
        this._wake();
      };
      if (this._poll) this._poll.start({ readable: true }, ready);
      else this._poll = koffi.node.poll(check(call.poll_fd(this._handle)), { readable: true }, ready);
    });
  }

  /**
   * Packets as they come, until the context is closed. Whoever iterates over packets must also iterate over
   * completions, or take them: with one left the descriptor stays readable. What a `break` leaves of a batch
   * is released.
   */
  async *packets() {
    let batch = [];
    try {
      while (this._handle !== null) {
        batch = this.rxBatch();
        const full = batch.length === BATCH;
        while (batch.length) yield batch.shift();
        if (!full && this._handle !== null) await this._ready();
      }
    } finally {
      if (this._handle !== null) for (const packet of batch) packet.release();
    }
  }

  /** Completions as they come, until the context is closed. */
  async *completions() {
    while (this._handle !== null) {
      const batch = this.takeCompletions();
      yield* batch;
      if (batch.length < BATCH && this._handle !== null) await this._ready();
    }
  }

  // --- pipeline

  /** Stores everything that is received, by threads of the library. Fields as in unified_pipeline_config. */
  pipelineStart(options = {}) {
    check(call.pipeline_start(this._open(), encoded('pipeline_config', options)));
  }

  pipelineStatus() {
    return ask('pipeline_status', (bytes) => call.pipeline_status(this._open(), bytes));
  }

  /** Stores what was received, flushes, and returns the final state. */
  pipelineStop() {
    return ask('pipeline_status', (bytes) => call.pipeline_stop(this._open(), bytes));
  }
}

/** A log written by a pipeline with LAYOUT_SLOT or LAYOUT_LOG. Iterating gives what is in it now. */
class Log {
  /**
   * `path`: of the device; or an array, of the devices of one recording in any order. `start`: where the log begins, for all
   * of them, or an array. Records that only devices have which are not given are reported as missing.
   */
  constructor(path, start = 0) {
    this._log = null;
    const names = (Array.isArray(path) ? path : [path]).map(text);
    const starts = BigUint64Array.from(Array.isArray(start) ? start : names.map(() => start), BigInt);
    if (starts.length !== names.length) throw new RangeError(`${starts.length} starts for ${names.length} devices`);
    const addresses = BigUint64Array.from(names, (name) => (name === null ? 0n : koffi.address(name)));
    // Kept, because the array does not keep what it points to.
    this._names = names;
    const place = Buffer.alloc(8);
    check(call.log_open_set(addresses, starts, names.length, place));
    this._log = place.readBigUInt64LE(0);
  }

  _open() {
    if (this._log === null) throw new Error('the log is closed');
    return this._log;
  }

  close() {
    if (this._log === null) return;
    const log = this._log;
    this._log = null;
    check(call.log_close(log));
  }

  /** The next thing, its packet and payload copied; undefined at the end, for which it waits `timeout` ms. */
  next(timeout = 0) {
    const bytes = encoded('log_record');
    if (check(call.log_next(this._open(), bytes, milliseconds(timeout))) === 0) return undefined;
    const { size, reserved, reserved2, packet, payload, ...record } = koffi.decode(bytes, structs.unified_log_record);
    const copy = (from, length) => Buffer.from(from ? new Uint8Array(koffi.view(from, length)) : []);
    return { ...record, packet: copy(packet, record.len), payload: copy(payload, record.payload_len) };
  }

  *[Symbol.iterator]() {
    for (let record; (record = this.next()) !== undefined;) yield record;
  }

  seek(sequence) {
    check(call.log_seek(this._open(), sequence));
  }

  /** Looks there too for what the device does not have; from the oldest record again. */
  addSpill(path) {
    check(call.log_add_spill(this._open(), path));
  }

  seekTime(timestamp) {
    check(call.log_seek_time(this._open(), timestamp));
  }

  info() {
    return ask('log_info', (bytes) => call.log_info(this._open(), bytes));
  }
}

module.exports = {
  Context, Completion, Frame, Log, Packet, RegisteredBuffer, UnifiedError,
  constants,
  statusString: (status) => call.status_string(status),
  version: () => call.version_string(),
};
