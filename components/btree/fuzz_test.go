package btree

import (
	"maps"
	"testing"
)

// FuzzOps reads a history out of bytes: writes, deletes and clones over few keys of many shapes. Tree and clones must be
// what the models are, and Diff must tell their difference.
func FuzzOps(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("0a1b0c2d0a0b0c3e"))
	var grow []byte
	for i := range 600 {
		grow = append(grow, byte(i%7), byte(i*37), byte(i))
	}
	f.Add(grow)
	f.Fuzz(func(t *testing.T, in []byte) {
		tr, m := new(Tree), model{}
		kept, was := tr.Clone(), model{}
		for len(in) >= 3 {
			op, k := in[0], in[1:3]
			k = k[:1+int(op>>7)]
			if op&0x40 != 0 { // a long shared prefix
				k = append([]byte("a/rather/long/prefix/of/more/than/one/hundred/and/twenty/eight/bytes/so/that/the/length/takes/two/bytes/in/an/item/of/a/leaf/////"), k...)
			}
			in = in[3:]
			switch op & 7 {
			case 7:
				kept, was = tr.Clone(), maps.Clone(m)
			case 5, 6:
				_, existed := tr.Delete(k)
				if _, ok := m[string(k)]; ok != existed {
					t.Fatalf("Delete %q: %v, want %v", k, existed, ok)
				}
				delete(m, string(k))
			default:
				v := in[:min(len(in), 9)]
				old, _ := tr.Set(k, v)
				if string(old) != m[string(k)] {
					t.Fatalf("Set %q returned %q, want %q", k, old, m[string(k)])
				}
				m[string(k)] = string(v)
			}
		}
		verify(t, tr, m)
		verify(t, kept, was)
		verifyDiff(t, tr, kept, m, was)
		verifyDiff(t, kept, tr, was, m)
	})
}
