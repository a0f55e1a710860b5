// SPDX-License-Identifier: MIT OR Apache-2.0

// Package unified moves packets from AF_XDP to NVMe without a copy: the library of include/unified.h.
//
//	ctx, err := unified.Open(unified.Config{Interface: "eth0", Device: "/dev/ng0n1"})
//	defer ctx.Close()
//	packets := make([]unified.Packet, 64)
//	n, err := ctx.Receive(packets)
//	err = ctx.WritePacket(&packets[0], lba, 0, 0)
//
// A frame is the caller's until it is submitted or released: the garbage collector gives none back, and slices
// of its bytes are the frame's own memory. The receiver's functions are for one goroutine at a time, and so
// are the taker's; which threads they run on does not matter.
package unified

/*
#cgo CFLAGS: -I${SRCDIR}/../../include
#cgo LDFLAGS: -lunified
#include <stdlib.h>
#include <unified.h>
*/
import "C"

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// Error is what the library could not do. errors.Is(err, syscall.EAGAIN) looks at its errno.
type Error struct {
	Errno   syscall.Errno
	Message string
}

func (e *Error) Error() string { return e.Message }

// Unwrap gives the errno.
func (e *Error) Unwrap() error { return e.Errno }

// check calls the library in one thread together with the question what failed: the sentence is the thread's.
func check(call func() C.int) (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	n := call()
	if n < 0 {
		return 0, &Error{syscall.Errno(-n), C.GoString(C.unified_last_error())}
	}
	return int(n), nil
}

func done(call func() C.int) error {
	_, err := check(call)
	return err
}

// native is memory of C for the arguments of one call.
type native struct {
	taken []unsafe.Pointer
	err   error
}

// room is zeroed: the collector may look at what a pointer's place held before.
func (n *native) room(size uintptr) unsafe.Pointer {
	at := C.calloc(1, C.size_t(size))
	n.taken = append(n.taken, at)
	return at
}

// text sets err for a string with a zero byte: C would cut it off there, and name another file.
func (n *native) text(s string) *C.char {
	if strings.IndexByte(s, 0) >= 0 {
		n.err = &Error{syscall.EINVAL, fmt.Sprintf("%q has a zero byte: no path and no interface has one", s)}
		return nil
	}
	at := C.CString(s)
	n.taken = append(n.taken, unsafe.Pointer(at))
	return at
}

// optional is nil for an empty string.
func (n *native) optional(s string) *C.char {
	if s == "" {
		return nil
	}
	return n.text(s)
}

func (n *native) free() {
	for _, at := range n.taken {
		C.free(at)
	}
}

// Version is the library's.
func Version() string { return C.GoString(C.unified_version_string()) }

// StatusString is an NVMe status (type << 8 | code) in words.
func StatusString(status uint32) string {
	return C.GoString(C.unified_status_string(C.uint32_t(status)))
}

// Config is what a context is made of; zero means the default everywhere.
type Config struct {
	// Interface to receive from; empty: storage only.
	Interface string
	Device    string
	// FileSize: a regular file is made and given at least this many bytes.
	FileSize uint64
	Queue    uint32
	// Queues to receive from, Queue being the first, each a lane; 0: one; AllQueues. See Lane.
	Queues uint32
	Flags  uint32
	// CPUs of the library's threads, one after the other for each lane; none: wherever the kernel lets them run.
	CPUs []uint32
	// Ports are UDP destination ports; 9999 if there is none.
	Ports      []uint16
	Drive      uint32
	FrameSize  uint32
	FrameCount uint32
	// Headroom needs the flag of that name.
	Headroom    uint32
	SQEntries   uint32
	CQEntries   uint32
	RXRing      uint32
	FillRing    uint32
	XDPMode     uint32
	CopyMode    uint32
	RunPriority uint32
	EventSample uint32
	EventsBytes uint32
	BlockSize   uint32
	// Spill gets the writes that the device failed; empty: no spill.
	Spill string
	// Retries of an operation that fails for now: 1 to 255, or NoRetry; 8 if it is 0.
	Retries        uint32
	RetryBackoffUS uint32
	RetryGiveUpMS  uint32
	// Descriptors that somebody with more privileges opened; they stay the caller's. Each counts only with the flag of that
	// name. With DeviceFD, Device may be empty.
	XskMapFD int32
	XskFD    int32
	DeviceFD int32
	// For several queues, instead of XskFD: a socket for each, in the order of the queues. They need no flag.
	XskFDs []int32
	// Devices, if there are several, numbered from 0. Then Device, FileSize, BlockSize, DeviceFD and Spill stay zero.
	Devices []Device
	// BuffersMax is how many bytes may be registered for buffers at a time; 0: 1 GiB.
	BuffersMax uint64
}

// Context is a network interface (or none), its devices, and the memory between them.
type Context struct {
	ctx  *C.unified_ctx
	info Info
	// Held by those who read the context's own strings, and by Close, which frees them.
	closing *sync.RWMutex
}

// Open makes a context.
func Open(config Config) (*Context, error) {
	var c C.struct_unified_config
	var kept native
	defer kept.free()
	c.size = C.sizeof_struct_unified_config
	c.device = kept.optional(config.Device)
	c.ifname = kept.optional(config.Interface)
	c.spill = kept.optional(config.Spill)
	if n := len(config.Ports); n > 0 {
		c.ports = (*C.uint16_t)(kept.room(uintptr(2 * n)))
		copy(unsafe.Slice((*uint16)(unsafe.Pointer(c.ports)), n), config.Ports)
		c.port_count = C.uint32_t(n)
	}
	if n := len(config.CPUs); n > 0 {
		c.cpus = (*C.uint32_t)(kept.room(uintptr(4 * n)))
		copy(unsafe.Slice((*uint32)(unsafe.Pointer(c.cpus)), n), config.CPUs)
		c.cpu_count = C.uint32_t(n)
	}
	if n := len(config.XskFDs); n > 0 {
		c.xsk_fds = (*C.int32_t)(kept.room(uintptr(4 * n)))
		copy(unsafe.Slice((*int32)(unsafe.Pointer(c.xsk_fds)), n), config.XskFDs)
		c.xsk_fd_count = C.uint32_t(n)
	}
	if n := len(config.Devices); n > 0 {
		c.devices = (*C.struct_unified_device)(kept.room(uintptr(n) * C.sizeof_struct_unified_device))
		c.device_count = C.uint32_t(n)
		devices := unsafe.Slice(c.devices, n)
		for i, from := range config.Devices {
			to := &devices[i]
			to.size = C.sizeof_struct_unified_device
			to.path = kept.optional(from.Path)
			to.file_size = C.uint64_t(from.FileSize)
			to.block_size = C.uint32_t(from.BlockSize)
			to.flags = C.uint32_t(from.Flags)
			to.fd = C.int32_t(from.FD)
			to.spill = kept.optional(from.Spill)
		}
	}
	if kept.err != nil {
		return nil, kept.err
	}
	c.buffers_max = C.uint64_t(config.BuffersMax)
	c.queues = C.uint32_t(config.Queues)
	c.file_size = C.uint64_t(config.FileSize)
	c.queue = C.uint32_t(config.Queue)
	c.flags = C.uint32_t(config.Flags)
	c.drive = C.uint32_t(config.Drive)
	c.frame_size = C.uint32_t(config.FrameSize)
	c.frame_count = C.uint32_t(config.FrameCount)
	c.headroom = C.uint32_t(config.Headroom)
	c.sq_entries = C.uint32_t(config.SQEntries)
	c.cq_entries = C.uint32_t(config.CQEntries)
	c.rx_ring = C.uint32_t(config.RXRing)
	c.fill_ring = C.uint32_t(config.FillRing)
	c.xdp_mode = C.uint32_t(config.XDPMode)
	c.copy_mode = C.uint32_t(config.CopyMode)
	c.run_priority = C.uint32_t(config.RunPriority)
	c.event_sample = C.uint32_t(config.EventSample)
	c.events_bytes = C.uint32_t(config.EventsBytes)
	c.block_size = C.uint32_t(config.BlockSize)
	c.retries = C.uint32_t(config.Retries)
	c.retry_backoff_us = C.uint32_t(config.RetryBackoffUS)
	c.retry_give_up_ms = C.uint32_t(config.RetryGiveUpMS)
	c.xsk_map_fd = C.int32_t(config.XskMapFD)
	c.xsk_fd = C.int32_t(config.XskFD)
	c.device_fd = C.int32_t(config.DeviceFD)
	var handle *C.unified_ctx
	if err := done(func() C.int { return C.unified_ctx_create(&c, &handle) }); err != nil {
		return nil, err
	}
	ctx, err := opened(handle, new(sync.RWMutex))
	if err != nil {
		C.unified_ctx_destroy(handle)
	}
	return ctx, err
}

