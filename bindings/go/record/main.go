// SPDX-License-Identifier: MIT OR Apache-2.0

// Command record records packets as a log until COUNT are stored, then reads the log back.
//
//	record IFACE FILE COUNT
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"unified"
)

// record says how many packets are durable.
func record(iface, path string, count uint64) (uint64, error) {
	ctx, err := unified.Open(unified.Config{Interface: iface, Device: path, FileSize: 64 << 20})
	if err != nil {
		return 0, err
	}
	defer ctx.Close()
	err = ctx.PipelineStart(unified.PipelineConfig{Layout: unified.LayoutSlot, FlushWrites: 100})
	if err != nil {
		return 0, err
	}
	fmt.Println("Receiving on", iface)
	for {
		status, err := ctx.PipelineStatus()
		if err != nil {
			return 0, err
		}
		if status.Stored >= count {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	status, err := ctx.PipelineStop()
	return status.Durable, err
}

// readBack counts records and the bytes of their payloads.
func readBack(path string) (records, bytes uint64, err error) {
	log, err := unified.OpenLog(path, 0)
	if err != nil {
		return 0, 0, err
	}
	defer log.Close()
	if err := log.Seek(0); err != nil {
		return 0, 0, err
	}
	var record unified.LogRecord
	for {
		more, err := log.Next(&record, 0)
		if err != nil {
			return 0, 0, err
		}
		if !more {
			break
		}
		if record.Kind != unified.LogRecordKind || record.DstPort != 9999 {
			return 0, 0, fmt.Errorf("record %d is of kind %d", record.Sequence, record.Kind)
		}
		records++
		bytes += uint64(len(record.Payload()))
	}
	info, err := log.Info()
	if err == nil && info.End != records {
		err = fmt.Errorf("the log ends at %d, %d records were read", info.End, records)
	}
	return records, bytes, err
}

func run() error {
	if len(os.Args) != 4 {
		return fmt.Errorf("usage: record IFACE FILE COUNT")
	}
	count, err := strconv.ParseUint(os.Args[3], 10, 64)
	if err != nil {
		return err
	}
	stored, err := record(os.Args[1], os.Args[2], count)
	if err != nil {
		return err
	}
	records, bytes, err := readBack(os.Args[2])
	if err != nil {
		return err
	}
	fmt.Printf("Stored %d, read back %d with %d bytes\n", stored, records, bytes)
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
