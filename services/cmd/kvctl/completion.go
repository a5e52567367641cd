package main

// what says what something on the command line is, for completion.
type what int

const (
	completeNothing what = iota
	completeKeys
	completeFiles
	completeContexts
	completeNamespaces
	completeKeyspaces
	completeValue // a value: text, or @FILE
	completeKeyValue
	completeCommands
)
