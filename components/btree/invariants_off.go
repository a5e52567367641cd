//go:build !invariants

package btree

// invariants turns on checks after each write; build with -tags invariants.
const invariants = false
