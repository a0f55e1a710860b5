// SPDX-License-Identifier: MIT OR Apache-2.0

package unified

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func finished(t *testing.T, ctx *Context) Completion {
	t.Helper()
	var done [1]Completion
	for {
		n, err := ctx.Completions(done[:])
		if err != nil {
			t.Fatal(err)
		}
		if n == 1 {
			return done[0]
		}
		if what, err := ctx.Wait(WaitCompletions, 5*time.Second); err != nil || what == 0 {
			t.Fatal(what, err)
		}
	}
}

func storage(t *testing.T) *Context {
	t.Helper()
	ctx, err := Open(Config{Device: filepath.Join(t.TempDir(), "file"), FileSize: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ctx.Close() })
	return ctx
}

// refused checks that a call failed with this errno, and says why in words.
func refused(t *testing.T, err error, errno syscall.Errno, words string) {
	t.Helper()
	if !errors.Is(err, errno) || !strings.Contains(err.Error(), words) {
		t.Fatalf("%v, and not %v with '%s'", err, errno, words)
	}
}

// several opens a context of two files with blocks of 512 and 4096 bytes.
func several(t *testing.T) (ctx *Context, paths []string) {
	t.Helper()
	for _, name := range []string{"a", "b"} {
		paths = append(paths, filepath.Join(t.TempDir(), name))
	}
	ctx, err := Open(Config{BuffersMax: 16 << 20, FrameSize: 4096, Devices: []Device{
		{Path: paths[0], FileSize: 1 << 20, BlockSize: 512, Spill: paths[0] + "-spill"},
		{Path: paths[1], FileSize: 2 << 20, BlockSize: 4096},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ctx.Close() })
	return ctx, paths
}

// submit submits all of them, and gives their completions in the order of UserData.
func submit(t *testing.T, ctx *Context, submissions ...Submission) []Completion {
	t.Helper()
	if n, err := ctx.Submit(submissions); n != len(submissions) || err != nil {
		t.Fatal(n, err)
	}
	var all []Completion
	for range submissions {
		one := finished(t, ctx)
		if err := one.OK(); err != nil {
			t.Fatal(err)
		}
		all = append(all, one)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].UserData < all[j].UserData })
	return all
}

func inFrame(t *testing.T, ctx *Context, s Submission, frame, offset, length uint32) Submission {
	t.Helper()
	if err := s.UseFrame(ctx, frame, offset, length); err != nil {
		t.Fatal(err)
	}
	return s
}