// What a context and its lanes have.
func opened(handle *C.unified_ctx, closing *sync.RWMutex) (*Context, error) {
	ctx := &Context{ctx: handle, closing: closing}
	ctx.info.size = uint64(unsafe.Sizeof(ctx.info))
	err := done(func() C.int {
		return C.unified_ctx_info(ctx.ctx, (*C.struct_unified_info)(unsafe.Pointer(&ctx.info)))
	})
	if err != nil {
		return nil, err
	}
	return ctx, nil
}

// Lane is one of the lanes, for goroutines of its own: Info().Lanes says how many there are. From now on the data path
// of the whole context is theirs. It ends with the context; Close of a lane is an error.
func (c *Context) Lane(number int) (*Context, error) {
	var handle *C.unified_ctx
	err := done(func() C.int { return C.unified_ctx_lane(c.ctx, C.uint32_t(number), &handle) })
	if err != nil {
		return nil, err
	}
	return opened(handle, c.closing)
}

// Close takes the XDP program off, finishes what is in flight, frees everything, also buffers. Slices of frames and buffers
// are invalid from then on. Later calls return an error.
func (c *Context) Close() error {
	c.closing.Lock()
	defer c.closing.Unlock()
	return done(func() C.int { return C.unified_ctx_destroy(c.ctx) })
}

// Info is what the context turned out to be.
func (c *Context) Info() Info { return c.info }

// Backend is "nvme passthrough", "block", "file" or "null".
func (c *Context) Backend() string { return C.GoString((*C.char)(c.info.backend)) }

// Device is the path of device 0 as it was opened.
func (c *Context) Device() (string, error) {
	path := (*C.char)(C.malloc(4096))
	defer C.free(unsafe.Pointer(path))
	err := done(func() C.int { return C.unified_ctx_device(c.ctx, path, 4096) })
	if err != nil {
		return "", err
	}
	return C.GoString(path), nil
}

// DeviceInfo is what a device is, and what all lanes did with it, or this lane. Info().Devices says how many there are.
func (c *Context) DeviceInfo(device uint32) (DeviceInfo, error) {
	c.closing.RLock()
	defer c.closing.RUnlock()
	var from C.struct_unified_device_info
	from.size = C.sizeof_struct_unified_device_info
	err := done(func() C.int { return C.unified_device_info(c.ctx, C.uint32_t(device), &from) })
	if err != nil {
		return DeviceInfo{}, err
	}
	return DeviceInfo{
		Backend:       C.GoString(from.backend),
		Path:          C.GoString(from.path),
		Blocks:        uint64(from.blocks),
		BlockSize:     uint32(from.block_size),
		MaxTransfer:   uint32(from.max_transfer),
		DMAAlignment:  uint32(from.dma_alignment),
		NSID:          uint32(from.nsid),
		DirectIO:      from.direct_io != 0,
		Writable:      from.writable != 0,
		VolatileCache: uint8(from.volatile_cache),
		Out:           from.out != 0,
		Operations:    uint64(from.operations),
		Errors:        uint64(from.errors),
		BytesWritten:  uint64(from.bytes_written),
		BytesRead:     uint64(from.bytes_read),
		Spilled:       uint64(from.spilled),
		SpilledBytes:  uint64(from.spilled_bytes),
		InFlight:      uint64(from.in_flight),
	}, nil
}

// StripeLocate is where a pipeline with LayoutPayload and these ChunkBytes stores a block of its range: the device, and the
// block on it.
func (c *Context) StripeLocate(lba uint64, chunkBytes uint32) (device uint32, deviceLBA uint64, err error) {
	var number C.uint32_t
	var block C.uint64_t
	err = done(func() C.int {
		return C.unified_stripe_locate(c.ctx, C.uint64_t(lba), C.uint32_t(chunkBytes), &number, &block)
	})
	return uint32(number), uint64(block), err
}

