// Package chaos takes a cluster apart while checked clients use it (tests/checked), and measures how long writes are away (DESIGN section 5).
// The cluster is the product's own processes on real daprd, placement and Redis; its supervisors start again what was killed.
//
//	make chaos-ci    # a tenth of the faults, and everything else here, in minutes
//	make chaos       # all of the faults; writes REPORT.md
//
// Two hosts that both believe that a shard is theirs are asked for it directly (claimant), and everything that they and all others said is held
// against the rule that there is one writer at a time (judge, chain). That the judge would see two is shown on a store without the fence.
//
// Which fault comes when, and whom it meets, follows from a seed that is printed; KVSTORE_CHAOS_SEED repeats it, though not its timing.
package chaos
