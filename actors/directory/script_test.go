package directory

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"kvstore/components/btree"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

var update = flag.Bool("update", false, "write what scripts print into testdata")

// TestScripts runs testdata/*.txt: steps, a line "----", and what the step prints up to an empty line.
//
//	bootstrap UID SHARDS | keyspace NAME UID SHARDS | delete-keyspace NAME [version=V] [uid=U]
//	namespace KEYSPACE NAME [of=UID] [kind=K] [path=N] [whole] [blocks=N] [bytes=N] [ttl=MS] [by=IDENTITY]
//	update KEYSPACE NAME [of=UID] [uid=N] [blocks=N] [bytes=N] [ttl=MS] [version=V] [by=IDENTITY]
//	delete-namespace KEYSPACE NAME [of=UID] [uid=N] [version=V]
//	finish CHORE | tick MS | ready | rollback | list
//	remember SHARD@EPOCH@SEQ ... | accept SHARD ... | marks SHARD ...
//
// After each file all bodies are replayed by a machine that never saw a command, and by one that was restored half-way: the
// trees must be the same.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { runScript(t, file) })
	}
}

func runScript(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := newScript(t)
	var printed strings.Builder
	for block := range strings.SplitSeq(strings.TrimRight(string(text), "\n"), "\n\n") {
		if strings.HasPrefix(block, "#") {
			fmt.Fprintf(&printed, "%s\n\n", block)
			continue
		}
		steps, want, found := strings.Cut(block, "\n----")
		var got strings.Builder
		for line := range strings.SplitSeq(steps, "\n") {
			got.WriteString(s.step(line))
		}
		fmt.Fprintf(&printed, "%s\n----\n%s\n", steps, got.String())
		if want = strings.TrimPrefix(want, "\n"); !*update && (!found || strings.TrimSpace(want) != strings.TrimSpace(got.String())) {
			t.Errorf("%s: %s\ngot:\n%swant:\n%s", file, steps, got.String(), want)
		}
	}
	s.ready()
	s.replay()
	if *update {
		if err := os.WriteFile(file, []byte(printed.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

type script struct {
	t       *testing.T
	m       *Machine
	durable *btree.Tree
	bodies  [][]byte
	times   []int64
	half    *btree.Tree // state after half of the bodies
	halfAt  int
}

func newScript(t *testing.T) *script {
	m := New()
	return &script{t: t, m: m, durable: m.Tree().Clone(), half: new(btree.Tree)}
}

func (s *script) step(line string) string {
	f := strings.Fields(line)
	options := make(map[string]string)
	var args []string
	for _, a := range f[1:] {
		if name, value, found := strings.Cut(a, "="); found || name == "whole" {
			options[name] = value
		} else {
			args = append(args, a)
		}
	}
	arg := func(i int) string {
		if i >= len(args) {
			return ""
		}
		return args[i]
	}
	number := func(text string) int64 {
		n, err := strconv.ParseInt(text, 10, 64)
		if text != "" && err != nil {
			s.t.Fatalf("%s: %v", line, err)
		}
		return n
	}
	c := &Command{Version: uint64(number(options["version"])), Identity: []byte(options["by"])}
	switch f[0] {
	case "tick":
		s.m.Tick(number(arg(0)))
		return ""
	case "ready":
		return s.ready()
	case "rollback":
		s.m.Ready()
		s.m.Restore(s.durable.Clone())
		return ""
	case "list":
		return s.list()
	case "bootstrap":
		c.Op, c.Keyspace = OpBootstrap, KeyspaceSpec{UID: arg(0), Shards: int(number(arg(1)))}
	case "keyspace":
		c.Op, c.Keyspace = OpCreateKeyspace, KeyspaceSpec{Name: arg(0), UID: arg(1), Shards: int(number(arg(2)))}
	case "delete-keyspace":
		c.Op, c.Keyspace.Name, c.Keyspace.UID = OpDeleteKeyspace, arg(0), options["uid"]
	case "namespace", "update":
		c.Op = OpCreateNamespace
		_, whole := options["whole"]
		c.Namespace = NamespaceSpec{
			Keyspace: arg(0), KeyspaceUID: options["of"], Name: arg(1), UID: uint32(number(options["uid"])), PathElements: int(number(options["path"])), Whole: whole,
			Kind:           kvv1.NamespaceKind(kvv1.NamespaceKind_value["NAMESPACE_KIND_"+strings.ToUpper(options["kind"])]),
			CapacityBlocks: number(options["blocks"]), CapacityBytes: number(options["bytes"]), DefaultTTLMS: number(options["ttl"]), OpsPerSecond: number(options["rate"]),
		}
		if f[0] == "update" {
			c.Op = OpUpdateNamespace
			for name, field := range map[string]Fields{"blocks": FieldCapacityBlocks, "bytes": FieldCapacityBytes, "ttl": FieldDefaultTTL, "rate": FieldOpsPerSecond} {
				if _, set := options[name]; set {
					c.Fields |= field
				}
			}
		}
	case "delete-namespace":
		c.Op = OpDeleteNamespace
		c.Namespace = NamespaceSpec{Keyspace: arg(0), KeyspaceUID: options["of"], Name: arg(1), UID: uint32(number(options["uid"]))}
	case "remember":
		c.Op = OpRemember
		for _, a := range args {
			var mark Mark
			if _, err := fmt.Sscanf(strings.ReplaceAll(a, "@", " "), "%s %d %d", &mark.Shard, &mark.Epoch, &mark.Seq); err != nil {
				s.t.Fatalf("%s: %v", line, err)
			}
			c.Marks = append(c.Marks, mark)
		}
	case "raise":
		c.Op, c.Version = OpRaise, uint64(number(arg(0)))
	case "accept":
		c.Op = OpAcceptLoss
		for _, a := range args {
			c.Marks = append(c.Marks, Mark{Shard: a})
		}
	case "marks":
		return s.marks(args)
	case "finish":
		c.Op, c.Chore = OpFinishChore, uint64(number(arg(0)))
	default:
		s.t.Fatalf("no step %q", f[0])
	}
	s.m.Step(c)
	replies := s.m.Replies(nil)
	if len(replies) != 1 || replies[0].Command != c || replies[0].Dep != s.m.revision {
		s.t.Fatalf("%s: replies %v", line, replies)
	}
	switch {
	case c.Err != nil:
		return fmt.Sprintf("%v: %v\n", c.Err.Kind, c.Err)
	case c.Revision == 0:
		return "nothing changed\n"
	}
	return fmt.Sprintf("revision %d\n", c.Revision)
}

// ready takes what has gathered and makes it durable.
func (s *script) ready() string {
	pending := s.m.Pending()
	r := s.m.Ready()
	if len(r.Body) == 0 {
		return "no record\n"
	}
	if pending < len(r.Body) {
		s.t.Fatalf("Pending said %d, the body has %d bytes", pending, len(r.Body))
	}
	s.bodies, s.times = append(s.bodies, r.Body), append(s.times, r.TimeMS)
	s.durable = s.m.Tree().Clone()
	if len(s.bodies)%2 == 1 {
		s.half, s.halfAt = s.durable, len(s.bodies)
	}
	return fmt.Sprintf("record at revision %d, time %d\n", r.Head, r.TimeMS)
}

func (s *script) list() string {
	c, err := NewCatalog(s.m.Tree())
	if err != nil {
		s.t.Fatal(err)
	}
	var b strings.Builder
	for _, ks := range c.Keyspaces {
		fmt.Fprintf(&b, "%s %s version %d, %d shards, ready %v, made %d\n", ks.Name, ks.UID, ks.Version, len(ks.ShardIDs), ks.Ready, ks.CreatedMS)
		for _, n := range ks.Namespaces {
			found, ok := c.Namespace(ks.Name, n.Name)
			if !ok || found != n {
				s.t.Fatalf("%s/%s is listed and not found", ks.Name, n.Name)
			}
			p := n.Proto()
			fmt.Fprintf(&b, "  %s #%d version %d, %v, %v, blocks %d, bytes %d, ttl %d, made %d\n", n.Name, n.UID, n.Version,
				strings.TrimPrefix(p.Kind.String(), "NAMESPACE_KIND_"), rule(p), n.CapacityBlocks, n.CapacityBytes, n.DefaultTTLMS, n.CreatedMS)
			if n.OpsPerSecond != 0 {
				fmt.Fprintf(&b, "    rate %d\n", n.OpsPerSecond)
			}
		}
	}
	for _, chore := range Chores(s.m.Tree()) {
		fmt.Fprintf(&b, "chore %d: %s of %s %s, %d shards", chore.Id, strings.TrimPrefix(chore.Kind.String(), "KIND_"), chore.Keyspace, chore.KeyspaceUid, chore.Shards)
		if chore.Kind == dataplanev1.DirectoryChore_KIND_RECREATE_SHARD {
			fmt.Fprintf(&b, ", number %d", chore.Number)
		}
		if chore.Namespace != 0 {
			fmt.Fprintf(&b, ", namespace #%d", chore.Namespace)
		}
		b.WriteByte('\n')
	}
	if due := NextDueMS(s.m.Tree()); due != 0 {
		fmt.Fprintf(&b, "%d chores rest, the first until %d; due now: %d\n", s.m.settled, due, len(Due(s.m.Tree(), s.m.now)))
	}
	if b.Len() == 0 {
		return "nothing\n"
	}
	return b.String()
}

// marks prints what is remembered, and what that means for a log that ends just before it.
func (s *script) marks(shards []string) string {
	var b strings.Builder
	for _, m := range MarksOf(s.m.Tree(), shards...) {
		fmt.Fprintf(&b, "%s: record %d of epoch %d, made %v, accepted %v; without a manifest lost: %v", m.Shard, m.Seq, m.Epoch, m.Made, m.Accepted, m.Missing())
		if m.Epoch > 0 {
			fmt.Fprintf(&b, "; behind: %v one record before, %v in the epoch before, %v there", m.Behind(m.Epoch, m.Seq-1), m.Behind(m.Epoch-1, m.Seq), m.Behind(m.Epoch, m.Seq))
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "the catalog has revision %d\n", Revision(s.m.Tree()))
	return b.String()
}

func rule(p *kvv1.Namespace) string {
	switch r := p.Partition.Rule.(type) {
	case *kvv1.PartitionRule_PathElements:
		return fmt.Sprintf("path elements %d", r.PathElements)
	case *kvv1.PartitionRule_Namespace:
		return "whole"
	}
	return "hash tag"
}

// replay holds machines that only replay against the one that decided.
func (s *script) replay() {
	for _, from := range []struct {
		tree *btree.Tree
		at   int
	}{{new(btree.Tree), 0}, {s.half, s.halfAt}} {
		m := New()
		m.Restore(from.tree.Clone())
		for i := from.at; i < len(s.bodies); i++ {
			if err := m.Replay(s.bodies[i], s.times[i]); err != nil {
				s.t.Fatal(err)
			}
		}
		for change := range m.Tree().Diff(s.m.Tree()) {
			s.t.Errorf("replayed from %d: %q differs", from.at, change.Key)
		}
		r := m.Ready()
		if len(r.Body) != 0 || r.Head != s.m.revision {
			s.t.Errorf("replayed from %d: head %d, want %d; body of %d bytes", from.at, r.Head, s.m.revision, len(r.Body))
		}
		if m.visible != s.m.visible || !maps.Equal(m.names, s.m.names) {
			t := s.t
			t.Errorf("replayed from %d: visible revision %d, names %v; want %d, %v", from.at, m.visible, m.names, s.m.visible, s.m.names)
		}
		if m.settled != s.m.settled || !maps.Equal(m.removed, s.m.removed) || NextDueMS(m.Tree()) != NextDueMS(s.m.Tree()) {
			s.t.Errorf("replayed from %d: %d settled, removed %v, wake %d; want %d, %v, %d", from.at, m.settled, m.removed, NextDueMS(m.Tree()), s.m.settled, s.m.removed, NextDueMS(s.m.Tree()))
		}
		if m.keyspaces != s.m.keyspaces || m.namespaces != s.m.namespaces || m.shards != s.m.shards || m.chores != s.m.chores {
			s.t.Errorf("replayed from %d: counts differ: %d %d %d %d, want %d %d %d %d", from.at, m.keyspaces, m.namespaces, m.shards, m.chores,
				s.m.keyspaces, s.m.namespaces, s.m.shards, s.m.chores)
		}
	}
}

// TestLimits: what is one too many is refused with the limit's name, and the machine goes on.
func TestLimits(t *testing.T) {
	m := New()
	run := func(c *Command) error {
		m.Step(c)
		m.Ready()
		if c.Err != nil {
			return c.Err
		}
		return nil
	}
	uid := func(i int) string { return fmt.Sprintf("%016x", i) }
	must := func(c *Command) {
		t.Helper()
		if err := run(c); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what string, c *Command) {
		t.Helper()
		if err := run(c); err == nil || !strings.Contains(err.Error(), what) {
			t.Fatalf("%v; want a refusal that names %q", err, what)
		}
	}
	must(&Command{Op: OpCreateKeyspace, Keyspace: KeyspaceSpec{Name: "k", UID: uid(0), Shards: 1}})
	for i := range MaxNamespaces {
		must(&Command{Op: OpCreateNamespace, Namespace: NamespaceSpec{Keyspace: "k", Name: fmt.Sprint("n", i)}})
	}
	refused("namespaces in a keyspace", &Command{Op: OpCreateNamespace, Namespace: NamespaceSpec{Keyspace: "k", Name: "n"}})
	must(&Command{Op: OpDeleteNamespace, Namespace: NamespaceSpec{Keyspace: "k", Name: "n0"}})
	must(&Command{Op: OpCreateNamespace, Namespace: NamespaceSpec{Keyspace: "k", Name: "n"}})
	for i := 1; i <= 63; i++ {
		must(&Command{Op: OpCreateKeyspace, Keyspace: KeyspaceSpec{Name: fmt.Sprint("k", i), UID: uid(i), Shards: 1024}})
	}
	refused("shards in all keyspaces", &Command{Op: OpCreateKeyspace, Keyspace: KeyspaceSpec{Name: "last", UID: uid(1_000_000), Shards: 1024}})
	for i := 64; i < MaxKeyspaces; i++ {
		must(&Command{Op: OpCreateKeyspace, Keyspace: KeyspaceSpec{Name: fmt.Sprint("k", i), UID: uid(i), Shards: 1}})
	}
	refused("keyspaces", &Command{Op: OpCreateKeyspace, Keyspace: KeyspaceSpec{Name: "last", UID: uid(1_000_000), Shards: 1}})
	must(&Command{Op: OpDeleteKeyspace, Keyspace: KeyspaceSpec{Name: "k1"}})
	must(&Command{Op: OpCreateKeyspace, Keyspace: KeyspaceSpec{Name: "last", UID: uid(1_000_000), Shards: 1}})
}

// TestDamage: a body that was damaged, or that a later release wrote, is refused and never skipped.
func TestDamage(t *testing.T) {
	if err := New().Replay([]byte("\x0a\xff"), 1); err == nil {
		t.Error("a damaged body was replayed")
	}
	// An effect with a field that this release does not know: no kind is set.
	if err := New().Replay([]byte("\x0a\x04\x08\x01\x50\x01"), 1); err == nil {
		t.Error("an unknown effect was replayed")
	}
}

func TestCatalogLookupAllocates(t *testing.T) {
	m := New()
	m.Step(&Command{Op: OpBootstrap, Keyspace: KeyspaceSpec{UID: "00000000000000aa", Shards: 4}})
	m.Ready()
	c, err := NewCatalog(m.Tree())
	if err != nil {
		t.Fatal(err)
	}
	name := bytes.NewBufferString("default").String()
	if n := testing.AllocsPerRun(100, func() {
		if _, ok := c.Namespace(name, name); !ok {
			t.Fatal("default is not there")
		}
	}); n != 0 {
		t.Fatalf("a lookup costs %v allocations", n)
	}
}

// TestWake: the directory wants to be woken while there is something to do, and never at once, so that what cannot be done now does not
// keep it awake.
func TestWake(t *testing.T) {
	m := New()
	step := func(c *Command) {
		t.Helper()
		m.Step(c)
		m.Ready()
		if c.Err != nil {
			t.Fatal(c.Err)
		}
	}
	wakes := func(after, before int64) {
		t.Helper()
		if at := m.WakeMS(); at < m.now+after || at > m.now+before {
			t.Fatalf("at %d it wants to be woken at %d, want in %d to %d ms", m.now, at, after, before)
		}
	}
	if at := m.WakeMS(); at != 0 {
		t.Fatal(at)
	}
	for now := int64(1); now < 5000; now += 700 {
		m.Tick(now)
		step(&Command{Op: OpCreateKeyspace, Keyspace: KeyspaceSpec{Name: fmt.Sprint("k", now), UID: fmt.Sprintf("%016x", now), Shards: 1}})
		wakes(1000, 2000)
	}
	for _, ks := range []int64{1, 701} {
		step(&Command{Op: OpDeleteKeyspace, Keyspace: KeyspaceSpec{Name: fmt.Sprint("k", ks)}})
	}
	for _, c := range Chores(m.Tree()) {
		step(&Command{Op: OpFinishChore, Chore: c.Id})
	}
	wakes(QuarantineMS, QuarantineMS)
	m.Tick(m.now + QuarantineMS)
	if n := len(Due(m.Tree(), m.now)); n != 2 {
		t.Fatalf("%d are due", n)
	}
	wakes(1000, 2000)
	for _, c := range Due(m.Tree(), m.now) {
		step(&Command{Op: OpFinishChore, Chore: c.Id})
	}
	if at := m.WakeMS(); at != 0 {
		t.Fatal(at)
	}
}