// Stats reads all counters.
func (c *Context) Stats() (Stats, error) {
	var stats Stats
	stats.size = uint64(unsafe.Sizeof(stats))
	err := done(func() C.int {
		return C.unified_ctx_stats(c.ctx, (*C.struct_unified_stats)(unsafe.Pointer(&stats)))
	})
	return stats, err
}

// Latency reads how long packets (LatencyPacket: from arrival until written) or commands (LatencyCommand: from
// submission) took.
func (c *Context) Latency(which int) (Latency, error) {
	var latency Latency
	latency.size = uint64(unsafe.Sizeof(latency))
	err := done(func() C.int {
		return C.unified_ctx_latency(c.ctx, C.uint32_t(which), (*C.struct_unified_latency)(unsafe.Pointer(&latency)))
	})
	return latency, err
}

// Quantile is the time that a part (0.99: the 99th percentile) did not exceed; 0 if nothing was counted.
func (l *Latency) Quantile(part float64) time.Duration {
	return time.Duration(C.unified_latency_quantile((*C.struct_unified_latency)(unsafe.Pointer(l)), C.double(part)))
}

// LatencyBound is the longest time in ns that a bucket counts.
func LatencyBound(bucket int) uint64 { return uint64(C.unified_latency_bound(C.uint32_t(bucket))) }

// OpenMetrics renders all counters as text for Prometheus and its like.
func (c *Context) OpenMetrics() (string, error) {
	for size := 32768; ; {
		text := make([]byte, size)
		length, err := check(func() C.int {
			return C.unified_stats_render(c.ctx, (*C.char)(unsafe.Pointer(&text[0])), C.uint32_t(size))
		})
		if err != nil {
			return "", err
		}
		if length < size {
			return string(text[:length]), nil
		}
		size = length + 1024
	}
}

// PortAdd receives one more UDP port.
func (c *Context) PortAdd(port uint16) error {
	return done(func() C.int { return C.unified_port_add(c.ctx, C.uint16_t(port)) })
}

// PortRemove receives a UDP port no more.
func (c *Context) PortRemove(port uint16) error {
	return done(func() C.int { return C.unified_port_remove(c.ctx, C.uint16_t(port)) })
}

// EventsSample logs one metadata event in so many packets from now on; 0: none.
func (c *Context) EventsSample(sample uint32) error {
	return done(func() C.int { return C.unified_events_sample(c.ctx, C.uint32_t(sample)) })
}

// Events fills in metadata events, oldest first: their number.
func (c *Context) Events(events []Event) (int, error) {
	if len(events) == 0 {
		return 0, nil
	}
	return check(func() C.int {
		return C.unified_events(c.ctx, (*C.struct_unified_event)(unsafe.Pointer(&events[0])), C.uint32_t(len(events)))
	})
}

// EventsFd is readable when a quarter of the events' ring buffer is full; it belongs to the context.
func (c *Context) EventsFd() (int, error) {
	return check(func() C.int { return C.unified_events_fd(c.ctx) })
}

// PollFd is readable when packets or completions wait; it belongs to the context.
func (c *Context) PollFd() (int, error) {
	return check(func() C.int { return C.unified_poll_fd(c.ctx) })
}

// Receive fills in packets that have come: their number. Receiver.
func (c *Context) Receive(packets []Packet) (int, error) {
	if len(packets) == 0 {
		return 0, nil
	}
	return check(func() C.int {
		return C.unified_rx_batch(c.ctx, (*C.struct_unified_packet)(unsafe.Pointer(&packets[0])), C.uint32_t(len(packets)))
	})
}

// Completions fills in completions that are there: their number. Taker.
func (c *Context) Completions(completions []Completion) (int, error) {
	if len(completions) == 0 {
		return 0, nil
	}
	return check(func() C.int {
		return C.unified_completions(c.ctx, (*C.struct_unified_completion)(unsafe.Pointer(&completions[0])), C.uint32_t(len(completions)))
	})
}

// milliseconds are rounded up; below 0 is for ever.
func milliseconds(timeout time.Duration) C.int {
	if timeout < 0 {
		return -1
	}
	return C.int((timeout + time.Millisecond - 1) / time.Millisecond)
}

