// SPDX-License-Identifier: MIT OR Apache-2.0

// Command record records the packets of all queues as a log, on one file or over several, until COUNT are stored. Then it reads
// the log back.
//
//	record IFACE FILE[,FILE...] COUNT
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"unified"
)

// record says how many packets are durable.
func record(iface string, paths []string, count uint64) (uint64, error) {
	config := unified.Config{Interface: iface, Queues: unified.AllQueues}
	for _, path := range paths {
		config.Devices = append(config.Devices, unified.Device{Path: path, FileSize: 64 << 20})
	}
	ctx, err := unified.Open(config)
	if err != nil {
		return 0, err
	}
	defer ctx.Close()
	err = ctx.PipelineStart(unified.PipelineConfig{Layout: unified.LayoutLog, FlushWrites: 100})
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

// readBack counts records and the bytes of their payloads, and how many records each device has.
func readBack(paths []string) (records, bytes uint64, each []uint64, err error) {
	log, err := unified.OpenLogSet(paths, nil)
	if err != nil {
		return 0, 0, nil, err
	}
	defer log.Close()
	info, err := log.Info()
	if err != nil {
		return 0, 0, nil, err
	}
	// From the oldest record on. Several lanes have no sequence numbers in common.
	if info.Lanes == 1 {
		err = log.Seek(info.Oldest)
	} else {
		err = log.SeekTime(0)
	}
	if err != nil {
		return 0, 0, nil, err
	}
	each = make([]uint64, info.Devices)
	var record unified.LogRecord
	for {
		more, err := log.Next(&record, 0)
		if err != nil {
			return 0, 0, nil, err
		}
		if !more {
			break
		}
		if record.Kind != unified.LogRecordKind || record.DstPort != 9999 {
			return 0, 0, nil, fmt.Errorf("record %d is of kind %d", record.Sequence, record.Kind)
		}
		records++
		each[record.Device]++
		bytes += uint64(len(record.Payload()))
	}
	if info, err = log.Info(); err == nil && info.End != records {
		err = fmt.Errorf("the log ends at %d, %d records were read", info.End, records)
	}
	return records, bytes, each, err
}

func run() error {
	if len(os.Args) != 4 {
		return fmt.Errorf("usage: record IFACE FILE[,FILE...] COUNT")
	}
	count, err := strconv.ParseUint(os.Args[3], 10, 64)
	if err != nil {
		return err
	}
	paths := strings.Split(os.Args[2], ",")
	stored, err := record(os.Args[1], paths, count)
	if err != nil {
		return err
	}
	records, bytes, each, err := readBack(paths)
	if err != nil {
		return err
	}
	fmt.Printf("Stored %d, read back %d with %d bytes\n", stored, records, bytes)
	for device, records := range each {
		fmt.Printf("Device %d: %d records\n", device, records)
	}
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
