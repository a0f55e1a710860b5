// SPDX-License-Identifier: MIT OR Apache-2.0

// Command store stores COUNT payloads one after the other, then reads them back and compares.
//
//	store IFACE FILE COUNT
package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"unified"
)

const batch = 64

type stored struct {
	lba     uint64
	payload []byte
}

// store records the place of each payload, with a copy to compare with.
func store(ctx *unified.Context, count int) ([]stored, error) {
	packets := make([]unified.Packet, batch)
	done := make([]unified.Completion, batch)
	info := ctx.Info()
	var kept []stored
	var lba uint64
	for finished := 0; finished < count; {
		what := uint32(unified.WaitCompletions)
		if len(kept) < count {
			what |= unified.WaitRX
		}
		if _, err := ctx.Wait(what, time.Second); err != nil {
			return nil, err
		}
		room := min(batch, count-len(kept), int(info.SQEntries)-(len(kept)-finished))
		n, err := ctx.Receive(packets[:room])
		if err != nil {
			return nil, err
		}
		for i := range packets[:n] {
			p := &packets[i]
			kept = append(kept, stored{lba, append([]byte(nil), p.Payload()...)})
			if err := ctx.WritePacket(p, lba, 0, unified.More); err != nil {
				return nil, err
			}
			lba += uint64((p.PayloadLen + info.BlockSize - 1) / info.BlockSize)
		}
		if err := ctx.SubmitPending(); err != nil {
			return nil, err
		}
		n, err = ctx.Completions(done)
		if err != nil {
			return nil, err
		}
		for i := range done[:n] {
			if err := done[i].OK(); err != nil {
				return nil, err
			}
		}
		finished += n
	}
	return kept, nil
}

func min(first int, more ...int) int {
	for _, n := range more {
		if n < first {
			first = n
		}
	}
	return first
}

// intact says whether the device gives a payload back.
func intact(ctx *unified.Context, one stored) (bool, error) {
	block := ctx.Info().BlockSize
	frame, err := ctx.FrameAlloc()
	if err != nil {
		return false, err
	}
	length := (uint32(len(one.payload)) + block - 1) / block * block
	if err := ctx.Read(frame, 0, length, one.lba, 0, 0); err != nil {
		return false, err
	}
	var done [1]unified.Completion
	for {
		n, err := ctx.Completions(done[:])
		if err != nil {
			return false, err
		}
		if n == 1 {
			break
		}
		if _, err := ctx.Wait(unified.WaitCompletions, -1); err != nil {
			return false, err
		}
	}
	if err := done[0].OK(); err != nil {
		return false, err
	}
	same := bytes.Equal(ctx.FrameData(frame)[:len(one.payload)], one.payload)
	return same, ctx.FrameRelease(frame)
}

func run(iface, path string, count int) (err error) {
	ctx, err := unified.Open(unified.Config{Interface: iface, Device: path, FileSize: 64 << 20})
	if err != nil {
		return err
	}
	defer func() {
		if closing := ctx.Close(); err == nil {
			err = closing
		}
	}()
	device, err := ctx.Device()
	if err != nil {
		return err
	}
	fmt.Printf("Receiving on %s, storing on %s (%s)\n", iface, device, ctx.Backend())
	kept, err := store(ctx, count)
	if err != nil {
		return err
	}
	good := 0
	for _, one := range kept {
		same, err := intact(ctx, one)
		if err != nil {
			return err
		}
		if same {
			good++
		}
	}
	fmt.Printf("Stored %d of %d, %d read back as they came\n", len(kept), count, good)
	if good != count {
		return fmt.Errorf("%d payloads are not as they came", count-good)
	}
	return nil
}

func main() {
	count := 0
	if len(os.Args) == 4 {
		count, _ = strconv.Atoi(os.Args[3])
	}
	if count < 1 {
		fmt.Fprintln(os.Stderr, "usage: store IFACE FILE COUNT")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], count); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
