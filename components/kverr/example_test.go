package kverr_test

import (
	"errors"
	"fmt"
	"io"

	"kvstore/components/kverr"
)

// A package says what went wrong once; whoever is outside asks for the kind, through any number of wrappings.
func Example() {
	read := func() error { return kverr.Wrap(kverr.DataLoss, "read value", io.ErrUnexpectedEOF) }

	err := fmt.Errorf("get %q: %w", "user/7", read())
	fmt.Println(err)
	fmt.Println(kverr.KindOf(err), errors.Is(err, kverr.DataLoss), errors.Is(err, io.ErrUnexpectedEOF))
	fmt.Println(kverr.GRPC(err)) // the cause stays here
	// Output:
	// get "user/7": read value: data loss: unexpected EOF
	// data loss true true
	// rpc error: code = DataLoss desc = read value: data loss
}
