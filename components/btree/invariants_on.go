//go:build invariants

package btree

// invariants turns on checks after each write.
const invariants = true
