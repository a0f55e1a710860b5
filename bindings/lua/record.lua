#!/usr/bin/env luajit
-- SPDX-License-Identifier: MIT OR Apache-2.0
-- Records the packets of all queues as a log, on one file or over several, until COUNT are stored. Then it reads the log back.
--
--   record.lua IFACE FILE[,FILE...] COUNT

package.path = (arg[0]:match("^(.*)/") or ".") .. "/?.lua;" .. package.path
local ffi = require "ffi"
local unified = require "unified"

local iface, count = arg[1], tonumber(arg[3])
local paths, devices = {}, {}
for path in arg[2]:gmatch "[^,]+" do
    table.insert(paths, path)
    table.insert(devices, { path = path, file_size = 64 * 1024 * 1024 })
end
local ctx = assert(unified.open { interface = iface, queues = unified.C.ALL_QUEUES, devices = devices })
assert(ctx:pipeline_start { layout = unified.C.LAYOUT_LOG, flush_writes = 100 })
print("Receiving on " .. iface)
io.stdout:flush()
ffi.cdef "int usleep(unsigned int usec);"
repeat
    ffi.C.usleep(10000)
until assert(ctx:pipeline_status()).stored >= count
local stored = tonumber(assert(ctx:pipeline_stop()).durable)
assert(ctx:close())

local log = assert(unified.open_log_set(paths))
local info = assert(log:info())
-- From the oldest record on. Several lanes have no sequence numbers in common.
assert(info.lanes == 1 and log:seek(info.oldest) or log:seek_time(0))
local records, bytes, each = 0, 0, {}
for record in log:records() do
    assert(record.kind == unified.C.LOG_RECORD and record.dst_port == 9999)
    records = records + 1
    bytes = bytes + #ffi.string(record.payload, record.payload_len)
    each[record.device] = (each[record.device] or 0) + 1
end
assert(log:info()["end"] == records and info.devices_given == #paths)
assert(log:close())
print(("Stored %d, read back %d with %d bytes"):format(stored, records, bytes))
for device = 0, info.devices - 1 do
    print(("Device %d: %d records"):format(device, each[device] or 0))
end
