-- SPDX-License-Identifier: MIT OR Apache-2.0
-- What the module promises that needs no network: test.lua FILE
package.path = (arg[0]:match("^(.*)/") or ".") .. "/?.lua;" .. package.path
local bit = require "bit"
local ffi = require "ffi"
local unified = require "unified"

local ctx, why, code = unified.open { interface = "nosuchif0", device = "null:" }
assert(ctx == nil and why:find("nosuchif0") and code == 19)

local function finished(ctx)
    while true do
        for done in ctx:completions(1) do
            return done
        end
        assert(ctx:wait { completions = true, timeout = 5 } > 0)
    end
end

ctx = assert(unified.open { device = arg[1], file_size = 1048576 })
local frame = assert(ctx:frame_alloc())
ffi.copy(ctx:frame_data(frame), "hello", 5)
assert(ctx:submit_write(frame, 3, { length = 5, user_data = 7, keep = true, fua = true }))
local ok, sentence, busy = ctx:submit_write(frame, 4)
assert(ok == nil and #sentence > 0 and busy == 16)
local done = finished(ctx)
assert(done.user_data == 7 and done.status == 0 and done.frame == frame)
ffi.fill(ctx:frame_data(frame), 512)
assert(ctx:submit_read(frame, 3, 512))
assert(finished(ctx).status == 0 and ffi.string(ctx:frame_data(frame), 6) == "hello\0")
ctx:frame_data(frame)[0] = 0
assert(ctx:submit_compare(frame, 3, 512))
assert(finished(ctx).status == 0x285 and unified.status_string(0x285):find("Compare"))
assert(ctx:submit_raw { opcode = 0xff })
assert(finished(ctx).status == 1)
assert(ctx:release(frame))
assert(ctx:release(frame) == nil)
-- Batches.
local one, two = assert(ctx:frame_alloc()), assert(ctx:frame_alloc())
ffi.copy(ctx:frame_data(two) + 100, "second", 6)
assert(ctx:submit_writes {
    { one, 8, length = 512, keep = true },
    { two, 9, offset = 100, length = 6, user_data = 9, keep = true },
    { one, 10 },
} == 2)
-- They may complete in any order.
assert(finished(ctx).user_data + finished(ctx).user_data == 9)
assert(ctx:submit_read(two, 9, 512))
assert(finished(ctx).status == 0 and ffi.string(ctx:frame_data(two), 7) == "second\0")
assert(ctx:release_all { one, two, one } == 2)
assert(select(3, ctx:release_all { one }) == 22)
assert(select(3, ctx:submit_writes { { one, 0 } }) == 22)
assert(ctx:release_all {} == 0 and ctx:submit_writes {} == 0)
assert(not pcall(ctx.packets, ctx))
assert(ctx:statistics().submitted == 7)
assert(ctx:openmetrics():find("unified_submitted_total{[^}]*} 7\n"))
local latency = ctx:latency(true)
assert(latency.count == 7 and latency.max > 0 and unified.quantile(latency, 1) == latency.max)
assert(ctx:latency().count == 0)
assert(ctx:close() and ctx:close())
assert(not pcall(ctx.statistics, ctx))
assert(select(3, unified.open_log(arg[1])) == 42)
-- A descriptor instead of a path; and retries that cannot be.
ffi.cdef "int open(const char *path, int flags); int close(int fd);"
local fd = ffi.C.open(arg[1], 2)
ctx = assert(unified.open { device_fd = fd, retries = 3 })
assert(ffi.C.close(fd) == 0 and ctx:statistics().submitted == 0 and ctx:close())
assert(select(3, unified.open { device = arg[1], retries = 256 }) == 22)
-- Lanes.
ctx = assert(unified.open { device = arg[1], queues = 2, cpus = { 0 } })
local other = assert(ctx:lane(1))
assert(ctx.info.lanes == 2 and other.info.lane == 1)
frame = assert(other:frame_alloc())
assert(other:submit_write(frame, 0, { length = 512 }) and finished(other).status == 0)
assert(other:statistics().submitted == 1 and ctx:statistics().submitted == 1)
assert(ctx:lane(0):statistics().submitted == 0)
assert(select(3, ctx:frame_alloc()) == 16 and select(3, ctx:lane(2)) == 22 and not other:close())
assert(ctx:close() and not pcall(other.statistics, other))
-- Several devices: commands name theirs.
local C = unified.C
local paths = { arg[1] .. "-a", arg[1] .. "-b" }

local function content(path)
    local file = assert(io.open(path, "rb"))
    local bytes = file:read("*a")
    file:close()
    return bytes
end

--- Submits all of them; their completions by user_data.
local function submit(ctx, list)
    assert(ctx:submit(list) == #list)
    local all = {}
    for _ = 1, #list do
        local done = finished(ctx)
        assert(done.result == 0 and done.status == 0, unified.status_string(done.status))
        all[tonumber(done.user_data)] = { device = done.device, len = done.len, frame = done.frame, flags = done.flags }
    end
    return all
end

--- Whether a call failed with this errno, and said why.
local function refused(errno, words, ok, why, code)
    return ok == nil and code == errno and #why > 0 and why:find(words, 1, true)
end

ctx = assert(unified.open {
    frame_size = 4096, buffers_max = 16777216,
    devices = {
        { path = paths[1], file_size = 1048576, block_size = 512 },
        { path = paths[2], file_size = 2097152, block_size = 4096, spill = paths[2] .. "-spill" },
    },
})
assert(ctx.info.devices == 2 and ctx:device() == paths[1])
frame = assert(ctx:frame_alloc())
local buffer = assert(ctx:buffer_alloc(12288))
ffi.fill(ctx:frame_data(frame) + 1024, 512, 1)
ffi.fill(buffer.data, 8192, 2)
local all = submit(ctx, {
    { op = C.OP_WRITE, lba = 3, frame = frame, offset = 1024, length = 512, user_data = 1, keep = true },
    { op = C.OP_WRITE, device = 1, lba = 2, buffer = buffer, length = 8192, user_data = 2 },
})
assert(all[1].device == 0 and all[1].len == 512 and all[1].frame == frame)
assert(all[2].device == 1 and all[2].len == 8192 and bit.band(all[2].flags, C.COMPLETION_FRAME) == 0)
submit(ctx, { { op = C.OP_FLUSH, device = C.ALL_DEVICES } })
assert(content(paths[1]):sub(3 * 512, 4 * 512 + 1) == "\0" .. ("\1"):rep(512) .. "\0")
assert(content(paths[2]):sub(2 * 4096, 4 * 4096 + 1) == "\0" .. ("\2"):rep(8192) .. "\0")
-- Back, each to the other kind of memory.
all = submit(ctx, {
    { op = C.OP_READ, lba = 3, buffer = buffer, offset = 8192, length = 512 },
    { op = C.OP_READ, device = 1, lba = 3, frame = frame, length = 4096, user_data = 1 },
})
assert(buffer:string(8192, 513) == ("\1"):rep(512) .. "\0" and all[0].device == 0)
assert(ffi.string(ctx:frame_data(frame), 4096) == ("\2"):rep(4096) and all[1].frame == frame)
submit(ctx, { { op = C.OP_WRITE_ZEROES, device = 1, lba = 2, blocks = 1 } })
submit(ctx, { { op = C.OP_READ, device = 1, lba = 2, buffer = buffer, length = 4096 } })
assert(buffer:string(0, 4097) == ("\0"):rep(4096) .. "\2")
assert(ctx:submit { { op = C.OP_RAW, device = 1, command = { opcode = 0xff }, user_data = 9 } } == 1)
done = finished(ctx)
assert(done.status == 1 and done.user_data == 9 and done.device == 1)
local info = assert(ctx:device_info(1))
assert(info.path == paths[2] and info.backend == "file" and info.blocks == 512 and info.block_size == 4096)
assert(info.bytes_written == 8192 and info.bytes_read == 8192 and info.errors == 1)
assert(info.writable and not info.out and ctx:device_info(0).bytes_read == 512)
-- A device that is not there.
assert(refused(22, "device 2 does not exist", ctx:submit { { op = C.OP_WRITE, device = 2, frame = frame, length = 512 } }))
assert(refused(22, "device 2", ctx:device_info(2)))
assert(not pcall(ctx.device_info, ctx, 2 ^ 32) and not pcall(ctx.device_info, ctx, 0.5))
assert(ctx:submit { { op = C.OP_FLUSH, device = 1 }, { op = C.OP_FLUSH, device = 2 } } == 1 and finished(ctx).device == 1)
assert(ctx:submit {} == 0)
for _, wrong in ipairs { { device = 4294967296 }, { device = -1 }, { op = 65536 * 65536 }, { blocks = 0.5 } } do
    local ok, why = pcall(ctx.submit, ctx, { { op = wrong.op or C.OP_FLUSH, device = wrong.device, blocks = wrong.blocks } })
    assert(not ok and why:find "cannot be")
end
assert(ctx:release(frame))
-- The largest block size counts, and 1 MiB is on device 0.
local device, block = ctx:stripe_locate(255)
assert(device == 0 and block == 255 * 8)
device, block = ctx:stripe_locate(7, 8192)
assert(device == 1 and block == 3)
assert(refused(34, "1099511627776", ctx:stripe_locate(2 ^ 40)) and refused(22, "1000", ctx:stripe_locate(0, 1000)))
assert(refused(22, paths[1], unified.open { devices = { { path = paths[1] }, { path = paths[1] } } }))
assert(refused(22, "device", unified.open { device = paths[1], devices = { { path = paths[2] } } }))
assert(not pcall(unified.open, { devices = { { path = paths[1], colour = 1 } } }))
-- A buffer is the caller's until it is freed.
assert(buffer:info() == 12288 and ctx:statistics().buffers == 1)
assert(ctx:submit { { op = C.OP_WRITE, buffer = buffer, length = 4096 } } == 1)
assert(select(2, buffer:info()) == 1 and select(3, buffer:free()) == 16 and buffer.data)
assert(finished(ctx).status == 0 and buffer:free() and buffer.data == nil)
assert(select(3, buffer:free()) == 22 and select(3, buffer:info()) == 22)
assert(not pcall(buffer.string, buffer) and not pcall(ctx.submit, ctx, { { op = C.OP_WRITE, buffer = buffer } }))
assert(select(3, ctx:buffer_alloc(0)) == 22 and select(3, ctx:buffer_alloc(17 * 1048576)) == 105)
buffer = assert(ctx:buffer_alloc(100))
assert(buffer:string(90) == ("\0"):rep(10) and not pcall(buffer.string, buffer, 90, 11) and not pcall(buffer.string, buffer, -1))
assert(refused(22, "buffer", ctx:submit { { op = C.OP_WRITE, buffer = buffer, offset = 90, length = 11 } }))
-- Shared memory: mapped here, and as a descriptor.
ffi.cdef [[
void *mmap(void *at, size_t size, int protection, int flags, int fd, long offset);
int munmap(void *at, size_t size);
int memfd_create(const char *name, unsigned int flags);
int ftruncate(int fd, long size);
long pread(int fd, void *to, size_t size, long offset);
]]
local shared = ffi.C.mmap(nil, 8192, 3, 0x21, -1, 0)
fd = ffi.C.memfd_create("test", 0)
assert(shared ~= ffi.cast("void *", -1) and fd >= 0 and ffi.C.ftruncate(fd, 8192) == 0)
local mapped = assert(ctx:buffer_import(shared, 8192))
local given = assert(ctx:buffer_import_fd(fd, 4096, 4096))
assert(mapped.data == shared)
ffi.copy(ffi.cast("char *", shared) + 4096, "mapped")
ffi.copy(given.data, "given")
submit(ctx, {
    { op = C.OP_WRITE, buffer = mapped, offset = 4096, length = 512 },
    { op = C.OP_WRITE, device = 1, buffer = given },
})
assert(content(paths[1]):sub(1, 7) == "mapped\0" and content(paths[2]):sub(1, 6) == "given\0")
submit(ctx, { { op = C.OP_READ, buffer = given, offset = 512, length = 512 } })
local seen = ffi.new "char[7]"
assert(ffi.C.pread(fd, seen, 7, 4096 + 512) == 7 and ffi.string(seen, 7) == "mapped\0")
assert(ffi.C.close(fd) == 0 and select(3, ctx:buffer_import_fd(-1, 0, 4096)) == 9)
assert(select(3, ctx:buffer_import(ffi.new("char[1048576]"), 1048576)) == 22)
assert(mapped:free() and given:free() and ffi.C.munmap(shared, 8192) == 0)
-- Nothing leads to memory that is gone; and a buffer keeps its context, which the collector would close.
ctx:close()
assert(buffer.data == nil and not pcall(buffer.free, buffer) and not pcall(ctx.device_info, ctx, 0))
buffer = assert(unified.open { device = "null:" }):buffer_alloc(4096)
collectgarbage()
collectgarbage()
assert(buffer:info() == 4096 and buffer:string() == ("\0"):rep(4096))
-- A device by descriptor; one that the context has no path for.
fd = ffi.C.open(paths[1], 2)
ctx = assert(unified.open { devices = { { path = "null:" }, { fd = fd } } })
assert(ffi.C.close(fd) == 0)
buffer = assert(ctx:buffer_alloc(4096))
submit(ctx, { { op = C.OP_READ, device = 1, buffer = buffer } })
assert(buffer:string(0, 7) == "mapped\0" and ctx:close())
-- Sets of logs.
assert(refused(42, paths[1], unified.open_log_set(paths)) and refused(22, "1 starts for 2", unified.open_log_set(paths, { 0 })))
assert(refused(42, "byte 4096 of '" .. paths[1], unified.open_log_set({ paths[1] }, { 4096 })))
assert(refused(42, "byte 512 of '" .. paths[1], unified.open_log_set({ paths[1] }, 512)))
assert(refused(2, "absent", unified.open_log_set({ paths[1] .. "-absent" }, 0)) and select(3, unified.open_log_set {}) == 22)
for _, path in ipairs { paths[1], paths[2], paths[2] .. "-spill" } do
    assert(os.remove(path))
end
-- One that nobody closed, for the collector; and one for the end of the program.
unified.open { device = arg[1] }
collectgarbage()
collectgarbage()
left = assert(unified.open { device = arg[1] })
print "ok"
