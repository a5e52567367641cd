package disklog

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"kvstore/components/wal/disklog/vfs/faultfs"
	"kvstore/components/wal/driver"
)

// mustPutFile stores an object of n bytes that is a file of its own, and returns the bytes.
func mustPutFile(t *testing.T, e *Engine, name string, n int) []byte {
	t.Helper()
	data := bytes.Repeat([]byte(name), n/len(name)+1)[:n]
	if err := e.PutObject(ctx, "s", name, -1, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	return data
}

// TestRemovedInPieces: a long file gets a temporary name, durably, then loses its blocks piece by piece, each made durable, then its name. A
// short one is just removed.
func TestRemovedInPieces(t *testing.T) {
	disk := faultfs.New(1 << 30)
	cfg := small()
	cfg.FS = disk
	e := mustOpen(t, "/d", cfg)
	mustFence(t, e, "s", epoch(1))
	piece := int(e.objects.piece)
	for _, test := range []struct {
		bytes int
		want  string
	}{
		{piece, "remove x.o"},
		{piece + 1, "rename tmp, syncdir c, punch tmp, sync tmp, punch tmp, sync tmp, remove tmp"},
	} {
		name := driver.CheckpointPrefix + "x"
		mustPutFile(t, e, name, test.bytes)
		var mu sync.Mutex // guards ops: the committer works, too
		var ops []string
		disk.SetHook(func(op faultfs.Op, path string) error {
			mu.Lock()
			defer mu.Unlock()
			switch folder, file := filepath.Split(path); {
			case !op.Changes() || strings.Contains(path, segmentsDir):
			case filepath.Base(folder) == temporaryDir:
				ops = append(ops, fmt.Sprint(op, " ", temporaryDir))
			default:
				ops = append(ops, fmt.Sprint(op, " ", file))
			}
			return nil
		})
		if err := e.DeleteObject(ctx, "s", name); err != nil {
			t.Fatal(err)
		}
		disk.SetHook(nil)
		if got := strings.Join(ops, ", "); got != test.want {
			t.Errorf("%d bytes: %s\nwant %s", test.bytes, got, test.want)
		}
	}
}

// TestRemovedWhileRead: whoever reads a file goes on to read what was in it, also when it is not in the set of open files any more.
func TestRemovedWhileRead(t *testing.T) {
	for _, evicted := range []bool{false, true} {
		cfg := small()
		cfg.MaxHandles = 1
		e := mustOpen(t, t.TempDir(), cfg)
		mustFence(t, e, "s", epoch(1))
		n := 3 * int(e.objects.piece)
		name, other := driver.CheckpointPrefix+"1", driver.CheckpointPrefix+"2"
		want := mustPutFile(t, e, name, n)
		mustPutFile(t, e, other, n)
		h, err := e.objects.open.get(e.objects.path("s", name))
		if err != nil {
			t.Fatal(err)
		}
		if evicted {
			if err := e.GetObject(ctx, "s", other, 0, make([]byte, n)); err != nil {
				t.Fatal(err)
			}
		}
		if err := e.DeleteObject(ctx, "s", name); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, n)
		if _, err := h.file.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("evicted %v: read %d bytes, error %v, of which the first are %q", evicted, n, err, got[:8])
		}
		e.objects.open.put(h)
		if len(e.objects.open.apart) != 0 {
			t.Errorf("evicted %v: files in use: %v", evicted, e.objects.open.apart)
		}
		if err := e.GetObject(ctx, "s", name, 0, got); err == nil {
			t.Error("a deleted object was read")
		}
	}
}
