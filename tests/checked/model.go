package checked

import (
	"fmt"

	"github.com/anishathalye/porcupine"
)

// register is the state of one key, as the model has it.
type register struct {
	value uint64 // which value it holds; every write has one of its own. 0: the key is absent
	// version is that of the value; 0 while it is not known, because the write's reply never came and nobody has read it yet.
	version uint64
	// floor is the highest version known: later ones are higher.
	floor uint64
}

type verb uint8

const (
	verbGet verb = iota
	verbPut
	verbDelete
)

func (v verb) String() string { return [...]string{"get", "put", "delete"}[v] }

// call is what a client asked of a register.
type call struct {
	verb  verb
	value uint64 // of a put
	// cond makes a put conditional: the register must be absent (want 0), or hold the value want at the version that it had when that was
	// read.
	cond    bool
	want    uint64
	version uint64 // of want
}

// answer is what the client was told.
type answer struct {
	open    bool   // nothing: it may have been done, or be done at any time later, or never
	refused bool   // the condition did not hold
	value   uint64 // of a get; 0: absent
	version uint64 // of what was read or written, of a removal, or with refused of what is there instead (0: absent)
	before  bool   // a put or delete found the key there
}

// step is the model: whether a register in this state can give that answer, and its state afterwards.
func step(s register, c call, a answer) (bool, register) {
	switch {
	case c.verb == verbGet:
		return s.observe(a.value, a.version)
	case c.verb == verbDelete && a.open:
		return true, register{floor: s.floor}
	case c.verb == verbDelete:
		ok := a.before == (s.value != 0) && (!a.before || a.version > s.floor)
		return ok, register{floor: max(s.floor, a.version)}
	}
	holds := !c.cond || s.value == c.want
	if c.cond && holds && c.want != 0 {
		seen, known := s.observe(c.want, c.version)
		if !seen {
			return false, s
		}
		s = known
	}
	switch {
	case a.open && !holds:
		return true, s
	case a.open:
		return true, register{value: c.value, floor: s.floor}
	case a.refused && holds:
		return false, s
	case a.refused && (a.version == 0) != (s.value == 0):
		return false, s
	case a.refused && a.version == 0:
		return true, s
	case a.refused:
		return s.observe(s.value, a.version)
	}
	ok := holds && a.before == (s.value != 0) && a.version > s.floor
	return ok, register{value: c.value, version: a.version, floor: max(s.floor, a.version)}
}

// observe is the state after its value and version were seen.
func (s register) observe(value, version uint64) (bool, register) {
	switch {
	case value != s.value:
		return false, s
	case value == 0:
		return true, s
	case s.version == 0 && version > s.floor:
		return true, register{value: value, version: version, floor: version}
	}
	return s.version == version, s
}

// model is step for porcupine.
var model = porcupine.Model{
	Init: func() any { return register{} },
	Step: func(s, c, a any) (bool, any) {
		ok, next := step(s.(register), c.(call), a.(answer))
		return ok, next
	},
	DescribeOperation: func(in, out any) string { return describe(in.(call), out.(answer)) },
	DescribeState:     func(s any) string { return fmt.Sprintf("%+v", s) },
}

func describe(c call, a answer) string {
	text := c.verb.String()
	if c.verb == verbPut {
		text += fmt.Sprint(" ", c.value)
	}
	if c.cond {
		text += fmt.Sprintf(" if %d@%d", c.want, c.version)
	}
	switch {
	case a.open:
		return text + " -> no answer"
	case a.refused:
		return text + fmt.Sprintf(" -> refused, there is version %d", a.version)
	case c.verb == verbGet:
		return text + fmt.Sprintf(" -> %d@%d", a.value, a.version)
	}
	return text + fmt.Sprintf(" -> version %d, was there=%t", a.version, a.before)
}
