-- SPDX-License-Identifier: MIT OR Apache-2.0
--- Packets from AF_XDP to NVMe without a copy: the library of include/unified.h, for LuaJIT.
--
--   local unified = require "unified"
--   local ctx = assert(unified.open { interface = "eth0", device = "/dev/ng0n1" })
--   ctx:wait { rx = true }
--   for packet in ctx:packets() do assert(ctx:submit_write(packet, lba)) end
--
-- What can fail returns nil, the library's sentence and a positive errno; iterators raise it. Packets are
-- structs of the header in an array that the next call of packets() fills again; `data` and `payload` point
-- into the frame, and are good until it is submitted or released. Nothing collects frames.
-- UNIFIED_LIB names the library where the loader does not find libunified.so.0 by itself.

local ffi = require "ffi"
local bit = require "bit"
local constants = require "unified_h"
local lib = ffi.load(os.getenv("UNIFIED_LIB") or "libunified.so.0")

local M = { C = constants }

--- The number, or nil, sentence, errno.
local function check(result)
    if result < 0 then
        return nil, ffi.string(lib.unified_last_error()), -result
    end
    return result
end

--- The number; raises the sentence.
local function must(result)
    return result >= 0 and result or error(ffi.string(lib.unified_last_error()), 3)
end

--- true, or nil, sentence, errno.
local function done(result)
    if result < 0 then
        return check(result)
    end
    return true
end

local function sized(name)
    local struct = ffi.new("struct unified_" .. name)
    struct.size = ffi.sizeof(struct)
    return struct
end

--- Whole milliseconds, rounded up; nil is for ever.
local function milliseconds(seconds)
    return seconds and math.ceil(seconds * 1000) or -1
end

--- Fills a struct from a table. Strings live as long as the table does.
local function fill(struct, values)
    for name, value in pairs(values) do
        struct[name] = value
    end
    return struct
end

--- Sets a field, or an element of an array; raises for a number that C would cut to another one.
local function exactly(struct, field, value, name)
    struct[field] = value
    if struct[field] ~= value then
        error(("%s cannot be %s"):format(name or field, value), 3)
    end
    return struct[field]
end

local function u32(name, value)
    return exactly(ffi.new("uint32_t[1]"), 0, value, name)
end

