package authn

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
)

// Tokens are random, so a plain SHA-256 of one gives nothing away: there is no dictionary to try, and slow, salted hashes exist for
// secrets that people invent. It is fast, which matters, because it is computed for every call.
const (
	tokenPrefix = "kvs_" // tells people and secret scanners what it is
	tokenBytes  = 32     // of randomness

	// MinToken and MaxToken bound the length of a token, in bytes. A file may hold hashes of tokens made elsewhere, as long as they
	// are random: shorter ones are not looked at.
	MinToken = 20
	MaxToken = 256
)

// NewToken makes a token of 256 random bits.
func NewToken() string {
	var b [tokenBytes]byte
	_, _ = rand.Read(b[:]) // never fails
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b[:])
}

// hash is the SHA-256 of a token.
type hash [sha256.Size]byte

const hashPrefix = "sha256:"

// HashOf is a token's hash as the file writes it.
func HashOf(token string) string {
	h := hash(sha256.Sum256([]byte(token)))
	return hashPrefix + hex.EncodeToString(h[:])
}

// hashOf hashes without allocating; ok is false when no token has such a length.
func hashOf(token string) (h hash, ok bool) {
	if len(token) < MinToken || len(token) > MaxToken {
		return h, false
	}
	var b [MaxToken]byte
	n := copy(b[:], token)
	return sha256.Sum256(b[:n]), true
}
