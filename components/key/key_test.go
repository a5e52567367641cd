package key

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"kvstore/components/kverr"
)

func TestCheck(t *testing.T) {
	long := strings.Repeat("k", MaxKey)
	for _, tc := range []struct {
		key         string
		bytes, text kverr.Kind // Unknown = fine
	}{
		{"", kverr.InvalidArgument, kverr.InvalidArgument},
		{"a", kverr.Unknown, kverr.Unknown},
		{"\x00", kverr.Unknown, kverr.Unknown},
		{"/a/../b//", kverr.Unknown, kverr.Unknown},
		{"\xff", kverr.Unknown, kverr.InvalidArgument},
		{"ok\xc3", kverr.Unknown, kverr.InvalidArgument},
		{"\xed\xa0\x80", kverr.Unknown, kverr.InvalidArgument}, // a lone surrogate
		{"\u00e9\U0001f600", kverr.Unknown, kverr.Unknown},
		{long, kverr.Unknown, kverr.Unknown},
		{long + "k", kverr.TooLarge, kverr.TooLarge},
		{long + "\xff", kverr.TooLarge, kverr.TooLarge},
	} {
		expect(t, tc.key, Check([]byte(tc.key)), tc.bytes, "key")
		expect(t, tc.key, CheckText([]byte(tc.key)), tc.text, "key")
	}
}

func TestCheckName(t *testing.T) {
	long := strings.Repeat("n", MaxName)
	for _, tc := range []struct {
		name string
		want kverr.Kind
	}{
		{"default", kverr.Unknown},
		{"7.a-b_c", kverr.Unknown},
		{long, kverr.Unknown},
		{long + "n", kverr.TooLarge},
		{"", kverr.InvalidArgument},
		{".hidden", kverr.InvalidArgument},
		{"-a", kverr.InvalidArgument},
		{"_a", kverr.InvalidArgument},
		{"Upper", kverr.InvalidArgument},
		{"a/b", kverr.InvalidArgument},
		{"a b", kverr.InvalidArgument},
		{"\u00e9", kverr.InvalidArgument},
		{"a\x00", kverr.InvalidArgument},
	} {
		expect(t, tc.name, CheckName("namespace", tc.name), tc.want, "namespace")
	}
}

func expect(t *testing.T, what string, err error, want kverr.Kind, field string) {
	t.Helper()
	if want == kverr.Unknown {
		if err != nil {
			t.Errorf("%.40q: %v", what, err)
		}
		return
	}
	var e *kverr.Error
	if !errors.As(err, &e) || e.Kind != want || e.Field != field {
		t.Errorf("%.40q: %v, want %v of field %s", what, err, want, field)
	}
}

func TestPartition(t *testing.T) {
	path := func(n int) Rule {
		r, err := PathElements(n)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for _, tc := range []struct {
		rule      Rule
		key, want string
	}{
		{HashTag(), "plain", "plain"},
		{HashTag(), "{user7}/cart", "user7"},
		{HashTag(), "a{user7}b{c}", "user7"},
		{HashTag(), "a{}b{c}", "c"},
		{HashTag(), "a{}b", "a{}b"},
		{HashTag(), "{}", "{}"},
		{HashTag(), "a}b{c}", "c"},
		{HashTag(), "{{a}}", "{a"},
		{HashTag(), "{}}", "{}}"},
		{HashTag(), "{open", "{open"},
		{HashTag(), "{}{open", "{}{open"},
		{path(1), "a/b/c", "a"},
		{path(2), "a/b/c", "a/b"},
		{path(2), "/a/b/c", "/a/b"},
		{path(2), "/a/b", "/a/b"},
		{path(2), "/a/b/", "/a/b"},
		{path(2), "/a", "/a"},
		{path(1), "/", "/"},
		{path(1), "//", "/"},
		{path(2), "a//b", "a/"},
		{path(16), "a/b", "a/b"},
		{WholeNamespace(), "anything", ""},
	} {
		if got := tc.rule.Partition([]byte(tc.key)); string(got) != tc.want {
			t.Errorf("%+v: %q has partition %q, want %q", tc.rule, tc.key, got, tc.want)
		}
	}
	for _, n := range []int{-1, 0, MaxPathElements + 1} {
		_, err := PathElements(n)
		expect(t, "path elements", err, kverr.InvalidArgument, "partition.path_elements")
	}
	if r := path(3); r.Elements() != 3 || r.Whole() || !WholeNamespace().Whole() || HashTag().Elements() != 0 || HashTag() != (Rule{}) {
		t.Error("a rule does not tell what it is")
	}
}

func TestBlockPartitionIsUnambiguous(t *testing.T) {
	seen := map[string]bool{}
	n := 0
	for _, scope := range [][16]byte{{}, {1}, {15: 1}} {
		for _, id := range []string{"a", "a\x00", "\x00a", strings.Repeat("x", MaxBlockID)} {
			for _, rank := range []uint32{0, 1, 256, 1 << 31} {
				for _, group := range []uint32{0, 1, 256, 1 << 31} {
					p := AppendBlock([]byte("before"), scope, []byte(id), rank, group)
					if !bytes.HasPrefix(p, []byte("before")) || len(p)-6 > MaxBlockPartition {
						t.Fatalf("%q is not appended, or longer than %d", p, MaxBlockPartition)
					}
					seen[string(p)] = true
					n++
				}
			}
		}
	}
	if len(seen) != n {
		t.Errorf("%d partition keys for %d blocks", len(seen), n)
	}
}

// FuzzPartition: a partition key is part of its key, has a rule's shape, and is its own partition where the rule promises it.
func FuzzPartition(f *testing.F) {
	for _, k := range []string{"", "a", "{a}", "{}{b}c", "/a/b/c", "//", "{{}}", "}{"} {
		f.Add([]byte(k), 1)
		f.Add([]byte(k), 2)
	}
	f.Fuzz(func(t *testing.T, k []byte, n int) {
		tag := HashTag().Partition(k)
		if !bytes.Contains(k, tag) || len(tag) == 0 && len(k) > 0 {
			t.Fatalf("tag of %q is %q", k, tag)
		}
		if len(tag) < len(k) && (bytes.ContainsRune(tag, '}') || !bytes.Contains(k, append(append([]byte{'{'}, tag...), '}'))) {
			t.Fatalf("tag of %q is %q", k, tag)
		}
		r, err := PathElements(n)
		if err != nil {
			return
		}
		p := r.Partition(k)
		if !bytes.HasPrefix(k, p) || len(p) == 0 && len(k) > 0 {
			t.Fatalf("first %d elements of %q are %q", n, k, p)
		}
		if !bytes.Equal(r.Partition(p), p) {
			t.Fatalf("partition of %q is %q, and that one's is %q", k, p, r.Partition(p))
		}
		if child := append(bytes.Clone(p), "/child"...); len(p) < len(k) && !bytes.Equal(r.Partition(child), p) {
			t.Fatalf("%q and %q are apart", k, child)
		}
	})
}

// FuzzCheck: what passes is within the limits, and no input panics.
func FuzzCheck(f *testing.F) {
	f.Add([]byte("key"))
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, k []byte) {
		if CheckText(k) == nil && Check(k) != nil {
			t.Fatalf("%q is text but no key", k)
		}
		if Check(k) == nil && (len(k) < 1 || len(k) > MaxKey) {
			t.Fatalf("a key of %d bytes passes", len(k))
		}
		if err := CheckName("name", string(k)); err == nil && strings.ContainsAny(string(k), "/ \x00ABC") {
			t.Fatalf("name %q passes", k)
		}
	})
}
