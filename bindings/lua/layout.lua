-- SPDX-License-Identifier: MIT OR Apache-2.0
-- Says how this binding sees the fields that are named on its input, for comparison with C.
package.path = (arg[0]:match("^(.*)/") or ".") .. "/?.lua;" .. package.path
local ffi = require "ffi"
local constants = require "unified_h"

--- Bytes that a field takes.
local function size(struct, field)
    if type(struct[field]) == "cdata" then
        return ffi.sizeof(struct[field])
    end
    struct[field] = -1
    local bytes, count = ffi.cast("uint8_t *", struct), 0
    for i = 0, ffi.sizeof(struct) - 1 do
        count = count + (bytes[i] ~= 0 and 1 or 0)
    end
    return count
end

for line in io.lines() do
    local name, field = line:match("^(%S+) (%S+)$")
    local type = "struct " .. name
    if field == "-" then
        print(name, "-", ffi.sizeof(type), 0)
    else
        print(name, field, size(ffi.new(type), field), ffi.offsetof(type, field))
    end
end
for name, value in pairs(constants) do
    print("UNIFIED_" .. name, "=", value)
end
