package directory

import (
	"fmt"
	"iter"

	"kvstore/components/btree"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// Changes yields what turns a durable state into a later one, as far as a Catalog shows it: keyspaces and namespaces that are new or other,
// and those that are gone. A nil from is a directory without any. Its cost is that of the changes, unless from is nil.
func Changes(from, to *btree.Tree) iter.Seq2[*dataplanev1.DirectoryEffect, error] {
	return func(yield func(*dataplanev1.DirectoryEffect, error) bool) {
		if from != nil {
			for c := range to.Diff(from) {
				if c.Key[0] != prefixKeyspace && c.Key[0] != prefixNamespace {
					continue
				}
				item := c.Value
				if c.Deleted {
					item, _ = from.Get(c.Key)
				}
				if !yield(changeOf(c.Key, item, c.Deleted)) {
					return
				}
			}
			return
		}
		for k, item := range to.Ascend([]byte{prefixKeyspace}, []byte{prefixNamespace + 1}) {
			if !yield(changeOf(k, item, false)) {
				return
			}
		}
	}
}

func changeOf(k, item []byte, gone bool) (*dataplanev1.DirectoryEffect, error) {
	e := new(dataplanev1.DirectoryEffect)
	if k[0] == prefixKeyspace {
		ks := new(dataplanev1.DirectoryKeyspace)
		if err := ks.UnmarshalVT(item); err != nil {
			return nil, fmt.Errorf("directory: a keyspace: %w", err)
		}
		e.Kind = &dataplanev1.DirectoryEffect_PutKeyspace{PutKeyspace: ks}
		if gone {
			e.Kind = &dataplanev1.DirectoryEffect_DeleteKeyspace{DeleteKeyspace: ks.Name}
		}
		return e, nil
	}
	ns := new(dataplanev1.DirectoryNamespace)
	if err := ns.UnmarshalVT(item); err != nil {
		return nil, fmt.Errorf("directory: a namespace: %w", err)
	}
	e.Kind = &dataplanev1.DirectoryEffect_PutNamespace{PutNamespace: ns}
	if gone {
		e.Kind = &dataplanev1.DirectoryEffect_DeleteNamespace{DeleteNamespace: &dataplanev1.DirectoryNamespaceName{Keyspace: ns.Keyspace, Name: ns.Name}}
	}
	return e, nil
}

// Replica is a copy of the directory as far as a Catalog shows it, kept from Changes. One goroutine at a time.
type Replica struct{ tree *btree.Tree }

// NewReplica makes a copy of a directory without keyspaces.
func NewReplica() *Replica { return &Replica{new(btree.Tree)} }

// Apply makes one change.
func (r *Replica) Apply(e *dataplanev1.DirectoryEffect) error {
	switch k := e.Kind.(type) {
	case *dataplanev1.DirectoryEffect_PutKeyspace:
		return put(r.tree, keyspaceKey(k.PutKeyspace.GetName()), k.PutKeyspace)
	case *dataplanev1.DirectoryEffect_DeleteKeyspace:
		r.tree.Delete(keyspaceKey(k.DeleteKeyspace))
		return nil
	case *dataplanev1.DirectoryEffect_PutNamespace:
		return put(r.tree, namespaceKey(k.PutNamespace.GetKeyspace(), k.PutNamespace.GetName()), k.PutNamespace)
	case *dataplanev1.DirectoryEffect_DeleteNamespace:
		r.tree.Delete(namespaceKey(k.DeleteNamespace.GetKeyspace(), k.DeleteNamespace.GetName()))
		return nil
	}
	return fmt.Errorf("directory: a change of a kind %T that this release does not know", e.Kind)
}

// Catalog returns the catalog of the copy, which has come to a revision.
func (r *Replica) Catalog(revision uint64) (*Catalog, error) {
	c, err := NewCatalog(r.tree)
	if err != nil {
		return nil, err
	}
	c.Revision = revision
	return c, nil
}
