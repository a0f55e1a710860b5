// SPDX-License-Identifier: MIT OR Apache-2.0
// Says how this binding sees every struct and constant, for comparison with C.
'use strict';

const koffi = require('koffi');
const { constants, structs } = require('./header.js');

for (const [name, type] of Object.entries(structs)) {
  const { size, members } = koffi.introspect(type);
  console.log(name, '-', size, 0);
  for (const [field, member] of Object.entries(members)) {
    console.log(name, field, koffi.sizeof(member.type), member.offset);
  }
}
for (const [name, value] of Object.entries(constants)) console.log(`UNIFIED_${name}`, '=', value);
