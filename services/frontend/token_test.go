package frontend

import (
	"bytes"
	"errors"
	"testing"
)

func TestPageToken(t *testing.T) {
	for _, last := range [][]byte{{}, []byte("k"), bytes.Repeat([]byte{0xff}, 1024)} {
		token := appendPageToken(nil, 42, last, []byte("watch"))
		gotLast, watch, err := parsePageToken(token, 42)
		if err != nil || !bytes.Equal(gotLast, last) || string(watch) != "watch" {
			t.Fatalf("%v: last %x, watch %q", err, gotLast, watch)
		}
		if _, _, err := parsePageToken(token, 43); !errors.Is(err, errTokenForeign) {
			t.Errorf("of another query: %v", err)
		}
		for i := range token {
			bad := bytes.Clone(token)
			bad[i] ^= 0x10
			if _, _, err := parsePageToken(bad, 42); err == nil {
				t.Fatalf("byte %d changed and nobody noticed", i)
			}
			if _, _, err := parsePageToken(token[:i], 42); err == nil {
				t.Fatalf("cut to %d bytes and nobody noticed", i)
			}
		}
	}
}

// FuzzPageToken: no input panics, and what is taken is what appendPageToken makes.
func FuzzPageToken(f *testing.F) {
	f.Add(appendPageToken(nil, 7, []byte("last"), []byte("watch")))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		last, watch, err := parsePageToken(b, 7)
		if err != nil {
			return
		}
		again, watchAgain, err := parsePageToken(appendPageToken(nil, 7, last, watch), 7)
		if err != nil || !bytes.Equal(again, last) || !bytes.Equal(watchAgain, watch) {
			t.Fatalf("%v: %x %x became %x %x", err, last, watch, again, watchAgain)
		}
	})
}

func TestSessionTokenFitsItsRoom(t *testing.T) {
	b := appendPosition(appendTokenHead(nil, 1<<63), position{shard: 1023, epoch: 1 << 62, revision: 1 << 62})
	if len(b) > maxTokenBytes {
		t.Errorf("a token of one shard has %d bytes, room is %d", len(b), maxTokenBytes)
	}
}
