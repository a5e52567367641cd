// Package watchcheck holds watches to what is promised of them, over many events (DESIGN D9, section 5): changes of a key in order, each once, all of them under
// ALL, the right state under LATEST, first states of one revision, and all of that across everything that breaks a watch. Clients of tests/checked write and
// watch, with every kind of watch that there is; watchers reach the store through proxies that cut them off. Some speak for themselves, by SSE over REST and by
// a Watch that has its stream alone. One is a process of its own, kvctl, which is killed with -9 and goes on from the last token that it has written. Owners of
// shards and frontends are killed, too, and shards write until the changes that a watcher has missed are not kept any more.
//
//	make watch-check                    # some tens of thousands of events, on an embedded store and on a cluster
//	make watch-check EVENTS=1000000     # so many on each; writes REPORT.md
//
// What is done when follows from a seed that is printed; KVSTORE_WATCH_SEED repeats it, though not its timing.
package watchcheck
