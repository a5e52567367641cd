package checked

import (
	"strings"
	"testing"

	"github.com/anishathalye/porcupine"
)

// TestModel: histories of one register, each call as "client begin end call", and whether they could have been.
func TestModel(t *testing.T) {
	op := func(client int, begin, end int64, c call, a answer) porcupine.Operation {
		return porcupine.Operation{ClientId: client, Call: begin, Return: end, Input: c, Output: a}
	}
	put := func(v uint64) call { return call{verb: verbPut, value: v} }
	get := call{verb: verbGet}
	del := call{verb: verbDelete}
	const later = 1 << 40
	for _, tt := range []struct {
		name string
		ok   bool
		ops  []porcupine.Operation
	}{
		{"a put is read", true, []porcupine.Operation{
			op(0, 0, 1, put(1), answer{version: 7}), op(1, 2, 3, get, answer{value: 1, version: 7}),
		}},
		{"a stale read", false, []porcupine.Operation{
			op(0, 0, 1, put(1), answer{version: 7}), op(0, 2, 3, put(2), answer{version: 8, before: true}), op(1, 4, 5, get, answer{value: 1, version: 7}),
		}},
		{"a read beside the put may see either", true, []porcupine.Operation{
			op(0, 0, 1, put(1), answer{version: 7}), op(0, 2, 9, put(2), answer{version: 8, before: true}),
			op(1, 3, 4, get, answer{value: 2, version: 8}), op(1, 5, 6, get, answer{value: 2, version: 8}),
		}},
		{"but not first the new and then the old", false, []porcupine.Operation{
			op(0, 0, 1, put(1), answer{version: 7}), op(0, 2, 9, put(2), answer{version: 8, before: true}),
			op(1, 3, 4, get, answer{value: 2, version: 8}), op(1, 5, 6, get, answer{value: 1, version: 7}),
		}},
		{"an acknowledged put is lost", false, []porcupine.Operation{
			op(0, 0, 1, put(1), answer{version: 7}), op(1, 2, 3, get, answer{}),
		}},
		{"a put that was deleted comes back: it was applied twice", false, []porcupine.Operation{
			op(0, 0, 1, put(1), answer{version: 7}), op(0, 2, 3, del, answer{version: 8, before: true}), op(1, 4, 5, get, answer{value: 1, version: 9}),
		}},
		{"the same value under another version: it was applied twice", false, []porcupine.Operation{
			op(0, 0, 1, put(1), answer{version: 7}), op(1, 2, 3, get, answer{value: 1, version: 8}),
		}},
		{"a version goes back", false, []porcupine.Operation{
			op(0, 0, 1, put(1), answer{version: 7}), op(0, 2, 3, del, answer{version: 8, before: true}), op(0, 4, 5, put(2), answer{version: 8}),
		}},
		{"a put says that nothing was there", false, []porcupine.Operation{
			op(0, 0, 1, put(1), answer{version: 7}), op(0, 2, 3, put(2), answer{version: 8}),
		}},
		{"an open put may be seen late", true, []porcupine.Operation{
			op(0, 0, later, put(1), answer{open: true}), op(1, 2, 3, get, answer{}), op(1, 4, 5, get, answer{value: 1, version: 3}),
			op(1, 6, 7, get, answer{value: 1, version: 3}),
		}},
		{"and not at all", true, []porcupine.Operation{
			op(0, 0, later, put(1), answer{open: true}), op(1, 2, 3, get, answer{}), op(1, 4, 5, put(2), answer{version: 3}),
			op(1, 6, 7, get, answer{value: 2, version: 3}),
		}},
		{"but not twice", false, []porcupine.Operation{
			op(0, 0, later, put(1), answer{open: true}), op(1, 2, 3, get, answer{value: 1, version: 3}),
			op(1, 4, 5, put(2), answer{version: 4, before: true}), op(1, 6, 7, get, answer{value: 1, version: 5}),
		}},
		{"its version is above those before", false, []porcupine.Operation{
			op(0, 0, 1, put(1), answer{version: 7}), op(0, 2, later, put(2), answer{open: true}), op(1, 4, 5, get, answer{value: 2, version: 6}),
		}},
		{"a condition that holds", true, []porcupine.Operation{
			op(0, 0, 1, put(1), answer{version: 7}), op(1, 2, 3, call{verb: verbPut, value: 2, cond: true, want: 1, version: 7}, answer{version: 8, before: true}),
			op(1, 4, 5, call{verb: verbPut, value: 3, cond: true}, answer{refused: true, version: 8}),
		}},
		{"a condition that holds twice", false, []porcupine.Operation{
			op(0, 0, 1, put(1), answer{version: 7}),
			op(1, 2, 3, call{verb: verbPut, value: 2, cond: true, want: 1, version: 7}, answer{version: 8, before: true}),
			op(0, 2, 3, call{verb: verbPut, value: 3, cond: true, want: 1, version: 7}, answer{version: 9, before: true}),
		}},
		{"a condition that held is refused", false, []porcupine.Operation{
			op(0, 0, 1, put(1), answer{version: 7}), op(1, 2, 3, call{verb: verbPut, value: 2, cond: true, want: 1, version: 7}, answer{refused: true, version: 7}),
		}},
		{"refused by an open put", true, []porcupine.Operation{
			op(0, 0, later, put(1), answer{open: true}), op(1, 2, 3, call{verb: verbPut, value: 2, cond: true}, answer{refused: true, version: 5}),
			op(1, 4, 5, get, answer{value: 1, version: 5}),
		}},
		{"an open conditional put that cannot have been applied", false, []porcupine.Operation{
			op(0, 0, 1, put(1), answer{version: 7}), op(0, 2, 3, put(2), answer{version: 8, before: true}),
			op(1, 4, later, call{verb: verbPut, value: 3, cond: true, want: 1, version: 7}, answer{open: true}), op(0, 6, 7, get, answer{value: 3, version: 9}),
		}},
		{"an open delete", true, []porcupine.Operation{
			op(0, 0, 1, put(1), answer{version: 7}), op(0, 2, later, del, answer{open: true}), op(1, 4, 5, get, answer{value: 1, version: 7}),
			op(1, 6, 7, get, answer{}),
		}},
		{"a delete of nothing", true, []porcupine.Operation{
			op(0, 0, 1, del, answer{}), op(0, 2, 3, put(1), answer{version: 1}),
		}},
	} {
		if got := porcupine.CheckOperations(model, tt.ops); got != tt.ok {
			var text []string
			for _, o := range tt.ops {
				text = append(text, describe(o.Input.(call), o.Output.(answer)))
			}
			t.Errorf("%s: linearizable=%t, want %t:\n%s", tt.name, got, tt.ok, strings.Join(text, "\n"))
		}
	}
}
