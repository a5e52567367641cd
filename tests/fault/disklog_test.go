// Package fault has tests of disk faults that need a real kernel: a full file system, and the order of system calls as strace
// sees them. They need root and strace; `make fault`, which CI runs, sets KVSTORE_FAULT=1. Without it they are skipped.
package fault

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"kvstore/components/wal/disklog"
	"kvstore/components/wal/driver"
)

var ctx = context.Background()

// wanted skips a test unless the run asked for faults; then everything that it needs must be there.
func wanted(t *testing.T, programs ...string) {
	t.Helper()
	if os.Getenv("KVSTORE_FAULT") == "" {
		t.Skip("needs root and real system calls: run make fault, as CI does")
	}
	if os.Geteuid() != 0 {
		t.Fatal("KVSTORE_FAULT is set and this is not root")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("KVSTORE_FAULT is set and %s is not installed", p)
		}
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// mountSmall returns the root of a new ext4 of so many MiB.
func mountSmall(t *testing.T, mib int) string {
	wanted(t, "mkfs.ext4", "mount", "umount", "truncate")
	base := t.TempDir()
	image, dir := filepath.Join(base, "disk"), filepath.Join(base, "mnt")
	run(t, "truncate", "-s", fmt.Sprintf("%dM", mib), image)
	run(t, "mkfs.ext4", "-q", "-m", "0", image)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() { run(t, "umount", dir) })
	return dir
}

