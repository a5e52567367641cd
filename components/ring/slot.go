// Package ring says where keys live: the slot of a partition key, and which shard of a keyspace owns a slot (DESIGN D1).
//
// The way of a key is: key.Rule finds its partition key, Slot hashes that, Map.Owner names the shard, Map.ShardID its actor.
//
//	shard := m.Owner(ring.Slot(namespace, rule.Partition(k)))
//
// It is pure and knows nothing of hosts: where a shard runs is for the actor runtime to say. testdata/slots.json has golden
// vectors for other languages.
package ring

import "github.com/zeebo/xxh3"

// Slots is how many slots a keyspace has.
const Slots = 4096

// HashVersion names how Slot hashes: xxh3-64 with seed 0 of the namespace's name, one zero byte and the partition key, modulo
// 4,096. A map carries the version that it was made for; another way to hash would be version 2.
const HashVersion = 1

// Slot returns the slot of a partition key in a namespace. It allocates nothing for partition keys of up to a key's length.
func Slot(namespace string, partition []byte) uint16 {
	return uint16(hash(namespace, partition) % Slots)
}

func hash(namespace string, partition []byte) uint64 {
	var room [64 + 1 + 1024]byte // the longest name and key
	b := append(room[:0], namespace...)
	b = append(b, 0)
	b = append(b, partition...)
	return xxh3.Hash(b)
}
