// Package chaos takes a cluster apart while checked clients use it (tests/checked), and measures how long writes are away (DESIGN section 5).
// The cluster is the product's own processes on real daprd, placement and Redis; its supervisors start again what was killed.
//
//	make chaos-ci    # a tenth of the faults, in minutes
//	make chaos       # all of them; writes REPORT.md
//
// Which fault comes when, and whom it meets, follows from a seed that is printed; KVSTORE_CHAOS_SEED repeats it, though not its timing.
package chaos
