package fanout

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"kvstore/actors/shard"
)

// TestScripts holds conversations between a shard, its hub and some watchers: testdata/*.txt; -rewrite writes their answers anew.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := &script{t: t, feeds: map[string]*Feed{}, names: map[*Feed]string{}}
		s.start(shard.Config{})
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s.out.Reset()
			for line := range strings.SplitSeq(strings.TrimSpace(d.Input), "\n") {
				if line != "" {
					s.command(line)
				}
			}
			s.run(d)
			return s.out.String()
		})
	})
}

type script struct {
	t     *testing.T
	m     *shard.Machine
	hub   *Hub
	feeds map[string]*Feed
	names map[*Feed]string
	out   strings.Builder
}

func (s *script) start(cfg shard.Config) {
	s.m = shard.New(cfg)
	s.m.Tick(1000)
	s.hub = NewHub(shard.NewView(s.m.Tree().Clone()))
}

func (s *script) printf(format string, args ...any) { fmt.Fprintf(&s.out, format+"\n", args...) }

// command is a line of input: a change of the shard.
func (s *script) command(line string) {
	c := &shard.Command{Namespace: 1, Done: func(*shard.Command, error) {}}
	f := strings.Fields(line)
	switch f[0] {
	case "put":
		c.Op, c.Put = shard.OpPut, put(f[1])
	case "delete":
		c.Op, c.Delete = shard.OpDelete, shard.Delete{Key: []byte(f[1])}
	case "txn":
		c.Op, c.Txn = shard.OpTxn, &shard.Txn{}
		for _, w := range f[1:] {
			p := put(w)
			if string(p.Value.Inline) == "-" {
				c.Txn.Ops = append(c.Txn.Ops, shard.TxnOp{Delete: &shard.Delete{Key: p.Key}})
			} else {
				c.Txn.Ops = append(c.Txn.Ops, shard.TxnOp{Put: &p})
			}
		}
	case "drop":
		c.Op = shard.OpDropNamespace
	default:
		s.t.Fatalf("no such command: %s", line)
	}
	s.m.Step(c)
}

func put(word string) shard.Put {
	key, value, _ := strings.Cut(word, "=")
	return shard.Put{Key: []byte(key), Value: shard.Value{Inline: []byte(value)}}
}

func (s *script) run(d *datadriven.TestData) {
	arg := func(name string) (v string) {
		if d.HasArg(name) {
			d.ScanArgs(s.t, name, &v)
		}
		return v
	}
	number := func(name string) (n int) {
		if d.HasArg(name) {
			d.ScanArgs(s.t, name, &n)
		}
		return n
	}
	switch d.Cmd {
	case "new":
		s.start(shard.Config{HistoryChanges: int64(number("changes"))})
	case "commit": // its input is what happens; who is woken is told
		s.m.Ready()
		s.hub.Advance(shard.NewView(s.m.Tree().Clone()), func(f *Feed) { s.printf("%s has something to ask for", s.names[f]) })
		s.printf("revision %d", s.hub.View().Revision())
	case "watch":
		w := &Watch{Namespace: 1, Before: d.HasArg("before"), KeysOnly: d.HasArg("keys-only")}
		if w.Key = []byte(arg("key")); !d.HasArg("key") {
			w.Key, w.Prefix = []byte(arg("prefix")), true
		}
		if d.HasArg("all") {
			w.Mode = All
		}
		at := Cursor{Revision: s.hub.View().Revision()}
		switch {
		case d.HasArg("state"):
			at = Anew()
		case d.HasArg("after"):
			at.Revision = uint64(number("after"))
		}
		f := &Feed{Watch: w}
		s.hub.Add(f, at)
		s.feeds[arg("name")], s.names[f] = f, arg("name")
	case "next":
		s.next(s.feeds[arg("name")], Budget{Bytes: int64(max(1, number("bytes")))})
	case "all": // asks until there is no more
		f := s.feeds[arg("name")]
		for s.next(f, Budget{Bytes: int64(max(1, number("bytes")))}) {
		}
	case "end":
		s.hub.Remove(s.feeds[arg("name")])
	case "move": // another hub goes on with the cursor
		f := s.feeds[arg("name")]
		at := s.hub.Cursor(f)
		s.hub.Remove(f)
		g := &Feed{Watch: f.Watch}
		s.hub.Add(g, at)
		s.feeds[arg("name")], s.names[g] = g, arg("name")
	default:
		d.Fatalf(s.t, "no such command")
	}
}

func (s *script) next(f *Feed, budget Budget) (more bool) {
	b := f.Watch.Next(s.hub.View(), s.hub.Cursor(f), budget)
	if b.Resync {
		s.printf("RESYNC")
	}
	for _, e := range b.Events {
		kind := map[shard.EventKind]string{shard.EventPut: "PUT", shard.EventDelete: "DELETE", shard.EventExpire: "EXPIRE"}[e.Kind]
		s.printf("%s %s=%q at %d%s%s", kind, e.Key, e.Value.Inline, e.Revision, map[bool]string{true: " created"}[e.Created], map[bool]string{true: " initial"}[e.Initial])
		if e.BeforeKnown {
			s.printf("  before %q of %d", e.Before.Inline, e.Previous)
		}
	}
	if b.Synced {
		s.printf("SYNCED")
	}
	if b.Err != nil {
		s.printf("ends: %s: %s", b.Err.Kind, b.Err.Message)
		return false
	}
	more = s.hub.Took(f, &b)
	if b.Cursor.Listing {
		s.printf("knows keys up to %q as of %d", b.Cursor.Boundary, b.Cursor.Revision)
	} else {
		s.printf("knows all up to %d", b.Cursor.Revision)
	}
	return more
}
