package node

import (
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

func TestTakenPortNamesItsHolder(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = listen(DoorGRPC, l.Addr().String())
	if err == nil {
		t.Fatal("a taken port was opened")
	}
	want := []string{"-grpc-listen", l.Addr().String()}
	if runtime.GOOS == "linux" {
		want = append(want, "process "+strconv.Itoa(os.Getpid())+" (")
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
	if h := portHolder("/proc", 1); h != "" {
		t.Errorf("port 1 is held by %q", h)
	}
	if h := portHolder(t.TempDir(), l.Addr().(*net.TCPAddr).Port); h != "" {
		t.Errorf("without /proc the holder is %q", h)
	}
}

func TestLoopback(t *testing.T) {
	for addr, want := range map[string]bool{
		"127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true, "localhost:1": true,
		":1": false, "0.0.0.0:1": false, "[::]:1": false, "10.0.0.1:1": false, "example.com:1": false, "127.0.0.1": false,
	} {
		if got := loopback(addr); got != want {
			t.Errorf("loopback(%q) = %t", addr, got)
		}
	}
}