// Wait waits for something of WaitRX and WaitCompletions: which, 0 for neither. Negative: for ever. It takes a
// thread of the operating system meanwhile.
func (c *Context) Wait(what uint32, timeout time.Duration) (uint32, error) {
	n, err := check(func() C.int { return C.unified_wait(c.ctx, C.uint32_t(what), milliseconds(timeout)) })
	return uint32(n), err
}

// FrameAlloc takes an empty frame. Receiver.
func (c *Context) FrameAlloc() (uint32, error) {
	var frame C.uint32_t
	err := done(func() C.int { return C.unified_frame_alloc(c.ctx, &frame) })
	return uint32(frame), err
}

// FrameRelease gives a frame back.
func (c *Context) FrameRelease(frame uint32) error {
	return done(func() C.int { return C.unified_frame_release(c.ctx, C.uint32_t(frame)) })
}

// FramesRelease gives many frames back: how many, fewer than all if one of them is not held. The error is that of the first
// frame.
func (c *Context) FramesRelease(frames []uint32) (int, error) {
	if len(frames) == 0 {
		return 0, nil
	}
	return check(func() C.int {
		return C.unified_frames_release(c.ctx, (*C.uint32_t)(unsafe.Pointer(&frames[0])), C.uint32_t(len(frames)))
	})
}

// FrameData is a frame's memory, not a copy, to be used only while the frame is the caller's. Nil for a number
// that is no frame.
func (c *Context) FrameData(frame uint32) []byte {
	return view(C.unified_frame_data(c.ctx, C.uint32_t(frame)), c.info.FrameSize)
}

// inside is the address of length bytes at an offset of a frame.
func (c *Context) inside(frame, offset, length uint32) (unsafe.Pointer, error) {
	data := c.FrameData(frame)
	if uint64(offset)+uint64(length) > uint64(len(data)) || int(offset) == len(data) {
		return nil, &Error{syscall.EINVAL, fmt.Sprintf("%d bytes at %d are not in frame %d", length, offset, frame)}
	}
	return unsafe.Pointer(&data[offset]), nil
}

// WritePacket writes a packet's payload from block lba on. The frame is the library's then, except after an
// error. Flags: FUA, Keep, More. Receiver.
func (c *Context) WritePacket(p *Packet, lba, userData uint64, flags uint32) error {
	return done(func() C.int {
		return C.unified_submit_write(c.ctx, C.uint32_t(p.Frame), p.payload, C.uint32_t(p.PayloadLen), C.uint64_t(lba), C.uint64_t(userData), C.uint32_t(flags))
	})
}

// Write writes length bytes at an offset of a frame. As WritePacket.
func (c *Context) Write(frame, offset, length uint32, lba, userData uint64, flags uint32) error {
	data, err := c.inside(frame, offset, length)
	if err != nil {
		return err
	}
	return done(func() C.int {
		return C.unified_submit_write(c.ctx, C.uint32_t(frame), data, C.uint32_t(length), C.uint64_t(lba), C.uint64_t(userData), C.uint32_t(flags))
	})
}

// FrameWrite is a write of length bytes at an offset of a frame, for SubmitWrites.
func (c *Context) FrameWrite(frame, offset, length uint32, lba, userData uint64, flags uint32) (Write, error) {
	data, err := c.inside(frame, offset, length)
	return Write{data: data, LBA: lba, UserData: userData, Len: length, Frame: frame, Flags: flags}, err
}

// SubmitWrites submits many writes together: how many, fewer than all if the SQ ring became full or one was refused. The error
// is that of the first write. Receiver.
func (c *Context) SubmitWrites(writes []Write) (int, error) {
	if len(writes) == 0 {
		return 0, nil
	}
	return check(func() C.int {
		return C.unified_submit_writes(c.ctx, (*C.struct_unified_write)(unsafe.Pointer(&writes[0])), C.uint32_t(len(writes)))
	})
}

