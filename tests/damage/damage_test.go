// Package damage spoils files of a real kvstored behind its back, one at a time, and requires that no wrong byte is served and
// that nothing acknowledged is taken for absent: a damaged value is DATA_LOSS, a damaged block is a counted miss and stored anew
// by the next write (DESIGN D10, section 5).
package damage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kvstore/client"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
	"kvstore/tests/testenv"
)

const (
	small   = 200 // keys whose values lie with them
	large   = 40  // keys whose values lie apart
	blocks  = 40
	promptN = "damage"
)

func smallValue(i int) []byte { return fmt.Appendf(nil, "small-%04d", i) }

func largeValue(i int) []byte { return bytes.Repeat(fmt.Appendf(nil, "large-%04d.", i), 800) }

func blockValue(i int) []byte { return bytes.Repeat(fmt.Appendf(nil, "block-%04d.", i), 1500) }

func ref(i int) client.BlockRef {
	return client.BlockRef{ID: fmt.Appendf(nil, "b%d", i), Depth: uint32(i)}
}

// fill stores everything twice over, so that checkpoints, merges and old segments come into being.
func fill(ctx context.Context, t *testing.T, c *client.Client) {
	t.Helper()
	for round := range 2 {
		for i := range small {
			v := smallValue(i)
			if round == 0 {
				v = bytes.Repeat([]byte("x"), 900)
			}
			if _, err := c.Put(ctx, fmt.Sprintf("small/%d", i), v, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range large {
		if _, err := c.Put(ctx, fmt.Sprintf("large/%d", i), largeValue(i), nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.CreateNamespace(ctx, &kvstorev1.Namespace{Name: promptN, Kind: kvstorev1.NamespaceKind_NAMESPACE_KIND_PROMPT}); err != nil {
		t.Fatal(err)
	}
	write(ctx, t, c)
}

func prompt(c *client.Client) *client.Prompt {
	return c.In("", promptN).Prompt(client.Scope{"model": "m"})
}

// write writes all blocks and returns how many were not there.
func write(ctx context.Context, t *testing.T, c *client.Client) (stored int) {
	t.Helper()
	var bs []client.NewBlock
	for i := range blocks {
		bs = append(bs, client.NewBlock{BlockRef: ref(i), Data: blockValue(i)})
	}
	res, err := prompt(c).Write(ctx, bs, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range res {
		if r.Err != nil {
			t.Fatalf("block %d: %v", i, r.Err)
		}
		if r.Stored {
			stored++
		}
	}
	return stored
}

// read reads all blocks and returns which are misses; a wrong byte fails the test.
func read(ctx context.Context, t *testing.T, c *client.Client) (misses int, err error) {
	t.Helper()
	var refs []client.BlockRef
	for i := range blocks {
		refs = append(refs, ref(i))
	}
	for b, err := range prompt(c).Read(ctx, refs, &client.ReadOptions{SkipMisses: true}) {
		if err != nil {
			return misses, err
		}
		if b.Miss {
			misses++
		} else if !bytes.Equal(b.Data, blockValue(b.Index)) {
			t.Fatalf("block %d came back wrong", b.Index)
		}
	}
	return misses, nil
}

// check reads every key: right, or DATA_LOSS, never anything else. It returns how many are lost.
func check(ctx context.Context, t *testing.T, c *client.Client) (lost int) {
	t.Helper()
	one := func(key string, want []byte) {
		e, err := c.Get(ctx, key, nil)
		switch {
		case errors.Is(err, client.ErrDataLoss):
			lost++
		case err != nil:
			t.Errorf("%s: %v; want its value or DATA_LOSS", key, err)
		case !bytes.Equal(e.Value, want):
			t.Errorf("%s: wrong value of %d bytes", key, len(e.Value))
		}
	}
	for i := range small {
		one(fmt.Sprintf("small/%d", i), smallValue(i))
	}
	for i := range large {
		one(fmt.Sprintf("large/%d", i), largeValue(i))
	}
	return lost
}

// kind tells what a file of the data directory is.
func kind(rel string) string {
	switch el := strings.Split(rel, string(filepath.Separator)); {
	case el[0] == "segments":
		return "segment"
	case el[0] == "packs", len(el) > 3 && el[2] == "v": // short ones share files, long ones have their own
		return "values"
	case len(el) > 3 && el[2] == "c":
		return "checkpoint"
	case el[len(el)-1] == "MANIFEST":
		return "manifest"
	}
	return "other"
}

// files lists the data directory by kind, the directory's own shard left out (its loss is the loss of all names).
func files(t *testing.T, data string) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	err := filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(data, path)
		if err == nil && !strings.HasPrefix(rel, filepath.Join("shards", "directory")) {
			out[kind(rel)] = append(out[kind(rel)], rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func flip(t *testing.T, path string, at func(size int) int) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[at(len(data))] ^= 0x10
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestDamage: one filled store; each case is a copy of it with one file spoiled.
func TestDamage(t *testing.T) {
	bin := testenv.Bin(t, "e2e")
	ctx := t.Context()
	origin := testenv.New(t, bin, "-checkpoint-bytes", "20000", "-segment-bytes", "262144")
	origin.Start(t)
	origin.Ready(ctx, t)
	c, err := client.Dial(ctx, client.Config{Endpoints: []string{origin.Addr}})
	if err != nil {
		t.Fatal(err)
	}
	fill(ctx, t, c)
	if lost := check(ctx, t, c); lost != 0 {
		t.Fatalf("%d keys lost before anything was spoiled", lost)
	}
	c.Close()
	origin.Kill()
	of := files(t, origin.Data())
	for _, k := range []string{"values", "checkpoint", "manifest", "segment"} {
		if len(of[k]) == 0 {
			t.Fatalf("no file of kind %s in %v", k, of)
		}
	}

	middle := func(n int) int { return n / 2 }
	for _, tc := range []struct {
		name   string
		kind   string
		spoil  func(t *testing.T, data string, rel []string)
		always bool // the damage must show
	}{
		{"values, a bit flipped", "values", every(func(t *testing.T, path string) { flip(t, path, middle) }), true},
		{"values, cut", "values", every(cut), true},
		{"values, swapped", "values", swap, true},
		{"values, gone", "values", every(remove), true},
		{"checkpoint, a bit flipped", "checkpoint", func(t *testing.T, d string, rel []string) { flip(t, filepath.Join(d, rel[0]), middle) }, true},
		{"checkpoint, cut", "checkpoint", func(t *testing.T, d string, rel []string) { cut(t, filepath.Join(d, rel[0])) }, true},
		{"checkpoint, swapped", "checkpoint", func(t *testing.T, d string, rel []string) { swap(t, d, rel[:2]) }, true},
		{"checkpoint, gone", "checkpoint", func(t *testing.T, d string, rel []string) { remove(t, filepath.Join(d, rel[0])) }, true},
		{"manifest, a bit flipped", "manifest", func(t *testing.T, d string, rel []string) { flip(t, filepath.Join(d, rel[0]), middle) }, true},
		{"manifest, cut", "manifest", func(t *testing.T, d string, rel []string) { cut(t, filepath.Join(d, rel[0])) }, true},
		{"segment, a bit flipped", "segment", func(t *testing.T, d string, rel []string) {
			flip(t, filepath.Join(d, rel[0]), func(n int) int { return n / 8 })
		}, false}, // where nothing is needed any more nothing is lost
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := testenv.New(t, bin)
			if err := os.CopyFS(s.Data(), os.DirFS(origin.Data())); err != nil {
				t.Fatal(err)
			}
			tc.spoil(t, s.Data(), of[tc.kind])
			s.Start(t)
			s.Alive(ctx, t)
			c, err := client.Dial(ctx, client.Config{Endpoints: []string{s.Addr}})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			lost := check(ctx, t, c)
			misses, err := read(ctx, t, c)
			t.Logf("%d of %d keys are DATA_LOSS, %d of %d blocks are misses (%v)", lost, small+large, misses, blocks, err)
			if err != nil && !errors.Is(err, client.ErrDataLoss) {
				t.Errorf("read of blocks: %v", err)
			}
			if tc.always && lost == 0 && misses == 0 && err == nil {
				t.Error("the damage did not show")
			}
			if lost == small+large {
				t.Error("one spoiled file took every key")
			}
			if tc.kind == "values" { // blocks are stored anew, and then all there
				if err != nil || lost == 0 || misses == 0 {
					t.Fatalf("%d keys lost, %d blocks missed (%v): some of both were spoiled", lost, misses, err)
				}
				u, err := prompt(c).Usage(ctx)
				if err != nil || u.DamagedBlocks != int64(misses) {
					t.Errorf("%d blocks counted as damaged (%v), %d missed", u.DamagedBlocks, err, misses)
				}
				if stored := write(ctx, t, c); stored != misses {
					t.Errorf("%d blocks stored anew, %d were missing", stored, misses)
				}
				if again, err := read(ctx, t, c); again != 0 || err != nil {
					t.Errorf("%d misses after storing anew (%v)", again, err)
				}
			}
		})
	}
}

func cut(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, info.Size()/3); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// every spoils each file.
func every(spoil func(t *testing.T, path string)) func(t *testing.T, data string, rel []string) {
	return func(t *testing.T, data string, rel []string) {
		for _, r := range rel {
			spoil(t, filepath.Join(data, r))
		}
	}
}

// swap passes the content of each file on to the next.
func swap(t *testing.T, data string, rel []string) {
	t.Helper()
	if len(rel) < 2 {
		t.Fatalf("one file alone: %v", rel)
	}
	tmp := filepath.Join(data, "swap")
	from := tmp
	for i, r := range append(rel[:len(rel):len(rel)], rel[0]) {
		path := filepath.Join(data, r)
		if i == len(rel) {
			if err := os.Rename(tmp, path); err != nil {
				t.Fatal(err)
			}
			return
		}
		to := tmp
		if i > 0 {
			to = from
		}
		if err := os.Rename(path, to); err != nil {
			t.Fatal(err)
		}
		from = path
	}
}