func inBuffer(t *testing.T, b *Buffer, s Submission, offset uint64, length uint32) Submission {
	t.Helper()
	if err := s.UseBuffer(b, offset, length); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSubmissionsNameTheirDevices(t *testing.T) {
	ctx, paths := several(t)
	frame, err := ctx.FrameAlloc()
	if err != nil {
		t.Fatal(err)
	}
	buffer, err := ctx.BufferAlloc(12288)
	if err != nil {
		t.Fatal(err)
	}
	ones, twos := bytes.Repeat([]byte{1}, 512), bytes.Repeat([]byte{2}, 8192)
	copy(ctx.FrameData(frame)[1024:], ones)
	copy(buffer.Bytes(), twos)
	done := submit(t, ctx,
		inFrame(t, ctx, Submission{Op: OpWrite, LBA: 3, UserData: 1, Flags: Keep}, frame, 1024, 512),
		inBuffer(t, buffer, Submission{Op: OpWrite, Device: 1, LBA: 2, UserData: 2}, 0, 8192))
	if done[0].Device != 0 || done[0].Len != 512 || done[0].Frame != frame || done[1].Device != 1 || done[1].Len != 8192 || done[1].Flags&CompletionFrame != 0 {
		t.Fatalf("%+v", done)
	}
	submit(t, ctx, Submission{Op: OpFlush, Device: AllDevices})
	for i, want := range [][]byte{ones, twos} {
		file, err := os.ReadFile(paths[i])
		if err != nil {
			t.Fatal(err)
		}
		at := []int{3 * 512, 2 * 4096}[i]
		if !bytes.Equal(file[at:at+len(want)], want) || file[at-1] != 0 || file[at+len(want)] != 0 {
			t.Fatal("device", i, "does not have what was written")
		}
	}
	// Back, each to the other kind of memory.
	done = submit(t, ctx,
		inBuffer(t, buffer, Submission{Op: OpRead, LBA: 3, UserData: 1}, 8192, 512),
		inFrame(t, ctx, Submission{Op: OpRead, Device: 1, LBA: 3, UserData: 2}, frame, 0, 4096))
	if !bytes.Equal(buffer.Bytes()[8192:8192+512], ones) || !bytes.Equal(ctx.FrameData(done[1].Frame), twos[:4096]) {
		t.Fatal("it was not read back as it was written")
	}
	// What takes no data, and a command that only some devices know.
	submit(t, ctx, Submission{Op: OpWriteZeroes, Device: 1, LBA: 2, Blocks: 1})
	submit(t, ctx, inBuffer(t, buffer, Submission{Op: OpRead, Device: 1, LBA: 2}, 0, 4096))
	if !bytes.Equal(buffer.Bytes()[:4097], append(make([]byte, 4096), 2)) {
		t.Fatal("the block was not zeroed, or not it alone")
	}
	raw := []Submission{{Op: OpRaw, Device: 1, Command: &NVMeCommand{Opcode: 0xff}, UserData: 9}, {Op: OpRaw, Command: &NVMeCommand{Opcode: 0xff}, UserData: 9}}
	if n, err := ctx.Submit(raw); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	for range raw {
		if done := finished(t, ctx); done.Status != 1 || done.UserData != 9 {
			t.Fatalf("%+v", done)
		}
	}
	for i, read := range []uint64{512, 8192} {
		info, err := ctx.DeviceInfo(uint32(i))
		want := DeviceInfo{
			Backend: "file", Path: paths[i], Blocks: []uint64{2048, 512}[i], BlockSize: []uint32{512, 4096}[i],
			MaxTransfer: info.MaxTransfer, DMAAlignment: info.DMAAlignment, NSID: 1, DirectIO: info.DirectIO, Writable: true,
			VolatileCache: info.VolatileCache, Operations: info.Operations, Errors: 1, BytesWritten: read, BytesRead: read,
		}
		if err != nil || info != want || info.MaxTransfer == 0 || info.Operations < 3 {
			t.Fatalf("%+v %v", info, err)
		}
	}
	if _, err := os.Stat(paths[0] + "-spill"); err != nil {
		t.Fatal("the spill of the first device was not made:", err)
	}
	if path, err := ctx.Device(); path != paths[0] || err != nil || ctx.Info().Devices != 2 {
		t.Fatal(path, err)
	}
	if err := ctx.FrameRelease(frame); err != nil {
		t.Fatal(err)
	}
}

func TestAWrongDeviceIsTold(t *testing.T) {
	ctx, paths := several(t)
	frame, err := ctx.FrameAlloc()
	if err != nil {
		t.Fatal(err)
	}
	good := inFrame(t, ctx, Submission{Op: OpWrite, Device: 1, Flags: Keep}, frame, 0, 4096)
	if n, err := ctx.Submit([]Submission{good, {Op: OpFlush, Device: 2}}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if done := finished(t, ctx); done.OK() != nil || done.Device != 1 {
		t.Fatalf("%+v", done)
	}
	good.Device = 2
	_, err = ctx.Submit([]Submission{good})
	refused(t, err, syscall.EINVAL, "device 2 does not exist")
	if err := ctx.FrameRelease(frame); err != nil {
		t.Fatal("the frame of a refused submission was taken:", err)
	}
	_, err = ctx.DeviceInfo(2)
	refused(t, err, syscall.EINVAL, "device 2")
	if n, err := ctx.Submit(nil); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	// The largest block size counts, and 1 MiB is on device 0.
	for _, c := range []struct {
		lba       uint64
		chunk     uint32
		device    uint32
		deviceLBA uint64
	}{{255, 0, 0, 255 * 8}, {256, 0, 1, 0}, {5, 8192, 0, 24}, {7, 8192, 1, 3}} {
		device, lba, err := ctx.StripeLocate(c.lba, c.chunk)
		if device != c.device || lba != c.deviceLBA || err != nil {
			t.Fatal(c, device, lba, err)
		}
	}
	_, _, err = ctx.StripeLocate(1<<40, 0)
	refused(t, err, syscall.ERANGE, "1099511627776")
	_, _, err = ctx.StripeLocate(0, 1000)
	refused(t, err, syscall.EINVAL, "1000")
	other := filepath.Join(t.TempDir(), "other")
	_, err = Open(Config{Devices: []Device{{Path: other, FileSize: 1 << 20}, {Path: other}}})
	refused(t, err, syscall.EINVAL, other)
	_, err = Open(Config{Devices: []Device{{Path: paths[0] + "\x00.bak", FileSize: 1 << 20}}})
	refused(t, err, syscall.EINVAL, "zero byte")
	_, err = Open(Config{Device: other, Devices: []Device{{Path: other}}})
	refused(t, err, syscall.EINVAL, "device")
}

func TestADeviceMayBeADescriptor(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	if err := file.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	ctx, err := Open(Config{Devices: []Device{{Path: "null:"}, {Flags: DeviceFD, FD: int32(file.Fd())}}})
	if err != nil {
		t.Fatal(err)
	}
	buffer, err := ctx.BufferAlloc(4096)
	if err != nil {
		t.Fatal(err)
	}
	copy(buffer.Bytes(), "by descriptor")
	submit(t, ctx, inBuffer(t, buffer, Submission{Op: OpWrite, Device: 1}, 0, 4096))
	text := make([]byte, 13)
	if _, err := file.ReadAt(text, 0); err != nil || string(text) != "by descriptor" {
		t.Fatal(string(text), err)
	}
	if err := ctx.Close(); err != nil {
		t.Fatal(err)
	}
	// The flags of a device are its own.
	ctx, err = Open(Config{Devices: []Device{{Path: "null:"}, {Path: file.Name(), Flags: ReadOnly}}})
	if err != nil {
		t.Fatal(err)
	}
	defer ctx.Close()
	for i, writable := range []bool{true, false} {
		if info, err := ctx.DeviceInfo(uint32(i)); err != nil || info.Writable != writable {
			t.Fatalf("%d %+v %v", i, info, err)
		}
	}
	file.Close()
}

func TestABufferIsTheCallersUntilItIsFreed(t *testing.T) {
	ctx, _ := several(t)
	buffer, err := ctx.BufferAlloc(1 << 20)
	if err != nil || buffer.Len() != 1<<20 || buffer.Number() == 0 || len(buffer.Bytes()) != 1<<20 {
		t.Fatal(buffer, err)
	}
	if stats, err := ctx.Stats(); err != nil || stats.Buffers != 1 || stats.BufferBytes != 1<<20 {
		t.Fatal(stats, err)
	}
	write := inBuffer(t, buffer, Submission{Op: OpWrite, Device: 1}, 0, 4096)
	if n, err := ctx.Submit([]Submission{write}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if info, err := buffer.Info(); err != nil || info.Len != 1<<20 || info.Commands != 1 {
		t.Fatal(info, err)
	}
	refused(t, buffer.Free(), syscall.EBUSY, "")
	if done := finished(t, ctx); done.OK() != nil {
		t.Fatalf("%+v", done)
	}
	if err := buffer.Free(); err != nil {
		t.Fatal(err)
	}
	// Nothing leads to its memory any more.
	if buffer.Bytes() != nil {
		t.Fatal("a freed buffer has bytes")
	}
	_, err = ctx.Submit([]Submission{write})
	refused(t, err, syscall.EINVAL, "buffer")
	refused(t, buffer.Free(), syscall.EINVAL, "buffer")
	for _, place := range [][2]uint64{{1 << 20, 1}, {1<<20 - 1, 2}, {1<<64 - 1, 1}} {
		refused(t, write.UseBuffer(buffer, place[0], uint32(place[1])), syscall.EINVAL, "not in a buffer of 1048576")
	}
	_, err = ctx.BufferAlloc(0)
	refused(t, err, syscall.EINVAL, "0")
	_, err = ctx.BufferAlloc(17 << 20)
	refused(t, err, syscall.ENOBUFS, "")
	left, err := ctx.BufferAlloc(100)
	if err != nil {
		t.Fatal(err)
	}
	if err := ctx.Close(); err != nil {
		t.Fatal(err)
	}
	if left.Bytes() != nil {
		t.Fatal("a buffer of a closed context has bytes")
	}
	refused(t, left.Free(), syscall.EBADF, "")
	_, err = ctx.DeviceInfo(0)
	refused(t, err, syscall.EBADF, "")
}

func TestSharedMemoryIsABuffer(t *testing.T) {
	ctx, paths := several(t)
	memory, err := syscall.Mmap(-1, 0, 8192, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED|syscall.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(memory)
	mapped, err := ctx.BufferImport(memory)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.CreateTemp("/dev/shm", "unified-go-test")
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(file.Name())
	if err := file.Truncate(8192); err != nil {
		t.Fatal(err)
	}
	given, err := ctx.BufferImportFD(int(file.Fd()), 4096, 4096)
	if err != nil {
		t.Fatal(err)
	}
	copy(memory[4096:], "mapped")
	if _, err := file.WriteAt([]byte("given"), 4096); err != nil {
		t.Fatal(err)
	}
	submit(t, ctx,
		inBuffer(t, mapped, Submission{Op: OpWrite}, 4096, 512),
		inBuffer(t, given, Submission{Op: OpWrite, Device: 1}, 0, 4096))
	for i, want := range []string{"mapped\x00", "given\x00"} {
		if got, err := os.ReadFile(paths[i]); err != nil || !bytes.HasPrefix(got, []byte(want)) {
			t.Fatal(i, err, got[:16])
		}
	}
	submit(t, ctx,
		inBuffer(t, mapped, Submission{Op: OpRead, Device: 1}, 0, 4096),
		inBuffer(t, given, Submission{Op: OpRead}, 512, 512))
	text := make([]byte, 7)
	if _, err := file.ReadAt(text, 4096+512); err != nil || string(text) != "mapped\x00" || string(memory[:6]) != "given\x00" {
		t.Fatal(string(text), string(memory[:6]), err)
	}
	if &mapped.Bytes()[0] != &memory[0] {
		t.Fatal("the buffer is other memory than was given")
	}
	if _, err := ctx.BufferImport(make([]byte, 1<<20)); !errors.Is(err, syscall.EINVAL) {
		t.Fatal("memory of Go was taken:", err)
	}
	_, err = ctx.BufferImport(nil)
	refused(t, err, syscall.EINVAL, "")
	_, err = ctx.BufferImportFD(-1, 0, 4096)
	refused(t, err, syscall.EBADF, "")
	file.Close()
	for _, buffer := range []*Buffer{mapped, given} {
		if err := buffer.Free(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestALogSetSaysWhatIsWrong(t *testing.T) {
	_, paths := several(t)
	_, err := OpenLogSet(paths, nil)
	refused(t, err, syscall.ENOMSG, paths[0])
	_, err = OpenLogSet([]string{paths[0]}, []uint64{4096})
	refused(t, err, syscall.ENOMSG, "byte 4096 of '"+paths[0])
	_, err = OpenLogSet(paths, []uint64{0})
	refused(t, err, syscall.EINVAL, "1 starts for 2 devices")
	_, err = OpenLogSet(nil, nil)
	refused(t, err, syscall.EINVAL, "")
	_, err = OpenLogSet([]string{paths[1] + "-absent", paths[0]}, []uint64{0, 0})
	refused(t, err, syscall.ENOENT, paths[1]+"-absent")
}

func TestLanes(t *testing.T) {
	device := filepath.Join(t.TempDir(), "file")
	if _, err := Open(Config{Device: device, FileSize: 1 << 20, Queues: AllQueues}); !errors.Is(err, syscall.EINVAL) {
		t.Fatal(err)
	}
	ctx, err := Open(Config{Device: device, FileSize: 1 << 20, Queues: 3, CPUs: []uint32{0}})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := 0; i < 3; i++ {
		i := i
		lane, err := ctx.Lane(i)
		if err != nil || lane.Info().Lane != uint32(i) || lane.Info().Lanes != 3 {
			t.Fatal(err)
		}
		all.Add(1)
		go func() {
			defer all.Done()
			for n := uint64(0); n < 100; n++ {
				frame, err := lane.FrameAlloc()
				if err != nil {
					t.Error(err)
					return
				}
				write, err := lane.FrameWrite(frame, 0, 512, uint64(i)*100+n, n, 0)
				if err != nil {
					t.Error(err)
					return
				}
				if count, err := lane.SubmitWrites([]Write{write}); count != 1 || err != nil {
					t.Error(count, err)
					return
				}
				if done := finished(t, lane); done.OK() != nil || done.UserData != n {
					t.Errorf("%+v", done)
				}
			}
			if stats, err := lane.Stats(); err != nil || stats.Completed != 100 {
				t.Error(stats, err)
			}
			if err := lane.Close(); !errors.Is(err, syscall.EINVAL) {
				t.Error(err)
			}
		}()
	}
	all.Wait()
	if stats, err := ctx.Stats(); err != nil || stats.Completed != 300 || stats.FramesReserve == 0 {
		t.Fatal(stats, err)
	}
	if _, err := ctx.FrameAlloc(); !errors.Is(err, syscall.EBUSY) {
		t.Fatal(err)
	}
	if _, err := ctx.Lane(3); !errors.Is(err, syscall.EINVAL) {
		t.Fatal(err)
	}
	if err := ctx.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestBatches(t *testing.T) {
	ctx := storage(t)
	var frames []uint32
	var writes []Write
	for i, text := range []string{"one", "two"} {
		frame, err := ctx.FrameAlloc()
		if err != nil {
			t.Fatal(err)
		}
		copy(ctx.FrameData(frame)[100:], text)
		write, err := ctx.FrameWrite(frame, 100, 3, uint64(i), uint64(i), Keep)
		if err != nil {
			t.Fatal(err)
		}
		frames, writes = append(frames, frame), append(writes, write)
	}
	if _, err := ctx.FrameWrite(frames[0], 2000, 100, 0, 0, 0); !errors.Is(err, syscall.EINVAL) {
		t.Fatal(err)
	}
	// A frame that is in flight, and one that is not held, end a batch; the first one's error is that of the batch.
	if n, err := ctx.SubmitWrites(append(writes, writes[0])); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if _, err := ctx.SubmitWrites(writes); !errors.Is(err, syscall.EBUSY) {
		t.Fatal(err)
	}
	for range writes {
		if done := finished(t, ctx); done.OK() != nil || done.Frame != frames[done.UserData] {
			t.Fatalf("%+v", done)
		}
	}
	if err := ctx.Read(frames[0], 0, 512, 1, 0, 0); err != nil {
		t.Fatal(err)
	}
	if done := finished(t, ctx); done.OK() != nil || string(ctx.FrameData(frames[0])[:4]) != "two\x00" {
		t.Fatalf("%+v", done)
	}
	if n, err := ctx.FramesRelease(append(frames, frames[0])); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if _, err := ctx.FramesRelease(frames); !errors.Is(err, syscall.EINVAL) {
		t.Fatal(err)
	}
	none, err := ctx.FramesRelease(nil)
	if n, also := ctx.SubmitWrites(nil); n+none != 0 || err != nil || also != nil {
		t.Fatal(none, err, n, also)
	}
}

func TestADescriptorInsteadOfAPath(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	if err := file.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	ctx, err := Open(Config{Flags: DeviceFD, DeviceFD: int32(file.Fd()), Retries: 3})
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	if err := ctx.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Device: file.Name(), Retries: 256}); !errors.Is(err, syscall.EINVAL) {
		t.Fatal("so many retries were taken:", err)
	}
}

func TestAFrameGoesToTheDeviceAndBack(t *testing.T) {
	ctx := storage(t)
	frame, err := ctx.FrameAlloc()
	if err != nil {
		t.Fatal(err)
	}
	copy(ctx.FrameData(frame), "hello")
	if err := ctx.Write(frame, 0, 5, 3, 7, Keep|FUA); err != nil {
		t.Fatal(err)
	}
	if err := ctx.Write(frame, 0, 5, 3, 7, 0); !errors.Is(err, syscall.EBUSY) {
		t.Fatal("a frame in flight was taken:", err)
	}
	done := finished(t, ctx)
	if done.OK() != nil || done.UserData != 7 || done.Flags&CompletionFrame == 0 || done.Frame != frame {
		t.Fatalf("%+v", done)
	}
	copy(ctx.FrameData(frame), "xxxxxxx")
	if err := ctx.Read(frame, 0, 512, 3, 0, 0); err != nil {
		t.Fatal(err)
	}
	if done := finished(t, ctx); done.OK() != nil || string(ctx.FrameData(frame)[:6]) != "hello\x00" {
		t.Fatalf("%+v %q", done, ctx.FrameData(frame)[:6])
	}
	ctx.FrameData(frame)[0] = 'j'
	if err := ctx.Compare(frame, 0, 512, 3, 0, 0); err != nil {
		t.Fatal(err)
	}
	if done := finished(t, ctx); done.Status != 0x285 || !strings.Contains(done.OK().Error(), StatusString(0x285)) {
		t.Fatalf("%+v", done)
	}
	if err := ctx.SubmitRaw(&NVMeCommand{Opcode: 0xff}, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	if done := finished(t, ctx); done.Status != 1 {
		t.Fatalf("%+v", done)
	}
	if err := ctx.FrameRelease(frame); err != nil {
		t.Fatal(err)
	}
	if err := ctx.FrameRelease(frame); !errors.Is(err, syscall.EINVAL) {
		t.Fatal(err)
	}
	if err := ctx.Write(frame, 2000, 100, 0, 0, 0); !errors.Is(err, syscall.EINVAL) {
		t.Fatal(err)
	}
	if stats, err := ctx.Stats(); err != nil || stats.Submitted != 4 || stats.FramesHeld != 0 {
		t.Fatalf("%+v %v", stats, err)
	}
	latency, err := ctx.Latency(LatencyCommand)
	if err != nil || latency.Count != 4 || uint64(latency.Quantile(1)) != latency.Max || latency.Max == 0 {
		t.Fatalf("%+v %v", latency, err)
	}
	if LatencyBound(4) != 5000 || LatencyBound(LatencyBuckets-1) != 1<<64-1 {
		t.Fatal(LatencyBound(4))
	}
	if _, err := ctx.Latency(2); !errors.Is(err, syscall.EINVAL) {
		t.Fatal(err)
	}
	if text, err := ctx.OpenMetrics(); err != nil || !strings.Contains(text, "unified_submitted_total{") || !strings.Contains(text, "} 4\n") || !strings.HasSuffix(text, "# EOF\n") {
		t.Fatalf("%s %v", text, err)
	}
}

// Goroutines move between threads, and the library's sentence is the thread's.
func TestEachErrorHasItsOwnSentence(t *testing.T) {
	var all sync.WaitGroup
	for _, name := range []string{"nosuchif1", "nosuchif2", "nosuchif3", "nosuchif4"} {
		all.Add(1)
		go func(name string) {
			defer all.Done()
			for i := 0; i < 200; i++ {
				_, err := Open(Config{Interface: name, Device: "null:"})
				if !errors.Is(err, syscall.ENODEV) || !strings.Contains(err.Error(), name) {
					t.Error(name, err)
				}
				runtime.Gosched()
			}
		}(name)
	}
	all.Wait()
}

func TestAClosedContextSaysSo(t *testing.T) {
	ctx := storage(t)
	if err := ctx.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ctx.Close(); !errors.Is(err, syscall.EBADF) {
		t.Fatal(err)
	}
	if _, err := ctx.Stats(); !errors.Is(err, syscall.EBADF) {
		t.Fatal(err)
	}
}
