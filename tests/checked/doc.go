// Package checked is clients that know what a store must hold, and check everything that it answers: nothing acknowledged is lost,
// nothing is half there, versions never go back, nothing is applied twice, no linearizable read is stale (DESIGN section 5). It does not
// know what is done to the store meanwhile: tests/crash kills one process, tests/chaos takes a cluster apart.
//
// Four kinds of them work at once:
//   - An owner is the only one to write its keys and prompt blocks, so it knows exactly what must be there. It repeats what was interrupted
//     under the same identity, so almost every write ends with a definite answer; where one does not, both outcomes are accepted, once.
//   - Registers are keys that many clients read and write. Every call is recorded with when it began and ended, and the history of
//     each key must be that of one register (model.go, judged by porcupine). Some calls are given up early: their outcome stays open.
//   - Counters are counted up by many clients, each step under the condition that nobody else came between.
//   - Watchers put changes together (Account): those of a key come in order, each once. A witness is told all that happens; once nobody writes, what he was
//     told is held against what clients were answered, and what all others were told against his (journal): every change under ALL, the right state under
//     LATEST, first states of one revision. They watch all keys and some, blocks too, fast and slow, and go on from tokens after random breaks.
//
// A Load is all of them:
//
//	l, err := checked.Dial(ctx, checked.Config{Endpoints: endpoints, Seed: seed})
//	l.Work(ctx)
//	... take the store apart, and wait until it is whole ...
//	err = errors.Join(l.Rest(), l.Verify(ctx))
package checked
