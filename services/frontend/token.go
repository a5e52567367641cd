package frontend

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// Tokens are opaque to clients. One format serves session and watch tokens (DESIGN D8, D9):
//
//	01                       version
//	uid:8                    keyspace
//	uvarint                  version of the shard map
//	(shard epoch revision)*  uvarints, one triple for each shard seen
//
// A page token is
//
//	01                       version
//	query:8                  hash of what is listed; the other fields of the request must be the same
//	uvarint length, bytes    last key of the page: the next one begins after it
//	bytes                    watch token of the first page
//	crc:4                    CRC32C of all before it
//
// Tokens grant nothing: every request is checked anew, so they need no secret. The checksum finds damage, not malice.
const tokenVersion = 1

// mapVersion is the version of every shard map until splits come.
const mapVersion = 1

// position is how far a shard had come.
type position struct {
	shard           int
	epoch, revision uint64
}

// appendTokenHead begins a session or watch token of a keyspace.
func appendTokenHead(b []byte, uid uint64) []byte {
	b = append(b, tokenVersion)
	b = binary.BigEndian.AppendUint64(b, uid)
	return binary.AppendUvarint(b, mapVersion)
}

// appendPosition adds a shard to a session or watch token.
func appendPosition(b []byte, p position) []byte {
	b = binary.AppendUvarint(b, uint64(p.shard))
	b = binary.AppendUvarint(b, p.epoch)
	return binary.AppendUvarint(b, p.revision)
}

// maxTokenBytes is room for a session token of one shard: head 10, triple 2 + 10 + 10.
const maxTokenBytes = 32

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendPageToken(b []byte, query uint64, last, watch []byte) []byte {
	from := len(b)
	b = append(b, tokenVersion)
	b = binary.BigEndian.AppendUint64(b, query)
	b = binary.AppendUvarint(b, uint64(len(last)))
	b = append(b, last...)
	b = append(b, watch...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[from:], castagnoli))
}

var (
	errTokenDamaged = errors.New("is damaged or not a token of this server")
	errTokenForeign = errors.New("belongs to a request with other fields")
	errTokenOther   = errors.New("belongs to another keyspace, or to one of this name that was deleted")
)

// parsePageToken takes a page token apart; last and watch are views.
func parsePageToken(b []byte, query uint64) (last, watch []byte, err error) {
	const head, tail = 9, 4
	if len(b) < head+tail || b[0] != tokenVersion {
		return nil, nil, errTokenDamaged
	}
	body := b[:len(b)-tail]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(b[len(b)-tail:]) {
		return nil, nil, errTokenDamaged
	}
	if binary.BigEndian.Uint64(body[1:]) != query {
		return nil, nil, errTokenForeign
	}
	n, used := binary.Uvarint(body[head:])
	rest := body[head:]
	if used <= 0 || n > uint64(len(rest)-used) {
		return nil, nil, errTokenDamaged
	}
	rest = rest[used:]
	return rest[:n], rest[n:], nil
}
