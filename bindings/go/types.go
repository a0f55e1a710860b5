// SPDX-License-Identifier: MIT OR Apache-2.0

package unified

import (
	"strings"
	"unsafe"
)

// Constants of the header.
const (
	DriveInline        = 0
	DriveThread        = 1
	XDPAuto            = 0
	XDPNative          = 1
	XDPSKB             = 2
	CopyAuto           = 0
	CopyOnly           = 1
	CopyZero           = 2
	HugePages          = 1
	Force              = 2
	ReadOnly           = 4
	NoPassthrough      = 8
	NoBounce           = 16
	Headroom           = 32
	NoEvents           = 64
	XskMapFD           = 128
	XskFD              = 256
	DeviceFD           = 512
	NoRetry            = 0xffffffff
	AllQueues          = 0xffffffff
	FUA                = 1
	Keep               = 2
	More               = 4
	WaitRX             = 1
	WaitCompletions    = 2
	PacketVLAN         = 1
	CompletionDNR      = 1
	CompletionFrame    = 2
	CompletionBounced  = 4
	CompletionSpilled  = 8
	LayoutPayload      = 0
	LayoutSlot         = 1
	LayoutLog          = 2
	LogNew             = 8
	LogUnchecked       = 16
	AtEndStop          = 0
	AtEndWrap          = 1
	LogRecordKind      = 1
	LogMissingKind     = 2
	LogDamagedKind     = 3
	LogOverwrittenKind = 4
	LatencyPacket      = 0
	LatencyCommand     = 1
	LatencyBuckets     = 101
	OpFlush            = 0
	OpWrite            = 1
	OpRead             = 2
	OpCompare          = 5
	OpWriteZeroes      = 8
	OpDeallocate       = 9
	OpRaw              = 256
	AllDevices         = 0xffffffff
)

// The structs below are those of the header, field by field: the library fills them in directly. A test
// compares their layout with C's.

// Info is what a context turned out to be.
type Info struct {
	size            uint64
	backend         unsafe.Pointer
	region          unsafe.Pointer
	RegionSize      uint64
	SQRing          uint64
	CQRing          uint64
	SQEntriesOffset uint64
	CQEntriesOffset uint64
	Buffers         uint64
	BuffersSize     uint64
	Blocks          uint64
	BlockSize       uint32
	MaxTransfer     uint32
	DMAAlignment    uint32
	NSID            uint32
	SQEntries       uint32
	CQEntries       uint32
	FrameSize       uint32
	FrameCount      uint32
	Headroom        uint32
	Ifindex         uint32
	Queue           uint32
	RXQueues        uint32
	XDPProgramID    uint32
	HugePages       uint8
	Native          uint8
	ZeroCopy        uint8
	Dispatcher      uint8
	DirectIO        uint8
	Writable        uint8
	VolatileCache   uint8
	Threaded        uint8
	reserved        uint32
	Lanes           uint32
	// Lane that this is about; 0 for the whole context.
	Lane uint32
	// Devices is how many the context has; DeviceInfo tells about each.
	Devices   uint32
	reserved1 uint32
}

// Device is one of several devices of a context.
type Device struct {
	Path      string
	FileSize  uint64
	BlockSize uint32
	// Flags: Force, ReadOnly, NoPassthrough, DeviceFD.
	Flags uint32
	// FD counts only with the flag DeviceFD; it stays the caller's.
	FD    int32
	Spill string
}

// DeviceInfo is what a device is, and what was counted of it.
type DeviceInfo struct {
	// Backend is "nvme passthrough", "block", "file" or "null".
	Backend      string
	Path         string
	Blocks       uint64
	BlockSize    uint32
	MaxTransfer  uint32
	DMAAlignment uint32
	NSID         uint32
	DirectIO     bool
	Writable     bool
	// VolatileCache is 1 if completed writes may stay in a cache until a flush, 2 if that is not known.
	VolatileCache uint8
	// Out is true while it has failed and has not answered since.
	Out          bool
	Operations   uint64
	Errors       uint64
	BytesWritten uint64
	BytesRead    uint64
	Spilled      uint64
	SpilledBytes uint64
	// InFlight counts operations that the device, or its spill, has not answered yet.
	InFlight uint64
}