--- Calls `close` when nobody has `object` any more. (A finalizer of cdata would run after the library is
--- unloaded; that of a userdata made later than the library's runs before.)
local function finally(object)
    local proxy = newproxy(true)
    getmetatable(proxy).__gc = function() object:close() end
    return proxy
end

function M.version()
    return ffi.string(lib.unified_version_string())
end

--- An NVMe status in words.
function M.status_string(status)
    return ffi.string(lib.unified_status_string(status))
end

-- --- packets

local packet = {}

--- A copy of the payload as a string.
function packet:string()
    return ffi.string(self.payload, self.payload_len)
end

ffi.metatype("struct unified_packet", { __index = packet })

-- --- contexts

local Context = {}
Context.__index = Context
local State = {}
State.__index = State

function State:close()
    if self.handle then
        local handle = self.handle
        self.handle = nil
        for _, lane in ipairs(self.lanes) do
            lane.handle = nil
        end
        for buffer in pairs(self.buffers) do
            buffer.data = nil
        end
        return done(lib.unified_ctx_destroy(handle))
    end
    return true
end

local function handle(self)
    return self.state.handle or error("the context is closed", 3)
end

--- Fields of the configuration that count only with their flags, which are set here.
local FLAGS = { headroom = "HEADROOM", xsk_map_fd = "XSK_MAP_FD", xsk_fd = "XSK_FD", device_fd = "DEVICE_FD" }

--- Tables with the fields of unified_device as an array; the descriptor counts if it is given.
local function several(list)
    local devices = ffi.new("struct unified_device[?]", #list)
    for i, one in ipairs(list) do
        local device = fill(devices[i - 1], one)
        device.size = ffi.sizeof("struct unified_device")
        if one.fd then
            device.flags = bit.bor(device.flags, constants.DEVICE_FD)
        end
    end
    return devices
end

--- A set whose members may be collected.
local function weak()
    return setmetatable({}, { __mode = "k" })
end

--- What a context and its lanes have.
local function opened(state, proxy)
    local self = setmetatable({ state = state, proxy = proxy }, Context)
    local info = sized("info")
    must(lib.unified_ctx_info(state.handle, info))
    self.info = info
    return self
end

--- Opens a context. Fields as in unified_config, except: `interface` for ifname; `ports`, `cpus`, `xsk_fds` and `devices` are
--- lists. Each of the devices is a table with the fields of unified_device: { path = "/dev/ng0n1" }.
function M.open(options)
    local config = sized("config")
    local ports, cpus, sockets, devices
    for name, value in pairs(options) do
        if name == "interface" then
            config.ifname = value
        elseif name == "ports" then
            ports = ffi.new("uint16_t[?]", #value, value)
            config.ports, config.port_count = ports, #value
        elseif name == "cpus" then
            cpus = ffi.new("uint32_t[?]", #value, value)
            config.cpus, config.cpu_count = cpus, #value
        elseif name == "xsk_fds" then
            sockets = ffi.new("int32_t[?]", #value, value)
            config.xsk_fds, config.xsk_fd_count = sockets, #value
        elseif name == "devices" then
            devices = several(value)
            config.devices, config.device_count = devices, #value
        else
            config[name] = value
        end
    end
    for name, flag in pairs(FLAGS) do
        if options[name] then
            config.flags = bit.bor(config.flags, constants[flag])
        end
    end
    local place = ffi.new("unified_ctx *[1]")
    local result = lib.unified_ctx_create(config, place)
    if result < 0 then
        return check(result)
    end
    -- What the configuration points to is named here, so that it is not collected before the call.
    local given = { options, ports, cpus, devices }
    local state = setmetatable({ handle = place[0], lanes = {}, buffers = weak(), given = given }, State)
    return opened(state, finally(state))
end

--- One of the lanes: `info.lanes` says how many there are. From now on the data path of the whole context is theirs. It
--- ends with the context; its own close is an error.
function Context:lane(number)
    local place = ffi.new("unified_ctx *[1]")
    local result = lib.unified_ctx_lane(handle(self), number, place)
    if result < 0 then
        return check(result)
    end
    local state = setmetatable({ handle = place[0], lanes = {}, buffers = weak(), whole = self.state }, State)
    table.insert(self.state.lanes, state)
    return opened(state, self.proxy)
end

--- Takes the XDP program off, finishes what is in flight, frees everything. Pointers into frames are bad then.
function Context:close()
    if self.state.whole then
        return nil, "the lane ends with its context: close that one"
    end
    return self.state:close()
end

--- The path of device 0 as it was opened.
function Context:device()
    local path = ffi.new("char[4096]")
    return ffi.string(path, must(lib.unified_ctx_device(handle(self), path, 4096)))
end

--- A table with the fields of unified_device_info: strings, booleans, and numbers (uint64_t where C has those). Device 0 is the
--- first; info.devices says how many there are.
function Context:device_info(device)
    local raw = sized("device_info")
    local result = lib.unified_device_info(handle(self), u32("device", device), raw)
    if result < 0 then
        return check(result)
    end
    -- Copied: the strings end with the context.
    local info = { backend = ffi.string(raw.backend), path = ffi.string(raw.path) }
    for _, name in ipairs { "direct_io", "writable", "out" } do
        info[name] = raw[name] ~= 0
    end
    for _, name in ipairs { "blocks", "block_size", "max_transfer", "dma_alignment", "nsid", "volatile_cache", "operations",
        "errors", "bytes_written", "bytes_read", "spilled", "spilled_bytes" } do
        info[name] = raw[name]
    end
    return info
end

--- Where a pipeline with LAYOUT_PAYLOAD and these `chunk_bytes` (0: the default) stores a block of its range: the device, and
--- the block on it (uint64_t).
function Context:stripe_locate(lba, chunk_bytes)
    local device, block = ffi.new("uint32_t[1]"), ffi.new("uint64_t[1]")
    local result = lib.unified_stripe_locate(handle(self), lba, u32("chunk_bytes", chunk_bytes or 0), device, block)
    if result < 0 then
        return check(result)
    end
    return device[0], block[0]
end

--- struct unified_stats; its numbers are uint64_t.
function Context:statistics()
    local stats = sized("stats")
    local result = lib.unified_ctx_stats(handle(self), stats)
    if result < 0 then
        return check(result)
    end
    return stats
end

--- struct unified_latency of packets (from arrival until written) or, where `commands` is true, of commands.
function Context:latency(commands)
    local latency = sized("latency")
    local which = commands and constants.LATENCY_COMMAND or constants.LATENCY_PACKET
    local result = lib.unified_ctx_latency(handle(self), which, latency)
    if result < 0 then
        return check(result)
    end
    return latency
end

--- ns (uint64_t) that a part of what `latency` counts did not exceed; 0.99: the 99th percentile.
function M.quantile(latency, part)
    return lib.unified_latency_quantile(latency, part)
end

--- All counters as OpenMetrics text.
function Context:openmetrics()
    local size = 32768
    while true do
        local text = ffi.new("char[?]", size)
        local result = lib.unified_stats_render(handle(self), text, size)
        if result < 0 then
            return check(result)
        elseif result < size then
            return ffi.string(text, result)
        end
        size = result + 1024
    end
end

function Context:port_add(port)
    return done(lib.unified_port_add(handle(self), port))
end

function Context:port_remove(port)
    return done(lib.unified_port_remove(handle(self), port))
end

function Context:events_sample(sample)
    return done(lib.unified_events_sample(handle(self), sample))
end

function Context:events_fd()
    return check(lib.unified_events_fd(handle(self)))
end

function Context:poll_fd()
    return check(lib.unified_poll_fd(handle(self)))
end

--- An iterator over up to `most` structs, which `take` puts into the array of that name.
local function batch(self, name, take, most)
    most = most or 64
    local array = self[name]
    if not array or self[name .. "_size"] < most then
        array = ffi.new("struct unified_" .. name .. "[?]", most)
        self[name], self[name .. "_size"] = array, most
    end
    local count = must(take(handle(self), array, most))
    local i = -1
    return function()
        i = i + 1
        if i < count then
            return array[i]
        end
    end, count
end

--- Iterates over the packets that have come, `most` (64) at once; the second result is their number.
function Context:packets(most)
    return batch(self, "packet", lib.unified_rx_batch, most)
end

--- Iterates over the completions that are there.
function Context:completions(most)
    return batch(self, "completion", lib.unified_completions, most)
end

--- Iterates over the metadata events that are there.
function Context:events(most)
    return batch(self, "event", lib.unified_events, most)
end

--- Waits for `rx`, `completions` or both, at most `timeout` seconds: which came (bits), 0 for none.
function Context:wait(what)
    local wanted = (what.rx and constants.WAIT_RX or 0) + (what.completions and constants.WAIT_COMPLETIONS or 0)
    return check(lib.unified_wait(handle(self), wanted, milliseconds(what.timeout)))
end

--- The number of an empty frame.
function Context:frame_alloc()
    local frame = ffi.new("uint32_t[1]")
    local result = lib.unified_frame_alloc(handle(self), frame)
    if result < 0 then
        return check(result)
    end
    return frame[0]
end

--- Takes a frame's number, or a packet.
function Context:release(frame)
    return done(lib.unified_frame_release(handle(self), type(frame) == "number" and frame or frame.frame))
end

--- Releases a list of frames' numbers or packets: how many, fewer than all if one of them is not held.
function Context:release_all(frames)
    local numbers = ffi.new("uint32_t[?]", #frames)
    for i, frame in ipairs(frames) do
        numbers[i - 1] = type(frame) == "number" and frame or frame.frame
    end
    return check(lib.unified_frames_release(handle(self), numbers, #frames))
end

--- The frame's bytes, uint8_t *; nil for a number that is none.
function Context:frame_data(frame)
    local data = lib.unified_frame_data(handle(self), frame)
    return data ~= nil and ffi.cast("uint8_t *", data) or nil
end

local none = {}

local function flags(options)
    return (options.fua and constants.FUA or 0) + (options.keep and constants.KEEP or 0)
        + (options.more and constants.MORE or 0)
end

--- The frame, the first byte and the number of bytes of a write.
local function part(self, what, options)
    local frame, data, length
    if type(what) == "number" then
        frame, length = what, options.length or self.info.frame_size
        data = lib.unified_frame_data(handle(self), what)
    else
        frame, data, length = what.frame, what.payload, options.length or what.payload_len
    end
    if options.offset then
        data = self:frame_data(frame) + options.offset
    end
    return frame, data, length
end

--- Writes a packet's payload, or `length` bytes at `offset` of a frame (by number), from block `lba` on.
--- Options: offset, length, user_data, fua, keep, more.
function Context:submit_write(what, lba, options)
    options = options or none
    local frame, data, length = part(self, what, options)
    return done(lib.unified_submit_write(handle(self), frame, data, length, lba, options.user_data or 0, flags(options)))
end

--- Submits a list of writes together: how many, fewer than all if the SQ ring became full or one was refused. Each is a
--- packet or a frame's number, a block, and options: { packet, lba, fua = true }.
function Context:submit_writes(list)
    local writes = ffi.new("struct unified_write[?]", #list)
    for i, one in ipairs(list) do
        local write = writes[i - 1]
        write.frame, write.data, write.len = part(self, one[1], one)
        write.lba, write.user_data, write.flags = one[2], one.user_data or 0, flags(one)
    end
    return check(lib.unified_submit_writes(handle(self), writes, #list))
end

--- Submits a list of commands together, each to the device that it names: how many, fewer than all if the SQ ring became full or
--- one was refused. Each is a table: `op` (unified.C.OP_WRITE and so on), `device` (0), `lba`, `user_data`, fua, keep, more; the
--- data as `frame` (a packet or a frame's number) or `buffer`, with `offset` and `length`; `blocks` of the operations without
--- data; `command` of OP_RAW, a table with the fields of unified_nvme_command.
function Context:submit(list)
    local submissions = ffi.new("struct unified_submission[?]", #list)
    -- Kept until the next call: the array does not keep what it points to.
    self.commands = {}
    for i, one in ipairs(list) do
        local to = submissions[i - 1]
        local length = 0
        to.size, to.lba, to.user_data, to.flags = ffi.sizeof(to), one.lba or 0, one.user_data or 0, flags(one)
        if one.buffer then
            local offset = one.offset or 0
            length = one.length or one.buffer.length - offset
            to.buffer, to.data = one.buffer.number, one.buffer:address() + offset
        elseif one.frame then
            to.frame, to.data, length = part(self, one.frame, one)
        end
        exactly(to, "op", one.op)
        exactly(to, "device", one.device or 0)
        exactly(to, "blocks", one.blocks or 0)
        exactly(to, "len", length)
        if one.command then
            self.commands[i] = fill(ffi.new("struct unified_nvme_command"), one.command)
            to.command = self.commands[i]
        end
    end
    return check(lib.unified_submit(handle(self), submissions, #list))
end

local function whole_blocks(submit)
    return function(self, frame, lba, length, options)
        options = options or none
        local data = lib.unified_frame_data(handle(self), frame)
        if options.offset and data ~= nil then
            data = ffi.cast("uint8_t *", data) + options.offset
        end
        return done(submit(handle(self), frame, data, length, lba, options.user_data or 0, flags(options)))
    end
end

--- Reads whole blocks into a frame (by number), which comes back with the completion.
Context.submit_read = whole_blocks(lib.unified_submit_read)
--- Compares whole blocks with a frame.
Context.submit_compare = whole_blocks(lib.unified_submit_compare)

function Context:submit_flush(user_data)
    return done(lib.unified_submit_flush(handle(self), user_data or 0))
end

function Context:submit_write_zeroes(lba, blocks, options)
    options = options or none
    return done(lib.unified_submit_write_zeroes(handle(self), lba, blocks, options.user_data or 0, flags(options)))
end

function Context:submit_deallocate(lba, blocks, user_data)
    return done(lib.unified_submit_deallocate(handle(self), lba, blocks, user_data or 0))
end

--- Any NVMe command: a table with the fields of unified_nvme_command. `frame` only where it has data.
function Context:submit_raw(command, frame, user_data)
    local raw = fill(ffi.new("struct unified_nvme_command"), command)
    local data = frame and lib.unified_frame_data(handle(self), frame) or nil
    return done(lib.unified_submit_raw(handle(self), raw, frame or 0, data, user_data or 0))
end

function Context:submit_pending()
    return done(lib.unified_submit_pending(handle(self)))
end

-- --- buffers

--- Registered memory of any size, for submit(). `data` is its first byte (uint8_t *), nil once it was freed or its context was
--- closed; `length`, `number`. Nothing collects buffers before their context.
local Buffer = {}
Buffer.__index = Buffer

local function made(ctx, number, data, length, memory)
    -- A buffer keeps its context: collected, that would unmap it.
    local buffer = setmetatable({
        ctx = ctx, number = number[0], data = ffi.cast("uint8_t *", data), length = length, memory = memory,
    }, Buffer)
    local state = ctx.state.whole or ctx.state
    state.buffers[buffer] = true
    return buffer
end

--- A buffer of so many zeroed bytes.
function Context:buffer_alloc(length)
    local number, data = ffi.new("uint64_t[1]"), ffi.new("void *[1]")
    local result = lib.unified_buffer_alloc(handle(self), length, number, data)
    if result < 0 then
        return check(result)
    end
    return made(self, number, data[0], length)
end

--- A buffer of shared memory that the program has mapped at `address`, and keeps mapped until it is freed. Memory of ffi.new is
--- refused.
function Context:buffer_import(address, length)
    local number = ffi.new("uint64_t[1]")
    local result = lib.unified_buffer_import(handle(self), address, length, number)
    if result < 0 then
        return check(result)
    end
    return made(self, number, address, length, address)
end

--- A buffer of a part of a memfd, or of a file of tmpfs or hugetlbfs. The descriptor may be closed at once.
function Context:buffer_import_fd(fd, offset, length)
    local number, data = ffi.new("uint64_t[1]"), ffi.new("void *[1]")
    local result = lib.unified_buffer_import_fd(handle(self), fd, offset, length, number, data)
    if result < 0 then
        return check(result)
    end
    return made(self, number, data[0], length)
end

--- `data`; raises if the buffer is gone.
function Buffer:address()
    return self.data or error("the buffer was freed, or its context closed", 3)
end

--- A copy of `length` bytes at `offset` as a string; of all that follows if there is no `length`.
function Buffer:string(offset, length)
    offset = offset or 0
    length = length or self.length - offset
    if offset < 0 or length < 0 or offset + length > self.length then
        error(("%s bytes at %s are not in a buffer of %s"):format(length, offset, self.length), 2)
    end
    return ffi.string(self:address() + offset, length)
end

--- Its length, and how many commands use it now.
function Buffer:info()
    local info = sized("buffer_info")
    local result = lib.unified_buffer_info(handle(self.ctx), self.number, info)
    if result < 0 then
        return check(result)
    end
    return tonumber(info.len), info.commands
end

--- Ends it. EBUSY while commands use it: take their completions first.
function Buffer:free()
    local result = lib.unified_buffer_free(handle(self.ctx), self.number)
    if result == 0 then
        self.data, self.memory = nil, nil
    end
    return done(result)
end

-- --- pipelines

--- Starts a pipeline; fields as in unified_pipeline_config.
function Context:pipeline_start(options)
    return done(lib.unified_pipeline_start(handle(self), fill(sized("pipeline_config"), options or none)))
end

local function status(ask)
    return function(self)
        local now = sized("pipeline_status")
        local result = ask(handle(self), now)
        if result < 0 then
            return check(result)
        end
        return now
    end
end

--- struct unified_pipeline_status.
Context.pipeline_status = status(lib.unified_pipeline_status)
--- Stores what was received, flushes, and says where it ended.
Context.pipeline_stop = status(lib.unified_pipeline_stop)

-- --- logs

local Log = {}
Log.__index = Log
local LogState = {}
LogState.__index = LogState

function LogState:close()
    if self.handle then
        local handle = self.handle
        self.handle = nil
        return done(lib.unified_log_close(handle))
    end
    return true
end

--- Opens a log that begins `start` bytes into a device or file.
function M.open_log(path, start)
    local place = ffi.new("unified_log *[1]")
    local result = lib.unified_log_open(path, start or 0, place)
    if result < 0 then
        return check(result)
    end
    local state = setmetatable({ handle = place[0] }, LogState)
    return setmetatable({ state = state, proxy = finally(state), record = sized("log_record") }, Log)
end

--- Opens the logs of one recording over several devices together, in any order. `starts`: where each begins, a list, or one
--- number for all (0). Records that only devices have which are not given are reported as missing.
function M.open_log_set(paths, starts)
    local names, begin = ffi.new("const char *[?]", #paths), ffi.new("uint64_t[?]", #paths)
    if type(starts) == "table" and #starts ~= #paths then
        return nil, ("%d starts for %d devices"):format(#starts, #paths), 22
    end
    for i, path in ipairs(paths) do
        names[i - 1] = path
        begin[i - 1] = type(starts) == "table" and starts[i] or starts or 0
    end
    local place = ffi.new("unified_log *[1]")
    local result = lib.unified_log_open_set(names, begin, #paths, place)
    if result < 0 then
        return check(result)
    end
    -- `paths` is named here, so that it is not collected before the call.
    local state = setmetatable({ handle = place[0], paths = paths }, LogState)
    return setmetatable({ state = state, proxy = finally(state), record = sized("log_record") }, Log)
end

function Log:close()
    return self.state:close()
end

--- Iterates over what is in the log, and waits `timeout` seconds (0) for more at its end. The record is the
--- same struct each time; its packet and payload are good until the next one.
function Log:records(timeout)
    return function()
        if must(lib.unified_log_next(handle(self), self.record, milliseconds(timeout or 0))) == 1 then
            return self.record
        end
    end
end

function Log:seek(sequence)
    return done(lib.unified_log_seek(handle(self), sequence))
end

function Log:seek_time(timestamp)
    return done(lib.unified_log_seek_time(handle(self), timestamp))
end

--- Looks there too for what the device does not have; from the oldest record again.
function Log:add_spill(path)
    return done(lib.unified_log_add_spill(handle(self), path))
end

--- struct unified_log_info; write info["end"], a keyword of Lua.
function Log:info()
    local info = sized("log_info")
    local result = lib.unified_log_info(handle(self), info)
    if result < 0 then
        return check(result)
    end
    return info
end

return M