// Submit submits commands that name their devices: how many, fewer than all if the SQ ring became full or one was refused. The
// error is that of the first one. Receiver.
func (c *Context) Submit(submissions []Submission) (int, error) {
	if len(submissions) == 0 {
		return 0, nil
	}
	commands := 0
	for i := range submissions {
		submissions[i].size = uint64(unsafe.Sizeof(submissions[i]))
		if submissions[i].Command != nil {
			commands++
		}
	}
	if commands > 0 {
		// C may not be given memory of Go in which there are pointers to memory of Go.
		var kept native
		defer kept.free()
		raw := unsafe.Slice((*NVMeCommand)(kept.room(uintptr(commands)*unsafe.Sizeof(NVMeCommand{}))), commands)
		copied := unsafe.Slice((*Submission)(kept.room(uintptr(len(submissions))*unsafe.Sizeof(Submission{}))), len(submissions))
		for i, one := range submissions {
			if one.Command != nil {
				raw[0] = *one.Command
				one.Command, raw = &raw[0], raw[1:]
			}
			copied[i] = one
		}
		submissions = copied
	}
	return check(func() C.int {
		return C.unified_submit(c.ctx, (*C.struct_unified_submission)(unsafe.Pointer(&submissions[0])), C.uint32_t(len(submissions)))
	})
}

// Read reads whole blocks into a frame, which comes back with the completion. Receiver.
func (c *Context) Read(frame, offset, length uint32, lba, userData uint64, flags uint32) error {
	data, err := c.inside(frame, offset, length)
	if err != nil {
		return err
	}
	return done(func() C.int {
		return C.unified_submit_read(c.ctx, C.uint32_t(frame), data, C.uint32_t(length), C.uint64_t(lba), C.uint64_t(userData), C.uint32_t(flags))
	})
}

// Compare compares whole blocks with a frame, which comes back with the completion. Receiver.
func (c *Context) Compare(frame, offset, length uint32, lba, userData uint64, flags uint32) error {
	data, err := c.inside(frame, offset, length)
	if err != nil {
		return err
	}
	return done(func() C.int {
		return C.unified_submit_compare(c.ctx, C.uint32_t(frame), data, C.uint32_t(length), C.uint64_t(lba), C.uint64_t(userData), C.uint32_t(flags))
	})
}

// Flush makes durable what completed before. Receiver.
func (c *Context) Flush(userData uint64) error {
	return done(func() C.int { return C.unified_submit_flush(c.ctx, C.uint64_t(userData)) })
}

// WriteZeroes zeroes blocks. Receiver.
func (c *Context) WriteZeroes(lba uint64, blocks uint32, userData uint64, flags uint32) error {
	return done(func() C.int {
		return C.unified_submit_write_zeroes(c.ctx, C.uint64_t(lba), C.uint32_t(blocks), C.uint64_t(userData), C.uint32_t(flags))
	})
}

// Deallocate tells the device that blocks are not needed any more. Receiver.
func (c *Context) Deallocate(lba uint64, blocks uint32, userData uint64) error {
	return done(func() C.int {
		return C.unified_submit_deallocate(c.ctx, C.uint64_t(lba), C.uint32_t(blocks), C.uint64_t(userData))
	})
}

// SubmitRaw submits any NVMe command; its data, command.DataLen bytes, is at an offset of the frame. Receiver.
func (c *Context) SubmitRaw(command *NVMeCommand, frame, offset uint32, userData uint64) error {
	var data unsafe.Pointer
	if command.DataLen > 0 {
		var err error
		if data, err = c.inside(frame, offset, command.DataLen); err != nil {
			return err
		}
	}
	return done(func() C.int {
		return C.unified_submit_raw(c.ctx, (*C.struct_unified_nvme_command)(unsafe.Pointer(command)), C.uint32_t(frame), data, C.uint64_t(userData))
	})
}

// SubmitPending shows the engine what was submitted with More. Receiver.
func (c *Context) SubmitPending() error {
	return done(func() C.int { return C.unified_submit_pending(c.ctx) })
}

// Buffer is registered memory of any size that is no frame, for Submit. It is the caller's until Free, or until the context is
// closed.
type Buffer struct {
	ctx    *Context
	number uint64
	data   unsafe.Pointer
	length uint64
}

// BufferAlloc allocates a buffer of zeroes. Any goroutine.
func (c *Context) BufferAlloc(length uint64) (*Buffer, error) {
	var number C.uint64_t
	var data unsafe.Pointer
	err := done(func() C.int { return C.unified_buffer_alloc(c.ctx, C.uint64_t(length), &number, &data) })
	if err != nil {
		return nil, err
	}
	return &Buffer{ctx: c, number: uint64(number), data: data, length: length}, nil
}

