package driver

import "fmt"

// Limits of names.
const (
	MaxShardName  = 64
	MaxObjectName = 128
)

// CheckpointPrefix begins the names of checkpoint objects. An engine with a free-space reserve lets them use a part of it,
// because only a checkpoint lets the log be trimmed.
const CheckpointPrefix = "c/"

// CheckShard returns an ErrRefused that says what is wrong with a shard's name; nil when nothing is.
func CheckShard(name string) error {
	if name == "" || len(name) > MaxShardName {
		return fmt.Errorf("%w: shard name of %d bytes: must be 1 to %d", ErrRefused, len(name), MaxShardName)
	}
	if name[0] == '.' {
		return fmt.Errorf("%w: shard name %q begins with a dot", ErrRefused, name)
	}
	for i := range len(name) {
		if c := name[i]; !alphanumeric(c) && c != '-' && c != '.' {
			return fmt.Errorf("%w: shard name %q: byte %#02x is none of '.', '-', 0-9 and a-z", ErrRefused, name, c)
		}
	}
	return nil
}

// CheckObject returns an ErrRefused that says what is wrong with an object's name; nil when nothing is.
func CheckObject(name string) error {
	if name == "" || len(name) > MaxObjectName {
		return fmt.Errorf("%w: object name of %d bytes: must be 1 to %d", ErrRefused, len(name), MaxObjectName)
	}
	element := 0
	for i := range len(name) {
		switch c := name[i]; {
		case c == '/' && element == 0:
			return fmt.Errorf("%w: object name %q has an empty path element", ErrRefused, name)
		case c == '/':
			element = 0
		case !alphanumeric(c) && c != '-':
			return fmt.Errorf("%w: object name %q: byte %#02x is not one of a-z 0-9 - /", ErrRefused, name, c)
		default:
			element++
		}
	}
	if element == 0 {
		return fmt.Errorf("%w: object name %q has an empty path element", ErrRefused, name)
	}
	return nil
}

func alphanumeric(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }
