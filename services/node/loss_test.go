package node

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"kvstore/components/kverr"
	"kvstore/components/wal/driver"
	"kvstore/components/wal/redislog"
	kvv1 "kvstore/proto/gen/kvstore/v1"
	"kvstore/tests/testenv"
)

// lossy is a node on a Redis that loses data.
type lossy struct {
	t     *testing.T
	redis *testenv.Redis
	node  *Node
	conn  *grpc.ClientConn
	stop  func() error
}

func newLossy(t *testing.T) *lossy {
	l := &lossy{t: t, redis: testenv.NewRedis(t)}
	l.start()
	return l
}

func (l *lossy) start() {
	l.t.Helper()
	l.node, l.conn, l.stop = run(l.t, Config{Log: slog.New(slog.NewTextHandler(l.t.Output(), nil)), Engine: EngineRedis, Redis: redislog.Config{URL: "redis://" + l.redis.Addr}})
}

func (l *lossy) put(key, value string) error {
	_, err := kvv1.NewKVServiceClient(l.conn).Put(within(l.t), &kvv1.PutRequest{Put: &kvv1.PutOp{Key: []byte(key), Value: []byte(value)}})
	return err
}

// get returns a value; "" when the key is absent.
func (l *lossy) get(key string) (string, error) {
	resp, err := kvv1.NewKVServiceClient(l.conn).Get(within(l.t), &kvv1.GetRequest{Get: &kvv1.GetOp{Key: []byte(key)}})
	if err != nil && kverr.FromGRPC(err).Kind == kverr.NotFound {
		return "", nil
	}
	return string(resp.GetEntry().GetValue()), err
}

// namesShard finds what an operator needs to accept a loss.
var namesShard = regexp.MustCompile(`shard ([0-9a-f]{16}-\d+|directory)`)

// eventually tries until what it tries ends in kind; everything before must be unavailable or unknown.
func (l *lossy) eventually(what string, kind kverr.Kind, try func() error) {
	l.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := try()
		got := kverr.FromGRPC(err)
		switch {
		case kind == kverr.DataLoss && err != nil && got.Kind == kind && !namesShard.MatchString(got.Message):
			l.t.Fatalf("%s: %q names no shard", what, got.Message)
		case err == nil && kind == 0, err != nil && got.Kind == kind:
			return
		case err == nil, time.Now().After(deadline):
			l.t.Fatalf("%s: %v, want %v", what, err, kind)
		}
		switch got.Kind {
		case kverr.NotFound, kverr.Unavailable, kverr.OutcomeUnknown, kverr.Moved, kverr.DeadlineExceeded, kverr.DataLoss:
		default:
			l.t.Fatalf("%s: %v, want %v", what, err, kind)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-l.t.Context().Done():
		}
	}
}

// accept accepts the loss of every shard, and of the directory, that lost something.
func (l *lossy) accept() {
	l.t.Helper()
	admin := kvv1.NewAdminServiceClient(l.conn)
	accept := func(shard string) error {
		_, err := admin.AcceptLoss(within(l.t), &kvv1.AcceptLossRequest{Shard: shard, Confirm: shard})
		switch e := kverr.FromGRPC(err); {
		case err == nil:
			return nil
		case e.Kind == kverr.NotFound: // the directory that was made anew does not know it
			return nil
		}
		return err
	}
	var status *kvv1.StatusResponse
	l.eventually("status", 0, func() (err error) {
		status, err = admin.Status(within(l.t), &kvv1.StatusRequest{})
		if err != nil && kverr.FromGRPC(err).Kind == kverr.DataLoss { // of the directory: whoever asks for the status needs it
			err = errors.Join(err, accept("directory"))
		}
		return err
	})
	for _, s := range status.Shards {
		l.eventually("accept the loss of "+s.Id, 0, func() error {
			err := accept(s.Id)
			if err != nil && kverr.FromGRPC(err).Kind == kverr.DataLoss { // of the directory: it has noticed just now
				return accept("directory")
			}
			return err
		})
	}
}

