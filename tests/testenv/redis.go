package testenv

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Redis is one redis-server on one directory and one port: it can be killed and started again on what it has stored.
type Redis struct {
	Dir  string // its data: appendonlydir is below
	Addr string

	args []string
	cmd  *exec.Cmd
}

// NeedRedis skips a test without KVSTORE_REDIS, naming the make target that runs it.
func NeedRedis(t testing.TB) {
	t.Helper()
	if os.Getenv("KVSTORE_REDIS") == "" {
		t.Skip("needs redis-server: make redis sets KVSTORE_REDIS and runs this")
	}
}

// NewRedis starts a redis-server that syncs every write before it answers (appendfsync always); args, each "parameter value", are added to
// its configuration. It is killed at the end of the test. A test without KVSTORE_REDIS is skipped, naming the make target that
// runs it.
func NewRedis(t testing.TB, args ...string) *Redis {
	t.Helper()
	NeedRedis(t)
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Fatalf("redis-server is not installed (Debian package redis-server): %v", err)
	}
	dir, err := os.MkdirTemp("", "kvstore-redis-") // not TempDir: its path may be too long to read in errors
	if err != nil {
		t.Fatal(err)
	}
	r := &Redis{Dir: dir, Addr: FreeAddr(t), args: args}
	t.Cleanup(func() {
		r.Kill()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	r.Start(t)
	return r
}

// Start starts the server, which must not run, and waits until it has loaded what it stored.
func (r *Redis) Start(t testing.TB) {
	t.Helper()
	host, port, err := net.SplitHostPort(r.Addr)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{
		"--bind", host, "--port", port, "--dir", r.Dir, "--appendonly", "yes", "--appendfsync", "always", "--save", "",
		"--auto-aof-rewrite-percentage", "0", "--enable-debug-command", "yes", "--logfile", filepath.Join(r.Dir, "redis.log"),
		"--repl-diskless-sync-delay", "0",
	}
	for _, a := range r.args {
		name, value, _ := strings.Cut(a, " ")
		args = append(args, "--"+name, value)
	}
	r.cmd = exec.Command("redis-server", args...)
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	for {
		reply, err := r.Do(ctx, "PING")
		if err == nil && (strings.HasPrefix(reply, "+PONG") || strings.HasPrefix(reply, "-NOAUTH")) {
			return
		}
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(filepath.Join(r.Dir, "redis.log"))
			t.Fatalf("redis-server does not answer: %q %v; its log:\n%s", reply, err, log)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// Kill is kill -9; it waits until the process is gone.
func (r *Redis) Kill() {
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
	r.cmd = nil
}

// Pause stops the process where it is (SIGSTOP), until Resume.
func (r *Redis) Pause() error { return r.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume lets a paused process go on.
func (r *Redis) Resume() error { return r.cmd.Process.Signal(syscall.SIGCONT) }

// Do sends one command on a connection of its own and returns the first line of the reply: for what tests do to a server that the
// product never does.
func (r *Redis) Do(ctx context.Context, args ...string) (string, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", r.Addr)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if d, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(d); err != nil {
			return "", err
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := conn.Write([]byte(b.String())); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimRight(line, "\r\n"), err
}

// Must is Do that must succeed.
func (r *Redis) Must(t testing.TB, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	reply, err := r.Do(ctx, args...)
	if err == nil && strings.HasPrefix(reply, "-") {
		err = errors.New(reply)
	}
	if err != nil {
		t.Fatalf("redis %s: %v", args, err)
	}
	return reply
}

// Log returns the path of the part of the append-only file that grows. The server must not run while it is changed.
func (r *Redis) Log(t testing.TB) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(r.Dir, "appendonlydir", "*.incr.aof"))
	if err != nil || len(files) != 1 {
		t.Fatalf("append-only files: %v, %v", files, err)
	}
	return files[0]
}
