-- SPDX-License-Identifier: MIT OR Apache-2.0
-- What the module promises that needs no network: test.lua FILE
package.path = (arg[0]:match("^(.*)/") or ".") .. "/?.lua;" .. package.path
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
-- One that nobody closed, for the collector; and one for the end of the program.
unified.open { device = arg[1] }
collectgarbage()
collectgarbage()
left = assert(unified.open { device = arg[1] })
print "ok"
