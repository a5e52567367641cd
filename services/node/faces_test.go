package node

import (
	"bufio"
	"io"
	"net"
	"testing"
	"time"

	"kvstore/client"
)

// TestMetricsOfFaces: commands by Redis's protocol are counted as they ended, and watches by how late they were told.
func TestMetricsOfFaces(t *testing.T) {
	n, _, _ := run(t, Config{Engine: EngineMemory, RESPListen: "127.0.0.1:0"})
	conn, err := net.DialTimeout("tcp", n.RESPAddr(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	in := bufio.NewReader(conn)
	_ = conn.SetDeadline(time.Now().Add(patience))
	for _, round := range []struct{ send, want string }{
		{"SET k v\r\nGET k\r\nGET absent\r\nPING\r\n", "+OK\r\n$1\r\nv\r\n$-1\r\n+PONG\r\n"},
		{"INCR k\r\n", "-ERR value is not an integer or out of range\r\n"},
		{"GET\r\n", "-ERR wrong number of arguments for 'get' command\r\n"},
		{"MULTI\r\nSET k 1\r\nINCR k\r\nEXEC\r\n", "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n:2\r\n"},
		{"FOO\r\n", "-ERR unknown command 'FOO', with args beginning with: \r\n"},
	} {
		if _, err := io.WriteString(conn, round.send); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(round.want))
		if n, err := io.ReadFull(in, got); err != nil || string(got) != round.want {
			t.Fatalf("%q, %v; want %q", got[:n], err, round.want)
		}
	}

	c, err := client.Dial(within(t), client.Config{Endpoints: []string{n.GRPCAddr()}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for b, err := range c.Watch(within(t), &client.WatchOptions{Key: "k"}) {
		if err != nil {
			t.Fatal(err)
		}
		if b.Started {
			if _, err := c.Put(within(t), "k", []byte("w"), nil); err != nil {
				t.Fatal(err)
			}
		}
		if len(b.Events) > 0 {
			break
		}
	}

	s := scrape(t, n)
	const requests = "kvstore_request_duration_seconds"
	for _, tc := range []struct {
		op, code string
		want     float64
	}{
		{"set", "OK", 1}, {"get", "OK", 2}, {"ping", "OK", 1}, {"incr", "INVALID_ARGUMENT", 1}, {"get", "INVALID_ARGUMENT", 1},
		{"multi", "OK", 1}, {"exec", "OK", 1}, {"incr", "OK", 0}, {"unknown", "INVALID_ARGUMENT", 1},
	} {
		if got := s.sum(requests, "face", "resp", "op", tc.op, "code", tc.code); got != tc.want {
			t.Errorf("%s that ended with %s: %v are counted, want %v", tc.op, tc.code, got, tc.want)
		}
	}
	if got := s.sum("kvstore_resp_connections"); got != 1 {
		t.Errorf("%v connections", got)
	}
	if got := s.sum("kvstore_watch_lag_seconds"); got != 1 {
		t.Errorf("the lag of %v watches is counted, want 1", got)
	}
}
