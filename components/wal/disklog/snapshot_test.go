package disklog

import (
	"testing"

	"kvstore/components/wal/disklog/vfs/faultfs"
	"kvstore/components/wal/driver"
)

// A snapshot that the cleaner asks for shares its batch with appends. It says how things were before the batch, so whatever the
// batch holds besides, an acknowledged record must not be behind it when the process is killed right after.
func TestSnapshotAmongAppends(t *testing.T) {
	disk := faultfs.New(testDisk)
	cfg := small()
	cfg.FS = disk
	e := mustOpen(t, "/data", cfg)
	mustFence(t, e, "a", epoch(1))
	mustFence(t, e, "b", epoch(1))
	if _, err := e.SwapManifest(ctx, "new", "", []byte("m")); err != nil {
		t.Fatal(err)
	}

	// While the committer is held in this callback, everything below gathers for one batch.
	held, goOn := make(chan struct{}), make(chan struct{})
	e.Append("a", epoch(1), driver.Frame{Epoch: 1, Seq: 2, Data: []byte("two")}, func(error) { close(held); <-goOn })
	<-held
	done := make(chan error, 4)
	answer := func(err error) { done <- err }
	e.Append("a", epoch(1), driver.Frame{Epoch: 1, Seq: 3, Data: []byte("three")}, answer)
	e.committer.submit(request{
		kind: reqFence, shard: "new", epoch: epoch(1), fenced: new(uint64), done: answer,
		record: func(uint64, uint64) []byte { return []byte("first") },
	})
	e.committer.submit(request{kind: reqSnapshot, done: answer})
	e.Append("b", epoch(1), driver.Frame{Epoch: 1, Seq: 2, Data: []byte("two")}, answer)
	close(goOn)
	for range cap(done) {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}

	cfg.FS = disk.Clone() // the process is killed here
	e = mustOpen(t, "/data", cfg)
	if d := e.Damage(); len(d) > 0 {
		t.Error(d)
	}
	mustRead(t, e, "a", 2, "2:1:two", "3:1:three")
	mustRead(t, e, "b", 2, "2:1:two")
	mustRead(t, e, "new", 1, "1:1:first")
	if seq := mustFence(t, e, "a", epoch(2)); seq != 4 {
		t.Errorf("the next fence is record %d, want 4: it replaces an acknowledged one", seq)
	}
}
