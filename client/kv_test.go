package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"kvstore/client"
	"kvstore/client/clienttest"
	"kvstore/components/kverr"
)

// bothWays runs a test over the Pipeline stream and with unary calls.
func bothWays(t *testing.T, run func(t *testing.T, srv *clienttest.Server, c *client.Client)) {
	for name, unary := range map[string]bool{"pipeline": false, "unary": true} {
		t.Run(name, func(t *testing.T) {
			srv := clienttest.Start(t)
			run(t, srv, srv.Dial(t, client.Config{Unary: unary, BackoffMin: time.Millisecond, BackoffMax: 5 * time.Millisecond}))
		})
	}
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantKind(t *testing.T, err error, kind kverr.Kind) *kverr.Error {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("error %v, want kind %v", err, kind)
	}
	var e *kverr.Error
	if !errors.As(err, &e) {
		t.Fatalf("error %T is no *kverr.Error", err)
	}
	if e.Op == "" {
		t.Errorf("error %q does not say what was being done", err)
	}
	return e
}

func TestPutGetDelete(t *testing.T) {
	bothWays(t, func(t *testing.T, _ *clienttest.Server, c *client.Client) {
		ctx := t.Context()
		put, err := c.Put(ctx, "a", []byte("one"), &client.PutOptions{
			TTL: time.Hour, ContentType: "text/plain", Encoding: "identity",
			Metadata: map[string]string{"m": "1"}, Tags: map[string]string{"t": "2"},
		})
		if err != nil || !put.Created || put.Version == 0 {
			t.Fatalf("Put = %+v, %v", put, err)
		}
		e := must[client.Entry](t)(c.Get(ctx, "a", nil))
		if e.Key != "a" || string(e.Value) != "one" || e.Version != put.Version || e.Size != 3 || e.ContentType != "text/plain" ||
			e.Encoding != "identity" || e.Metadata["m"] != "1" || e.Tags["t"] != "2" {
			t.Errorf("Get = %+v", e)
		}
		if d := e.Expires.Sub(e.Updated); d != time.Hour || e.Created.IsZero() {
			t.Errorf("times: created %v, updated %v, expires %v", e.Created, e.Updated, e.Expires)
		}
		e = must[client.Entry](t)(c.Get(ctx, "a", &client.GetOptions{MetadataOnly: true}))
		if e.Value != nil || e.Size != 3 {
			t.Errorf("metadata only: %+v", e)
		}
		again := must[client.PutResult](t)(c.Put(ctx, "a", nil, &client.PutOptions{KeepTTL: true}))
		if again.Created || again.Version <= put.Version {
			t.Errorf("second put = %+v after %+v", again, put)
		}
		e = must[client.Entry](t)(c.Get(ctx, "a", nil))
		if e.Value == nil || len(e.Value) != 0 || e.Expires.IsZero() {
			t.Errorf("empty value that keeps its expiry: %+v", e)
		}
		del := must[client.DeleteResult](t)(c.Delete(ctx, "a", nil))
		if !del.Deleted || del.Revision <= again.Version {
			t.Errorf("delete = %+v", del)
		}
		if del = must[client.DeleteResult](t)(c.Delete(ctx, "a", nil)); del.Deleted {
			t.Errorf("second delete = %+v", del)
		}
		_, err = c.Get(ctx, "a", nil)
		wantKind(t, err, kverr.NotFound)
		if !errors.Is(err, client.ErrNotFound) {
			t.Errorf("%v is not ErrNotFound", err)
		}
	})
}