// Submission is a command for Submit, which names its device. UsePayload, UseFrame and UseBuffer say where its data is.
type Submission struct {
	size     uint64
	LBA      uint64
	UserData uint64
	data     unsafe.Pointer
	// Command of OpRaw.
	Command *NVMeCommand
	Op      uint32
	// Device is its number, or AllDevices for OpFlush.
	Device uint32
	Frame  uint32
	Len    uint32
	// Blocks of OpWriteZeroes and OpDeallocate.
	Blocks uint32
	// Flags: FUA, Keep, More.
	Flags  uint32
	buffer uint64
}

// BufferInfo is where a buffer is, and who uses it.
type BufferInfo struct {
	size     uint64
	data     unsafe.Pointer
	Len      uint64
	Commands uint32
	reserved uint32
}

// Stats are all counters of a context, as unified_stats describes them.
type Stats struct {
	size             uint64
	XDPSeen          uint64
	XDPPassed        uint64
	XDPRedirected    uint64
	XDPMatched       uint64
	XDPNoSocket      uint64
	XDPMalformed     uint64
	XDPFragments     uint64
	Events           uint64
	EventsLost       uint64
	NoMetadata       uint64
	RXDropped        uint64
	RXRingFull       uint64
	RXFillRingEmpty  uint64
	RedirectErrors   uint64
	RXPending        uint64
	Received         uint64
	ReceivedBytes    uint64
	Stored           uint64
	StoredBytes      uint64
	Failed           uint64
	Released         uint64
	PacketsHeld      uint64
	PacketsInFlight  uint64
	Submitted        uint64
	Completed        uint64
	Errors           uint64
	Operations       uint64
	CommandsInFlight uint64
	SQFull           uint64
	Bounced          uint64
	BouncedBytes     uint64
	BytesWritten     uint64
	BytesRead        uint64
	FramesFree       uint64
	FramesFilled     uint64
	FramesHeld       uint64
	FramesInFlight   uint64
	Misplaced        uint64
	BadDescriptors   uint64
	LinkUp           uint64
	LinkChanges      uint64
	XDPAttached      uint64
	XDPChanges       uint64
	Spilled          uint64
	SpilledBytes     uint64
	XDPMerged        uint64
	Packed           uint64
	PackedBytes      uint64
	FramesReserve    uint64

	// Buffers that are allocated now, their bytes, and the bytes that are registered for them.
	Buffers               uint64
	BufferBytes           uint64
	BufferRegisteredBytes uint64
}

// Latency is how long something took since the context was opened; times are in ns.
type Latency struct {
	size  uint64
	Count uint64
	Sum   uint64
	Max   uint64
	// Buckets count what took no longer than LatencyBound, and longer than that of the one before.
	Buckets [LatencyBuckets]uint64
}

// Event is the metadata of one redirected packet.
type Event struct {
	// Timestamp is in ns of CLOCK_MONOTONIC.
	Timestamp  uint64
	SrcAddr    [16]byte
	DstAddr    [16]byte
	SrcPort    uint16
	DstPort    uint16
	PayloadLen uint16
	VLANTCI    uint16
	Queue      uint32
	IPVersion  uint8
	Flags      uint8
	reserved   uint16
}

// Packet is a received packet. Its frame is the caller's until it is submitted or released.
type Packet struct {
	data    unsafe.Pointer
	payload unsafe.Pointer
	// Timestamp is in ns of CLOCK_MONOTONIC; 0 if it is not known.
	Timestamp     uint64
	Len           uint32
	PayloadLen    uint32
	Frame         uint32
	Queue         uint32
	L3Offset      uint16
	PayloadOffset uint16
	SrcPort       uint16
	DstPort       uint16
	VLANTCI       uint16
	IPVersion     uint8
	Flags         uint8
	reserved      uint32
}

// Write is one write of SubmitWrites. Packet.Write and Context.FrameWrite make one.
type Write struct {
	data     unsafe.Pointer
	LBA      uint64
	UserData uint64
	Len      uint32
	Frame    uint32
	// Flags: FUA, Keep.
	Flags    uint32
	reserved uint32
}

