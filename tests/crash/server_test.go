package crash

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// server is one kvstored on one data directory and one port, started again and again.
type server struct {
	bin, dir    string
	addr, admin string
	logPath     string
	cmd         *exec.Cmd
}

func newServer(t *testing.T, bin, dir string) *server {
	return &server{bin: bin, dir: dir, addr: freeAddr(t), admin: freeAddr(t), logPath: filepath.Join(dir, "kvstored.log")}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start starts the process and does not wait for it to serve.
func (s *server) start(t *testing.T, ctx context.Context) {
	t.Helper()
	log, err := os.OpenFile(s.logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.CommandContext(ctx, s.bin, "-data-dir", filepath.Join(s.dir, "data"), "-grpc-listen", s.addr, "-admin-listen", s.admin,
		"-segment-bytes", "1048576", "-checkpoint-bytes", "524288")
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// ready waits until the process says that it serves.
func (s *server) ready(t *testing.T, ctx context.Context) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.admin+"/readyz", nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server is not ready after 60 s; its log:\n%s", s.tail())
		}
		<-time.After(5 * time.Millisecond)
	}
}

// waitFor waits until done holds; the server must live and no worker may fail meanwhile.
func (s *server) waitFor(t *testing.T, ctx context.Context, errs <-chan error, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !done() {
		select {
		case err := <-errs:
			t.Fatalf("%v\nthe server's log:\n%s", err, s.tail())
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("no progress for 60 s; the server's log:\n%s", s.tail())
		}
	}
}

// kill is kill -9, and waits until the process is gone.
func (s *server) kill(t *testing.T) {
	t.Helper()
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
}

// tail is the end of the server's log.
func (s *server) tail() []byte {
	data, err := os.ReadFile(s.logPath)
	if err != nil {
		return []byte(err.Error())
	}
	if len(data) > 8192 {
		data = data[len(data)-8192:]
	}
	return bytes.TrimSpace(data)
}
