package node

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// listen opens a door. A taken port names its holder.
func listen(d Door, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err == nil {
		return l, nil
	}
	if !errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listen (%s): %w", d.Name, err)
	}
	holder := "another process"
	if _, port, err := net.SplitHostPort(addr); err == nil {
		if n, err := strconv.Atoi(port); err == nil {
			if h := portHolder("/proc", n); h != "" {
				holder = h
			}
		}
	}
	return nil, fmt.Errorf("listen (%s): %s is taken by %s; choose another with -%s-listen or -instance: %w", d.Name, addr, holder, d.Name, err)
}

// loopback tells whether only this machine can reach an address. A name counts only when it is localhost: what others resolve to
// may change.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// portHolder names the process that listens on a TCP port, as far as proc lets us see; "" when it does not.
func portHolder(proc string, port int) string {
	inodes := make(map[string]bool)
	for _, table := range []string{"net/tcp", "net/tcp6"} {
		listeningInodes(filepath.Join(proc, table), port, inodes)
	}
	if len(inodes) == 0 {
		return ""
	}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return ""
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil && holdsSocket(filepath.Join(proc, e.Name(), "fd"), inodes) {
			return fmt.Sprintf("process %s (%s)", e.Name(), processName(filepath.Join(proc, e.Name())))
		}
	}
	return "a process of another user"
}

// listeningInodes collects the sockets that listen on a port from one of the kernel's tables.
func listeningInodes(table string, port int, inodes map[string]bool) {
	f, err := os.Open(table)
	if err != nil {
		return
	}
	defer f.Close()
	const stateListen = "0A"
	suffix := fmt.Sprintf(":%04X", port)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ...
		if c := strings.Fields(lines.Text()); len(c) > 9 && strings.HasSuffix(c[1], suffix) && c[3] == stateListen {
			inodes["socket:["+c[9]+"]"] = true
		}
	}
}

func holdsSocket(dir string, inodes map[string]bool) bool {
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if to, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && inodes[to] {
			return true
		}
	}
	return false
}

func processName(dir string) string {
	name, err := os.ReadFile(filepath.Join(dir, "comm"))
	if err != nil {
		return "name not readable"
	}
	return strings.TrimSpace(string(name))
}