// NVMeCommand is a command for SubmitRaw.
type NVMeCommand struct {
	Opcode    uint8
	reserved0 uint8
	reserved1 uint16
	NSID      uint32
	CDW2      uint32
	CDW3      uint32
	CDW10     uint32
	CDW11     uint32
	CDW12     uint32
	CDW13     uint32
	CDW14     uint32
	CDW15     uint32
	DataLen   uint32
	// Timeout is in ms; 0: the driver's default.
	Timeout uint32
}

// Completion is one finished command.
type Completion struct {
	UserData uint64
	Result   int32
	Status   uint32
	Len      uint32
	// Frame is valid with the flag CompletionFrame.
	Frame  uint32
	Flags  uint32
	Device uint32
}

// PipelineConfig says what a pipeline stores, and where.
type PipelineConfig struct {
	size            uint64
	StartLBA        uint64
	Blocks          uint64
	AtEnd           uint32
	Flags           uint32
	Layout          uint32
	FlushWrites     uint32
	FlushIntervalMS uint32
	ModerationUS    uint32
	PackBelow       uint32
	ChunkBytes      uint32
}

// PipelineStatus is the state of a pipeline.
type PipelineStatus struct {
	size          uint64
	NextLBA       uint64
	Wraps         uint64
	Submitted     uint64
	Stored        uint64
	Failed        uint64
	PayloadBytes  uint64
	NoSpace       uint64
	Empty         uint64
	Running       uint32
	Error         int32
	FirstSequence uint64
	Completed     uint64
	Durable       uint64
	Flushes       uint64
	PackBelow     uint64
	Rescued       uint64
	Unflushed     uint64
}

// LogRecord is one thing found in a log.
type LogRecord struct {
	size     uint64
	Sequence uint64
	Count    uint64
	// Timestamp is in ns since 1970-01-01 UTC.
	Timestamp  uint64
	packet     unsafe.Pointer
	payload    unsafe.Pointer
	Len        uint32
	PayloadLen uint32
	Kind       uint32
	SrcPort    uint16
	DstPort    uint16
	VLANTCI    uint16
	Queue      uint16
	IPVersion  uint8
	Flags      uint8
	reserved   uint16
	// Lane has received the packet; each has its own sequence numbers. Device is the number of the device in its recording.
	Lane      uint16
	Device    uint16
	reserved2 uint32
}

// LogInfo is what a log is, and what has been read of it.
type LogInfo struct {
	size        uint64
	LogID       uint64
	Created     uint64
	Slots       uint64
	SlotSize    uint32
	BlockSize   uint32
	Oldest      uint64
	End         uint64
	Position    uint64
	Records     uint64
	Missing     uint64
	Damaged     uint64
	Overwritten uint64
	Dropped     uint64
	Unrecorded  uint64
	FirstLoss   uint64
	LastLoss    uint64
	Interface   Name
	Version     uint32
	reserved    uint32
	// Lanes wrote the log. Devices are those of the recording, DevicesGiven those that are read.
	Lanes        uint32
	Devices      uint32
	DevicesGiven uint32
	reserved2    uint32
}

// Name is an interface's name, ended by a zero; empty if it is not known.
type Name [16]byte

func (n Name) String() string {
	name, _, _ := strings.Cut(string(n[:]), "\x00")
	return name
}

// Data is the packet from its Ethernet header on: the frame's memory, not a copy. It must not be touched
// once the frame was submitted or released.
func (p *Packet) Data() []byte { return view(p.data, p.Len) }

// Payload is the UDP payload, with the same lifetime as Data.
func (p *Packet) Payload() []byte { return view(p.payload, p.PayloadLen) }

// Write is a write of the payload from block lba on.
func (p *Packet) Write(lba, userData uint64, flags uint32) Write {
	return Write{data: p.payload, LBA: lba, UserData: userData, Len: p.PayloadLen, Frame: p.Frame, Flags: flags}
}

// Packet is the packet from its Ethernet header on: the log's memory, valid until the next call with the
// log. Nil for ranges.
func (r *LogRecord) Packet() []byte { return view(r.packet, r.Len) }

// Payload is the UDP payload, with the same lifetime as Packet.
func (r *LogRecord) Payload() []byte { return view(r.payload, r.PayloadLen) }

func view(at unsafe.Pointer, length uint32) []byte {
	if at == nil {
		return nil
	}
	return unsafe.Slice((*byte)(at), length)
}
