package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is a program that a test starts, kills, freezes and starts again with the same arguments. It is killed at the end of the test;
// when the test failed, the end of its log is told. With KVSTORE_TEST_LOGS logs are written to that folder, and stay.
type Process struct {
	Name string // of its log, too

	path      string
	args, env []string
	log       string
	supervise bool

	mu     sync.Mutex
	cmd    *exec.Cmd
	gone   chan struct{} // closed once cmd has ended; guarded by mu, as is all below
	ended  error         // how it ended
	wanted bool          // it is to run
	starts int
}

// Supervised makes a process start again 200 ms after it has ended by itself, or was killed by the system: what systemd and compose do.
// Kill and Stop end it for good. It is called before Start.
func (p *Process) Supervised() *Process {
	p.supervise = true
	return p
}

// NewProcess names a program; env is added to the test's own.
func NewProcess(t testing.TB, name, path string, args, env []string) *Process {
	t.Helper()
	dir := os.Getenv("KVSTORE_TEST_LOGS")
	if dir == "" {
		dir = t.TempDir()
	}
	p := &Process{Name: name, path: path, args: args, env: env, log: filepath.Join(dir, name+".log")}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, p.Tail(3<<10))
		}
	})
	return p
}

// Start starts the program, which must not run.
func (p *Process) Start(t testing.TB) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wanted = true
	if err := p.launch(); err != nil {
		t.Fatal(err)
	}
}

// launch starts the program. Mutex held.
func (p *Process) launch() error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.path, p.args...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	gone := make(chan struct{})
	p.cmd, p.gone = cmd, gone
	p.starts++
	go func() {
		err := cmd.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.ended = err
		close(gone)
		if p.supervise && p.wanted {
			time.AfterFunc(200*time.Millisecond, p.relaunch)
		}
	}()
	return nil
}

func (p *Process) relaunch() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gone:
		if p.wanted {
			_ = p.launch() // if it cannot be started any more the test sees that it is not there
		}
	default:
	}
}

// Starts is how often the program was started.
func (p *Process) Starts() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.starts
}

// signal sends a signal; whether the process is to run after it is wanted.
func (p *Process) signal(sig os.Signal, wanted bool) (gone <-chan struct{}, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wanted = wanted
	if p.cmd == nil {
		return nil, os.ErrProcessDone
	}
	return p.gone, p.cmd.Process.Signal(sig)
}

// Kill is kill -9; it waits until the process is gone, and does not start it again.
func (p *Process) Kill() {
	if gone, _ := p.signal(syscall.SIGKILL, false); gone != nil {
		<-gone
	}
}

// Crash is kill -9, after which a supervised process comes back.
func (p *Process) Crash() {
	if gone, _ := p.signal(syscall.SIGKILL, true); gone != nil {
		<-gone
	}
}

// Stop is SIGTERM; it waits until the process is gone and returns how it ended.
func (p *Process) Stop() error {
	gone, err := p.signal(syscall.SIGTERM, false)
	if err != nil {
		return err
	}
	<-gone
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}

// Pause stops the process where it is (SIGSTOP), until Resume.
func (p *Process) Pause() error {
	_, err := p.signal(syscall.SIGSTOP, true)
	return err
}

// Resume lets a paused process go on.
func (p *Process) Resume() error {
	_, err := p.signal(syscall.SIGCONT, true)
	return err
}

// Tail is the end of the process's log, up to n bytes.
func (p *Process) Tail(n int) []byte {
	data, err := os.ReadFile(p.log)
	if err != nil {
		return []byte(err.Error())
	}
	return bytes.TrimSpace(data[max(0, len(data)-n):])
}

// AwaitHTTP waits until a GET of url is answered with a status of the 200s; else it tells the last answer, or why there was none.
func (p *Process) AwaitHTTP(ctx context.Context, t testing.TB, url string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	last := errors.New("no answer yet")
	for {
		err := get(ctx, url)
		if err == nil {
			return
		}
		if ctx.Err() == nil { // else it was cut off, which tells nothing of the process
			last = err
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s does not answer %s in time: %v", p.Name, url, last)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// get is nil when a GET of url is answered with a status of the 200s.
func get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 == 2 {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	return errors.Join(fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(body)), err)
}
