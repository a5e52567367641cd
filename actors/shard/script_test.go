package shard

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"kvstore/actors/host"
	pb "kvstore/proto/gen/kvstore/dataplane/v1"
)

// Scripts are conversations with one machine: testdata/*.txt, blocks of a command, a line of dashes, and what it answers.
// With -rewrite the answers are written anew; understand the difference before you commit it.
var rewrite = flag.Bool("rewrite", false, "rewrite the expectations of testdata/*.txt")

func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runScript(string(text))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			gotLines, wantLines := strings.Split(got, "\n"), strings.Split(string(text), "\n")
			for i := range min(len(gotLines), len(wantLines)) {
				if gotLines[i] != wantLines[i] {
					t.Fatalf("%s:%d: got\n\t%s\nwant\n\t%s", file, i+1, gotLines[i], wantLines[i])
				}
			}
			if len(gotLines) != len(wantLines) {
				t.Fatalf("%s: %d lines, want %d", file, len(gotLines), len(wantLines))
			}
		})
	}
}

// script is the environment that commands run in.
type script struct {
	cfg     Config
	m       *Machine
	names   map[*Command]string // what a reply is to
	records []durable           // all, oldest first; the first is the empty tree
	out     bytes.Buffer
}

// runScript answers a script: its text with every answer filled in.
func runScript(text string) string {
	s := &script{names: map[*Command]string{}}
	s.start(Config{})
	var out strings.Builder
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		out.WriteString(line)
		if i < len(lines)-1 {
			out.WriteByte('\n')
		}
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		// The old answer ends at an empty line.
		for i+1 < len(lines) && lines[i+1] != "" {
			i++
		}
		s.out.Reset()
		s.run(strings.Fields(line))
		out.WriteString("----\n")
		out.Write(s.out.Bytes())
	}
	return out.String()
}

func (s *script) start(cfg Config) {
	s.cfg = cfg
	s.m = New(cfg)
	s.records = []durable{{tree: s.m.Tree().Clone()}}
}

func (s *script) printf(format string, args ...any) { fmt.Fprintf(&s.out, format+"\n", args...) }

// args are the name=value words of a command; a word alone is its own value.
type args map[string]string

func parse(words []string) args {
	a := args{}
	for _, w := range words {
		name, value, ok := strings.Cut(w, "=")
		if !ok {
			value = name
		}
		a[name] = value
	}
	return a
}

func (a args) num(name string) int64 {
	n, err := strconv.ParseInt(a[name], 10, 64)
	if err != nil && a[name] != "" {
		panic(fmt.Sprintf("%s=%s is no number", name, a[name]))
	}
	return n
}

func (a args) namespace() NamespaceID {
	if a["ns"] == "" {
		return 1
	}
	return NamespaceID(a.num("ns"))
}

// ref reads epoch.counter:offset+length/total.
func (a args) ref(name string) (f Ref) {
	if a[name] != "" {
		if _, err := fmt.Sscanf(a[name], "%d.%d:%d+%d/%d", &f.Object.Epoch, &f.Object.Counter, &f.Offset, &f.Length, &f.ObjectBytes); err != nil {
			panic(fmt.Sprintf("%s=%s is no reference: %v", name, a[name], err))
		}
	}
	return f
}

func (a args) condition() Precondition {
	switch {
	case a["if_absent"] != "":
		return Precondition{Check: CheckAbsent}
	case a["if_present"] != "":
		return Precondition{Check: CheckPresent}
	case a["if_version"] != "":
		return Precondition{Check: CheckVersion, Version: uint64(a.num("if_version"))}
	}
	return Precondition{}
}

func (a args) put() Put {
	p := Put{
		Key: []byte(a["key"]), Value: Value{Inline: []byte(a["value"]), Ref: a.ref("ref")}, If: a.condition(),
		TTLMS: a.num("ttl"), KeepTTL: a["keep_ttl"] != "", ContentType: a["type"], Encoding: a["encoding"], Slot: uint16(a.num("slot")),
	}
	if a["meta"] != "" {
		p.Metadata = []Pair{{"m", a["meta"]}}
	}
	if a["tag"] != "" {
		p.Tags = []Pair{{"t", a["tag"]}}
	}
	return p
}

// identity reads id=client/op/not_after.
func (a args) identity() (id Identity) {
	if a["id"] != "" {
		if _, err := fmt.Sscanf(a["id"], "%d/%d/%d", &id.Client[0], &id.Op, &id.NotAfterMS); err != nil {
			panic(fmt.Sprintf("id=%s: %v", a["id"], err))
		}
	}
	return id
}

