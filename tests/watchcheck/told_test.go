package watchcheck

import (
	"fmt"

	"kvstore/client"
	"kvstore/tests/checked"
)

// told is what a watcher is told who does not use package client: changes and where he stands, one after the other, and now and then a token. He takes what came up
// to a token at once. What stands behind the last token when his connection is lost will be told again.
type told struct {
	account *checked.Account
	token   []byte            // the last; nil: there is none to go on from
	batch   client.WatchBatch // what came since
}

// begin begins to watch, from the last token if there is one.
func (w *told) begin() {
	w.batch = client.WatchBatch{}
	if w.token == nil {
		w.account.Asked()
	} else {
		w.account.Count("resumed")
	}
}

// compacted is told instead of what comes after the token.
func (w *told) compacted() {
	w.account.Count("COMPACTED")
	w.token = nil
}

// change is told, and a token if something came with it.
func (w *told) change(e client.Event, token []byte) error {
	w.batch.Events = append(w.batch.Events, e)
	return w.upTo(token)
}

// stand is where the watch stands, by the name of kvctl.
func (w *told) stand(name string, token []byte) error {
	switch name {
	case "STARTED":
		w.batch.Started = true
	case "SYNCED":
		w.batch.Synced = true
	case "RESYNC":
		w.batch = client.WatchBatch{Resync: true}
	case "PROGRESS":
	default:
		return fmt.Errorf("told %q", name)
	}
	if (w.batch.Started || w.batch.Synced) && len(token) == 0 {
		return fmt.Errorf("told %s without a token", name)
	}
	return w.upTo(token)
}

func (w *told) upTo(token []byte) error {
	if len(token) == 0 {
		return nil
	}
	w.batch.Token = token
	if err := w.account.Take(&w.batch); err != nil {
		return err
	}
	w.token, w.batch = token, client.WatchBatch{}
	return nil
}
