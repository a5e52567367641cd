package compose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long anything may take that must happen, on a busy machine.
const patience = 4 * time.Minute

// engine is a Docker engine.
type engine struct {
	host string // for DOCKER_HOST; "" = the default
	own  bool   // it was started for this test, and has nothing but what this test put into it
}

// envApart is set in the process that runs in a network of its own.
const envApart = "KVSTORE_COMPOSE_APART"

// TestMain runs the tests where they are when an engine answers. Otherwise it runs them again in a network of their own, where they start
// one: its bridges and firewall rules are gone with it, and all ports are free. Processes and mounts are apart too: however the tests end, the
// kernel ends all containers.
func TestMain(m *testing.M) {
	if os.Getenv(envCollector) != "" {
		fmt.Fprintln(os.Stderr, collect(os.Args[1:]))
		os.Exit(1)
	}
	if os.Getenv("KVSTORE_COMPOSE") == "" || os.Getuid() != 0 || os.Getenv(envApart) != "" || answers(context.Background()) {
		if os.Getenv(envApart) != "" {
			if err := settle(); err != nil {
				fmt.Fprintln(os.Stderr, "a place of its own for a Docker engine:", err)
				os.Exit(1)
			}
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), envApart+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is about this thread
	err := cmd.Run()
	if cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, "no Docker engine answers, and a place of its own cannot be made for one:", err)
		os.Exit(1)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

func answers(ctx context.Context) bool {
	_, err := (&engine{}).docker(ctx, nil, "version")
	return err == nil
}

// settle makes the new namespaces usable: mounts that nobody else sees, /proc of the new processes, a loopback interface that is on.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// findEngine returns the engine that answers, or starts one, which ends with the test.
func findEngine(t *testing.T) *engine {
	t.Helper()
	if _, err := exec.LookPath("docker"); err != nil {
		t.Fatalf("there is no docker on PATH (Debian package docker.io, or docker-cli): %v", err)
	}
	if answers(t.Context()) {
		return &engine{}
	}
	if os.Getuid() != 0 {
		t.Fatal("no Docker engine answers, and only root can start one: start it (systemctl start docker), or run this as root")
	}
	for _, program := range []string{"dockerd", "containerd", "runc", "iptables"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("no Docker engine answers, and one cannot be started (Debian packages docker.io, iptables): %v", err)
		}
	}
	dir, err := os.MkdirTemp("", "kvd-") // short: sockets below it have long names
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{own: true, host: "unix://" + filepath.Join(dir, "docker.sock")}
	e.start(t, dir)
	return e
}

// start starts dockerd.
func (e *engine) start(t *testing.T, dir string) {
	t.Helper()
	var log bytes.Buffer
	cmd := exec.Command("dockerd", "--host", e.host, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "x"),
		"--pidfile", filepath.Join(dir, "pid"), "--bridge", "none")
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} // a test that is killed leaves none behind
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // Pdeathsig is about this thread, and others end (dialIn)
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			t.Errorf("dockerd did not end by SIGTERM: %v", <-ended)
		}
		if t.Failed() {
			t.Logf("log of dockerd:\n%s", tail(log.String(), 4<<10))
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	deadline := time.Now().Add(patience)
	for {
		_, err := e.docker(t.Context(), nil, "version")
		if err == nil {
			return
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("dockerd cannot run here (it needs root, cgroups, namespaces, overlayfs): %v\n%s", err, tail(log.String(), 4<<10))
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("dockerd does not answer: %v\n%s", err, tail(log.String(), 4<<10))
		}
	}
}

// docker runs the command line of Docker and returns its standard output.
func (e *engine) docker(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	return e.run(ctx, stdin, nil, "docker", args...)
}

func (e *engine) run(ctx context.Context, stdin io.Reader, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=0")
	if e.host != "" {
		cmd.Env = append(cmd.Env, "DOCKER_HOST="+e.host)
	}
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdin = stdin
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), errors.Join(fmt.Errorf("%s %s: %w", filepath.Base(name), strings.Join(args, " "), err), errors.New(tail(errs.String()+out.String(), 4<<10)))
	}
	return out.String(), nil
}

func tail(s string, n int) string { return strings.TrimSpace(s[max(0, len(s)-n):]) }