func (s *script) run(words []string) {
	a := parse(words[1:])
	c := &Command{Namespace: a.namespace(), ID: a.identity()}
	switch words[0] {
	case "new": // another machine, with a config
		s.start(Config{
			MemoryBudget: a.num("budget"), HistoryChanges: a.num("changes"), HistoryBytes: a.num("bytes"),
			TickBudget: int(a.num("tick")), DropBudget: int(a.num("drop")), chunkChanges: a.num("chunk"),
		})
		s.printf("ok")
	case "tick":
		s.m.Tick(a.num("at"))
		s.printf("time=%d revision=%d", s.m.now, s.m.meta.revision)
	case "put":
		c.Op, c.Put = OpPut, a.put()
		s.step(c, words)
	case "delete":
		c.Op, c.Delete = OpDelete, Delete{Key: []byte(a["key"]), If: a.condition(), Slot: uint16(a.num("slot"))}
		s.step(c, words)
	case "txn": // txn [id=] {put|delete|if ...}, parts begin with those words
		c.Op, c.Txn = OpTxn, &Txn{}
		for _, part := range parts(words[1:]) {
			p := parse(part[1:])
			switch part[0] {
			case "if":
				c.Txn.Conditions = append(c.Txn.Conditions, Condition{Key: []byte(p["key"]), If: p.condition()})
			case "put":
				put := p.put()
				c.Txn.Ops = append(c.Txn.Ops, TxnOp{Put: &put})
			case "delete":
				c.Txn.Ops = append(c.Txn.Ops, TxnOp{Delete: &Delete{Key: []byte(p["key"]), If: p.condition()}})
			}
		}
		s.step(c, words)
	case "add":
		c.Op, c.Edit = OpEdit, &Edit{Key: []byte(a["key"]), Kind: EditAdd, Delta: a.num("delta"), TTLMS: a.num("ttl")}
		s.step(c, words)
	case "append":
		c.Op, c.Edit = OpEdit, &Edit{Key: []byte(a["key"]), Kind: EditAppend, Bytes: []byte(a["bytes"]), MaxBytes: a.num("max"), TTLMS: a.num("ttl")}
		s.step(c, words)
	case "expire":
		c.Op, c.Edit = OpEdit, &Edit{Key: []byte(a["key"]), Kind: EditExpire, ExpiresMS: a.num("at"), When: EditWhen(a.num("when"))}
		s.step(c, words)
	case "drop":
		c.Op = OpDropNamespace
		s.step(c, words)
	case "relocate":
		c.Op, c.Relocate = OpRelocate, &Relocate{Key: appendDataKey(nil, c.Namespace, []byte(a["key"])), From: a.ref("from"), To: a.ref("to")}
		s.step(c, words)
	case "forget":
		c.Op, c.Forget = OpForget, []ObjectID{a.ref("object").Object}
		s.step(c, words)
	case "op":
		c.Op = Op(a.num("number"))
		s.step(c, words)
	case "ready":
		s.ready()
	case "replies":
		s.replies(s.m.Replies(nil))
	case "wake":
		s.printf("wake=%d", s.m.WakeMS())
	case "rollback":
		s.m.Restore(s.records[len(s.records)-1].tree.Clone())
		s.printf("revision=%d", s.m.meta.revision)
	case "restart": // a new owner: from the record, by replay
		m := New(s.cfg)
		from := int(a.num("from"))
		m.Restore(s.records[from].tree.Clone())
		for _, r := range s.records[from+1:] {
			if err := m.Replay(r.body, r.time); err != nil {
				s.printf("error: %v", err)
				return
			}
		}
		if err := sameTree(m.Tree(), s.records[len(s.records)-1].tree); err != nil {
			s.printf("error: %v", err)
		}
		s.m = m
		s.printf("revision=%d time=%d", m.meta.revision, m.now)
	default:
		s.read(words[0], a)
	}
}

func parts(words []string) (all [][]string) {
	for _, w := range words {
		switch {
		case w == "if" || w == "put" || w == "delete":
			all = append(all, []string{w})
		case len(all) > 0:
			all[len(all)-1] = append(all[len(all)-1], w)
		}
	}
	return all
}

// step prints the outcome; when it may leave is told by ready.
func (s *script) step(c *Command, words []string) {
	s.names[c] = strings.Join(words, " ")
	s.m.Step(c)
	r := &c.Result
	var b strings.Builder
	if r.Duplicate {
		b.WriteString("duplicate ")
	}
	switch {
	case r.Err != nil:
		fmt.Fprintf(&b, "%v", r.Err.Kind)
		if r.Err.CurrentVersion != 0 {
			fmt.Fprintf(&b, " current=%d", r.Err.CurrentVersion)
		}
		if r.Err.Field != "" {
			fmt.Fprintf(&b, " field=%s", r.Err.Field)
		}
		fmt.Fprintf(&b, " (%s)", r.Err.Message)
	case c.Op == OpTxn:
		fmt.Fprintf(&b, "committed=%v revision=%d", r.Committed, r.Revision)
		for i, w := range r.Writes {
			fmt.Fprintf(&b, "\n  op %d: version=%d existed=%v", i, w.Version, w.Existed)
		}
		for _, f := range r.Failures {
			fmt.Fprintf(&b, "\n  failed: condition=%d op=%d current=%d", f.Condition, f.Op, f.Version)
		}
	case c.Op == OpDropNamespace:
		fmt.Fprintf(&b, "revision=%d deleted=%d more=%v", r.Revision, r.Deleted, r.More)
	case c.Op == OpEdit:
		fmt.Fprintf(&b, "number=%d version=%d existed=%v", r.Number, r.Write.Version, r.Write.Existed)
	case c.Op == OpPut || c.Op == OpDelete:
		fmt.Fprintf(&b, "version=%d existed=%v", r.Write.Version, r.Write.Existed)
	default:
		fmt.Fprintf(&b, "revision=%d", r.Revision)
	}
	s.printf("%s", b.String())
}

