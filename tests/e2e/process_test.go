package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// patience is how long anything that must happen may take on a busy machine.
const patience = 60 * time.Second

// binaries is the folder with kvstored and kvctl, built once.
var binaries = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "kvstore-e2e-")
	if err != nil {
		return "", err
	}
	if text, err := exec.Command("go", "build", "-o", dir+"/", "kvstore/services/cmd/kvstored", "kvstore/services/cmd/kvctl").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, text)
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := binaries(); err == nil {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// command is kvstored with arguments. It dies with the test.
func command(t *testing.T, args ...string) (*exec.Cmd, *journal) {
	t.Helper()
	return program(t, "kvstored", args...)
}

// program is one of the binaries with arguments.
func program(t *testing.T, name string, args ...string) (*exec.Cmd, *journal) {
	t.Helper()
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, filepath.Join(dir, name), args...)
	log := new(journal)
	cmd.Stdout, cmd.Stderr = log, log
	return cmd, log
}

// journal is what a process has said so far.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

// says tells how often it has said something.
func (j *journal) says(text string) int { return strings.Count(j.String(), text) }

// server is one run of kvstored.
type server struct {
	cmd    *exec.Cmd
	log    *journal
	ended  chan struct{}
	err    error // how it ended; after ended
	GRPC   string
	REST   string
	Admin  string
	KV     kvv1.KVServiceClient
	AdminC kvv1.AdminServiceClient
	conn   *grpc.ClientConn
}

// start runs kvstored on any free ports and waits until it serves.
func start(t *testing.T, dir string, more ...string) *server {
	t.Helper()
	file := filepath.Join(t.TempDir(), "addresses.json")
	args := append([]string{"-grpc-listen", "127.0.0.1:0", "-rest-listen", "127.0.0.1:0", "-admin-listen", "127.0.0.1:0", "-address-file", file, "-data-dir", dir}, more...)
	s := &server{ended: make(chan struct{})}
	s.cmd, s.log = command(t, args...)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.ended)
	}()
	t.Cleanup(s.kill)
	s.await(t, "it serves", func() bool {
		text, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		var a struct{ GRPC, REST, Admin string }
		if err := json.Unmarshal(text, &a); err != nil {
			t.Fatalf("address file %q: %v", text, err)
		}
		s.GRPC, s.REST, s.Admin = a.GRPC, a.REST, a.Admin
		return true
	})
	conn, err := grpc.NewClient(s.GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	s.conn = conn
	t.Cleanup(func() { _ = conn.Close() })
	s.KV, s.AdminC = kvv1.NewKVServiceClient(conn), kvv1.NewAdminServiceClient(conn)
	return s
}

// await polls until a condition holds; the process must live meanwhile.
func (s *server) await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-s.ended:
			t.Fatalf("kvstored ended (%v) before %s:\n%s", s.err, what, s.log)
		case <-deadline:
			s.kill()
			t.Fatalf("waited %v until %s:\n%s", patience, what, s.log)
		}
	}
}

// kill is kill -9.
func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	<-s.ended
}

// stop is SIGTERM: it must end in order.
func (s *server) stop(t *testing.T) string {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.ended:
	case <-time.After(patience):
		t.Fatal("SIGTERM did not end it")
	}
	if s.err != nil {
		t.Fatalf("ended with %v:\n%s", s.err, s.log)
	}
	return s.log.String()
}

// get asks the admin port.
func (s *server) get(t *testing.T, path string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Admin+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// fails runs kvstored to its end and wants an exit code and texts in what it says.
func fails(t *testing.T, code int, texts []string, args ...string) {
	t.Helper()
	cmd, log := command(t, args...)
	err := cmd.Run()
	var exit *exec.ExitError
	if code != 0 && (!errors.As(err, &exit) || exit.ExitCode() != code) || code == 0 && err != nil {
		t.Errorf("%q: %v, want exit code %d:\n%s", args, err, code, log)
	}
	for _, text := range texts {
		if !strings.Contains(log.String(), text) {
			t.Errorf("%q does not say %q:\n%s", args, text, log)
		}
	}
}
