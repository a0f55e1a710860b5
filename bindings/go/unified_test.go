// SPDX-License-Identifier: MIT OR Apache-2.0

package unified

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
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
