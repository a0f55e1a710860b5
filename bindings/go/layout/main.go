// SPDX-License-Identifier: MIT OR Apache-2.0

// Command layout says how the Go structs lie in memory, for comparison with C.
package main

import (
	"fmt"
	"reflect"

	"unified"
)

func main() {
	for name, value := range map[string]any{
		"info": unified.Info{}, "stats": unified.Stats{}, "latency": unified.Latency{}, "event": unified.Event{}, "packet": unified.Packet{}, "write": unified.Write{},
		"nvme_command": unified.NVMeCommand{}, "completion": unified.Completion{},
		"pipeline_config": unified.PipelineConfig{}, "pipeline_status": unified.PipelineStatus{},
		"log_record": unified.LogRecord{}, "log_info": unified.LogInfo{},
		"submission": unified.Submission{}, "buffer_info": unified.BufferInfo{},
	} {
		t := reflect.TypeOf(value)
		fmt.Println("unified_"+name, "-", t.Size(), 0)
		for i := 0; i < t.NumField(); i++ {
			f := t.Field(i)
			fmt.Println("unified_"+name, f.Name, f.Type.Size(), f.Offset)
		}
	}
	// These are filled in field by field through cgo, which has the layout from C: only the names can be wrong.
	for name, value := range map[string]any{
		"config": unified.Config{}, "device": unified.Device{}, "device_info": unified.DeviceInfo{},
	} {
		t := reflect.TypeOf(value)
		for i := 0; i < t.NumField(); i++ {
			fmt.Println("unified_"+name, t.Field(i).Name, "cgo", "cgo")
		}
	}
	for name, value := range map[string]int{
		"DRIVE_INLINE": unified.DriveInline, "DRIVE_THREAD": unified.DriveThread,
		"XDP_AUTO": unified.XDPAuto, "XDP_NATIVE": unified.XDPNative, "XDP_SKB": unified.XDPSKB,
		"COPY_AUTO": unified.CopyAuto, "COPY_ONLY": unified.CopyOnly, "COPY_ZERO": unified.CopyZero,
		"HUGE_PAGES": unified.HugePages, "FORCE": unified.Force, "READ_ONLY": unified.ReadOnly,
		"NO_PASSTHROUGH": unified.NoPassthrough, "NO_BOUNCE": unified.NoBounce, "HEADROOM": unified.Headroom,
		"NO_EVENTS": unified.NoEvents, "XSK_MAP_FD": unified.XskMapFD, "XSK_FD": unified.XskFD,
		"DEVICE_FD": unified.DeviceFD, "NO_RETRY": unified.NoRetry, "ALL_QUEUES": unified.AllQueues, "FUA": unified.FUA, "KEEP": unified.Keep, "MORE": unified.More,
		"WAIT_RX": unified.WaitRX, "WAIT_COMPLETIONS": unified.WaitCompletions, "PACKET_VLAN": unified.PacketVLAN,
		"COMPLETION_DNR": unified.CompletionDNR, "COMPLETION_FRAME": unified.CompletionFrame,
		"COMPLETION_BOUNCED": unified.CompletionBounced, "COMPLETION_SPILLED": unified.CompletionSpilled,
		"LAYOUT_PAYLOAD": unified.LayoutPayload,
		"LAYOUT_SLOT":    unified.LayoutSlot, "LAYOUT_LOG": unified.LayoutLog, "LOG_NEW": unified.LogNew,
		"LOG_UNCHECKED": unified.LogUnchecked, "AT_END_STOP": unified.AtEndStop,
		"AT_END_WRAP": unified.AtEndWrap, "LOG_RECORD": unified.LogRecordKind, "LOG_MISSING": unified.LogMissingKind,
		"LOG_DAMAGED": unified.LogDamagedKind, "LOG_OVERWRITTEN": unified.LogOverwrittenKind,
		"LATENCY_PACKET": unified.LatencyPacket, "LATENCY_COMMAND": unified.LatencyCommand,
		"LATENCY_BUCKETS": unified.LatencyBuckets, "OP_FLUSH": unified.OpFlush, "OP_WRITE": unified.OpWrite,
		"OP_READ": unified.OpRead, "OP_COMPARE": unified.OpCompare, "OP_WRITE_ZEROES": unified.OpWriteZeroes,
		"OP_DEALLOCATE": unified.OpDeallocate, "OP_RAW": unified.OpRaw, "ALL_DEVICES": unified.AllDevices,
	} {
		fmt.Println("UNIFIED_"+name, "=", value)
	}
}