func TestPreconditions(t *testing.T) {
	bothWays(t, func(t *testing.T, _ *clienttest.Server, c *client.Client) {
		ctx := t.Context()
		v := must[client.PutResult](t)(c.Put(ctx, "k", []byte("1"), &client.PutOptions{If: client.IfAbsent()})).Version
		_, err := c.Put(ctx, "k", nil, &client.PutOptions{If: client.IfAbsent()})
		if e := wantKind(t, err, kverr.AlreadyExists); e.CurrentVersion != v {
			t.Errorf("current version %d, want %d", e.CurrentVersion, v)
		}
		_, err = c.Put(ctx, "k", nil, &client.PutOptions{If: client.IfVersion(v + 1)})
		if e := wantKind(t, err, kverr.VersionMismatch); e.CurrentVersion != v {
			t.Errorf("current version %d, want %d", e.CurrentVersion, v)
		}
		_, err = c.Put(ctx, "absent", nil, &client.PutOptions{If: client.IfPresent()})
		wantKind(t, err, kverr.VersionMismatch)
		_, err = c.Delete(ctx, "k", &client.DeleteOptions{If: client.IfVersion(v + 1)})
		wantKind(t, err, kverr.VersionMismatch)
		must[client.PutResult](t)(c.Put(ctx, "k", nil, &client.PutOptions{If: client.IfVersion(v)}))
		must[client.DeleteResult](t)(c.Delete(ctx, "k", &client.DeleteOptions{If: client.IfPresent()}))
	})
}

