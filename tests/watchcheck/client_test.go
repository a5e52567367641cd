package watchcheck

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/tests/checked"
)

// process is a client of its own: a kvctl that writes what it is told to a file. Killed with -9 it is started again, and goes on from the last token in the
// file: what stands behind that will be told again, and is cut off.
type process struct {
	told
	path      string // of kvctl
	file      string
	endpoints []string
	taken     int64 // bytes of the file that the account has

	mu    sync.Mutex
	cmd   *exec.Cmd // guarded by mu, as is kills
	kills int
}

func newProcess(t *testing.T, bin string, endpoints []string, l *checked.Load) *process {
	t.Helper()
	k := checked.Kind{Name: "namespace, ALL, a process killed with -9", WatchOptions: client.WatchOptions{All: true, KeysOnly: true}}
	return &process{path: filepath.Join(bin, "kvctl"), file: filepath.Join(t.TempDir(), "changes.jsonl"), endpoints: endpoints, told: told{account: l.Outsider(k)}}
}

// run runs it until ctx ends, again and again.
func (p *process) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := p.once(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// once is one life of the process.
func (p *process) once(ctx context.Context) error {
	file, err := os.OpenFile(p.file, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Truncate(p.taken); err != nil {
		return err
	}
	args := []string{"watch", "--all", "--keys-only", "-o", "json"}
	if p.token == nil {
		args = append(args, "--state")
	} else {
		args = append(args, "--from", base64.StdEncoding.EncodeToString(p.token))
	}
	p.begin()
	cmd := exec.CommandContext(ctx, p.path, args...)
	cmd.Env = append(os.Environ(), "KVSTORE_ENDPOINT="+strings.Join(p.endpoints, ","))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var says bytes.Buffer
	cmd.Stdout, cmd.Stderr = file, &says
	if err := cmd.Start(); err != nil {
		return err
	}
	p.mu.Lock()
	p.cmd = cmd
	p.mu.Unlock()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for over := false; !over; {
		select {
		case err := <-ended:
			over = true
			var exit *exec.ExitError
			if errors.As(err, &exit) && exit.ExitCode() != -1 { // it was not killed: perhaps there was nobody to watch
				p.account.Count("gave up")
				if strings.Contains(says.String(), "COMPACTED") {
					p.compacted()
				}
			}
		case <-time.After(20 * time.Millisecond):
		}
		if err := p.read(file); err != nil {
			return fmt.Errorf("%s %s: %w", filepath.Base(p.path), strings.Join(args, " "), err)
		}
	}
	return nil
}

// kill is kill -9.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil && p.cmd.Process.Kill() == nil {
		p.kills++
	}
}

func (p *process) killed() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kills
}

// line is what kvctl watch -o json prints of a change, or of where it stands.
type line struct {
	Type        string
	Key         string
	Version     uint64
	PrevVersion uint64 `json:"prev_version"`
	Created     bool
	Initial     bool
	Size        int64
	Token       []byte
}

var types = map[string]client.EventType{
	"PUT": client.EventPut, "DELETE": client.EventDelete, "EXPIRE": client.EventExpire, "STORED": client.EventStored, "REMOVED": client.EventRemoved,
}

// read takes what the file has more, up to the last token.
func (p *process) read(file *os.File) error {
	in := bufio.NewReader(io.NewSectionReader(file, p.taken, 1<<40))
	p.batch = client.WatchBatch{} // what stands behind the last token is read again
	at := p.taken
	for {
		text, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil // the last line is not whole
		}
		if err != nil {
			return err
		}
		at += int64(len(text))
		var l line
		if err := json.Unmarshal(text, &l); err != nil {
			return fmt.Errorf("%w in %.200q", err, text)
		}
		if kind, ok := types[l.Type]; ok {
			err = p.change(client.Event{
				Type: kind, Key: l.Key, Version: l.Version, PrevVersion: l.PrevVersion, Created: l.Created, Initial: l.Initial, Size: l.Size,
			}, l.Token)
		} else {
			err = p.stand(l.Type, l.Token)
		}
		if err != nil {
			return err
		}
		if l.Token != nil {
			p.taken = at
		}
	}
}
