// Package crash kills a real kvstored with -9, over and over, under clients that check everything: nothing acknowledged is
// lost, nothing half there, versions never go back, nothing is applied twice (DESIGN section 5).
// The clients are those of tests/checked.
//
// Segments and checkpoints are made small, so that kills land in segment rolls, checkpoints and merges too; every third
// round also kills the process while it recovers.
//
// The page cache survives kill -9: that acknowledged writes were synced is shown by tests/fault.
package crash
