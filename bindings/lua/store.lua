#!/usr/bin/env luajit
-- SPDX-License-Identifier: MIT OR Apache-2.0
-- Stores COUNT payloads one behind the other, then reads them back and compares.
--
--   store.lua IFACE FILE COUNT

local here = arg[0]:match("^(.*)/") or "."
package.path = here .. "/?.lua;" .. package.path
local ffi = require "ffi"
local unified = require "unified"

--- Where each payload went, and a copy to compare with.
local function store(ctx, count)
    local kept, finished, lba = {}, 0, 0
    while finished < count do
        assert(ctx:wait { rx = #kept < count, completions = true, timeout = 1 })
        local room = math.min(64, count - #kept, ctx.info.sq_entries - (#kept - finished))
        if room > 0 then
            for packet in ctx:packets(room) do
                kept[#kept + 1] = { lba = lba, payload = packet:string() }
                local blocks = math.ceil(packet.payload_len / ctx.info.block_size)
                assert(ctx:submit_write(packet, lba, { more = true }))
                lba = lba + blocks
            end
            assert(ctx:submit_pending())
        end
        for done in ctx:completions() do
            assert(done.result == 0 and done.status == 0, unified.status_string(done.status))
            finished = finished + 1
        end
    end
    return kept
end

--- Whether the device gives the payload back.
local function intact(ctx, one)
    local block = ctx.info.block_size
    local frame = assert(ctx:frame_alloc())
    assert(ctx:submit_read(frame, one.lba, math.ceil(#one.payload / block) * block))
    while true do
        for done in ctx:completions(1) do
            assert(done.result == 0 and done.status == 0, unified.status_string(done.status))
            local same = ffi.string(ctx:frame_data(done.frame), #one.payload) == one.payload
            assert(ctx:release(done.frame))
            return same
        end
        assert(ctx:wait { completions = true })
    end
end

local iface, path, count = arg[1], arg[2], tonumber(arg[3])
if #arg ~= 3 or not count then
    io.stderr:write("usage: store.lua IFACE FILE COUNT\n")
    os.exit(2)
end
local ctx, why = unified.open { interface = iface, device = path, file_size = 64 * 1024 * 1024 }
if not ctx then
    io.stderr:write(why, "\n")
    os.exit(1)
end
print(("Receiving on %s, storing on %s (%s)"):format(iface, ctx:device(), ffi.string(ctx.info.backend)))
io.stdout:flush()
local kept, good = store(ctx, count), 0
for _, one in ipairs(kept) do
    good = good + (intact(ctx, one) and 1 or 0)
end
assert(ctx:close())
print(("Stored %d of %d, %d read back as they came"):format(#kept, count, good))
os.exit(good == count and 0 or 1)