func (s *script) ready() {
	r := s.m.Ready()
	if len(r.Body) == 0 {
		s.printf("nothing to append, head=%d", r.Head)
	} else {
		var body pb.EffectBody
		if err := proto.Unmarshal(r.Body, &body); err != nil {
			s.printf("error: %v", err)
		}
		s.printf("append head=%d time=%d", r.Head, r.TimeMS)
		for _, e := range body.Effects {
			k := e.ProtoReflect().WhichOneof(e.ProtoReflect().Descriptor().Oneofs().Get(0))
			s.printf("  %d %s", e.Revision, strings.ToUpper(string(k.Name())))
		}
		s.records = append(s.records, durable{s.m.Tree().Clone(), r.Body, r.TimeMS, r.Head})
	}
	s.replies(r.Replies)
}

func (s *script) replies(replies []host.Gated[*Command]) {
	for _, g := range replies {
		outcome := ""
		if g.Command.Result.Err != nil {
			outcome = ", " + g.Command.Result.Err.Kind.String()
		}
		s.printf("reply once %d is durable: %s%s", g.Dep, s.names[g.Command], outcome)
	}
}

// read answers from the last durable state, as a frontend does.
func (s *script) read(what string, a args) {
	v := NewView(s.records[len(s.records)-1].tree)
	switch what {
	case "get":
		e, ok, _ := v.Get(a.namespace(), []byte(a["key"]))
		if !ok {
			s.printf("absent at revision %d", v.Revision())
			return
		}
		s.entry(e)
	case "list":
		page, more, _ := v.List(a.namespace(), ListQuery{
			Prefix: []byte(a["prefix"]), Start: []byte(a["start"]), End: []byte(a["end"]), After: []byte(a["after"]),
			Limit: int(a.num("limit")), MaxBytes: a.num("bytes"), KeysOnly: a["keys_only"] != "",
		})
		for _, e := range page {
			s.entry(e)
		}
		s.printf("more=%v", more)
	case "count":
		items, bytes := v.Usage(a.namespace())
		s.printf("selected=%d of %d items, %d bytes", v.Count(a.namespace(), ListQuery{
			Prefix: []byte(a["prefix"]), Start: []byte(a["start"]), End: []byte(a["end"]), After: []byte(a["after"]),
		}), items, bytes)
	case "history":
		changes, ok := v.Changes(uint64(a.num("after")))
		if !ok {
			s.printf("compacted, oldest=%d", v.OldestRevision())
			return
		}
		for e := range changes {
			name := map[EventKind]string{EventPut: "PUT", EventDelete: "DELETE", EventExpire: "EXPIRE", EventDrop: "DROP"}[e.Kind]
			before := ""
			if b, ok := v.Before(e); ok {
				before = fmt.Sprintf(" before=%q", b.Inline)
			}
			s.printf("%d %s %q previous=%d created=%v value=%q%s", e.Revision, name, e.Key, e.Previous, e.Created, e.Value.Inline, before)
		}
	case "objects":
		for id := range DeadObjects(v) {
			s.printf("dead %d.%d", id.Epoch, id.Counter)
		}
		for o := range SparseObjects(v, 0.5) {
			s.printf("sparse %d.%d: %d of %d bytes in %d values", o.ID.Epoch, o.ID.Counter, o.Live, o.TotalBytes, o.Values)
			for r := range Residents(v, o.ID) {
				_, key, _ := splitDataKey(r.Key)
				s.printf("  %q at %d", key, r.Ref.Offset)
			}
		}
	case "outcomes":
		s.printf("%d remembered", v.meta.identities)
	default:
		s.printf("error: no command %q", what)
	}
}

func (s *script) entry(e Entry) {
	fmt.Fprintf(&s.out, "%q=%q version=%d created=%d updated=%d", e.Key, e.Value.Inline, e.Version, e.CreatedMS, e.UpdatedMS)
	if e.ExpiresMS != 0 {
		fmt.Fprintf(&s.out, " expires=%d", e.ExpiresMS)
	}
	if r := e.Value.Ref; r.Object.Epoch != 0 {
		fmt.Fprintf(&s.out, " at %d.%d:%d+%d", r.Object.Epoch, r.Object.Counter, r.Offset, r.Length)
	}
	if e.ContentType+e.Encoding != "" {
		fmt.Fprintf(&s.out, " type=%q encoding=%q", e.ContentType, e.Encoding)
	}
	if m := e.Metadata(); m != nil {
		fmt.Fprintf(&s.out, " metadata=%v", m)
	}
	if t := e.Tags(); t != nil {
		fmt.Fprintf(&s.out, " tags=%v", t)
	}
	s.out.WriteByte('\n')
}