// BufferImport makes a buffer of shared memory that the program has mapped (syscall.Mmap with MAP_SHARED) and keeps mapped
// until Free. Memory of Go is refused.
func (c *Context) BufferImport(memory []byte) (*Buffer, error) {
	var data unsafe.Pointer
	if len(memory) > 0 {
		data = unsafe.Pointer(&memory[0])
	}
	var number C.uint64_t
	err := done(func() C.int { return C.unified_buffer_import(c.ctx, data, C.uint64_t(len(memory)), &number) })
	if err != nil {
		return nil, err
	}
	return &Buffer{ctx: c, number: uint64(number), data: data, length: uint64(len(memory))}, nil
}

// BufferImportFD makes a buffer of a part of a memfd, or of a file of tmpfs or hugetlbfs. The descriptor stays the caller's, who
// may close it at once.
func (c *Context) BufferImportFD(fd int, offset, length uint64) (*Buffer, error) {
	var number C.uint64_t
	var data unsafe.Pointer
	err := done(func() C.int {
		return C.unified_buffer_import_fd(c.ctx, C.int(fd), C.uint64_t(offset), C.uint64_t(length), &number, &data)
	})
	if err != nil {
		return nil, err
	}
	return &Buffer{ctx: c, number: uint64(number), data: data, length: length}, nil
}

// Number is the library's for the buffer; none is used twice.
func (b *Buffer) Number() uint64 { return b.number }

// Len is how many bytes it has.
func (b *Buffer) Len() uint64 { return b.length }

// Bytes is the buffer's memory, not a copy, valid until Free and until the context is closed. Nil afterwards.
func (b *Buffer) Bytes() []byte {
	info, err := b.Info()
	if err != nil {
		return nil
	}
	return unsafe.Slice((*byte)(info.data), info.Len)
}

// Info says how long the buffer is, and how many commands use it.
func (b *Buffer) Info() (BufferInfo, error) {
	var info BufferInfo
	info.size = uint64(unsafe.Sizeof(info))
	err := done(func() C.int {
		return C.unified_buffer_info(b.ctx.ctx, C.uint64_t(b.number), (*C.struct_unified_buffer_info)(unsafe.Pointer(&info)))
	})
	return info, err
}

// Free ends the buffer and its slices. EBUSY: commands use it; take their completions first. Any goroutine.
func (b *Buffer) Free() error {
	return done(func() C.int { return C.unified_buffer_free(b.ctx.ctx, C.uint64_t(b.number)) })
}

// UsePayload makes a packet's payload the data.
func (s *Submission) UsePayload(p *Packet) {
	s.data, s.buffer, s.Frame, s.Len = p.payload, 0, p.Frame, p.PayloadLen
}

// UseFrame makes length bytes at an offset of a frame the data.
func (s *Submission) UseFrame(c *Context, frame, offset, length uint32) error {
	data, err := c.inside(frame, offset, length)
	if err == nil {
		s.data, s.buffer, s.Frame, s.Len = data, 0, frame, length
	}
	return err
}

// UseBuffer makes length bytes at an offset of a buffer the data. The buffer stays the caller's, who must not touch these bytes
// before the completion.
func (s *Submission) UseBuffer(b *Buffer, offset uint64, length uint32) error {
	if offset >= b.length || uint64(length) > b.length-offset {
		return &Error{syscall.EINVAL, fmt.Sprintf("%d bytes at %d are not in a buffer of %d", length, offset, b.length)}
	}
	s.data, s.buffer, s.Frame, s.Len = unsafe.Add(b.data, offset), b.number, 0, length
	return nil
}

// PipelineStart stores everything that is received, by threads of the library.
func (c *Context) PipelineStart(config PipelineConfig) error {
	config.size = uint64(unsafe.Sizeof(config))
	return done(func() C.int {
		return C.unified_pipeline_start(c.ctx, (*C.struct_unified_pipeline_config)(unsafe.Pointer(&config)))
	})
}

// PipelineStatus returns the state of the pipeline.
func (c *Context) PipelineStatus() (PipelineStatus, error) {
	var status PipelineStatus
	status.size = uint64(unsafe.Sizeof(status))
	err := done(func() C.int {
		return C.unified_pipeline_status(c.ctx, (*C.struct_unified_pipeline_status)(unsafe.Pointer(&status)))
	})
	return status, err
}