func openLog(t *testing.T, dir string) *disklog.Engine {
	t.Helper()
	e, err := disklog.Open(dir, disklog.Config{SegmentBytes: 4 << 20, Reserve: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func fence(t *testing.T, e *disklog.Engine, ep driver.Epoch) uint64 {
	t.Helper()
	if _, err := e.SwapManifest(ctx, "s", "", []byte("m")); err != nil && !errors.Is(err, driver.ErrConflict) {
		t.Fatal(err)
	}
	seq, err := e.Fence(ctx, "s", ep, func(uint64, uint64) []byte { return []byte("fence") })
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

func appendRecord(e *disklog.Engine, ep driver.Epoch, seq uint64, data []byte) error {
	done := make(chan error, 1)
	e.Append("s", ep, driver.Frame{Epoch: ep.Counter, Seq: seq, Data: data}, func(err error) { done <- err })
	return <-done
}

func count(t *testing.T, e *disklog.Engine, from uint64, data []byte) (n uint64) {
	t.Helper()
	err := e.Read(ctx, "s", from, func(f driver.Frame) error {
		if len(f.Data) == len(data) && !bytes.Equal(f.Data, data) {
			return fmt.Errorf("record %d is wrong", f.Seq)
		}
		n++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestFullFileSystem(t *testing.T) {
	dir := mountSmall(t, 128)
	data := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	e := openLog(t, filepath.Join(dir, "data"))
	ep := driver.Epoch{Counter: 1, Writer: [16]byte{1}}
	last := fence(t, e, ep)
	var err error
	for ; err == nil; last++ {
		err = appendRecord(e, ep, last+1, data)
	}
	last-- // the one that was refused
	if !errors.Is(err, driver.ErrNoSpace) {
		t.Fatalf("filling the disk: %v, want ErrNoSpace", err)
	}
	if free, reserve := e.Space(); last < 500 || free < reserve/2 {
		t.Fatalf("%d records of 64 KiB, %d bytes free, %d in reserve", last, free, reserve)
	}

	// Others take the reserve, too, to the last block.
	filler := filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(data)
	}
	_ = f.Close()
	if err := appendRecord(e, ep, last+1, data); !errors.Is(err, driver.ErrNoSpace) {
		t.Fatalf("append on a full disk: %v", err)
	}
	if err := e.PutObject(ctx, "s", "v/1-1", int64(len(data)), bytes.NewReader(data)); !errors.Is(err, driver.ErrNoSpace) {
		t.Fatalf("object on a full disk: %v", err)
	}
	if n := count(t, e, 1, data); n != last {
		t.Fatalf("%d records are read, want %d", n, last)
	}

	// A restart on the full disk: everything can be read and taken over.
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = openLog(t, filepath.Join(dir, "data"))
	defer func() { _ = e.Close() }()
	if d := e.Damage(); len(d) > 0 {
		t.Fatal(d)
	}
	ep = driver.Epoch{Counter: 2, Writer: [16]byte{2}}
	last++
	if seq := fence(t, e, ep); seq != last {
		t.Fatalf("fence at %d, want %d", seq, last)
	}
	if n := count(t, e, 1, data); n != last {
		t.Fatalf("%d records are read after a restart, want %d", n, last)
	}

	// Space freed by others, then by trimming, brings writes back without a restart.
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := e.Trim(ctx, "s", ep, last); err != nil {
		t.Fatal(err)
	}
	for range 200 { // more than would fit without the space that the trim frees, in the background
		waitForRoom(t, "an append", func() error { return appendRecord(e, ep, last+1, data) })
		last++
	}

	// Objects fill it once more, and when three of four are deleted there is room for others.
	put := func(n int) error {
		return e.PutObject(ctx, "s", fmt.Sprintf("v/2-%x", n), int64(len(data)), bytes.NewReader(data))
	}
	objects := 0
	for err = nil; err == nil; objects++ {
		err = put(objects)
	}
	if !errors.Is(err, driver.ErrNoSpace) || objects < 200 {
		t.Fatalf("%d objects, then %v", objects, err)
	}
	for n := range objects {
		if n%4 == 0 {
			continue
		}
		if err := e.DeleteObject(ctx, "s", fmt.Sprintf("v/2-%x", n)); err != nil {
			t.Fatal(err)
		}
	}
	for n := range objects / 3 {
		waitForRoom(t, fmt.Sprintf("object %d of the %d deleted ones", n, objects*3/4), func() error { return put(objects + n) })
	}
}

// waitForRoom repeats what finds no space until it does; any other error ends the test. Each try does something that takes time itself.
func waitForRoom(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := try()
		switch {
		case err == nil:
			return
		case !errors.Is(err, driver.ErrNoSpace):
			t.Fatal(err)
		case time.Now().After(deadline):
			t.Fatalf("waited 30 s for room for %s: %v", what, err)
		}
	}
}

const writerDir = "KVSTORE_FAULT_WRITER"

// TestWriterProcess is not a test: it is the process that TestSyncBeforeAcknowledgement observes.
func TestWriterProcess(t *testing.T) {
	dir := os.Getenv(writerDir)
	if dir == "" {
		t.Skip("the process that TestSyncBeforeAcknowledgement observes")
	}
	e := openLog(t, dir)
	ep := driver.Epoch{Counter: 1, Writer: [16]byte{1}}
	seq := fence(t, e, ep)
	for range 50 {
		seq++
		_, _ = fmt.Fprintf(os.Stdout, "received %d\n", seq)
		data := bytes.Repeat([]byte{7}, 256)
		if err := appendRecord(e, ep, seq, data); err != nil {
			t.Fatal(err)
		}
		_, _ = fmt.Fprintf(os.Stdout, "acknowledged %d\n", seq)
	}
	for n := range 50 {
		seq++
		_, _ = fmt.Fprintf(os.Stdout, "received %d\n", seq)
		if err := e.PutObject(ctx, "s", fmt.Sprintf("v/1-%x", n), 2000, bytes.NewReader(make([]byte, 2000))); err != nil {
			t.Fatal(err)
		}
		_, _ = fmt.Fprintf(os.Stdout, "acknowledged %d\n", seq)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

var (
	call    = regexp.MustCompile(`^(\d+) +(\w+)\((.*)$`)
	resumed = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>(.*)$`)
	said    = regexp.MustCompile(`"(received|acknowledged) (\d+)`)
)

// TestSyncBeforeAcknowledgement: between receipt and acknowledgement of every record the kernel has completed a write to a segment and, begun
// after it, a successful fdatasync of it; likewise of every small object and the pack that it is in.
func TestSyncBeforeAcknowledgement(t *testing.T) {
	wanted(t, "strace")
	base := t.TempDir()
	trace := filepath.Join(base, "trace")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("strace", "-f", "-y", "-o", trace, "-e", "trace=write,pwrite64,fdatasync", self, "-test.run=^TestWriterProcess$", "-test.count=1")
	cmd.Env = append(os.Environ(), writerDir+"="+filepath.Join(base, "data"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f, err := os.Open(trace)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	begun := map[string]string{} // arguments of the unfinished call of a thread
	syncing := map[string]bool{} // the thread's sync began after the write
	received, acknowledged := 0, 0
	written, synced := false, false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var thread, name, args string
		start, end := true, true
		if m := call.FindStringSubmatch(lines.Text()); m != nil {
			thread, name, args = m[1], m[2], m[3]
			if strings.Contains(args, "<unfinished ...>") {
				begun[thread], end = args, false
			}
		} else if m := resumed.FindStringSubmatch(lines.Text()); m != nil {
			thread, name, args = m[1], m[2], begun[m[1]]+m[3]
			start = false
		} else {
			continue
		}
		segment := strings.Contains(args, "/segments/") && !strings.Contains(args, "next.tmp")
		if received > 51 { // the fence was the first
			segment = strings.Contains(args, "/packs/")
		}
		switch {
		case name == "write" && start:
			m := said.FindStringSubmatch(args)
			if m == nil {
				continue
			}
			n, _ := strconv.Atoi(m[2])
			if m[1] == "received" {
				received, written, synced = n, false, false
				clear(syncing)
				continue
			}
			if n != received || !written || !synced {
				t.Fatalf("record or object %d was acknowledged; received %d, written %v, synced %v", n, received, written, synced)
			}
			acknowledged++
		case name == "pwrite64" && end && segment:
			written = true
		case name == "fdatasync" && segment:
			if start {
				syncing[thread] = written
			}
			if end && syncing[thread] && strings.HasSuffix(strings.TrimSpace(args), "= 0") {
				synced = true
			}
		}
	}
	if acknowledged != 100 {
		t.Fatalf("%d acknowledgements were observed, want 100", acknowledged)
	}
}
