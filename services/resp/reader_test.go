package resp

import (
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
)

// inPieces is a connection on which bytes come in pieces.
type inPieces struct {
	net.Conn
	data  []byte
	sizes []byte // of the pieces less one, over and over; empty: all at once
	n     int
}

func (p *inPieces) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		return 0, io.EOF
	}
	size := len(p.data)
	if len(p.sizes) > 0 {
		size = int(p.sizes[p.n%len(p.sizes)]) + 1
		p.n++
	}
	n := copy(b, p.data[:min(size, len(p.data))])
	p.data = p.data[n:]
	return n, nil
}

// requestsOf are the requests of some bytes, and how they end.
func requestsOf(t *testing.T, conn *inPieces, stranger bool) (all []string) {
	var pool budget
	pool.left.Store(1 << 20)
	r := &reader{conn: conn, budget: &pool, stranger: stranger}
	defer func() {
		r.close()
		if left := pool.left.Load(); left != 1<<20 {
			t.Errorf("%d bytes of the budget are lost", 1<<20-left)
		}
	}()
	for {
		for {
			what, err := r.next(!stranger)
			if err != nil {
				return append(all, err.Error())
			}
			if what == incomplete {
				break
			}
			if what == bigValue {
				value, err := io.ReadAll(io.LimitReader(readerFunc(r.take), int64(r.length)+2))
				all = append(all, fmt.Sprintf("value of %d bytes: %q %v", r.length, value, err))
				if len(value) < r.length+2 {
					return all
				}
				r.streamed()
				continue
			}
			args := make([]string, len(r.args))
			for i, a := range r.args {
				args[i] = string(a)
			}
			all = append(all, fmt.Sprintf("%q dropped=%v", args, r.dropped))
		}
		r.keep()
		if err := r.read(); err != nil {
			return append(all, err.Error())
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// FuzzRequests: whatever comes is understood the same however it is cut, takes no more memory than there is, and gives that back.
func FuzzRequests(f *testing.F) {
	for _, seed := range []string{
		"*2\r\n$3\r\nGET\r\n$1\r\na\r\nPING\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nab\r\nc\r\n", "SET a \"x y\\x00\" 'z'\r\n", "*0\r\n*-1\r\n\r\n", "*1\r\n$-1\r\n",
		"*1000000000\r\n", "*2\r\n$3\r\nGET\r\n:1\r\n", "*3\r\n$3\r\nset\r\n$1\r\nk\r\n$1048577\r\nxx", "*1\r\n$99999999\r\nx", "*1\r\r$1\r\na", "\"\n",
	} {
		f.Add([]byte(seed), []byte{0}, false)
		f.Add([]byte(seed), []byte{2, 0, 6}, true)
	}
	f.Fuzz(func(t *testing.T, data, sizes []byte, stranger bool) {
		whole := requestsOf(t, &inPieces{data: data}, stranger)
		cut := requestsOf(t, &inPieces{data: data, sizes: sizes}, stranger)
		if !slices.Equal(whole, cut) {
			t.Errorf("at once\n%q\nin pieces\n%q", whole, cut)
		}
	})
}
