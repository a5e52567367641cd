// Package key holds what keys and names may be, which part of a key decides its slot, and the limits that users meet
// (DESIGN D1 and section 4). It is pure: where a slot lives is package ring's part.
//
// What comes from outside is checked once, at the border, and trusted inside:
//
//	if err := key.CheckText(req.Key); err != nil {
//		return err // InvalidArgument or TooLarge, naming the field key
//	}
//	slot := ring.Slot(namespace, rule.Partition(req.Key))
//
// Inside, keys are bytes: nothing here or below cares for their encoding, except CheckText for the KV face.
package key

import (
	"unicode/utf8"

	"kvstore/components/kverr"
)

// Check reports a key that is empty or too long.
func Check(k []byte) error {
	switch {
	case len(k) == 0:
		return kverr.Invalid("key", "is empty; it must have 1 to %d bytes", MaxKey)
	case len(k) > MaxKey:
		return kverr.TooBig("key", len(k), MaxKey, "bytes")
	}
	return nil
}

// CheckText is Check for the KV face, whose keys are UTF-8.
func CheckText(k []byte) error {
	if err := Check(k); err != nil {
		return err
	}
	if !utf8.Valid(k) {
		return kverr.Invalid("key", "is %.40q; it must be valid UTF-8", k)
	}
	return nil
}

// CheckName reports a name of a keyspace or namespace that is not 1 to MaxName of a-z, 0-9, '-', '_', '.' beginning with a letter
// or digit. Field is what the request calls it.
func CheckName(field, name string) error {
	switch {
	case name == "":
		return kverr.Invalid(field, "is empty; it must have 1 to %d characters", MaxName)
	case len(name) > MaxName:
		return kverr.TooBig(field, len(name), MaxName, "characters")
	}
	for i := range len(name) {
		c := name[i]
		alnum := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		if !alnum && (i == 0 || c != '-' && c != '_' && c != '.') {
			return kverr.Invalid(field, "is %q; it may have a-z, 0-9, '-', '_' and '.', and begins with a letter or digit", name)
		}
	}
	return nil
}
