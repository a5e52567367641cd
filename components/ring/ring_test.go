package ring

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/quick"

	"kvstore/components/key"
)

var update = flag.Bool("update", false, "add vectors to testdata/slots.json; those that are there are never changed")

// vector is a line of testdata/slots.json. Bytes are in hexadecimal.
type vector struct {
	Namespace string `json:"namespace"`
	Rule      string `json:"rule"` // hash_tag, path_elements:<n>, namespace
	Key       hex    `json:"key"`
	Partition hex    `json:"partition"`
	Hash      string `json:"xxh3_64"` // 16 hexadecimal digits
	Slot      uint16 `json:"slot"`
}

type hex []byte

func (h hex) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%x", []byte(h)), nil }
func (h *hex) UnmarshalText(b []byte) error {
	*h = nil
	_, err := fmt.Sscanf(string(b)+" ", "%x", (*[]byte)(h))
	if len(b) == 0 {
		err = nil
	}
	return err
}

func ruleOf(t *testing.T, name string) key.Rule {
	t.Helper()
	var n int
	switch name {
	case "hash_tag":
		return key.HashTag()
	case "namespace":
		return key.WholeNamespace()
	default:
		if _, err := fmt.Sscanf(name, "path_elements:%d", &n); err != nil {
			t.Fatalf("rule %q: %v", name, err)
		}
		r, err := key.PathElements(n)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
}

// TestGolden holds rules, hash and slots to vectors that never change: stored keys would be looked for on other shards.
func TestGolden(t *testing.T) {
	path := filepath.Join("testdata", "slots.json")
	var vectors []vector
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &vectors)
	}
	if err != nil && !*update {
		t.Fatal(err)
	}
	if len(vectors) < 40 && !*update {
		t.Fatalf("only %d vectors", len(vectors))
	}
	for _, v := range vectors {
		p := ruleOf(t, v.Rule).Partition(v.Key)
		if got := fmt.Sprintf("%016x", hash(v.Namespace, p)); !bytes.Equal(p, v.Partition) || got != v.Hash || Slot(v.Namespace, p) != v.Slot {
			t.Errorf("%s %s %q: partition %q hash %s slot %d, want %q %s %d", v.Namespace, v.Rule, v.Key, p, got, Slot(v.Namespace, p), v.Partition, v.Hash, v.Slot)
		}
	}
	if !*update {
		return
	}
	keys := []string{"a", "user/1", "{user7}/cart", "a{}b{c}", "/acme/orders/2026/11", "\x00\xff", strings.Repeat("k", 128), strings.Repeat("k", 129), strings.Repeat("0123456789abcdef", 64)}
	for _, ns := range []string{"default", "orders-2", strings.Repeat("n", 64)} {
		for _, rule := range []string{"hash_tag", "path_elements:1", "path_elements:2", "namespace"} {
			for _, k := range keys {
				if slices.ContainsFunc(vectors, func(v vector) bool { return v.Namespace == ns && v.Rule == rule && string(v.Key) == k }) {
					continue
				}
				p := ruleOf(t, rule).Partition([]byte(k))
				vectors = append(vectors, vector{ns, rule, hex(k), p, fmt.Sprintf("%016x", hash(ns, p)), Slot(ns, p)})
			}
		}
	}
	out, err := json.MarshalIndent(vectors, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(out, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestSlotAllocatesNothing(t *testing.T) {
	ns, k := strings.Repeat("n", key.MaxName), bytes.Repeat([]byte("k"), key.MaxKey)
	if n := testing.AllocsPerRun(100, func() { Slot(ns, k) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	// A longer one is hashed as well.
	if long := append(k, k...); hash(ns, long) == hash(ns, k) {
		t.Error("the end of a long partition key does not count")
	}
}

// TestSpread: keys that differ little spread over shards evenly: none is 4 standard deviations off.
func TestSpread(t *testing.T) {
	const keys, shards = 200_000, 64
	m, err := New("u", shards)
	if err != nil {
		t.Fatal(err)
	}
	var count [shards]int
	for i := range keys {
		count[m.Owner(Slot("default", fmt.Appendf(nil, "user/%06d", i)))]++
	}
	mean := float64(keys) / shards
	for s, n := range count {
		if math.Abs(float64(n)-mean) > 4*math.Sqrt(mean) {
			t.Errorf("shard %d has %d keys, the mean is %.0f", s, n, mean)
		}
	}
}

func TestNew(t *testing.T) {
	for _, n := range []int{1, 2, 3, 4, 7, 64, 100, 1000, MaxShards} {
		m, err := New("91f0a2", n)
		if err != nil {
			t.Fatal(err)
		}
		verify(t, m)
		if m.Shards() != n || m.Version() != 1 || m.UID() != "91f0a2" {
			t.Errorf("New(%d): %d shards, version %d, uid %s", n, m.Shards(), m.Version(), m.UID())
		}
		for s := range n {
			if got := m.SlotsOf(s); got != Slots/n && got != Slots/n+1 {
				t.Errorf("New(%d): shard %d has %d slots", n, s, got)
			}
		}
	}
	for _, n := range []int{-1, 0, MaxShards + 1} {
		if _, err := New("u", n); err == nil {
			t.Errorf("New(%d) is no error", n)
		}
	}
}

// verify compares a map with the plain look through its ranges, and with what its encoding says.
func verify(t *testing.T, m *Map) {
	t.Helper()
	counts := make([]int, m.Shards())
	for slot := range Slots {
		want := -1
		for r := range m.Ranges() {
			if int(r.First) <= slot && slot <= int(r.Last) {
				want = r.Shard
				break
			}
		}
		if got := m.Owner(uint16(slot)); got != want {
			t.Fatalf("slot %d: owner %d, want %d", slot, got, want)
		}
		counts[want]++
	}
	for s, n := range counts {
		if m.SlotsOf(s) != n {
			t.Fatalf("shard %d: SlotsOf %d, want %d", s, m.SlotsOf(s), n)
		}
	}
	again, err := Decode(m.Encode())
	if err != nil || !again.Equal(m) {
		t.Fatalf("decoded: %v\n%s\n%s", err, m.Encode(), again.Encode())
	}
}

// cut makes a map of any shape out of random numbers.
func cut(seed []uint16) (*Map, error) {
	ends := []int{Slots - 1}
	for _, s := range seed {
		ends = append(ends, int(s%Slots))
	}
	slices.Sort(ends)
	ends = slices.Compact(ends)
	shards := 1 + len(ends)/2
	var ranges []Range
	first := 0
	for i, end := range ends {
		ranges = append(ranges, Range{uint16(first), uint16(end), i % shards})
		first = end + 1
	}
	return Make("u1", 7, ranges)
}

func TestQuick(t *testing.T) {
	if err := quick.Check(func(seed []uint16, capacity int64) bool {
		m, err := cut(seed)
		if err != nil {
			t.Error(err)
			return false
		}
		verify(t, m)
		if capacity < 0 {
			capacity = -(capacity + 1)
		}
		for _, c := range []int64{0, 1, int64(m.Shards()) - 1, int64(m.Shards()), capacity % 1000, capacity, math.MaxInt64} {
			if !shares(t, m, c) {
				return false
			}
		}
		return true
	}, nil); err != nil {
		t.Error(err)
	}
}

// shares checks the sum and the fairness of a split.
func shares(t *testing.T, m *Map, capacity int64) bool {
	sum := int64(0)
	for s := range m.Shards() {
		share := m.Share(capacity, s)
		if (share == 0) != (capacity == 0) || share < 0 {
			t.Errorf("capacity %d: shard %d has %d", capacity, s, share)
			return false
		}
		ideal := float64(capacity) * float64(m.SlotsOf(s)) / Slots
		if off := math.Abs(float64(share) - ideal); off > 2+float64(m.SlotsOf(s)*m.Shards())/Slots && off > 1e-9*ideal {
			t.Errorf("capacity %d: shard %d with %d slots has %d, fair is %.1f", capacity, s, m.SlotsOf(s), share, ideal)
			return false
		}
		sum += share
	}
	want := capacity
	if capacity > 0 {
		want = max(capacity, int64(m.Shards()))
	}
	if sum != want {
		t.Errorf("capacity %d is split into %d", capacity, sum)
		return false
	}
	return true
}

func TestMakeRefuses(t *testing.T) {
	whole := []Range{{0, Slots - 1, 0}}
	for _, tc := range []struct {
		name    string
		uid     string
		version uint64
		ranges  []Range
	}{
		{"no ranges", "u", 1, nil},
		{"version 0", "u", 0, whole},
		{"empty uid", "", 1, whole},
		{"uid with a dash", "a-b", 1, whole},
		{"uid with a slash", "a/b", 1, whole},
		{"long uid", strings.Repeat("a", 33), 1, whole},
		{"gap", "u", 1, []Range{{0, 9, 0}, {11, Slots - 1, 1}}},
		{"overlap", "u", 1, []Range{{0, 10, 0}, {10, Slots - 1, 1}}},
		{"backwards", "u", 1, []Range{{0, 10, 0}, {11, 5, 1}}},
		{"short", "u", 1, []Range{{0, 10, 0}}},
		{"too long", "u", 1, []Range{{0, Slots, 0}}},
		{"a shard without slots", "u", 1, []Range{{0, 9, 0}, {10, Slots - 1, 2}}},
		{"negative shard", "u", 1, []Range{{0, Slots - 1, -1}}},
		{"shard out of range", "u", 1, []Range{{0, Slots - 1, MaxShards}}},
	} {
		if m, err := Make(tc.uid, tc.version, tc.ranges); err == nil {
			t.Errorf("%s: %s", tc.name, m.Encode())
		}
	}
	for _, bad := range []string{
		``, `{}`, `[]`, `null`,
		`{"format":2,"uid":"u","version":1,"hash":1,"ranges":[[0,4095,0]]}`,
		`{"format":1,"uid":"u","version":1,"hash":2,"ranges":[[0,4095,0]]}`,
		`{"format":1,"uid":"u","version":1,"hash":1,"ranges":[[65536,69631,0]]}`,
		`{"format":1,"uid":"u","version":1,"hash":1,"ranges":[[-65536,4095,0]]}`,
	} {
		if m, err := Decode([]byte(bad)); err == nil {
			t.Errorf("%s: %s", bad, m.Encode())
		}
	}
}

func TestStoredMapIsStillRead(t *testing.T) {
	const stored = `{"format":1,"uid":"91f0a2","version":3,"hash":1,"ranges":[[0,999,0],[1000,2999,1],[3000,4095,0]]}`
	m, err := Decode([]byte(stored))
	if err != nil {
		t.Fatal(err)
	}
	if m.Version() != 3 || m.Shards() != 2 || m.SlotsOf(0) != 2096 || m.Owner(2999) != 1 || m.Owner(3000) != 0 || m.ShardID(1) != "91f0a2-1" {
		t.Errorf("read as %s", m.Encode())
	}
	if string(m.Encode()) != stored {
		t.Errorf("written as %s", m.Encode())
	}
}

func TestParseShardID(t *testing.T) {
	for _, n := range []int{0, 1, 63, MaxShards - 1} {
		uid, got, err := ParseShardID(ShardID("91f0a2", n))
		if err != nil || uid != "91f0a2" || got != n {
			t.Errorf("shard %d: %s %d %v", n, uid, got, err)
		}
	}
	for _, id := range []string{"", "-", "u", "u-", "-1", "u-01", "u-+1", "u--1", "u-1-2", "U-1", "u/-1", "u-1024", "u-x", "u-99999999999999999999"} {
		if uid, n, err := ParseShardID(id); err == nil {
			t.Errorf("%q: %s %d", id, uid, n)
		}
	}
}

// FuzzDecode: what is decoded is a whole map, and encodes to itself.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"format":1,"uid":"u","version":3,"hash":1,"ranges":[[0,999,0],[1000,2999,1],[3000,4095,0]]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := Decode(b); err == nil {
			verify(t, m)
			shares(t, m, 1000)
		}
	})
}

// FuzzParseShardID: what is parsed formats to itself.
func FuzzParseShardID(f *testing.F) {
	f.Add("91f0a2-17")
	f.Fuzz(func(t *testing.T, id string) {
		if uid, n, err := ParseShardID(id); err == nil && ShardID(uid, n) != id {
			t.Fatalf("%q is parsed as %q", id, ShardID(uid, n))
		}
	})
}

func BenchmarkSlotAndOwner(b *testing.B) {
	m, err := New("u", 64)
	if err != nil {
		b.Fatal(err)
	}
	k := []byte("user/00001234/cart")
	b.ReportAllocs()
	for b.Loop() {
		m.Owner(Slot("default", key.HashTag().Partition(k)))
	}
}
