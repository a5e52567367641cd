package gateway

import (
	"crypto/sha256"
	"encoding/binary"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"kvstore/components/key"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// Headers of our own. Those of metadata and tags end with a name.
const (
	headerTTL      = "Kv-Ttl-Seconds" // seconds, or keep
	headerMeta     = "Kv-Meta-"
	headerTag      = "Kv-Tag-"
	headerChecksum = "Kv-Checksum" // xxh3-64, 16 hexadecimal digits
	headerCreated  = "Kv-Created"  // RFC 3339
	headerUpdated  = "Kv-Updated"
	headerExpires  = "Kv-Expires"
	headerToken    = "Kv-Token"
	headerOnce     = "Idempotency-Key"
	headerNotAfter = "Kv-Not-After-Ms"
)

// etag is a version as a header.
func etag(version uint64) string { return `"` + strconv.FormatUint(version, 10) + `"` }

// parseETag reads one strong ETag of ours; ok is false for those that no version of ours can have.
func parseETag(text string) (version uint64, ok bool) {
	text = strings.TrimSpace(text)
	if len(text) < 3 || text[0] != '"' || text[len(text)-1] != '"' {
		return 0, false
	}
	version, err := strconv.ParseUint(text[1:len(text)-1], 10, 64)
	return version, err == nil && version > 0
}

// writeCondition is what If-Match and If-None-Match ask of a write. What no precondition can say is refused, not passed over.
func writeCondition(h http.Header) (*kvv1.Precondition, error) {
	match, none := h.Values("If-Match"), h.Values("If-None-Match")
	switch {
	case len(match) > 0 && len(none) > 0:
		return nil, kverr.Invalid("If-None-Match", "is given together with If-Match; a write takes one of them")
	case len(none) > 0:
		if len(none) > 1 || strings.TrimSpace(none[0]) != "*" {
			return nil, kverr.Invalid("If-None-Match", "is %.80q; of a write it must be *: the key must be absent", strings.Join(none, ", "))
		}
		return &kvv1.Precondition{Check: &kvv1.Precondition_IfAbsent{IfAbsent: true}}, nil
	case len(match) > 0:
		if len(match) == 1 && strings.TrimSpace(match[0]) == "*" {
			return &kvv1.Precondition{Check: &kvv1.Precondition_IfPresent{IfPresent: true}}, nil
		}
		version, ok := parseETag(match[0])
		if len(match) > 1 || !ok {
			return nil, kverr.Invalid("If-Match", "is %.80q; of a write it must be one ETag as this server gave it, or *", strings.Join(match, ", "))
		}
		return &kvv1.Precondition{Check: &kvv1.Precondition_IfVersion{IfVersion: version}}, nil
	}
	return nil, nil
}

// conditional tells whether a read has a condition at all.
func conditional(h http.Header) bool { return h["If-Match"] != nil || h["If-None-Match"] != nil }

// errNotModified answers a read of what the client has already.
var errNotModified = refuse(http.StatusNotModified, "", "")

// readCondition decides about a read of a key with a version (RFC 9110 13.2.2): nil, errNotModified, or that If-Match failed.
func readCondition(h http.Header, version uint64) error {
	if match := h.Values("If-Match"); len(match) > 0 && !listsETag(match, version, false) {
		return kverr.Mismatch(version)
	}
	if none := h.Values("If-None-Match"); len(none) > 0 && listsETag(none, version, true) {
		return errNotModified
	}
	return nil
}

// listsETag looks for a version in lists of ETags; weak ones count when they may.
func listsETag(lists []string, version uint64, weak bool) bool {
	for _, list := range lists {
		for item := range strings.SplitSeq(list, ",") {
			item = strings.TrimSpace(item)
			if item == "*" {
				return true
			}
			if weak {
				item = strings.TrimPrefix(item, "W/")
			}
			if v, ok := parseETag(item); ok && v == version {
				return true
			}
		}
	}
	return false
}

// ttlOf reads Kv-Ttl-Seconds.
func ttlOf(h http.Header) (ms int64, keep bool, err error) {
	switch text := h.Get(headerTTL); text {
	case "":
		return 0, false, nil
	case "keep":
		return 0, true, nil
	default:
		n, perr := strconv.ParseInt(text, 10, 64)
		if perr != nil {
			return 0, false, kverr.Invalid(headerTTL, "is %.40q; it must be seconds, or keep", text)
		}
		ms, err = milliseconds(headerTTL, n)
		return ms, false, err
	}
}

// milliseconds converts a time to live; the frontend checks the rest.
func milliseconds(field string, seconds int64) (int64, error) {
	const most = 100 * 365 * 24 * 3600
	if seconds < 1 || seconds > most {
		return 0, kverr.Invalid(field, "is %d; it must be 1 to %d seconds", seconds, most)
	}
	return seconds * 1000, nil
}

// identityOf makes the identity of a write of its Idempotency-Key. It is of the key and the operation together, so that one key may be used for
// requests of a kind to different places.
func (q *request) identityOf() (*kvv1.WriteIdentity, error) {
	keys := q.r.Header.Values(headerOnce)
	notAfter := q.r.Header.Get(headerNotAfter)
	if len(keys) == 0 {
		if notAfter != "" {
			return nil, kverr.Invalid(headerNotAfter, "is given without "+headerOnce)
		}
		return nil, nil
	}
	once := strings.Trim(strings.TrimSpace(keys[0]), `"`)
	if len(keys) > 1 || once == "" || len(once) > maxOnce {
		return nil, kverr.Invalid(headerOnce, "must be given once and have 1 to %d bytes", maxOnce)
	}
	at := time.Now().UnixMilli() + key.MaxNotAfterAheadMS - clockSlackMS
	if notAfter != "" {
		n, err := strconv.ParseInt(notAfter, 10, 64)
		if err != nil {
			return nil, kverr.Invalid(headerNotAfter, "is %.40q; it must be milliseconds since the Unix epoch, by this server's clock", notAfter)
		}
		at = n
	}
	h := sha256.New()
	for _, part := range []string{"kvstore idempotency key 1", once, q.r.Method, q.r.URL.EscapedPath(), q.query.text("keyspace"), q.query.text("namespace")} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		h.Write(n[:])
		h.Write([]byte(part))
	}
	sum := h.Sum(nil)
	return &kvv1.WriteIdentity{Client: sum[:16], Op: binary.BigEndian.Uint64(sum[16:24]), NotAfterMs: at}, nil
}