func TestViewsKeepApart(t *testing.T) {
	bothWays(t, func(t *testing.T, _ *clienttest.Server, c *client.Client) {
		ctx := t.Context()
		other := c.In("tenant", "n2")
		var wg sync.WaitGroup
		for i := range 100 { // interleaved, so that frames of both views follow each other
			for name, view := range map[string]*client.Client{"default": c, "other": other} {
				wg.Go(func() {
					if _, err := view.Put(ctx, fmt.Sprint(i), []byte(name), nil); err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
		for i := range 100 {
			for name, view := range map[string]*client.Client{"default": c, "other": other} {
				if e := must[client.Entry](t)(view.Get(ctx, fmt.Sprint(i), nil)); string(e.Value) != name {
					t.Fatalf("%s: key %d holds %q", name, i, e.Value)
				}
			}
		}
	})
}

func TestBigValues(t *testing.T) {
	bothWays(t, func(t *testing.T, _ *clienttest.Server, c *client.Client) {
		ctx := t.Context()
		for _, n := range []int{256 << 10, 256<<10 + 1, 1 << 20, 5 << 20} { // below and over what goes as a stream, each way
			want := bytes.Repeat([]byte("0123456789abcdef!"), n/17+1)[:n]
			must[client.PutResult](t)(c.Put(ctx, "big", want, &client.PutOptions{ContentType: "x"}))
			e := must[client.Entry](t)(c.Get(ctx, "big", nil))
			if !bytes.Equal(e.Value, want) || e.Size != int64(n) || e.ContentType != "x" {
				t.Errorf("%d bytes came back as %d", n, len(e.Value))
			}
		}
	})
}

func TestStreams(t *testing.T) {
	srv := clienttest.Start(t)
	c := srv.Dial(t, client.Config{})
	ctx := t.Context()
	want := bytes.Repeat([]byte("stream "), 200_000)

	put := must[client.PutResult](t)(c.PutStream(ctx, "s", iotest.OneByteReader(strings.NewReader("tiny")), 4, nil))
	if !put.Created {
		t.Errorf("put = %+v", put)
	}
	must[client.PutResult](t)(c.PutStream(ctx, "s", bytes.NewReader(want), int64(len(want)), nil))
	r, err := c.GetStream(ctx, "s")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.Entry.Size != int64(len(want)) || r.Entry.Key != "s" {
		t.Errorf("entry = %+v", r.Entry)
	}
	if err := iotest.TestReader(r, want); err != nil {
		t.Error(err)
	}

	_, err = c.PutStream(ctx, "s", strings.NewReader("short"), 6, nil)
	if wantKind(t, err, kverr.InvalidArgument); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v does not tell that the reader ended early", err)
	}
	if _, err = c.PutStream(ctx, "s", nil, -1, nil); !errors.Is(err, client.ErrInvalidArgument) {
		t.Errorf("negative size: %v", err)
	}
	if e := must[client.Entry](t)(c.Get(ctx, "s", &client.GetOptions{MetadataOnly: true})); e.Size != int64(len(want)) {
		t.Errorf("a put that failed changed the value: %d bytes", e.Size)
	}
	_, err = c.GetStream(ctx, "nothing")
	wantKind(t, err, kverr.NotFound)
	must[client.PutResult](t)(c.PutStream(ctx, "empty", strings.NewReader(""), 0, nil))
	if e := must[client.Entry](t)(c.Get(ctx, "empty", nil)); e.Size != 0 {
		t.Errorf("empty value has %d bytes", e.Size)
	}
}

func TestBatches(t *testing.T) {
	srv := clienttest.Start(t)
	c := srv.Dial(t, client.Config{})
	ctx := t.Context()
	puts := must[[]client.PutOutcome](t)(c.BatchPut(ctx, []client.PutItem{
		{Key: "a", Value: []byte("1")},
		{Key: "", Value: []byte("no key")},
		{Key: "a", Value: []byte("2"), Options: &client.PutOptions{If: client.IfAbsent()}},
		{Key: "b"},
	}))
	if puts[0].Err != nil || !puts[0].Created || puts[3].Err != nil {
		t.Errorf("puts = %+v", puts)
	}
	if !errors.Is(puts[1].Err, client.ErrInvalidArgument) || !errors.Is(puts[2].Err, client.ErrAlreadyExists) {
		t.Errorf("errors of puts: %v, %v", puts[1].Err, puts[2].Err)
	}
	gets := must[[]client.GetOutcome](t)(c.BatchGet(ctx, []string{"a", "x", "b"}, nil))
	if string(gets[0].Value) != "1" || !errors.Is(gets[1].Err, client.ErrNotFound) || gets[2].Err != nil || gets[2].Value == nil {
		t.Errorf("gets = %+v", gets)
	}
	dels := must[[]client.DeleteOutcome](t)(c.BatchDelete(ctx, []client.DeleteItem{
		{Key: "a"}, {Key: "x"}, {Key: "b", Options: &client.DeleteOptions{If: client.IfVersion(99)}},
	}))
	if !dels[0].Deleted || dels[1].Deleted || !errors.Is(dels[2].Err, client.ErrVersionMismatch) {
		t.Errorf("deletes = %+v", dels)
	}
}

func TestListAndCount(t *testing.T) {
	srv := clienttest.Start(t)
	c := srv.Dial(t, client.Config{})
	ctx := t.Context()
	want := map[string]bool{}
	for i := range 257 {
		k := fmt.Sprintf("user/%03d", i)
		want[k] = true
		must[client.PutResult](t)(c.Put(ctx, k, []byte(k), nil))
	}
	must[client.PutResult](t)(c.Put(ctx, "zzz", make([]byte, 5000), nil))
	for _, tc := range []struct {
		o    client.ListOptions
		want int
	}{
		{client.ListOptions{}, 258},
		{client.ListOptions{Prefix: "user/", PageSize: 10}, 257},
		{client.ListOptions{Start: "user/250", End: "user/256", KeysOnly: true}, 6},
		{client.ListOptions{Prefix: "none"}, 0},
	} {
		var got []string
		for e, err := range c.List(ctx, &tc.o) {
			if err != nil {
				t.Fatal(err)
			}
			if inline := e.Size < 1024 && !tc.o.KeysOnly; inline && string(e.Value) != e.Key || !inline && len(e.Value) > 0 {
				t.Errorf("%+v: value of %s has %d bytes", tc.o, e.Key, len(e.Value))
			}
			got = append(got, e.Key)
		}
		n := must[int64](t)(c.Count(ctx, &tc.o))
		if len(got) != tc.want || n != int64(tc.want) || !slices.IsSorted(got) {
			t.Errorf("%+v: %d keys, count %d, want %d", tc.o, len(got), n, tc.want)
		}
	}
	for range c.List(ctx, nil) {
		break // leaving early is fine
	}
	for _, err := range c.List(ctx, &client.ListOptions{PageSize: -1}) {
		if wantKind(t, err, kverr.InvalidArgument); err == nil {
			t.Error("no error")
		}
	}
	if len(slices.Collect(maps.Keys(want))) != 257 {
		t.Error("keys collide")
	}
}

func TestTxn(t *testing.T) {
	srv := clienttest.Start(t)
	c := srv.Dial(t, client.Config{})
	ctx := t.Context()
	v := must[client.PutResult](t)(c.Put(ctx, "{1}a", []byte("x"), nil)).Version
	res := must[client.TxnResult](t)(c.Txn().
		If("{1}a", client.IfVersion(v)).Put("{1}b", []byte("y"), nil).Delete("{1}a", nil).Commit(ctx))
	if !res.Committed || res.Revision <= v || len(res.Results) != 2 || res.Results[0].Put == nil ||
		res.Results[0].Put.Version != res.Revision || res.Results[1].Delete == nil || !res.Results[1].Delete.Deleted {
		t.Errorf("commit = %+v", res)
	}
	res = must[client.TxnResult](t)(c.Txn().
		If("{1}a", client.IfPresent()).Put("{1}b", nil, &client.PutOptions{If: client.IfVersion(1)}).Commit(ctx))
	if res.Committed || len(res.Failures) != 2 || res.Failures[0].Condition != 0 || res.Failures[0].Op != -1 ||
		res.Failures[1].Op != 0 || res.Failures[1].Condition != -1 || res.Failures[1].Key != "{1}b" || res.Failures[1].Current == 0 {
		t.Errorf("failed commit = %+v", res)
	}
	_, err := c.Txn().Put("{1}x", nil, nil).Put("{2}x", nil, nil).Commit(ctx)
	wantKind(t, err, kverr.CrossPartition)
	txn := c.Txn().Put("q", nil, nil)
	must[client.TxnResult](t)(txn.Commit(ctx))
	if _, err := txn.Commit(ctx); !errors.Is(err, client.ErrInvalidArgument) {
		t.Errorf("second commit: %v", err)
	}
}

func TestAdmin(t *testing.T) {
	srv := clienttest.Start(t)
	c := srv.Dial(t, client.Config{})
	ctx := t.Context()
	st, err := c.Status(ctx)
	if err != nil || st.Version != "clienttest" {
		t.Errorf("status = %v, %v", st, err)
	}
	if _, err := c.GetNamespace(ctx, "nope"); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("unknown namespace: %v", err)
	}
	if err := c.DeleteNamespace(ctx, "default", "wrong"); !errors.Is(err, client.ErrInvalidArgument) {
		t.Errorf("unconfirmed: %v", err)
	}
}

func TestDialFails(t *testing.T) {
	if _, err := client.Dial(t.Context(), client.Config{}); !errors.Is(err, client.ErrInvalidArgument) {
		t.Errorf("no endpoint: %v", err)
	}
	srv := clienttest.StartTCP(t)
	addr := srv.Addr()
	srv.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := client.Dial(ctx, client.Config{Endpoints: []string{addr}})
	e := wantKind(t, err, kverr.Unavailable)
	if !strings.Contains(e.Error(), addr) {
		t.Errorf("%q does not name the endpoint", e)
	}
}

func TestSeveralEndpoints(t *testing.T) {
	srv := clienttest.StartTCP(t)
	dead := clienttest.StartTCP(t)
	gone := dead.Addr()
	dead.Stop()
	c, err := client.Dial(t.Context(), client.Config{Endpoints: []string{gone, srv.Addr()}, Connections: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 30 {
		must[client.PutResult](t)(c.Put(t.Context(), fmt.Sprint(i), nil, nil))
	}
	if n := srv.Applied(); n != 30 {
		t.Errorf("%d puts arrived, want 30", n)
	}
}

func TestConfigValidateListsAllFaults(t *testing.T) {
	cfg := client.Config{
		Endpoints: []string{""}, Connections: -1, MaxOutstanding: 1 << 20, RetryFor: time.Hour,
		BackoffMin: time.Second, BackoffMax: time.Millisecond,
	}
	err := cfg.Validate()
	for _, field := range []string{"Endpoints", "Connections", "MaxOutstanding", "RetryFor", "BackoffMin"} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("%s is not named in %q", field, err)
		}
	}
}
