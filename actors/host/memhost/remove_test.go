package memhost_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"kvstore/actors/host/memhost"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
	"kvstore/components/wal/memlog"
)

// TestRemoveElsewhere: a shard that another host owns is removed for good. The owner, whether it can be asked or not, serves it no
// more and leaves nothing behind; made again, which only a test does, it is empty.
func TestRemoveElsewhere(t *testing.T) {
	for name, reachable := range map[string]bool{"asked": true, "unreachable": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				engine, err := memlog.New(memlog.Config{Term: 10 * time.Second})
				if err != nil {
					t.Fatal(err)
				}
				store, err := wal.NewStore(engine, wal.Config{})
				if err != nil {
					t.Fatal(err)
				}
				peers := new(memhost.LocalPeers)
				var hosts []*memhost.Host
				for _, address := range []string{"a", "b"} {
					cfg := memhost.Config{Address: address}
					if reachable {
						cfg.Peers = peers
					}
					h, err := memhost.New(store, cfg)
					if err != nil {
						t.Fatal(err)
					}
					peers.Join(h)
					hosts = append(hosts, h)
				}
				a, b := hosts[0], hosts[1]
				ctx := t.Context()
				if err := a.Create(ctx, "a-0", nil); err != nil {
					t.Fatal(err)
				}
				put := func() error {
					done := make(chan error, 1)
					a.Do(ctx, "a-0", &shard.Command{
						Op: shard.OpPut, Namespace: 1, Put: shard.Put{Key: []byte("k"), Value: shard.Value{Inline: []byte("v")}},
						Done: func(_ *shard.Command, err error) { done <- err },
					})
					return <-done
				}
				if err := put(); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				if err := errors.Join(b.Remove(ctx, "a-0"), b.Remove(ctx, "a-0")); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took != 0 {
					t.Fatalf("removed after %v", took)
				}
				if err := put(); kverr.KindOf(err) != kverr.Moved && kverr.KindOf(err) != kverr.NotFound {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if err := put(); kverr.KindOf(err) != kverr.NotFound {
					t.Fatal(err)
				}
				if _, err := store.Holder(ctx, "a-0"); !errors.Is(err, driver.ErrNotExist) {
					t.Fatal(err)
				}
				if err := b.Create(ctx, "a-0", nil); err != nil {
					t.Fatal(err)
				}
				v, err := b.View(ctx, "a-0")
				if err != nil {
					t.Fatal(err)
				}
				if _, ok, _ := v.Get(1, []byte("k")); ok {
					t.Fatal("the key is back")
				}
				if err := errors.Join(a.Close(ctx, false), b.Close(ctx, false), engine.Close()); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}
