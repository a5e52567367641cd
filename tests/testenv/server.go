// Package testenv runs the built binaries for tests that look at them from outside: a kvstored that is started, killed and
// started again on one data directory and one pair of ports, and kvctl. Make targets set KVSTORE_BIN to the folder that
// holds them; without it such a test says that it needs them.
package testenv

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Patience is how long a server may take to be ready, also on a busy machine with much to recover.
const Patience = 2 * time.Minute

// AtMost is how long something may take that is promised within promise: five times that with KVSTORE_BUSY, which make test sets because it runs other
// tests at the same time. Then a bound tells what waits for the wrong thing from what does not, and targets of their own (make chaos) hold the promise.
func AtMost(promise time.Duration) time.Duration {
	if os.Getenv("KVSTORE_BUSY") != "" {
		return 5 * promise
	}
	return promise
}

// Bin is the folder with kvstored and kvctl. A test without it is skipped, naming the make target that runs it.
func Bin(t testing.TB, target string) string {
	t.Helper()
	bin := os.Getenv("KVSTORE_BIN")
	if bin == "" {
		t.Skipf("needs the built binaries: make %s builds them, sets KVSTORE_BIN and runs this", target)
	}
	return bin
}

// Server is one kvstored on one data directory and the same ports.
type Server struct {
	Dir   string // its data directory is Dir/data, its log Dir/kvstored.log
	Addr  string // gRPC
	REST  string
	Admin string // /livez, /readyz

	bin  string
	args []string
	cmd  *exec.Cmd
}

// New names a server; args are flags beyond data directory and addresses.
func New(t testing.TB, bin string, args ...string) *Server {
	t.Helper()
	s := newServer(t, bin, args)
	s.args = append(s.args, "-data-dir", s.Data())
	return s
}

// NewOnRedis names a server that stores in a Redis.
func NewOnRedis(t testing.TB, bin string, r *Redis, args ...string) *Server {
	t.Helper()
	s := newServer(t, bin, args)
	s.args = append(s.args, "-engine", "redis", "-redis-url", "redis://"+r.Addr)
	return s
}

func newServer(t testing.TB, bin string, args []string) *Server {
	s := &Server{Dir: t.TempDir(), Addr: FreeAddr(t), REST: FreeAddr(t), Admin: FreeAddr(t), bin: filepath.Join(bin, "kvstored"), args: slices.Clone(args)}
	t.Cleanup(s.Kill)
	return s
}

// ports are those that FreeAddr gives away in this process: whole blocks, each locked as long as the process lives, for tests of several packages run at
// once, and whoever got a port may not listen yet, or not just now.
var ports struct {
	mu    sync.Mutex
	left  []int      // guarded by mu
	locks []*os.File // of blocks; guarded by mu
}

// Ports are below those that systems give to outgoing connections: while a process that has one is down, no connection takes it.
const (
	firstPort = 10000
	blocks    = 44
	blockSize = 500
)

// nextPort is a port that was given to nobody yet.
func nextPort() (int, error) {
	ports.mu.Lock()
	defer ports.mu.Unlock()
	if len(ports.left) == 0 {
		for _, b := range rand.Perm(blocks) {
			lock, err := os.OpenFile(filepath.Join(os.TempDir(), fmt.Sprint("kvstore-test-ports-", b)), os.O_CREATE|os.O_RDWR, 0o600)
			if err != nil {
				continue // another user's
			}
			if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
				_ = lock.Close()
				continue
			}
			ports.locks = append(ports.locks, lock)
			for _, p := range rand.Perm(blockSize) {
				ports.left = append(ports.left, firstPort+b*blockSize+p)
			}
			break
		}
	}
	if len(ports.left) == 0 {
		return 0, fmt.Errorf("other tests have all %d blocks of %d ports", blocks, blockSize)
	}
	p := ports.left[0]
	ports.left = ports.left[1:]
	return p, nil
}

// FreeAddr is a TCP address of this machine that nothing listens on, and that it has given to nobody else, in no other process of tests either.
func FreeAddr(t testing.TB) string {
	t.Helper()
	var err error
	for range 100 {
		var port int
		if port, err = nextPort(); err != nil {
			break
		}
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprint("127.0.0.1:", port)); err == nil {
			defer func() { _ = l.Close() }()
			return l.Addr().String()
		}
	}
	t.Fatal(err)
	return ""
}

// Data is the data directory.
func (s *Server) Data() string { return filepath.Join(s.Dir, "data") }

// Start starts the process and does not wait for it to serve.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(s.Dir, "kvstored.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command(s.bin, append([]string{"-grpc-listen", s.Addr, "-rest-listen", s.REST, "-admin-listen", s.Admin}, s.args...)...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// Ready waits until the process says that it serves.
func (s *Server) Ready(ctx context.Context, t testing.TB) {
	t.Helper()
	if err := s.await(ctx, "/readyz"); err != nil {
		t.Fatalf("%v; its log:\n%s", err, s.Tail())
	}
}

// Alive waits until the process answers at all, ready or not.
func (s *Server) Alive(ctx context.Context, t testing.TB) {
	t.Helper()
	if err := s.await(ctx, "/livez"); err != nil {
		t.Fatalf("%v; its log:\n%s", err, s.Tail())
	}
}

func (s *Server) await(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Admin+path, nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return errors.New("kvstored does not answer " + path + " in time")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Kill is kill -9; it waits until the process is gone.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
}

// Stop is SIGTERM; it waits until the process is gone and returns how it ended.
func (s *Server) Stop() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	err := s.cmd.Wait()
	s.cmd = nil
	return err
}

// Resident is what the process has in memory, in bytes.
func (s *Server) Resident(t testing.TB) int64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.cmd.Process.Pid))
	var size, pages int64
	if err == nil {
		_, err = fmt.Sscan(string(data), &size, &pages)
	}
	if err != nil {
		t.Error(err)
	}
	return pages * int64(os.Getpagesize())
}

// Heap is what is alive in the process's heap, after a collection, in bytes.
func (s *Server) Heap(t testing.TB) int64 {
	t.Helper()
	resp, err := http.Get("http://" + s.Admin + "/debug/pprof/heap?gc=1&debug=1")
	if err != nil {
		t.Error(err)
		return 0
	}
	defer func() { _ = resp.Body.Close() }()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		var n int64
		if _, err := fmt.Sscanf(lines.Text(), "# HeapAlloc = %d", &n); err == nil {
			return n
		}
	}
	t.Errorf("the server does not tell its heap: %s", resp.Status)
	return 0
}

// Tail is the end of the server's log.
func (s *Server) Tail() []byte {
	data, err := os.ReadFile(filepath.Join(s.Dir, "kvstored.log"))
	if err != nil {
		return []byte(err.Error())
	}
	if len(data) > 8192 {
		data = data[len(data)-8192:]
	}
	return bytes.TrimSpace(data)
}

// Kvctl runs kvctl against the server and returns its standard output.
func (s *Server) Kvctl(ctx context.Context, args ...string) ([]byte, error) {
	return Kvctl(ctx, filepath.Dir(s.bin), s.Addr, args...)
}

// Kvctl runs the kvctl of folder bin against an address and returns its standard output.
func Kvctl(ctx context.Context, bin, addr string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "kvctl"), args...)
	cmd.Env = append(os.Environ(), "KVSTORE_ENDPOINT="+addr)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = errors.Join(err, errors.New(stderr.String()))
	}
	return out, err
}
