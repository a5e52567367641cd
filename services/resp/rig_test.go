package resp_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kvstore/actors/directory/keeper"
	"kvstore/actors/host/memhost"
	"kvstore/components/authn"
	"kvstore/components/wal"
	"kvstore/components/wal/memlog"
	"kvstore/services/catalog"
	"kvstore/services/frontend"
	"kvstore/services/resp"
)

const patience = time.Minute

// rig is a server on real shards in memory.
type rig struct {
	Addr   string
	Server *resp.Server
	Front  *frontend.Server
	Dir    catalog.Local
}

type rigConfig struct {
	Front frontend.Config
	RESP  resp.Config
	Wrap  func(frontend.Shards) frontend.Shards // between the frontend and its shards

	SendBuffer int // of connections, in the kernel; 0 = as it is
}

func newRig(t testing.TB, cfg rigConfig) *rig {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	engine, err := memlog.New(memlog.Config{})
	must(t, err)
	store, err := wal.NewStore(engine, wal.Config{})
	must(t, err)
	host, err := memhost.New(store, memhost.Config{})
	must(t, err)
	dir, err := keeper.New(host, host, keeper.Config{DefaultShards: 4})
	must(t, err)
	host.RememberWith(dir)
	must(t, dir.Begin(ctx, store))
	if cfg.Front.Access == nil {
		cfg.Front.Access = authn.Anyone
	}
	var shards frontend.Shards = host
	if cfg.Wrap != nil {
		shards = cfg.Wrap(host)
	}
	r := &rig{Dir: catalog.Local{Keeper: dir}}
	r.Front, err = frontend.New(cfg.Front, shards, r.Dir)
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	r.Addr = l.Addr().String()
	r.Server = resp.New(cfg.RESP, r.Front.Face())
	served := make(chan error, 1)
	if cfg.SendBuffer > 0 {
		l = &cramped{l, cfg.SendBuffer}
	}
	go func() { served <- r.Server.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		r.Server.Stop(ctx)
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		if err := host.Close(ctx, false); err != nil {
			t.Errorf("close the host: %v", err)
		}
		if n := r.Server.Away(); n != 0 {
			t.Errorf("%d requests still count as away", n)
		}
		if err := engine.Close(); err != nil {
			t.Errorf("close the engine: %v", err)
		}
	})
	return r
}

// cramped gives connections small buffers.
type cramped struct {
	net.Listener
	size int
}

func (l *cramped) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		err = conn.(*net.TCPConn).SetWriteBuffer(l.size)
	}
	return conn, err
}

// smallReceiveBuffer gives a connection one before it is made, when the window is not yet told.
func smallReceiveBuffer(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1) })
	return errors.Join(err, failed)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// line is a connection that speaks bytes.
type line struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
}

func dial(t testing.TB, addr string) *line {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, patience)
	must(t, err)
	must(t, conn.SetDeadline(time.Now().Add(patience)))
	t.Cleanup(func() { conn.Close() })
	return &line{t, conn, bufio.NewReader(conn)}
}

func (l *line) send(text string) {
	l.t.Helper()
	_ = l.conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(l.conn, text); err != nil {
		l.t.Fatalf("send %.60q: %v", text, err)
	}
}

// expect reads exactly these bytes.
func (l *line) expect(want string) {
	l.t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(l.in, got)
	if string(got[:n]) != want {
		more := make([]byte, min(l.in.Buffered(), 200))
		_, _ = io.ReadFull(l.in, more)
		l.t.Fatalf("came\n\t%.300q, %v\nwant\n\t%.300q", string(got[:n])+string(more), err, want)
	}
}

// ended reads the end of the connection, with nothing before it.
func (l *line) ended() {
	l.t.Helper()
	rest, err := io.ReadAll(l.in)
	if len(rest) > 0 || err != nil {
		l.t.Fatalf("came %.100q, %v; want the end of the connection", rest, err)
	}
}

// do sends a command and returns the reply as it is on the wire.
func (l *line) do(args ...string) string {
	l.t.Helper()
	l.send(encode(args...))
	return l.reply()
}

func (l *line) reply() string {
	l.t.Helper()
	reply, err := readReply(l.in)
	if err != nil {
		l.t.Fatalf("after %.100q: %v", reply, err)
	}
	return reply
}

func encode(args ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	return b.String()
}

// readReply reads one reply, as it is on the wire.
func readReply(in *bufio.Reader) (string, error) {
	head, err := in.ReadString('\n')
	if err != nil {
		return head, err
	}
	n, _ := strconv.Atoi(strings.TrimSpace(head[1:]))
	switch head[0] {
	case '$', '=':
		if n < 0 {
			return head, nil
		}
		body := make([]byte, n+2)
		_, err := io.ReadFull(in, body)
		return head + string(body), err
	case '%':
		n *= 2
		fallthrough
	case '*', '>', '~':
		var all bytes.Buffer
		all.WriteString(head)
		for range n {
			one, err := readReply(in)
			all.WriteString(one)
			if err != nil {
				return all.String(), err
			}
		}
		return all.String(), nil
	}
	return head, nil
}