// PipelineStop stores what was received, flushes, and returns the final state, also if a flush failed.
func (c *Context) PipelineStop() (PipelineStatus, error) {
	var status PipelineStatus
	status.size = uint64(unsafe.Sizeof(status))
	err := done(func() C.int {
		return C.unified_pipeline_stop(c.ctx, (*C.struct_unified_pipeline_status)(unsafe.Pointer(&status)))
	})
	return status, err
}

// OK is nil if the command succeeded.
func (d *Completion) OK() error {
	switch {
	case d.Result < 0:
		errno := syscall.Errno(-d.Result)
		return &Error{errno, errno.Error()}
	case d.Status != 0:
		return &Error{syscall.EIO, fmt.Sprintf("NVMe status %#x: %s", d.Status, StatusString(d.Status))}
	}
	return nil
}

// Log is a log written by a pipeline with LayoutSlot or LayoutLog.
type Log struct{ log *C.unified_log }

// OpenLog opens the log that begins start bytes into a device or file.
func OpenLog(path string, start uint64) (*Log, error) {
	var kept native
	defer kept.free()
	name := kept.text(path)
	if kept.err != nil {
		return nil, kept.err
	}
	var log *C.unified_log
	err := done(func() C.int { return C.unified_log_open(name, C.uint64_t(start), &log) })
	if err != nil {
		return nil, err
	}
	return &Log{log}, nil
}

// OpenLogSet opens the logs of one recording over several devices together, in any order. Each begins starts[i] bytes into its
// device; nil: all at 0. Records that only devices have which are not given are reported as missing.
func OpenLogSet(paths []string, starts []uint64) (*Log, error) {
	n := len(paths)
	if starts != nil && len(starts) != n {
		return nil, &Error{syscall.EINVAL, fmt.Sprintf("%d starts for %d devices", len(starts), n)}
	}
	var kept native
	defer kept.free()
	names := unsafe.Slice((**C.char)(kept.room(uintptr(n+1)*unsafe.Sizeof(uintptr(0)))), n+1)
	for i, path := range paths {
		names[i] = kept.text(path)
	}
	if kept.err != nil {
		return nil, kept.err
	}
	var begin *C.uint64_t
	if n > 0 && starts != nil {
		begin = (*C.uint64_t)(unsafe.Pointer(&starts[0]))
	}
	var log *C.unified_log
	err := done(func() C.int { return C.unified_log_open_set(&names[0], begin, C.uint32_t(n), &log) })
	if err != nil {
		return nil, err
	}
	return &Log{log}, nil
}

// Close closes the log.
func (l *Log) Close() error {
	return done(func() C.int { return C.unified_log_close(l.log) })
}

// Next fills in the next thing in the log; false at its end, for which it waits (negative: for ever).
func (l *Log) Next(record *LogRecord, timeout time.Duration) (bool, error) {
	record.size = uint64(unsafe.Sizeof(*record))
	n, err := check(func() C.int {
		return C.unified_log_next(l.log, (*C.struct_unified_log_record)(unsafe.Pointer(record)), milliseconds(timeout))
	})
	return n == 1, err
}

// Seek goes to a record by its sequence number.
func (l *Log) Seek(sequence uint64) error {
	return done(func() C.int { return C.unified_log_seek(l.log, C.uint64_t(sequence)) })
}

// SeekTime goes to the first record that is not older, ns since 1970-01-01 UTC.
func (l *Log) SeekTime(timestamp uint64) error {
	return done(func() C.int { return C.unified_log_seek_time(l.log, C.uint64_t(timestamp)) })
}

// AddSpill looks there too for what the device does not have; from the oldest record again.
func (l *Log) AddSpill(path string) error {
	var kept native
	defer kept.free()
	name := kept.text(path)
	if kept.err != nil {
		return kept.err
	}
	return done(func() C.int { return C.unified_log_add_spill(l.log, name) })
}

// Info is what the log is, and what has been read of it.
func (l *Log) Info() (LogInfo, error) {
	var info LogInfo
	info.size = uint64(unsafe.Sizeof(info))
	err := done(func() C.int {
		return C.unified_log_info(l.log, (*C.struct_unified_log_info)(unsafe.Pointer(&info)))
	})
	return info, err
}
