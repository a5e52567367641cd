package shard

import (
	"fmt"

	"kvstore/components/kverr"
)

// promptState is what the machine keeps in memory alone for the prompt cache: leases, order of use.
type promptState struct{}

// stepPrompt takes a prompt command: it emits effects with m.log and applies them by the code that applyPrompt uses, then
// answers with m.reply.
func (m *Machine) stepPrompt(c *Command) {
	m.fail(c, &kverr.Error{Kind: kverr.InvalidArgument, Op: "step", Field: "op", Message: "prompt operations are not built in"}, 0)
}

// applyPrompt replays an effect of the prompt cache: kinds kindPromptMin to kindPromptMax.
func (m *Machine) applyPrompt(revision uint64, k kind, payload []byte) error {
	return fmt.Errorf("prompt %v is not known to this release", k)
}

// restorePrompt rebuilds or keeps volatile state after the tree was replaced.
func (m *Machine) restorePrompt() {}

// tickPrompt expires blocks at shard time m.now, at most budget of them.
func (m *Machine) tickPrompt(budget int) {}

// wakePrompt is when the prompt cache next wants a Tick; 0 = never.
func (m *Machine) wakePrompt() int64 { return 0 }

// sealPrompt ends a body, live and in replay: it writes derived state that is kept per body into the tree.
func (m *Machine) sealPrompt() {}

// dropPrompt removes up to budget items of a namespace at the revision (the OpDropNamespace of both faces), by effects of its own;
// more = some are left.
func (m *Machine) dropPrompt(ns NamespaceID, budget int) (removed int, more bool) { return 0, false }

// applyRelocatePrompt names another place for the value of the item under a typed key, and changes nothing else: the caller
// accounts for the objects (hold, letGo). done is false when the item does not have its value at from any more.
func (m *Machine) applyRelocatePrompt(key []byte, from, to Ref) (done bool) { return false }

// promptRef finds where the value of a block's item is; false when it is not apart, or the item is not a block.
func promptRef(typed, item []byte) (Ref, bool) { return Ref{}, false }
