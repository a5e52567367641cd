package authn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"kvstore/components/kverr"
)

// Explain makes of the failure of a client's handshake, or of a connection that ended before it was of use, what people can act on. It
// is of kind Unauthenticated, and trying again changes nothing; nil when the cause is none of that: the network, or the caller.
func Explain(err error) *kverr.Error {
	e := &kverr.Error{Kind: kverr.Unauthenticated, Err: err}
	var unknown x509.UnknownAuthorityError
	var wrongName x509.HostnameError
	var invalid x509.CertificateInvalidError
	var notTLS tls.RecordHeaderError
	var verification *tls.CertificateVerificationError
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return nil
	case errors.As(err, &notTLS):
		e.Message = "the server does not speak TLS on this port: name a port that does, or leave TLS off if the network is trusted"
	case errors.As(err, &unknown):
		e.Message = "the server's certificate is not of a CA that is trusted here: name the file with the right CA's certificate"
	case errors.As(err, &wrongName):
		e.Message = fmt.Sprintf("the server's certificate is for %s and not for %s: dial it by a name that the certificate has, or say which of them is meant as server name",
			names(wrongName.Certificate), wrongName.Host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		e.Message = outOfTime(invalid.Cert)
	case errors.As(err, &verification):
		e.Message = "the server's certificate cannot be accepted: " + verification.Err.Error()
	case errors.Is(err, ErrStranger):
		e.Message = err.Error()
	default:
		what := alert(err)
		if what == "" {
			return nil
		}
		e.Message = what
	}
	return e
}

func outOfTime(c *x509.Certificate) string {
	if time.Now().Before(c.NotBefore) {
		return fmt.Sprintf("the server's certificate begins at %s only: is the clock of this machine right?", stamp(c.NotBefore))
	}
	return fmt.Sprintf("the server's certificate expired at %s: its operator must renew it (if the clock of this machine is right)", stamp(c.NotAfter))
}

// alert explains what the other side said when it broke the handshake off. crypto/tls has no type for that but its text.
func alert(err error) string {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return ""
	}
	switch text := op.Err.Error(); {
	case strings.Contains(text, "certificate required"):
		return "the server wants a client certificate of a CA that it trusts, and there is none such: give certificate and key"
	case strings.Contains(text, "expired certificate"):
		return "the server refuses the client certificate because it has expired, or by the server's clock not begun: renew it"
	case strings.Contains(text, "unknown certificate authority"):
		return "the server refuses the client certificate because it is not of a CA that the server trusts"
	case strings.Contains(text, "bad certificate"), strings.Contains(text, "unsupported certificate"), strings.Contains(text, "certificate unknown"):
		return "the server refuses the client certificate (" + strings.TrimPrefix(text, "tls: ") + ")"
	case strings.Contains(text, "protocol version"):
		return "the two sides have no TLS version in common: 1.3 is wanted"
	}
	return ""
}

// ExplainServer says in a few words why a server's handshake failed, for its log.
func ExplainServer(err error) string {
	var notTLS tls.RecordHeaderError
	var verification *tls.CertificateVerificationError
	var op *net.OpError
	switch {
	case errors.As(err, &notTLS):
		return "the client speaks plain text; this port speaks TLS"
	case errors.Is(err, ErrStranger):
		return err.Error()
	case errors.As(err, &verification):
		return "the client's certificate is refused: " + verification.Err.Error()
	case errors.As(err, &op) && op.Op == "remote error":
		return "the client refuses this server's certificate: " + strings.TrimPrefix(op.Err.Error(), "tls: ")
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		return "the client went away"
	}
	return err.Error()
}
