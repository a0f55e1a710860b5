#!/usr/bin/env luajit
-- SPDX-License-Identifier: MIT OR Apache-2.0
-- Records packets as a log until COUNT are stored, then reads the log back.
--
--   record.lua IFACE FILE COUNT

package.path = (arg[0]:match("^(.*)/") or ".") .. "/?.lua;" .. package.path
local ffi = require "ffi"
local unified = require "unified"

local iface, path, count = arg[1], arg[2], tonumber(arg[3])
local ctx = assert(unified.open { interface = iface, device = path, file_size = 64 * 1024 * 1024 })
assert(ctx:pipeline_start { layout = unified.C.LAYOUT_SLOT, flush_writes = 100 })
print("Receiving on " .. iface)
io.stdout:flush()
ffi.cdef "int usleep(unsigned int usec);"
repeat
    ffi.C.usleep(10000)
until assert(ctx:pipeline_status()).stored >= count
local stored = tonumber(assert(ctx:pipeline_stop()).durable)
assert(ctx:close())

local log = assert(unified.open_log(path))
assert(log:seek(0))
local records, bytes = 0, 0
for record in log:records() do
    assert(record.kind == unified.C.LOG_RECORD and record.dst_port == 9999)
    records = records + 1
    bytes = bytes + #ffi.string(record.payload, record.payload_len)
end
assert(log:info()["end"] == records)
assert(log:close())
print(("Stored %d, read back %d with %d bytes"):format(stored, records, bytes))