// TestRedisLosesItsTail: the server goes down, the end of its append-only file is cut off, and it comes back. Nothing of what is lost is
// served as never written, no number is issued twice, until an operator accepts the loss.
func TestRedisLosesItsTail(t *testing.T) {
	l := newLossy(t)
	for i := range 16 {
		if err := l.put(fmt.Sprintf("k%d", i), "old"); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.Stat(l.redis.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 16 {
		if err := l.put(fmt.Sprintf("k%d", i), "new"); err != nil {
			t.Fatal(err)
		}
	}
	l.redis.Kill()
	if err := os.Truncate(l.redis.Log(t), kept.Size()-5); err != nil { // in the middle of a command, too
		t.Fatal(err)
	}
	l.redis.Start(t)

	for i := range 16 {
		key := fmt.Sprintf("k%d", i)
		if v, err := l.get(key); err == nil && v != "new" { // from the memory of an owner that lives
			t.Fatalf("%s is %q: acknowledged was new", key, v)
		}
		l.eventually("put "+key, kverr.DataLoss, func() error { return l.put(key, "newer") })
		l.eventually("get "+key, kverr.DataLoss, func() error { _, err := l.get(key); return err })
	}
	_, err = kvv1.NewAdminServiceClient(l.conn).AcceptLoss(within(t), &kvv1.AcceptLossRequest{Shard: "directory", Confirm: "yes"})
	if kverr.FromGRPC(err).Kind != kverr.InvalidArgument {
		t.Fatalf("a loss was accepted without its name: %v", err)
	}
	l.accept()
	old := 0
	for i := range 16 {
		key := fmt.Sprintf("k%d", i)
		var v string
		l.eventually("get "+key, 0, func() (err error) { v, err = l.get(key); return err })
		if v == "new" || v == "newer" {
			t.Fatalf("%s is %q after the loss was accepted", key, v)
		}
		if v == "old" {
			old++
		}
		l.eventually("put "+key, 0, func() error { return l.put(key, "after") })
	}
	if old < 15 { // the cut took one record of them
		t.Fatalf("%d of 16 keys have what was not lost", old)
	}
}

// TestRedisIsFlushed: everything is gone at once, and is told so, not served as empty.
func TestRedisIsFlushed(t *testing.T) {
	l := newLossy(t)
	for i := range 16 {
		if err := l.put(fmt.Sprintf("k%d", i), "v"); err != nil {
			t.Fatal(err)
		}
	}
	l.redis.Must(t, "FLUSHALL")
	for i := range 16 {
		key := fmt.Sprintf("k%d", i)
		l.eventually("put", kverr.DataLoss, func() error { return l.put(key, "w") })
		l.eventually("get", kverr.DataLoss, func() error { _, err := l.get(key); return err })
	}
	l.accept()
	l.eventually("put", 0, func() error { return l.put("k1", "x") })
	if v, err := l.get("k2"); err != nil || v != "" {
		t.Fatal(v, err)
	}
	// Shards of the directory that is gone may not have been asked since: the end is when they find out, and it says so.
	if err := l.stop(); err != nil && !errors.Is(err, driver.ErrFenced) {
		t.Fatal(err)
	}
}

// TestRedisForgetsAShard: the directory has not lost anything, and knows better after a restart, too.
func TestRedisForgetsAShard(t *testing.T) {
	l := newLossy(t)
	if err := l.put("k", "v"); err != nil {
		t.Fatal(err)
	}
	status, err := kvv1.NewAdminServiceClient(l.conn).Status(within(t), &kvv1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.stop(); err != nil {
		t.Fatal(err)
	}
	for _, s := range status.Shards {
		if s.Id != "directory" {
			for _, part := range []string{"m", "h", "r", "o"} {
				l.redis.Must(t, "DEL", fmt.Sprintf("kvstore:{%s}:%s", s.Id, part))
			}
		}
	}
	l.start()
	l.eventually("put", kverr.DataLoss, func() error { return l.put("k", "w") })
	l.eventually("get", kverr.DataLoss, func() error { _, err := l.get("k"); return err })
	l.accept()
	l.eventually("put", 0, func() error { return l.put("k", "x") })
	if v, err := l.get("k"); err != nil || v != "x" {
		t.Fatal(v, err)
	}
}

// TestRedisIsAway: a process whose Redis is away is not ready, and says why; it is again when Redis is back.
func TestRedisIsAway(t *testing.T) {
	l := newLossy(t)
	ready := func(status int, says string) {
		t.Helper()
		deadline := time.Now().Add(patience)
		for {
			resp, err := http.Get("http://" + l.node.AdminAddr() + "/readyz")
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil && resp.StatusCode == status && strings.Contains(string(body), says) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("readyz is %d %q, %v; want %d that says %q", resp.StatusCode, body, err, status, says)
			}
		}
	}
	ready(http.StatusOK, "ok")
	l.redis.Kill()
	ready(http.StatusServiceUnavailable, "the store does not answer")
	l.redis.Start(t)
	ready(http.StatusOK, "ok")
}
