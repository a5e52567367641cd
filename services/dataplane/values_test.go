package dataplane

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal/waltest/fault"
)

// TestGivenUpValues: a caller who gives up while its values are being stored leaves nothing behind, though the stream goes on.
func TestGivenUpValues(t *testing.T) {
	cl := newCluster(t, 1, 1)
	ctx := testContext(t)
	c := cl.client(ClientConfig{})
	if err := do(ctx, c, shardID(0), put("k", "v")); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{5000, maxInline + 1} {
		for _, own := range []bool{false, true} {
			frozen := cl.faults.Add(fault.Rule{Verb: fault.Put, Freeze: true, After: true}) // stored, and nobody knows yet
			impatient, giveUp := context.WithCancel(ctx)
			done := make(chan error, 1)
			go func() {
				var err error
				if own {
					_, err = c.WriteValue(impatient, shardID(0), int64(n), bytes.NewReader(make([]byte, n)))
				} else {
					_, err = c.PutValues(impatient, shardID(0), make([]byte, n))
				}
				done <- err
			}()
			<-frozen.Hit()
			giveUp()
			if err := <-done; kverr.KindOf(err) != kverr.Canceled {
				t.Errorf("%d bytes, own object %v: %v", n, own, err)
			}
			frozen.Thaw()
			soon(ctx, t, fmt.Sprintf("the value is gone (%d bytes, own object %v)", n, own), func() bool {
				stored, _ := cl.values(ctx)
				return stored == 0
			})
		}
	}
	if err := do(ctx, c, shardID(0), put("k", "w")); err != nil {
		t.Fatal(err)
	}
	if n := cl.askedFor(shardID(0)); n != 1 {
		t.Errorf("the shard was looked for %d times: the stream did not last", n)
	}
}

// TestDroppedValues: what a frontend gives up is gone, over both ways.
func TestDroppedValues(t *testing.T) {
	cl := newCluster(t, 1, 1)
	ctx := testContext(t)
	c := cl.client(ClientConfig{})
	var refs []shard.Ref
	for _, n := range []int{2000, maxInline + 1} {
		got, err := c.PutValues(ctx, shardID(0), make([]byte, n), []byte("second"))
		if err != nil || len(got) != 2 {
			t.Fatal(got, err)
		}
		refs = append(refs, got...)
	}
	if stored, _ := cl.values(ctx); stored != 2 {
		t.Fatalf("%d objects", stored)
	}
	c.DropValues(shardID(0), refs[1:]...)
	soon(ctx, t, "the second object is gone", func() bool {
		stored, _ := cl.values(ctx)
		return stored == 1
	})
	named := put("k", "")
	named.Put.Value = shard.Value{Ref: refs[0]}
	if err := do(ctx, c, shardID(0), named); err != nil {
		t.Fatal(err)
	}
	if err := c.ReadValue(ctx, shardID(0), refs[0], 0, make([]byte, 2000)); err != nil {
		t.Error(err)
	}
	if err := c.ReadValue(ctx, shardID(0), refs[2], 0, make([]byte, maxInline+1)); kverr.KindOf(err) != kverr.NotFound {
		t.Errorf("read of what was dropped: %v", err)
	}
	// What is left when the client goes is given up.
	if _, err := c.PutValues(ctx, shardID(0), make([]byte, 2000)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	soon(ctx, t, "only the value that a key names is left", func() bool {
		stored, named := cl.values(ctx)
		return stored == 1 && named == 1
	})
}

// TestLongValues: values of many lengths come back as they were, whole and in parts.
func TestLongValues(t *testing.T) {
	cl := newCluster(t, 1, 1)
	ctx := testContext(t)
	c := cl.client(ClientConfig{})
	for _, n := range []int{1, maxInline - 1, maxInline, maxInline + 1, 3*maxInline + 7} {
		value := make([]byte, n)
		for i := range value {
			value[i] = byte(i * 7 >> 3)
		}
		ref, err := c.WriteValue(ctx, shardID(0), int64(n), bytes.NewReader(value))
		if err != nil {
			t.Fatal(err)
		}
		refs, err := c.PutValues(ctx, shardID(0), value[:n/2], value[n/2:])
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, n)
		if err := c.ReadValue(ctx, shardID(0), ref, 0, got); err != nil || !bytes.Equal(got, value) {
			t.Errorf("%d bytes: %v", n, err)
		}
		clear(got)
		for i, r := range refs {
			if err := c.ReadValue(ctx, shardID(0), r, 0, got[i*(n/2):i*(n/2)+int(r.Length)]); err != nil {
				t.Errorf("part %d of %d bytes: %v", i, n, err)
			}
		}
		if !bytes.Equal(got, value) {
			t.Errorf("two parts of %d bytes are not the whole", n)
		}
		if off := n / 3; c.ReadValue(ctx, shardID(0), ref, int64(off), got[off:]) != nil || !bytes.Equal(got, value) {
			t.Errorf("%d bytes from %d", n, off)
		}
	}
	if _, err := c.PutValues(ctx, shardID(0), make([]byte, maxPacked+1)); kverr.KindOf(err) != kverr.TooLarge {
		t.Errorf("too long to be packed: %v", err)
	}
	short := bytes.NewReader(make([]byte, 10))
	if _, err := c.WriteValue(ctx, shardID(0), 20, short); kverr.KindOf(err) != kverr.InvalidArgument {
		t.Errorf("a reader that ends too soon: %v", err)
	}
	c.Close()
	soon(ctx, t, "nothing is left", func() bool {
		stored, _ := cl.values(ctx)
		return stored == 0
	})
}
