package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRelaxTimers: a server's threads have the slack that was chosen, it is the process that was started, with its arguments, and its
// children know nothing of it; a slack that somebody else chose stays.
func TestRelaxTimers(t *testing.T) {
	if os.Getenv("TEST_RELAX_TIMERS") != "" {
		relaxTimers()
		slacks := make(chan time.Duration)
		go func() { // on a thread that this program started
			runtime.LockOSThread()
			slacks <- slack()
		}()
		fmt.Printf("pid %d slack %v args %d env %q\n", os.Getpid(), <-slacks, len(os.Args), os.Getenv(envSlack))
		return
	}
	runtime.LockOSThread()
	before := slack()
	t.Cleanup(func() {
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(before.Nanoseconds()), 0, 0, 0)
		runtime.UnlockOSThread()
	})
	for _, tc := range []struct{ chosen, want time.Duration }{{defaultSlack, timerSlack}, {2 * time.Millisecond, 2 * time.Millisecond}} {
		if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(tc.chosen.Nanoseconds()), 0, 0, 0); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestRelaxTimers$", "-test.count=1")
		cmd.Env = append(os.Environ(), "TEST_RELAX_TIMERS=1")
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil { // starts its child from this thread
			t.Fatalf("%v\n%s", err, out.String())
		}
		if want := fmt.Sprintf("pid %d slack %v args 3 env %q", cmd.Process.Pid, tc.want, ""); !strings.Contains(out.String(), want) {
			t.Errorf("slack %v: want %s, got\n%s", tc.chosen, want, out.String())
		}
	}
}
