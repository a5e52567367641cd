package chaos

import (
	"strings"
	"testing"
	"time"
)

// TestJudge: what judge finds, and what it lets pass.
func TestJudge(t *testing.T) {
	op := func(host int, write bool, begin, end int, revision uint64) told {
		return told{host: host, write: write, begin: time.Duration(begin), end: time.Duration(end), revision: revision}
	}
	for _, tt := range []struct {
		name, want string
		all        []told
	}{
		{"one after the other", "", []told{op(0, true, 1, 2, 1), op(0, false, 3, 4, 1), op(1, true, 5, 6, 2), op(1, false, 7, 8, 2)}},
		{"a late acknowledgement beside the next owner's", "", []told{op(0, true, 1, 9, 1), op(1, true, 5, 6, 2)}},
		{"a revision twice", "two writers", []told{op(0, true, 1, 2, 1), op(1, true, 1, 2, 1)}},
		{"a former owner goes on", "two writers", []told{op(0, true, 1, 2, 1), op(1, true, 3, 4, 3), op(0, true, 5, 6, 2)}},
		{"a former owner answers reads", "stale read", []told{op(0, true, 1, 2, 1), op(1, true, 3, 4, 2), op(0, false, 5, 6, 1)}},
		{"a read beside a write", "", []told{op(0, true, 1, 2, 1), op(1, true, 3, 7, 2), op(0, false, 5, 6, 1)}},
	} {
		err := judge(tt.all)
		if (tt.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	ts := tenures([]told{op(1, true, 5, 6, 2), op(0, true, 1, 2, 1), op(0, true, 7, 8, 3), op(0, true, 8, 9, 4)})
	if len(ts) != 3 || ts[0].host != 0 || ts[1].host != 1 || ts[2].writes != 2 || ts[2].to != 8 {
		t.Errorf("tenures %+v", ts)
	}
}