const (
	maxOnce = 256
	// clockSlackMS is what the frontend's clock may be behind ours: it is the same, read a moment later.
	clockSlackMS = 1000
)

// pairsOf reads the headers that begin with a prefix. HTTP's names have no case, so ours are lower case; what a name or a value cannot be written
// with is escaped, %41 for A.
func pairsOf(h http.Header, prefix string) (map[string]string, error) {
	var out map[string]string
	for name, values := range h {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		if len(values) > 1 {
			return nil, kverr.Invalid(name, "is given %d times", len(values))
		}
		plain, ok := unescape(strings.ToLower(rest))
		if !ok {
			return nil, kverr.Invalid(prefix+"*", "has a name with a bad escape; write %% as %%25")
		}
		value, ok := unescape(values[0])
		if !ok {
			return nil, kverr.Invalid(prefix+"*", "has a value with a bad escape; write %% as %%25")
		}
		if out == nil {
			out = make(map[string]string)
		}
		out[plain] = value
	}
	return out, nil
}

// setPairs writes such headers.
func setPairs(h http.Header, prefix string, pairs map[string]string) {
	for name, value := range pairs {
		full := prefix + escape(name, nameByte)
		h[http.CanonicalHeaderKey(full)] = []string{escapeValue(value)}
	}
}

func nameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.'
}

func valueByte(c byte) bool { return c >= ' ' && c < 0x7f && c != '%' }

// escapeValue escapes a value; spaces at its ends would get lost.
func escapeValue(s string) string {
	out := escape(s, valueByte)
	if strings.HasPrefix(out, " ") {
		out = "%20" + out[1:]
	}
	if strings.HasSuffix(out, " ") {
		out = out[:len(out)-1] + "%20"
	}
	return out
}

func escape(s string, plain func(byte) bool) string {
	const digits = "0123456789ABCDEF"
	n := 0
	for i := range len(s) {
		if !plain(s[i]) {
			n++
		}
	}
	if n == 0 {
		return s
	}
	b := make([]byte, 0, len(s)+2*n)
	for i := range len(s) {
		if c := s[i]; plain(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', digits[c>>4], digits[c&15])
		}
	}
	return string(b)
}

// unescape is its inverse; it takes UTF-8 as it is.
func unescape(s string) (string, bool) {
	if strings.IndexByte(s, '%') < 0 {
		return s, true
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b = append(b, s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", false
		}
		c, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return "", false
		}
		b = append(b, byte(c))
		i += 2
	}
	return string(b), true
}

// setEntry writes everything known about an entry but its value.
func setEntry(h http.Header, e *kvv1.Entry) {
	h["Etag"] = []string{etag(e.Version)}
	h["Content-Length"] = []string{strconv.FormatInt(e.Size, 10)}
	h["Content-Type"] = []string{headerText(e.ContentType, "application/octet-stream")}
	if encoding := headerText(e.Encoding, ""); encoding != "" {
		h["Content-Encoding"] = []string{encoding}
	}
	updated := time.UnixMilli(e.UpdatedMs).UTC()
	h["Last-Modified"] = []string{updated.Format(http.TimeFormat)}
	h[headerCreated] = []string{stamp(e.CreatedMs)}
	h[headerUpdated] = []string{stamp(e.UpdatedMs)}
	if e.ExpiresMs != 0 {
		h[headerExpires] = []string{stamp(e.ExpiresMs)}
	}
	if e.Checksum != 0 {
		h[headerChecksum] = []string{checksumText(e.Checksum)}
	}
	setPairs(h, headerMeta, e.Metadata)
	setPairs(h, headerTag, e.Tags)
}

// headerText is what was given to Put, if it can be a header; gRPC lets anything be given.
func headerText(s, otherwise string) string {
	if s == "" || !utf8.ValidString(s) {
		return otherwise
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7f {
			return otherwise
		}
	}
	return s
}

func stamp(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z") }

func checksumText(sum uint64) string {
	const digits = "0123456789abcdef"
	var b [16]byte
	for i := range b {
		b[i] = digits[sum>>(60-4*i)&15]
	}
	return string(b[:])
}

// checksumOf reads Kv-Checksum; 0 when it is not given.
func checksumOf(h http.Header) (uint64, error) {
	text := h.Get(headerChecksum)
	if text == "" {
		return 0, nil
	}
	sum, err := strconv.ParseUint(text, 16, 64)
	if err != nil || len(text) != 16 {
		return 0, kverr.Invalid(headerChecksum, "is %.40q; it must be the xxh3-64 of the body, 16 hexadecimal digits", text)
	}
	return sum, nil
}

// setHeader tells of the session.
func setHeader(h http.Header, header *kvv1.ResponseHeader) {
	if len(header.GetToken()) > 0 {
		h[headerToken] = []string{tokenText(header.Token)}
	}
}
