package hosttest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing/synctest"

	"kvstore/actors/host"
	"kvstore/actors/host/values"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal/waltest/fault"
)

// blob makes a value of n bytes that no other call makes.
func blob(seed, n int) []byte {
	r := rand.New(rand.NewPCG(uint64(seed), 1))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

// store writes values that must be stored.
func (c *cluster) storeValues(h Host, values ...[]byte) []shard.Ref {
	c.t.Helper()
	refs, err := h.PutValues(c.t.Context(), one, values...)
	if err != nil {
		c.t.Fatal(err)
	}
	return refs
}

// holds fails unless a key has a value apart.
func (c *cluster) holds(h Host, key string, want []byte) {
	c.t.Helper()
	v, err := h.View(c.t.Context(), one)
	if err != nil {
		c.t.Fatal(err)
	}
	e, ok, _ := v.Get(ns, []byte(key))
	if !ok {
		c.t.Fatalf("%s is not there", key)
	}
	got := make([]byte, e.Value.Ref.Length)
	if err := h.ReadValue(c.t.Context(), one, e.Value.Ref, 0, got); err != nil {
		c.t.Fatalf("%s: %v", key, err)
	}
	if !bytes.Equal(got, want) {
		c.t.Fatalf("%s has another value", key)
	}
}

// testPack: values of concurrent callers share objects; each finds its own.
func testPack(c *cluster) {
	h := c.host(Options{Values: values.Config{Writers: 1, ObjectBytes: 64 << 10}})
	c.must(h, put("a", "1"))
	frozen := c.fault.Add(fault.Rule{Verb: fault.Put, Freeze: true})
	refs := make([][]shard.Ref, 21)
	var all sync.WaitGroup
	store := func(i int) {
		all.Go(func() { refs[i] = c.storeValues(h, blob(i, 2000), blob(i+100, 3000)) })
	}
	store(0)
	<-frozen.Hit()
	for i := 1; i <= 20; i++ {
		store(i)
	}
	synctest.Wait()
	frozen.Thaw()
	all.Wait()
	if n := c.objects(); n != 3 { // the first, then 20 times 5,000 bytes in two of at most 65,536
		c.t.Fatalf("%d objects, want 3", n)
	}
	for i, r := range refs {
		c.must(h, putRef(key(i), r[0]))
		c.must(h, putRef(key(i+100), r[1]))
	}
	h = c.restart(h, Options{}, true)
	for i := range refs {
		c.holds(h, key(i), blob(i, 2000))
		c.holds(h, key(i+100), blob(i+100, 3000))
	}
}

// testStream: a value from a stream is stored if it has the length that was announced, and not otherwise.
func testStream(c *cluster) {
	h := c.host(Options{})
	value := blob(1, 300_000)
	for _, size := range []int64{299_999, 300_001, 0} {
		_, err := h.WriteValue(c.t.Context(), one, size, bytes.NewReader(value))
		c.kind(err, kverr.InvalidArgument)
	}
	broken := errors.New("the caller's stream broke")
	_, err := h.WriteValue(c.t.Context(), one, 300_000, &brokenReader{bytes.NewReader(value[:1000]), broken})
	if err == nil || !errors.Is(err, broken) {
		c.t.Fatal(err)
	}
	ref, err := h.WriteValue(c.t.Context(), one, 300_000, bytes.NewReader(value))
	if err != nil {
		c.t.Fatal(err)
	}
	c.must(h, putRef("a", ref))
	c.holds(h, "a", value)
	part := make([]byte, 100)
	if err := h.ReadValue(c.t.Context(), one, ref, 299_900, part); err != nil || !bytes.Equal(part, value[299_900:]) {
		c.t.Fatal(err)
	}
	c.kind(h.ReadValue(c.t.Context(), one, ref, 299_901, part), kverr.InvalidArgument)
}

type brokenReader struct {
	r   *bytes.Reader
	err error
}

func (b *brokenReader) Read(p []byte) (int, error) {
	if b.r.Len() == 0 {
		return 0, b.err
	}
	return b.r.Read(p)
}

// testOrphans: an object that no command named in the end is deleted at once; one of which a part was named stays.
func testOrphans(c *cluster) {
	h := c.host(Options{})
	c.must(h, put("there", "1"))
	refs := c.storeValues(h, blob(1, 2000))
	h.DropValues(one, refs...)
	synctest.Wait()
	if n := c.objects(); n != 0 {
		c.t.Fatalf("%d objects after a drop", n)
	}

	refs = c.storeValues(h, blob(1, 2000), blob(2, 2000))
	failed := putRef("there", refs[0])
	failed.Put.If = shard.Precondition{Check: shard.CheckAbsent}
	c.kind(c.do(h, failed), kverr.AlreadyExists)
	synctest.Wait()
	if n := c.objects(); n != 1 {
		c.t.Fatalf("%d objects with a reference on its way", n)
	}
	h.DropValues(one, refs[1])
	synctest.Wait()
	if n := c.objects(); n != 0 {
		c.t.Fatalf("%d objects after a failed condition and a drop", n)
	}

	// A transaction that does not commit, and one that does.
	for _, commit := range []bool{false, true} {
		refs = c.storeValues(h, blob(3, 2000), blob(4, 2000))
		check := shard.CheckAbsent
		if commit {
			check = shard.CheckPresent
		}
		txn := &shard.Txn{
			Conditions: []shard.Condition{{Key: []byte("there"), If: shard.Precondition{Check: check}}},
			Ops:        []shard.TxnOp{{Put: &putRef("x", refs[0]).Put}, {Put: &putRef("y", refs[1]).Put}},
		}
		c.must(h, &shard.Command{Op: shard.OpTxn, Namespace: ns, Txn: txn})
		synctest.Wait()
		if n := c.objects(); (n == 1) != commit {
			c.t.Fatalf("%d objects, committed %v", n, commit)
		}
	}
	c.holds(h, "x", blob(3, 2000))
	c.holds(h, "y", blob(4, 2000))

	// A repeated write is answered with its first outcome; the value of the second try goes.
	id := shard.Identity{Client: [16]byte{1}, Op: 1, NotAfterMS: nowMS() + 60_000}
	for try := range 2 {
		cmd := putRef("z", c.storeValues(h, blob(5+try, 2000))[0])
		cmd.ID = id
		c.must(h, cmd)
		if cmd.Result.Duplicate != (try == 1) {
			c.t.Fatalf("try %d: duplicate %v", try, cmd.Result.Duplicate)
		}
	}
	synctest.Wait()
	if n := c.objects(); n != 2 {
		c.t.Fatalf("%d objects after a duplicate, want 2", n)
	}
	c.holds(h, "z", blob(5, 2000))
}

// testDead: an object is deleted once nothing names it any more and that is checkpointed, not before.
func testDead(c *cluster) {
	o := Options{Actor: host.Config{CheckpointRecords: 10}}
	h := c.host(o)
	c.must(h, putRef("a", c.storeValues(h, blob(1, 2000))[0]))
	c.must(h, putRef("a", c.storeValues(h, blob(2, 2000))[0]))
	synctest.Wait()
	if n := c.objects(); n != 2 {
		c.t.Fatalf("%d objects before a checkpoint, want 2", n)
	}
	for i := range 10 {
		c.must(h, put(key(i), "x"))
	}
	synctest.Wait()
	if n := c.objects(); n != 1 {
		c.t.Fatalf("%d objects after a checkpoint, want 1", n)
	}
	if v, err := h.View(c.t.Context(), one); err != nil || v.Totals().Objects != 1 {
		c.t.Fatalf("the state knows %d objects, %v; it must forget what was deleted", v.Totals().Objects, err)
	}
	c.holds(h, "a", blob(2, 2000))
	h = c.restart(h, o, false)
	c.holds(h, "a", blob(2, 2000))
}

// testOnTheirWay: an object of which one value is dead already is not deleted while another is still on its way.
func testOnTheirWay(c *cluster) {
	h := c.host(Options{Actor: host.Config{CheckpointRecords: 10}})
	c.must(h, put("a", "1"))
	refs := c.storeValues(h, blob(1, 2000), blob(2, 2000))
	c.must(h, putRef("a", refs[0]))
	c.must(h, remove("a")) // dead, as far as the state knows
	for i := range 30 {
		c.must(h, put(key(i), "x"))
		synctest.Wait() // a wish for a checkpoint while one runs is dropped, and the next write makes another: none is left undone
	}
	if n := c.objects(); n != 1 {
		c.t.Fatalf("%d objects, want 1: a reference is on its way", n)
	}
	c.must(h, putRef("b", refs[1]))
	c.holds(h, "b", blob(2, 2000))
	c.must(h, remove("b"))
	for i := range 30 {
		c.must(h, put(key(i), "x"))
		synctest.Wait() // a wish for a checkpoint while one runs is dropped, and the next write makes another: none is left undone
	}
	if n := c.objects(); n != 0 {
		c.t.Fatalf("%d objects, want 0", n)
	}
}

// testReuse: a caller uses its commands, with the Done that they have, again and again; each use settles its own references.
func testReuse(c *cluster) {
	h := c.host(Options{})
	c.must(h, put("there", "1"))
	released := make(chan error, 1)
	cmd := putRef("", shard.Ref{})
	uses := 0
	cmd.Done = func(cmd *shard.Command, err error) {
		uses++
		if err == nil && cmd.Result.Err != nil {
			err = cmd.Result.Err
		}
		released <- err
	}
	use := func(key string, ref shard.Ref, check shard.Check) error {
		cmd.Put.Key, cmd.Put.Value.Ref, cmd.Put.If.Check = []byte(key), ref, check
		h.Do(c.t.Context(), one, cmd)
		return <-released
	}
	// Three references in one object: were the second use to settle twice, the object would be an orphan while the third is on
	// its way.
	refs := c.storeValues(h, blob(1, 2000), blob(2, 2000), blob(3, 2000))
	for _, ref := range refs[:2] {
		c.kind(use("there", ref, shard.CheckAbsent), kverr.AlreadyExists)
	}
	synctest.Wait()
	if n := c.objects(); n != 1 {
		c.t.Fatalf("%d objects with a reference on its way", n)
	}
	if err := use("c", refs[2], shard.CheckNone); err != nil {
		c.t.Fatal(err)
	}
	c.holds(h, "c", blob(3, 2000))
	if uses != 3 {
		c.t.Fatalf("Done was called %d times in 3 uses", uses)
	}
}

// testOtherEpoch: a reference from before the shard was opened again is refused as not applied, because its object may be swept.
func testOtherEpoch(c *cluster) {
	h := c.host(Options{})
	c.must(h, put("a", "1"))
	ref := c.storeValues(h, blob(1, 2000))[0]
	c.fault.Add(fault.Rule{Verb: fault.Append, Err: errors.New("lost")})
	c.kind(c.do(h, put("a", "2")), kverr.OutcomeUnknown)
	c.kind(c.do(h, putRef("b", ref)), kverr.Unavailable)
	c.is(h, "b", "")
	synctest.Wait()
	if n := c.objects(); n != 0 {
		c.t.Fatalf("%d objects, want 0: the sweep takes it", n)
	}
	h.DropValues(one, ref)
	c.must(h, putRef("b", c.storeValues(h, blob(1, 2000))[0]))
	c.holds(h, "b", blob(1, 2000))
}

// testSweep: what was written and not named when a host ended is swept by the next; what is named stays.
func testSweep(c *cluster) {
	h := c.host(Options{})
	c.must(h, putRef("a", c.storeValues(h, blob(1, 2000))[0]))
	for i := range 5 {
		c.storeValues(h, blob(10+i, 2000))
	}
	if n := c.objects(); n != 6 {
		c.t.Fatalf("%d objects, want 6", n)
	}
	h = c.restart(h, Options{}, false)
	c.holds(h, "a", blob(1, 2000))
	synctest.Wait()
	if n := c.objects(); n != 1 {
		c.t.Fatalf("%d objects after the sweep, want 1", n)
	}
}

// testCompact: the values of objects that are mostly dead are copied, so that those can be deleted; readers find them all the time.
func testCompact(c *cluster) {
	h := c.host(Options{Actor: host.Config{CheckpointRecords: 20}})
	var batch [][]byte
	for i := range 20 {
		batch = append(batch, blob(i, 2000))
	}
	for i, r := range c.storeValues(h, batch...) {
		c.must(h, putRef(key(i), r))
	}
	for i := range 17 {
		c.must(h, remove(key(i)))
	}
	before := make(map[string]shard.Ref)
	v, err := h.View(c.t.Context(), one)
	if err != nil {
		c.t.Fatal(err)
	}
	for i := 17; i < 20; i++ {
		e, _, _ := v.Get(ns, []byte(key(i)))
		before[key(i)] = e.Value.Ref
	}
	for range 3 { // the copies are made after one checkpoint, the object goes after another
		for i := range 20 {
			c.must(h, put("other"+key(i), "x"))
		}
		synctest.Wait()
	}
	if n := c.objects(); n != 1 {
		c.t.Fatalf("%d objects, want 1", n)
	}
	v, err = h.View(c.t.Context(), one)
	if err != nil {
		c.t.Fatal(err)
	}
	for i := 17; i < 20; i++ {
		c.holds(h, key(i), blob(i, 2000))
		e, _, _ := v.Get(ns, []byte(key(i)))
		if e.Value.Ref.Object == before[key(i)].Object {
			c.t.Fatalf("%s was not moved", key(i))
		}
		// A reader that still has the old reference is told that it is gone, so that it looks the key up again.
		c.kind(h.ReadValue(c.t.Context(), one, before[key(i)], 0, make([]byte, 10)), kverr.NotFound)
	}
}
