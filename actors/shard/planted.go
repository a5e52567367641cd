package shard

// bug is a mistake that can be put in on purpose, to prove that the random check would find it (planted_test.go). Without
// the build tag plantedbugs none can, and the compiler removes the places where they would act.
type bug int

const (
	_                     bug = iota
	bugRevisionReused         // a new owner begins one revision too low
	bugFailureForgotten       // failed preconditions are not remembered
	bugOutcomeNotLogged       // outcomes are remembered in memory alone
	bugOldExpiryStays         // a put leaves the key's former expiry in the index
	bugFirstFailureOnly       // a transaction reports its first failed condition alone
	bugReplayClock            // a replay stamps entries with the time of the record
	bugDuplicateNotGated      // the answer to a duplicate does not wait for the first try
	bugAbsenceNotGated        // the answer that a key is absent does not wait for its removal
	bugExpiredValueHeld       // an expired entry's value stays accounted as live
	bugHistoryHole            // the oldest kept revision is told too low by a chunk
	bugSweepEarly             // outcomes are forgotten a minute early
	bugCountersSurvive        // a restore keeps the counters of the state that it replaces
	bugBudgetStopsDeletes     // deletes are refused at the memory budget
	bugTxnChecksAsItGoes      // a transaction's operations are checked against the state that its earlier ones made
	bugDropForgotten          // a restore forgets which namespaces are dropped
	bugsEnd
)
