package frontend

import (
	"context"
	"encoding/binary"
	"hash/crc32"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// A lease token is
//
//	01            version
//	uid:8         keyspace
//	lease:16      random; the same on all shards
//	uvarint*      numbers of the shards that hold a part of it
//	crc:4         CRC32C of all before it
//
// Whoever knows a token may end the lease; it can do no more.
const leaseVersion = 1

// lease makes the token of a lease and tells when its first part ends.
func (g *grouped) lease(id [16]byte) (token []byte, expiresMS int64) {
	b := append(make([]byte, 0, 32+2*len(g.byNum)), leaseVersion)
	b = binary.BigEndian.AppendUint64(b, g.scope.ns.keyspace.uid)
	b = append(b, id[:]...)
	for n, c := range g.byNum {
		if c == nil || c.Result.LeaseExpiresMS == 0 {
			continue
		}
		b = binary.AppendUvarint(b, uint64(n))
		if expiresMS == 0 || c.Result.LeaseExpiresMS < expiresMS {
			expiresMS = c.Result.LeaseExpiresMS
		}
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)), expiresMS
}

func parseLease(b []byte) (uid uint64, id [16]byte, shards []int, err *kverr.Error) {
	const head, tail = 1 + 8 + 16, 4
	if len(b) < head+tail || b[0] != leaseVersion ||
		crc32.Checksum(b[:len(b)-tail], castagnoli) != binary.BigEndian.Uint32(b[len(b)-tail:]) {
		return 0, id, nil, kverr.Invalid("lease", "is damaged or not a lease of this server")
	}
	uid = binary.BigEndian.Uint64(b[1:])
	copy(id[:], b[9:])
	for rest := b[head : len(b)-tail]; len(rest) > 0; {
		n, used := binary.Uvarint(rest)
		if used <= 0 || n > 1<<20 {
			return 0, id, nil, kverr.Invalid("lease", "is damaged or not a lease of this server")
		}
		shards = append(shards, int(n))
		rest = rest[used:]
	}
	return uid, id, shards, nil
}

// Release ends a lease. A lease that is unknown, over, or on a shard that cannot be reached now is none of the caller's
// worries: it ends by itself.
func (p *promptService) Release(ctx context.Context, req *kvv1.ReleaseRequest) (*kvv1.ReleaseResponse, error) {
	ns, err := p.promptNamespace(ctx, req.Keyspace, req.Namespace)
	if err != nil {
		return nil, err
	}
	resp := &kvv1.ReleaseResponse{Header: p.headerOf(ns, nil)}
	if len(req.Lease) == 0 {
		return resp, nil // a Lookup that found nothing gave none
	}
	uid, id, shards, err := parseLease(req.Lease)
	if err != nil {
		return nil, err
	}
	if uid != ns.keyspace.uid {
		return resp, nil
	}
	groups := make(map[string][]*shard.Command, len(shards))
	for _, n := range shards {
		if n < len(ns.keyspace.Shards) {
			c := &shard.Command{Op: shard.OpRelease, Namespace: ns.ID, Prompt: &shard.PromptArgs{Lease: id}}
			groups[ns.keyspace.Shards[n].ID] = []*shard.Command{c}
		}
	}
	if err := p.doAll(ctx, groups); err != nil {
		return nil, err
	}
	return resp, nil
}
