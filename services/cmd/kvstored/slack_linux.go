package main

import (
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Timer slack is how late the kernel may wake a thread that sleeps for some time. Go's runtime has a thread that looks after the others: from the
// first system call after an idle moment it sleeps 20 us and looks, over and over, until all are idle again. A server whose work comes in
// bursts of some 100 us, because it waits for disks and for other servers, spends a quarter of its processor time on that, and the runtime
// has no setting for it. With more slack than Linux's default the thread sleeps longer and looks less often. What else sleeps for less than a
// millisecond is spinning threads of the runtime; timers of Go are rounded to milliseconds anyway.
const (
	defaultSlack = 50 * time.Microsecond
	timerSlack   = 500 * time.Microsecond
)

// envSlack tells a program that it has been executed again.
const envSlack = "KVSTORE_TIMER_SLACK"

// relaxTimers gives every thread of this process timerSlack. A thread has the slack of the one that started it, the thread in question is
// started before any code of a program runs, and nobody may set another thread's slack without a privilege; but a program that is executed
// keeps that of the thread it was executed by. So the program is executed once more, as the same process. Where the slack is not the
// default somebody has chosen it, and it stays. Whatever fails leaves everything as it was.
func relaxTimers() {
	if os.Getenv(envSlack) != "" {
		_ = os.Unsetenv(envSlack)
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if slack() != defaultSlack {
		return
	}
	self, err := os.Executable()
	if err != nil || strings.HasSuffix(self, " (deleted)") {
		return
	}
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack.Nanoseconds()), 0, 0, 0); err != nil {
		return
	}
	_ = syscall.Exec(self, os.Args, append(os.Environ(), envSlack+"=1"))
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) // back to the default
}

// slack is that of the calling thread; 0 = not known.
func slack() time.Duration {
	ns, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		return 0
	}
	return time.Duration(ns)
}
