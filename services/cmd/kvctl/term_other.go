//go:build !unix

package main

import "os"

// terminalWidth is the number of columns of the terminal that f is; here nobody knows, and output is as for a pipe.
func terminalWidth(*os.File) int { return 0 }
